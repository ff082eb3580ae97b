r"""Running a Pyro program and reading its trace: what stands in it, and what one datum's share is.

A program pair has a per-datum marginal likelihood when every sample site stands in the plate of
the data,

.. math:: p(x_{1:N}, z_{1:N}) = \prod_{n=1}^{N} p(x_n, z_n),

and :func:`inspect_programs` finds out by running the pair once: which plate holds the data, which
sites are latent, observed or enumerated, how deep the plates nest. What has no such form is
refused by a :class:`ProgramError` that names the site and the reason.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import pyro
import pyro.distributions as dist
import torch
from pyro import poutine
from pyro.poutine.messenger import Messenger
from pyro.poutine.runtime import Message
from torch import Tensor, nn

Program = Callable[..., Any]
Data = Tensor | tuple[Tensor, ...]
PARTICLE_PLATE = "_particles"


class ProgramError(ValueError):
    """A program that cannot have a per-datum marginal likelihood, or that fails on its data."""


def num_data(x: Data) -> int:
    """The number N of data in ``x``: the leading dimension of the tensor, or of each in a tuple.

    Raises:
        TypeError: ``x`` is neither a tensor nor a tuple of tensors.
        ValueError: there is no datum, or the parts of a tuple disagree.

    Example:
        >>> num_data((torch.zeros(3, 2), torch.zeros(3)))
        3
    """
    parts = x if isinstance(x, tuple) else (x,)
    if not parts or not all(isinstance(part, Tensor) for part in parts):
        raise TypeError(f"x must be a tensor or a tuple of tensors, but is {type(x).__name__}")
    sizes = [part.shape[0] if part.dim() else 0 for part in parts]
    if len(set(sizes)) > 1:
        raise ValueError(f"the parts of x must hold the same number of data, but hold {sizes}")
    if sizes[0] == 0:
        raise ValueError(f"x must hold at least one datum, but has shape {tuple(parts[0].shape)}")
    return sizes[0]


@dataclass(frozen=True)
class Latent:
    """Where the dimensions of a latent stand: ``(batch_dims of plates, event_dims)``."""

    batch_dims: int
    event_dims: int


@dataclass(frozen=True)
class Layout:
    """What one run of a program pair showed.

    Attributes:
        data_dim: the (negative) batch dimension of the data plate.
        nesting: how many batch dimensions the plates take.
        latents: the sampled latents, in the guide's order.
        auxiliary: those among them that are an autoguide's base draws, not the model's latents.
        enumerated: latents summed out exactly, in the model or in the guide.
        observed: observed sites of the model, factors included.
        active: layers in training mode that make weights depend on chance or on the other data.
        device: where the parameters live; None when there are none.
    """

    data_dim: int
    nesting: int
    latents: Mapping[str, Latent]
    enumerated: frozenset[str]
    observed: tuple[str, ...]
    auxiliary: frozenset[str] = frozenset()
    active: tuple[str, ...] = ()
    device: torch.device | None = None


class _Substitute(Messenger):
    """Gives latents their values, and the enumeration marks that the guide's sites carry."""

    def __init__(self, values: Mapping[str, Tensor], infer: Mapping[str, dict]) -> None:
        super().__init__()
        self.values, self.infer = values, infer

    def _pyro_sample(self, msg: Message) -> None:
        name = msg["name"]
        if name in self.values and not msg["is_observed"]:
            msg["done"] = True
            msg["value"] = self.values[name]
            if name in self.infer:
                msg["infer"] = self.infer[name]


def run_program(
    program: Program,
    args: tuple,
    *,
    particles: int | None = None,
    particle_dim: int = -1,
    values: Mapping[str, Tensor] | None = None,
    infer: Mapping[str, dict] | None = None,
    enumerate_from: int | None = None,
    continue_enumeration: bool = False,
    inside: Messenger | None = None,
) -> poutine.Trace:
    """Trace ``program(*args)``, by choice under a particle plate and with enumeration.

    ``inside`` is a handler placed within the particle plate: it sees each site's distribution
    before the plate has spread it over the particles.
    """
    with ExitStack() as stack:
        trace = stack.enter_context(poutine.trace())
        if values:
            # outside the enumeration, which notes what each site depends on before it is given
            stack.enter_context(_Substitute(values, infer or {}))
        if enumerate_from is not None:
            stack.enter_context(poutine.enum(first_available_dim=enumerate_from))
        elif continue_enumeration:
            stack.enter_context(poutine.enum())
        if particles is not None:
            stack.enter_context(pyro.plate(PARTICLE_PLATE, particles, dim=particle_dim))
        if inside is not None:
            stack.enter_context(inside)
        program(*args)
    return trace.trace


def is_enumerated(site: dict) -> bool:
    return not site["is_observed"] and site["infer"].get("enumerate") == "parallel"


def sample_sites(trace: poutine.Trace) -> dict[str, dict]:
    """The sites that carry probability: no plates' subsamples, no ``pyro.deterministic``."""
    return {
        name: site
        for name, site in trace.nodes.items()
        if site["type"] == "sample"
        and type(site["fn"]).__name__ != "_Subsample"
        and not site["infer"].get("_deterministic", False)
    }


def inspect_programs(model: Program, guide: Program | None, args: tuple) -> Layout:
    """Run the pair once on ``args = (x, *context)`` and say what stands in it.

    With ``guide=None`` the latents are the model's own: the prior is the proposal.

    Raises:
        ProgramError: the pair has no per-datum marginal likelihood; names the site.
    """
    called: dict[int, nn.Module] = {}

    def note(module: nn.Module, _: object) -> None:
        called[id(module)] = module

    hook = nn.modules.module.register_module_forward_pre_hook(note)
    try:
        with torch.no_grad():
            guide_trace = None if guide is None else _first_run("guide", guide, args, {}, called)
            drawn = {} if guide_trace is None else drawn_values(guide_trace)
            model_trace = _first_run("model", model, args, drawn, called)
    finally:
        hook.remove()
    model_sites = sample_sites(model_trace)
    guide_sites = {} if guide_trace is None else sample_sites(guide_trace)
    _refuse_guide_sites(guide_sites, model_sites)
    _refuse_unmatched_latents(model_sites, guide_sites, prior_proposal=guide is None)
    data_dim = _find_data_dim(model_sites, guide_sites, num_data(args[0]))
    nesting = max(
        -frame.dim
        for site in (*model_sites.values(), *guide_sites.values())
        for frame in site["cond_indep_stack"]
        if frame.vectorized
    )
    for name, site in (*model_sites.items(), *guide_sites.items()):
        _refuse_shape(name, site, data_dim, num_data(args[0]))
    enumerated = frozenset(
        name
        for sites in (guide_sites, model_sites)
        for name, site in sites.items()
        if is_enumerated(site) and (sites is guide_sites or name not in guide_sites)
    )
    proposal_sites = model_sites if guide is None else guide_sites
    parameters = [
        *(value for module in called.values() for value in module.parameters(recurse=False)),
        *(
            site["value"]
            for trace in (model_trace, guide_trace)
            if trace is not None
            for site in trace.nodes.values()
            if site["type"] == "param"
        ),
    ]
    return Layout(
        data_dim=data_dim,
        nesting=nesting,
        latents={
            name: Latent(_batch_dims(site), site["fn"].event_dim)
            for name, site in proposal_sites.items()
            if not site["is_observed"] and name not in enumerated
        },
        enumerated=enumerated,
        observed=tuple(name for name, site in model_sites.items() if site["is_observed"]),
        auxiliary=frozenset(guide_sites) - frozenset(model_sites),
        active=tuple(type(module).__name__ for module in called.values() if _is_active(module)),
        device=parameters[0].device if parameters else None,
    )


def drawn_values(trace: poutine.Trace) -> dict[str, Tensor]:
    """Values to be given to the model: the latents, and the indices of subsampled plates."""
    return {
        name: site["value"]
        for name, site in trace.nodes.items()
        if site["type"] == "sample" and not site["is_observed"]
    }


def _first_run(
    role: str, program: Program, args: tuple, drawn: Mapping[str, Tensor], called: Mapping
) -> poutine.Trace:
    """The first run of a program: whatever it raises is told with the shapes it was given."""
    try:
        return run_program(program, args, values=drawn)
    except ProgramError:
        raise
    except Exception as error:
        given = ", ".join(
            f"{tuple(part.shape)} {str(part.dtype).removeprefix('torch.')}"
            for arg in args
            for part in (arg if isinstance(arg, tuple) else (arg,))
            if isinstance(part, Tensor)
        )
        dtypes = {
            str(value.dtype).removeprefix("torch.")
            for module in called.values()
            for value in module.parameters(recurse=False)
        }
        having = f" (its parameters are {', '.join(sorted(dtypes))})" if dtypes else ""
        raise ProgramError(f"the {role} fails on data of {given}{having}: {error}") from error


def _batch_dims(site: dict) -> int:
    """Batch dimensions that the plates of a site take, counted from the right."""
    return max(-frame.dim for frame in site["cond_indep_stack"] if frame.vectorized)


def _base(fn: Any) -> Any:
    """The distribution under masks, expansions and independence."""
    while isinstance(
        fn,
        dist.torch_distribution.MaskedDistribution
        | dist.torch_distribution.ExpandedDistribution
        | torch.distributions.Independent,
    ):
        fn = fn.base_dist
    return fn


def _refuse_guide_sites(guide_sites: Mapping[str, dict], model_sites: Mapping[str, dict]) -> None:
    for name, site in guide_sites.items():
        if site["is_observed"]:
            what = "a factor" if isinstance(_base(site["fn"]), dist.Unit) else "an observation"
            raise ProgramError(
                f"guide site '{name}' is {what}: a guide must be a normalised density, "
                "and its log-weights would not be those of a proposal"
            )
        partner = name.removesuffix("_unconstrained")
        if name not in model_sites:
            if site["infer"].get("is_auxiliary") and partner != name and partner in guide_sites:
                continue  # an autoguide's base draw; its partner carries the Jacobian
            raise ProgramError(
                f"guide site '{name}' is not in the model: the weights of a guide with an "
                "auxiliary latent do not average to p(x)"
            )
        if model_sites[name]["is_observed"]:
            raise ProgramError(f"guide site '{name}' is observed in the model: it is no latent")
        if isinstance(_base(site["fn"]), dist.Delta) and f"{name}_unconstrained" not in guide_sites:
            raise ProgramError(
                f"guide site '{name}' is a Delta: a point has no density to weigh a latent with; "
                "give it a distribution that covers the posterior"
            )


def _refuse_unmatched_latents(
    model_sites: Mapping[str, dict], guide_sites: Mapping[str, dict], *, prior_proposal: bool
) -> None:
    if not any(site["is_observed"] for site in model_sites.values()):
        raise ProgramError("the model has no observed site: pass obs= to the site of the data")
    for name, site in model_sites.items():
        known = prior_proposal or name in guide_sites or is_enumerated(site)
        if not (site["is_observed"] or known):
            raise ProgramError(
                f"model site '{name}' is latent but not in the guide: sample it there, "
                "or mark it with infer={'enumerate': 'parallel'}"
            )


def _find_data_dim(
    model_sites: Mapping[str, dict], guide_sites: Mapping[str, dict], size: int
) -> int:
    """The dimension of the plate named "data", or else of the only plate that holds every site."""
    sites = [*model_sites.items(), *guide_sites.items()]
    frames = [{frame.name: frame for frame in site["cond_indep_stack"]} for _, site in sites]
    if any("data" in plates for plates in frames):
        plate = "data"
    else:
        fitting = [
            {name for name, frame in plates.items() if frame.size in (size, -1)}
            for plates in frames
        ]
        common = set.intersection(*fitting)
        if len(common) > 1:
            raise ProgramError(
                f"the plates {sorted(common)} each hold every site and {size} data: "
                'name the plate of the data "data"'
            )
        outside = [site for site, plates in zip(sites, fitting, strict=True) if not plates]
        if outside:
            _refuse_outside(*outside[0], f"plate of the {size} data of x")
        if not common:
            raise ProgramError(f"no single plate holds every site and the {size} data of x")
        (plate,) = common
    for site, plates in zip(sites, frames, strict=True):
        if plate not in plates:
            _refuse_outside(*site, f'plate "{plate}"')
        frame = plates[plate]
        if not frame.vectorized:
            raise ProgramError(
                f'plate "{plate}" is a Python loop over data: write `with pyro.plate(...)`'
            )
        if frame.size not in (size, -1):
            raise ProgramError(f'plate "{plate}" has size {frame.size}, but x holds {size} data')
    return frames[0][plate].dim


def _refuse_outside(name: str, site: dict, where: str) -> None:
    kind = "observed" if site["is_observed"] else "latent"
    raise ProgramError(
        f"{kind} site '{name}' stands outside the {where}: what all data share has no "
        "per-datum marginal likelihood"
    )


def _refuse_shape(name: str, site: dict, data_dim: int, size: int) -> None:
    shape = site["fn"].batch_shape
    plates = {frame.dim for frame in site["cond_indep_stack"] if frame.vectorized}
    stray = [dim for dim in range(-len(shape), 0) if dim not in plates and shape[dim] > 1]
    at_data = shape[data_dim] if len(shape) >= -data_dim else 1
    if stray or at_data not in (1, size):
        raise ProgramError(
            f"site '{name}' has batch shape {tuple(shape)}, which its plates do not explain "
            f"({size} data at dimension {data_dim}): declare event dimensions with .to_event()"
        )


def _is_active(module: nn.Module) -> bool:
    """Whether a layer, as it is set now, mixes data or draws numbers of its own."""
    if isinstance(module, nn.modules.batchnorm._BatchNorm):
        return module.training or module.running_mean is None
    return isinstance(module, nn.modules.dropout._DropoutNd) and module.training and module.p > 0
