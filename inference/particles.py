"""The choice among the ways to draw particles: the cheapest that agrees with a loop.

:func:`plan_particles` tries the plate, then tiling, then falls back to the loop. A way is trusted
only when the log-densities it gives to three particles equal those of a loop over them.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TypeVar

import torch

from .agreement import agree, first_difference
from .layout import Layout, inspect_programs
from .modules import Modules, unnoticed
from .programs import Program, ProgramError, StructureVaries
from .slicing import inspect_part
from .ways import WAYS, Evaluation, Probe, evaluate

T = TypeVar("T")

_TRIAL_PARTICLES = 3


@dataclass(frozen=True)
class ParticlePlan:
    """How particles are drawn from a program pair.

    Attributes:
        layout: what stands in the pair.
        guide_way: "plate", "tile" or "loop", for the guide.
        model_way: the same for the model.
        sliceable: whether a part of the data has the densities that it has among all of them. Not
            so where data are coupled outside the plate, or where a context that all data share
            happens to be as long as they are many: such pairs are evaluated on all data at once.
        reproducible: whether equal latents give equal densities; dropout does not.
        rejected: the ways that were tried and not trusted, with the reason.
    """

    layout: Layout
    guide_way: str
    model_way: str
    sliceable: bool = True
    reproducible: bool = True
    rejected: tuple[str, ...] = field(default=(), compare=False)


def plan_particles(
    model: Program,
    guide: Program | None,
    args: tuple,
    particles: str = "auto",
    *,
    whole: bool = False,
) -> ParticlePlan:
    """Find the cheapest way that agrees with a loop over particles.

    Trials leave no mark: neither generators nor buffers move.

    Args:
        model: ``model(x, *context)``.
        guide: ``guide(x, *context)``; None where the prior is the proposal.
        args: ``(x, *context)``.
        particles: "auto", or one of "plate", "tile", "loop" to insist on a way.
        whole: look at all data at once, and evaluate them so.

    Raises:
        ProgramError: the pair has no per-datum weights, or the way insisted on is wrong for it.
        ValueError: an unknown way.
    """
    check_way(particles)
    modules = Modules(model, guide or model)
    with unnoticed(modules, _device(modules, args)):
        if not whole:
            try:
                if (part := inspect_part(model, guide, args)) is not None:
                    layout, few = part
                    return _choose(model, guide, few, layout, particles, sliceable=True)
            except StructureVaries:
                pass  # the loop that makes latents is longer for other data: all of them tell
        layout = inspect_programs(model, guide, args)
        return _choose(model, guide, args, layout, particles, sliceable=False)


def with_plan(
    model: Program,
    guide: Program | None,
    args: tuple,
    particles: str,
    use: Callable[[ParticlePlan], T],
) -> T:
    """What ``use`` makes of a plan; of one for all data at once, where a part has other latents."""
    plan = plan_particles(model, guide, args, particles)
    try:
        return use(plan)
    except StructureVaries:
        if not plan.sliceable:
            raise
    return use(plan_particles(model, guide, args, particles, whole=True))


def plan_batch(
    model: Program, guide: Program, args: tuple, particles: str = "auto", num_particles: int = 2
) -> ParticlePlan:
    """Find the cheapest way for one batch as a whole, whose data may be coupled.

    Unlike estimators, objectives take what training has: layers that mix the data of a batch, and
    a data plate that draws a part of x for itself. For a lone particle nothing is tried.
    """
    check_way(particles)
    layout = inspect_programs(model, guide, args, may_subsample=True)
    if num_particles == 1 and particles == "auto":
        return ParticlePlan(layout, "loop", "loop", sliceable=False)
    return _choose(model, guide, args, layout, particles, sliceable=False)


def check_way(particles: str) -> None:
    """Raise ValueError unless it is "auto" or one of the ways."""
    if particles != "auto" and particles not in WAYS:
        raise ValueError(f"particles must be 'auto' or one of {WAYS}, but is {particles!r}")


def _device(modules: Modules, args: tuple) -> torch.device:
    """Where programs draw: where their parameters are, or else their data."""
    placed = itertools.chain(
        (p for root in modules.roots() for p in root.parameters()),
        args[0] if isinstance(args[0], tuple) else (args[0],),
    )
    return next((p.device for p in placed if isinstance(p, torch.Tensor)), torch.device("cpu"))


def _choose(
    model: Program,
    guide: Program | None,
    trial: tuple,
    layout: Layout,
    particles: str,
    sliceable: bool,
) -> ParticlePlan:
    """The first of the ways that agrees with the loop on the trial's data."""
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


def draw(
    model: Program,
    guide: Program | None,
    args: tuple,
    plan: ParticlePlan,
    num_particles: int,
    probe: Probe | None = None,
) -> Evaluation:
    """Draw K particles from the guide and evaluate both programs, as planned.

    ``probe`` reads each run; only of one of both programs is what it finds handed on.
    """
    layout = plan.layout
    if plan.guide_way == plan.model_way:
        prior = guide is None
        return evaluate(
            plan.model_way, model, guide, args, layout, num_particles, prior=prior, probe=probe
        )
    drawn = evaluate(plan.guide_way, None, guide, args, layout, num_particles, probe=probe)
    scored = evaluate(
        plan.model_way, model, None, args, layout, num_particles, drawn.values, probe=probe
    )
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
    site = first_difference(expected, got)
    return site and f"{site} differs from a loop over particles"


def _is_reproducible(model: Program, guide: Program | None, args: tuple, layout: Layout) -> bool:
    prior = guide is None
    first = evaluate("loop", model, guide, args, layout, 1, prior=prior)
    second = evaluate("loop", model, guide, args, layout, 1, first.values, prior=prior)
    return agree(first, second)
