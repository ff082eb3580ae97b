"""Three ways to evaluate a program pair for K particles: plate, tile and loop.

* **plate**: an outer plate of size K. One run, cheapest; every net must accept a leading dimension.
* **tile**: x repeated K times along its batch. One run, for nets that take exactly one batch
  dimension (convolutions, say); the data plate must take its size from x.
* **loop**: K runs. Always right.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from pyro.poutine.util import is_validation_enabled
from torch import Tensor

from .coordinates import Placement, coordinates_of
from .factors import per_datum, site_log_prob, sum_out
from .layout import Layout
from .programs import (
    Program,
    ProgramError,
    StructureVaries,
    drawn_values,
    map_tensors,
    num_data,
    run_program,
    sample_sites,
)
from .refusals import refuse_masks

WAYS = ("plate", "tile", "loop")


@dataclass(frozen=True)
class Evaluation:
    """Log-probabilities by site, ``(K, N)`` each, and the latents' values as the run left them.

    Where latents were given as coordinates, the volumes that these take stand among the model's
    sites, under "volume of ..."; where they were asked for, ``coordinates`` holds them.
    """

    model_sites: dict[str, Tensor]
    guide_sites: dict[str, Tensor]
    values: dict[str, Tensor]
    probed: dict[str, Tensor] = field(default_factory=dict)
    coordinates: dict[str, Tensor] = field(default_factory=dict)


# reads the sites of model and guide (none where one was not run) and returns, by name, tensors of a
# site's batch shape and one more dimension
Sites = dict[str, dict]
Probe = Callable[[Sites, Sites], dict[str, Tensor]]


def evaluate(
    way: str,
    model: Program | None,
    guide: Program | None,
    args: tuple,
    layout: Layout,
    num_particles: int,
    values: Mapping[str, Tensor] | None = None,
    *,
    prior: bool = False,
    probe: Probe | None = None,
    free: bool = False,
    ask: bool = False,
    slope: bool = False,
) -> Evaluation:
    """Run guide and model for K particles in the way named.

    With ``values`` (one leading dimension K, then the plates, then the event) the latents are
    given, not drawn; with ``free``, as coordinates of the unconstrained space, the event in one
    dimension. With ``prior`` the proposal is the model's own prior, and its log-probabilities
    stand in the guide's place. What ``probe`` finds comes back ``(K, N, ...)``. With ``ask`` the
    coordinates of the latents come back too. With ``slope`` only the gradients of the
    log-probabilities mean anything, where nothing is summed out.
    """
    size = layout.subsample or num_data(args[0])
    shape = (num_particles, size)
    form = layout.flat() if free else layout  # of what is given
    how: dict[str, Any] = {"prior": prior, "probe": probe, "free": free, "ask": ask}
    how["slope"] = slope and not layout.enumerated  # what is summed out needs the values
    if way == "plate":
        given = values and {name: _spread(value, name, form) for name, value in values.items()}
        return _run(model, guide, args, layout, shape, num_particles, given, **how)
    if way == "tile" and layout.subsample:
        raise ProgramError("a data plate that draws a part of x for itself cannot be tiled")
    if way == "tile":
        given = values and {name: _merge(value, name, form) for name, value in values.items()}
        rows = num_particles * size
        flat = _run(model, guide, _tile(args, num_particles), layout, (1, rows), None, given, **how)
        free_form = layout.flat()
        return Evaluation(
            {name: term.reshape(shape) for name, term in flat.model_sites.items()},
            {name: term.reshape(shape) for name, term in flat.guide_sites.items()},
            {name: _split(value, name, layout, shape) for name, value in flat.values.items()},
            {name: term.reshape(*shape, -1) for name, term in flat.probed.items()},
            {name: _split(u, name, free_form, shape) for name, u in flat.coordinates.items()},
        )
    runs = [
        _run(
            model,
            guide,
            args,
            layout,
            (1, size),
            None,
            values and {name: value[k] for name, value in values.items()},
            **how,
        )
        for k in range(num_particles)
    ]
    if num_particles == 1:
        (run,) = runs
        values = {name: value.unsqueeze(0) for name, value in run.values.items()}
        asked = {name: u.unsqueeze(0) for name, u in run.coordinates.items()}
        return Evaluation(run.model_sites, run.guide_sites, values, run.probed, asked)
    return Evaluation(
        {name: torch.cat([run.model_sites[name] for run in runs]) for name in runs[0].model_sites},
        {name: torch.cat([run.guide_sites[name] for run in runs]) for name in runs[0].guide_sites},
        {name: torch.stack([run.values[name] for run in runs]) for name in runs[0].values},
        {name: torch.cat([run.probed[name] for run in runs]) for name in runs[0].probed},
        {
            name: torch.stack([run.coordinates[name] for run in runs])
            for name in runs[0].coordinates
        },
    )


def _run(
    model: Program | None,
    guide: Program | None,
    args: tuple,
    layout: Layout,
    shape: tuple[int, int],
    particles: int | None,
    given: Mapping[str, Tensor] | None,
    *,
    prior: bool,
    probe: Probe | None,
    free: bool,
    ask: bool,
    slope: bool,
) -> Evaluation:
    """One pass through the pair; ``particles`` is the size of the outer plate, or None."""
    rank = layout.nesting + 1
    first = -rank - 1 if particles is not None else -rank
    enumerate_from = first if layout.enumerated else None
    settings: dict[str, Any] = {"particles": particles, "particle_dim": -rank}
    guide_trace = model_trace = None
    values: dict[str, Tensor] = dict(given or {})
    infer: dict[str, dict] = {}
    place = Placement() if free else None
    if guide is not None:
        guide_trace = run_program(
            guide, args, values=given, enumerate_from=enumerate_from, **settings
        )
        values = drawn_values(guide_trace)
        infer = {name: guide_trace.nodes[name]["infer"] for name in values}
    if model is not None:
        model_trace = run_program(
            model,
            args,
            values=values,
            infer=infer,
            enumerate_from=enumerate_from if guide is None else None,
            continue_enumeration=guide is not None and enumerate_from is not None,
            place=place,
            **settings,
        )
        if guide is None:
            values = {**values, **drawn_values(model_trace)}
    of_model = {} if model_trace is None else sample_sites(model_trace)
    of_guide = {} if guide_trace is None else sample_sites(guide_trace)
    _check_structure(
        None if model_trace is None else of_model,
        None if guide_trace is None else of_guide,
        layout,
    )
    model_terms = _log_probs(of_model, layout, slope)
    guide_terms = _log_probs(of_guide, layout)
    if layout.enumerated:
        guide_terms = {name: t for name, t in guide_terms.items() if name not in layout.enumerated}
    if prior and model_trace is not None:
        guide_trace = model_trace
        guide_terms = {name: model_terms[name] for name in layout.latents}
    if layout.enumerated and model_trace is not None:
        guide_part = None if guide_trace is None else (guide_trace, guide_terms)
        model_terms, guide_terms = sum_out((model_trace, model_terms), guide_part)
    model_sites, guide_sites = (
        {name: per_datum(term, layout.data_dim, rank, shape) for name, term in terms.items()}
        for terms in (model_terms, guide_terms)
    )
    if place is not None:
        model_sites |= {
            f"volume of {name}": per_datum(volume, layout.data_dim, rank, shape)
            for name, volume in place.log_volume(of_model).items()
        }
    asked = {}
    if ask:
        form = layout.flat()
        asked = {
            name: _trim(coordinates_of(of_model[name]), name, form, particles)
            for name in layout.latents
        }
    return Evaluation(
        model_sites,
        guide_sites,
        {name: _trim(values[name], name, layout, particles) for name in layout.latents},
        {} if probe is None else _probe(probe, of_model, of_guide, layout, shape),
        asked,
    )


def _check_structure(of_model: Sites | None, of_guide: Sites | None, layout: Layout) -> None:
    """Raise StructureVaries where a run has other latents than the layout; names one."""
    odd: set[str] = set()
    if of_model is not None:
        found = {name for name, site in of_model.items() if not site["is_observed"]}
        odd = found - layout.latents.keys() - layout.enumerated
        if of_guide is None:
            odd |= layout.latents.keys() - layout.auxiliary - found
    if of_guide is not None:
        odd |= (of_guide.keys() ^ layout.latents.keys()) - layout.enumerated
    if odd:
        raise StructureVaries(
            f"site '{min(odd)}' is a latent for some of the data and not for others"
        )
    if of_model is not None and of_guide is not None and is_validation_enabled():
        refuse_masks(of_model, of_guide)


def _probe(
    probe: Probe, of_model: Sites, of_guide: Sites, layout: Layout, shape: tuple[int, int]
) -> dict[str, Tensor]:
    def place(term: Tensor) -> Tensor:
        return per_datum(term, layout.data_dim, layout.nesting + 1, shape)

    return {
        name: torch.vmap(place, in_dims=-1, out_dims=-1)(term)
        for name, term in probe(of_model, of_guide).items()
    }


def _log_probs(sites: Sites, layout: Layout, slope: bool = False) -> dict[str, Tensor]:
    # an enumerated site keeps its normalisation where it is masked: there it must sum to one
    return {
        name: site_log_prob(
            site,
            masked=name not in layout.enumerated,
            latent=name in layout.latents,
            slope=slope,
        )
        for name, site in sites.items()
    }


# --- moving the particles about ------------------------------------------------------------------


def _trim(value: Tensor, name: str, layout: Layout, particles: int | None) -> Tensor:
    """Drop the dimensions of size 1 between the particles and the plates of the site."""
    latent = layout.latents[name]
    own = latent.batch_dims + latent.event_dims
    if particles is None:
        return value
    spare = value.dim() - latent.event_dims - layout.nesting - 1
    if spare > 0:  # drawn given an enumerated latent, whose dimension stands left of all plates
        return value.movedim(spare, 0)
    return value.reshape(particles, *value.shape[value.dim() - own :])


def _spread(value: Tensor, name: str, layout: Layout) -> Tensor:
    """The inverse of trimming: particles left of all plates."""
    pad = layout.nesting - layout.latents[name].batch_dims
    return value.reshape(value.shape[0], *(1,) * pad, *value.shape[1:])


def data_axis(value: Tensor, name: str, layout: Layout) -> int:
    """Which dimension of a latent's value holds the data."""
    return value.dim() - layout.latents[name].event_dims + layout.data_dim


def _merge(value: Tensor, name: str, layout: Layout) -> Tensor:
    """``(K, ..., N, ...)`` to ``(..., K * N, ...)``."""
    axis = data_axis(value, name, layout)
    return value.movedim(0, axis - 1).flatten(axis - 1, axis)


def _split(value: Tensor, name: str, layout: Layout, shape: tuple[int, int]) -> Tensor:
    """``(..., K * N, ...)`` to ``(K, ..., N, ...)``."""
    axis = data_axis(value, name, layout)
    return value.unflatten(axis, shape).movedim(axis, 0)


def _tile(args: tuple, times: int) -> tuple:
    """Repeat the data, and what belongs to them, along their leading dimension."""
    size = num_data(args[0])

    def repeat(value: Tensor) -> Tensor:
        one_per_datum = value.dim() and len(value) == size
        return value.repeat(times, *(1,) * (value.dim() - 1)) if one_per_datum else value

    return map_tensors(repeat, args)
