r"""What stands in a program pair: plates, latents, observations, enumeration.

A pair has a per-datum marginal likelihood when every sample site stands in the plate of the data,

.. math:: p(x_{1:N}, z_{1:N}) = \prod_{n=1}^{N} p(x_n, z_n),

and :func:`inspect_programs` finds out by running the pair once. What has no such form is refused
by a :class:`~pyrovae.inference.programs.ProgramError` that names the site and the reason. A trace
does not show arithmetic that couples data (``x.mean()``): that the particle plan looks for.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import torch
from pyro import poutine
from torch import Tensor, nn

from .programs import (
    Program,
    ProgramError,
    drawn_values,
    is_enumerated,
    num_data,
    run_program,
    sample_sites,
)
from .refusals import (
    base,
    find_data_dim,
    refuse_guide_sites,
    refuse_masks,
    refuse_shape,
    refuse_unmatched_latents,
)
from .spaces import reaches, refuse_other_space
from .support import bytes_hint


@dataclass(frozen=True)
class Latent:
    """A latent as its proposal draws it.

    Attributes:
        batch_dims: how many dimensions its plates take.
        event_dims: how many belong to one draw.
        reparameterized: whether a draw is a differentiable function of the parameters.
        distribution: the name of what it is drawn from.
        reached: whether all that the model can draw can be drawn.
        masked: whether some data may lack it.
    """

    batch_dims: int
    event_dims: int
    reparameterized: bool = True
    distribution: str = ""
    reached: bool = True
    masked: bool = False


@dataclass(frozen=True)
class Layout:
    """What one run of a program pair showed.

    Attributes:
        data_dim: the (negative) batch dimension of the data plate.
        nesting: how many batch dimensions the plates take.
        latents: the sampled latents, in the guide's order.
        auxiliary: those among them that are an autoguide's base draws, not the model's latents.
        enumerated: latents summed out exactly, in the model or in the guide.
        guide_enumerated: those among them that are the guide's.
        subsample: how many data the data plate draws for itself at each run; None where it takes
            all of x.
        nested_subsamples: plates inside the data plate that draw a part of themselves.
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
    guide_enumerated: frozenset[str] = frozenset()
    subsample: int | None = None
    nested_subsamples: frozenset[str] = frozenset()

    def flat(self) -> Layout:
        """The same where the event of every latent takes one dimension."""
        flat = {name: replace(latent, event_dims=1) for name, latent in self.latents.items()}
        return replace(self, latents=flat)


def inspect_programs(
    model: Program, guide: Program | None, args: tuple, *, may_subsample: bool = False
) -> Layout:
    """Run the pair once on ``args = (x, *context)`` and say what stands in it.

    With ``guide=None`` the latents are the model's own: the prior is the proposal. With
    ``may_subsample`` the data plate may draw a part of x for itself.

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
    refuse_guide_sites(guide_sites, model_sites)
    refuse_unmatched_latents(model_sites, guide_sites, prior_proposal=guide is None)
    refuse_masks(model_sites, guide_sites)
    both = [n for n, s in guide_sites.items() if n in model_sites and not s["is_observed"]]
    for name in both:
        refuse_other_space(name, guide_sites[name]["fn"], model_sites[name]["fn"])
    size = num_data(args[0])
    data_dim, found = find_data_dim(model_sites, guide_sites, size, may_subsample)
    subsample = None if found in (size, -1) else found
    nesting = max(
        -frame.dim
        for site in (*model_sites.values(), *guide_sites.values())
        for frame in site["cond_indep_stack"]
        if frame.vectorized
    )
    for name, site in (*model_sites.items(), *guide_sites.items()):
        refuse_shape(name, site, data_dim, subsample or size)
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
            name: Latent(
                _batch_dims(site),
                site["fn"].event_dim,
                site["fn"].has_rsample,
                type(base(site["fn"])).__name__,
                name not in both or reaches(site["fn"], model_sites[name]["fn"]),
                isinstance(site["mask"], Tensor),
            )
            for name, site in proposal_sites.items()
            if not site["is_observed"] and name not in enumerated
        },
        enumerated=enumerated,
        observed=tuple(name for name, site in model_sites.items() if site["is_observed"]),
        auxiliary=frozenset(guide_sites) - frozenset(model_sites),
        active=tuple(type(module).__name__ for module in called.values() if _is_active(module)),
        device=parameters[0].device if parameters else None,
        guide_enumerated=enumerated & frozenset(guide_sites),
        subsample=subsample,
        nested_subsamples=frozenset(
            frame.name
            for site in (*model_sites.values(), *guide_sites.values())
            for frame in site["cond_indep_stack"]
            if frame.dim != data_dim and frame.full_size and frame.size < frame.full_size
        ),
    )


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
        raise ProgramError(
            f"the {role} fails on data of {given}{having}: {error}{bytes_hint(args[0])}"
        ) from error


def _batch_dims(site: dict) -> int:
    """Batch dimensions that the plates of a site take, counted from the right."""
    return max(-frame.dim for frame in site["cond_indep_stack"] if frame.vectorized)


def _is_active(module: nn.Module) -> bool:
    """Whether a layer, as it is set now, mixes data or draws numbers of its own."""
    if isinstance(module, nn.modules.batchnorm._BatchNorm):
        return module.training or module.running_mean is None
    return isinstance(module, nn.modules.dropout._DropoutNd) and module.training and module.p > 0
