r"""Three ways to draw K particles from a program, and the choice among them.

* **plate**: an outer plate of size K. One run, cheapest; every net must accept a leading dimension.
* **tile**: x repeated K times along its batch. One run, for nets that take exactly one batch
  dimension (convolutions, say); the data plate must take its size from x.
* **loop**: K runs. Always right.

:func:`plan_particles` tries them in this order. A way is trusted only when the log-densities it
gives to three particles equal those of a loop over the same particles.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import pyro
import torch
from pyro import poutine
from torch import Tensor

from .factors import per_datum, site_log_prob, sum_out
from .programs import (
    Layout,
    Program,
    ProgramError,
    drawn_values,
    inspect_programs,
    num_data,
    run_program,
    sample_sites,
)

WAYS = ("plate", "tile", "loop")
_TRIAL_PARTICLES = 3
_TRIAL_DATA = 4


@dataclass(frozen=True)
class Evaluation:
    """Log-probabilities by site, ``(K, N)`` each, and the latents' values as the run left them."""

    model_sites: dict[str, Tensor]
    guide_sites: dict[str, Tensor]
    values: dict[str, Tensor]


@dataclass(frozen=True)
class ParticlePlan:
    """How particles are drawn from a program pair.

    Attributes:
        layout: what stands in the pair.
        guide_way: "plate", "tile" or "loop", for the guide.
        model_way: the same for the model.
        sliceable: whether the pair runs on a part of its data.
        reproducible: whether equal latents give equal densities; dropout does not.
        rejected: the ways that were tried and not trusted, with the reason.
    """

    layout: Layout
    guide_way: str
    model_way: str
    sliceable: bool = True
    reproducible: bool = True
    rejected: tuple[str, ...] = field(default=(), compare=False)


def take(args: tuple, index: slice | Tensor) -> tuple:
    """Select data from ``(x, *context)``: every tensor that has one entry per datum is indexed."""
    size = num_data(args[0])

    def pick(arg: Any) -> Any:
        if isinstance(arg, tuple):
            return tuple(pick(part) for part in arg)
        return arg[index] if isinstance(arg, Tensor) and arg.dim() and len(arg) == size else arg

    return tuple(pick(arg) for arg in args)


# --- the three ways ------------------------------------------------------------------------------


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
) -> Evaluation:
    """Run guide and model for K particles in the way named.

    With ``values`` (one leading dimension K, then the plates, then the event) the latents are
    given, not drawn. With ``prior`` the proposal is the model's own prior, and its
    log-probabilities stand in the guide's place.
    """
    size = num_data(args[0])
    shape = (num_particles, size)
    if way == "plate":
        given = values and {name: _spread(value, name, layout) for name, value in values.items()}
        return _run(model, guide, args, layout, shape, num_particles, given, prior)
    if way == "tile":
        given = values and {name: _merge(value, name, layout) for name, value in values.items()}
        rows = num_particles * size
        flat = _run(model, guide, _tile(args, num_particles), layout, (1, rows), None, given, prior)
        return Evaluation(
            {name: term.reshape(shape) for name, term in flat.model_sites.items()},
            {name: term.reshape(shape) for name, term in flat.guide_sites.items()},
            {name: _split(value, name, layout, shape) for name, value in flat.values.items()},
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
            prior,
        )
        for k in range(num_particles)
    ]
    return Evaluation(
        {name: torch.cat([run.model_sites[name] for run in runs]) for name in runs[0].model_sites},
        {name: torch.cat([run.guide_sites[name] for run in runs]) for name in runs[0].guide_sites},
        {name: torch.stack([run.values[name] for run in runs]) for name in runs[0].values},
    )


def _run(
    model: Program | None,
    guide: Program | None,
    args: tuple,
    layout: Layout,
    shape: tuple[int, int],
    particles: int | None,
    given: Mapping[str, Tensor] | None,
    prior: bool,
) -> Evaluation:
    """One pass through the pair; ``particles`` is the size of the outer plate, or None."""
    rank = layout.nesting + 1
    first = -rank - 1 if particles is not None else -rank
    enumerate_from = first if layout.enumerated else None
    settings: dict[str, Any] = {"particles": particles, "particle_dim": -rank}
    guide_trace = model_trace = None
    values: dict[str, Tensor] = dict(given or {})
    infer: dict[str, dict] = {}
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
            **settings,
        )
        if guide is None:
            values = drawn_values(model_trace)
    model_terms = {} if model_trace is None else _log_probs(model_trace, layout)
    guide_terms = {} if guide_trace is None else _log_probs(guide_trace, layout)
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
    return Evaluation(
        model_sites,
        guide_sites,
        {name: _trim(values[name], name, layout, particles) for name in layout.latents},
    )


def _log_probs(trace: poutine.Trace, layout: Layout) -> dict[str, Tensor]:
    # an enumerated site keeps its normalisation where it is masked: there it must sum to one
    return {
        name: site_log_prob(site, masked=name not in layout.enumerated)
        for name, site in sample_sites(trace).items()
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


def _data_axis(value: Tensor, name: str, layout: Layout) -> int:
    return value.dim() - layout.latents[name].event_dims + layout.data_dim


def _merge(value: Tensor, name: str, layout: Layout) -> Tensor:
    """``(K, ..., N, ...)`` to ``(..., K * N, ...)``."""
    axis = _data_axis(value, name, layout)
    return value.movedim(0, axis - 1).flatten(axis - 1, axis)


def _split(value: Tensor, name: str, layout: Layout, shape: tuple[int, int]) -> Tensor:
    """``(..., K * N, ...)`` to ``(K, ..., N, ...)``."""
    axis = _data_axis(value, name, layout)
    return value.unflatten(axis, shape).movedim(axis, 0)


def _tile(args: tuple, times: int) -> tuple:
    size = num_data(args[0])

    def repeat(arg: Any) -> Any:
        if isinstance(arg, tuple):
            return tuple(repeat(part) for part in arg)
        if isinstance(arg, Tensor) and arg.dim() and len(arg) == size:
            return arg.repeat(times, *(1,) * (arg.dim() - 1))
        return arg

    return tuple(repeat(arg) for arg in args)


# --- the choice ----------------------------------------------------------------------------------


def plan_particles(
    model: Program, guide: Program | None, args: tuple, particles: str = "auto"
) -> ParticlePlan:
    """Find the cheapest way that agrees with a loop over particles.

    Args:
        model: ``model(x, *context)``.
        guide: ``guide(x, *context)``; None where the prior is the proposal.
        args: ``(x, *context)``.
        particles: "auto", or one of "plate", "tile", "loop" to insist on a way.

    Raises:
        ProgramError: the pair has no per-datum weights, or the way insisted on is wrong for it.
        ValueError: an unknown way.
    """
    if particles != "auto" and particles not in WAYS:
        raise ValueError(f"particles must be 'auto' or one of {WAYS}, but is {particles!r}")
    layout, trial, sliceable = _inspect_small(model, guide, args)
    if particles == "auto":
        candidates = [("plate", "plate"), ("plate", "tile"), ("tile", "tile")]
        if guide is None or layout.enumerated:
            candidates.remove(("plate", "tile"))  # the two must share one run
    else:
        candidates = [(particles, particles)]
    with torch.no_grad():
        reproducible = _is_reproducible(model, guide, trial, layout)
        rejected: list[str] = []
        for guide_way, model_way in candidates:
            reason = None
            if (guide_way, model_way) != ("loop", "loop"):
                plan = ParticlePlan(layout, guide_way, model_way)
                reason = _disagreement(model, guide, trial, plan)
            if reason is None:
                return ParticlePlan(
                    layout, guide_way, model_way, sliceable, reproducible, tuple(rejected)
                )
            rejected.append(f"{guide_way}/{model_way}: {reason}")
    if particles != "auto":
        raise ProgramError(f"particles={particles!r} is not right for this program: {rejected[0]}")
    return ParticlePlan(layout, "loop", "loop", sliceable, reproducible, tuple(rejected))


def _inspect_small(
    model: Program, guide: Program | None, args: tuple
) -> tuple[Layout, tuple, bool]:
    """Inspect on a few data where the program allows it, else on all of them."""
    size = num_data(args[0])
    few = take(args, slice(0, _TRIAL_DATA))
    if size <= _TRIAL_DATA:
        few = take(args, slice(0, max(size - 1, 1)))
    store = pyro.get_param_store()
    before = set(store.keys())
    try:
        layout = inspect_programs(model, guide, few)
        if set(store.keys()) == before:
            return layout, few, True
    except ProgramError:
        pass  # perhaps only because data are missing: the run on all of them decides
    # parameters made to the measure of a part must not outlive it
    for name in set(store.keys()) - before:
        del store[name]
    layout = inspect_programs(model, guide, args)
    try:
        inspect_programs(model, guide, few)
    except ProgramError:
        return layout, args, size == 1
    return layout, few, True


def draw(
    model: Program, guide: Program | None, args: tuple, plan: ParticlePlan, num_particles: int
) -> Evaluation:
    """Draw K particles from the guide and evaluate both programs, as planned."""
    if plan.guide_way == plan.model_way:
        return evaluate(
            plan.model_way, model, guide, args, plan.layout, num_particles, prior=guide is None
        )
    drawn = evaluate(plan.guide_way, None, guide, args, plan.layout, num_particles)
    scored = evaluate(plan.model_way, model, None, args, plan.layout, num_particles, drawn.values)
    return Evaluation(scored.model_sites, drawn.guide_sites, drawn.values)


def _disagreement(
    model: Program, guide: Program | None, args: tuple, plan: ParticlePlan
) -> str | None:
    """Why a plan is not to be trusted; None when it agrees with the loop."""
    prior = guide is None
    try:
        got = draw(model, guide, args, plan, _TRIAL_PARTICLES)
        expected = evaluate(
            "loop", model, guide, args, plan.layout, _TRIAL_PARTICLES, got.values, prior=prior
        )
    except Exception as error:  # a net may raise anything at a shape it was not made for
        return f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"
    for role, ours, theirs in (
        ("model", got.model_sites, expected.model_sites),
        ("guide", got.guide_sites, expected.guide_sites),
    ):
        for name, reference in theirs.items():
            if name not in ours or not _close(ours[name], reference):
                return f"{role} site '{name}' differs from a loop over particles"
    return None


def _is_reproducible(model: Program, guide: Program | None, args: tuple, layout: Layout) -> bool:
    prior = guide is None
    first = evaluate("loop", model, guide, args, layout, 1, prior=prior)
    second = evaluate("loop", model, guide, args, layout, 1, first.values, prior=prior)
    return all(
        _close(again[name], once[name])
        for once, again in (
            (first.model_sites, second.model_sites),
            (first.guide_sites, second.guide_sites),
        )
        for name in once
    )


def _close(ours: Tensor, theirs: Tensor) -> bool:
    # single precision sums over a thousand pixels in another order differ by about 1e-6 relative
    return torch.allclose(ours, theirs, rtol=1e-4, atol=1e-3, equal_nan=True)
