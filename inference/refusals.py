"""Program pairs that have no per-datum weights, each told by the site and the reason."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pyro.distributions as dist
import torch

from .programs import ProgramError, is_enumerated


def base(fn: Any) -> Any:
    """The distribution under masks, expansions and independence."""
    while isinstance(
        fn,
        dist.torch_distribution.MaskedDistribution
        | dist.torch_distribution.ExpandedDistribution
        | torch.distributions.Independent,
    ):
        fn = fn.base_dist
    return fn


def refuse_guide_sites(guide_sites: Mapping[str, dict], model_sites: Mapping[str, dict]) -> None:
    for name, site in guide_sites.items():
        if site["is_observed"]:
            what = "a factor" if isinstance(base(site["fn"]), dist.Unit) else "an observation"
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
        if isinstance(base(site["fn"]), dist.Delta) and f"{name}_unconstrained" not in guide_sites:
            raise ProgramError(
                f"guide site '{name}' is a Delta: a point has no density to weigh a latent with; "
                "give it a distribution that covers the posterior"
            )


def refuse_unmatched_latents(
    model_sites: Mapping[str, dict], guide_sites: Mapping[str, dict], *, prior_proposal: bool
) -> None:
    if not any(site["is_observed"] for site in model_sites.values()):
        raise ProgramError("the model has no observed site: pass obs= to the site of the data")
    for name, site in model_sites.items():
        known = prior_proposal or name in guide_sites or is_enumerated(site)
        if not (site["is_observed"] or known):
            whole = name.removesuffix("_unobserved")
            if whole != name and f"{whole}_observed" in model_sites:
                raise ProgramError(
                    f"model site '{whole}' has obs_mask=, by which Pyro makes latents of what is "
                    f"missing: sample '{name}' in the guide, inside `poutine.mask(mask=~obs_mask)` "
                    "as the model has it, or leave the missing part out of the density with "
                    "`poutine.mask` instead of obs_mask="
                )
            raise ProgramError(
                f"model site '{name}' is latent but not in the guide: sample it there, "
                "or mark it with infer={'enumerate': 'parallel'}"
            )


def refuse_masks(model_sites: Mapping[str, dict], guide_sites: Mapping[str, dict]) -> None:
    """A latent that one program masks and the other does not has no proposal there, or no prior."""
    for name in model_sites.keys() & guide_sites.keys():
        ours, theirs = (
            torch.as_tensor(True if sites[name]["mask"] is None else sites[name]["mask"])
            for sites in (model_sites, guide_sites)
        )
        if not bool((ours.cpu() == theirs.cpu()).all()):
            raise ProgramError(
                f"site '{name}' is masked otherwise in the model than in the guide: the weights of "
                "a latent that only one of them counts do not average to p(x)"
            )


def find_data_dim(
    model_sites: Mapping[str, dict],
    guide_sites: Mapping[str, dict],
    size: int,
    may_subsample: bool = False,
) -> tuple[int, int]:
    """Dimension and size of the plate named "data", or else of the only one of every site."""
    sites = [*model_sites.items(), *guide_sites.items()]
    frames = [{frame.name: frame for frame in site["cond_indep_stack"]} for _, site in sites]
    if any("data" in plates for plates in frames):
        plate = "data"
    else:
        fitting = [
            {name for name, frame in plates.items() if _fits(frame, size, may_subsample)}
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
        if not _fits(frame, size, may_subsample):
            raise ProgramError(f'plate "{plate}" has size {frame.size}, but x holds {size} data')
    return frames[0][plate].dim, frames[0][plate].size


def _fits(frame: Any, size: int, may_subsample: bool) -> bool:
    return frame.size in (size, -1) or (may_subsample and frame.full_size == size)


def _refuse_outside(name: str, site: dict, where: str) -> None:
    kind = "observed" if site["is_observed"] else "latent"
    raise ProgramError(
        f"{kind} site '{name}' stands outside the {where}: what all data share has no "
        "per-datum marginal likelihood"
    )


def refuse_shape(name: str, site: dict, data_dim: int, size: int) -> None:
    shape = site["fn"].batch_shape
    plates = {frame.dim for frame in site["cond_indep_stack"] if frame.vectorized}
    stray = [dim for dim in range(-len(shape), 0) if dim not in plates and shape[dim] > 1]
    at_data = shape[data_dim] if len(shape) >= -data_dim else 1
    if stray or at_data not in (1, size):
        raise ProgramError(
            f"site '{name}' has batch shape {tuple(shape)}, which its plates do not explain "
            f"({size} data at dimension {data_dim}): declare event dimensions with .to_event()"
        )
