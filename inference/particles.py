"""The choice among the ways to draw particles: the cheapest that agrees with a loop.

:func:`plan_particles` tries the plate, then tiling, then falls back to the loop. A way is trusted
only when the log-densities it gives to three particles equal those of a loop over them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TypeVar

import pyro
import torch
from torch import Tensor

from .layout import Layout, inspect_programs
from .programs import Program, ProgramError, StructureVaries, map_tensors, num_data
from .ways import WAYS, Evaluation, data_axis, evaluate

T = TypeVar("T")

_TRIAL_PARTICLES = 3
_TRIAL_DATA = 4
_COUPLING_DATA = 256


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


def take(args: tuple, index: slice | Tensor) -> tuple:
    """Select data from ``(x, *context)``: every tensor that has one entry per datum is indexed."""
    size = num_data(args[0])
    return map_tensors(lambda t: t[index] if t.dim() and len(t) == size else t, args)


def plan_particles(
    model: Program,
    guide: Program | None,
    args: tuple,
    particles: str = "auto",
    *,
    whole: bool = False,
) -> ParticlePlan:
    """Find the cheapest way that agrees with a loop over particles.

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
    _check_way(particles)
    if not whole:
        try:
            layout, trial, sliceable = _inspect_small(model, guide, args)
            if sliceable:
                many = args
                if not _context_may_be_shared(model, guide, args, trial, layout):
                    many = take(args, slice(0, _COUPLING_DATA))
                sliceable = _rows_stand_alone(model, guide, many, layout)
            if sliceable:
                return _choose(model, guide, trial, layout, particles, sliceable=True)
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
    _check_way(particles)
    layout = inspect_programs(model, guide, args, may_subsample=True)
    if num_particles == 1 and particles == "auto":
        return ParticlePlan(layout, "loop", "loop", sliceable=False)
    return _choose(model, guide, args, layout, particles, sliceable=False)


def _check_way(particles: str) -> None:
    if particles != "auto" and particles not in WAYS:
        raise ValueError(f"particles must be 'auto' or one of {WAYS}, but is {particles!r}")


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


def _context_may_be_shared(
    model: Program, guide: Program | None, args: tuple, few: tuple, layout: Layout
) -> bool:
    """Whether a context as long as the data might belong to all of them, and not be theirs.

    A context of theirs fails, uncut, beside a part of the data. One that runs so shows only among
    all data whether it may be cut.
    """
    size = num_data(args[0])
    for number, whole in enumerate(args[1:], start=1):
        if not _has_length(whole, size):
            continue
        if num_data(few[0]) < 2:  # one datum takes any length
            return True
        uncut = (*few[:number], whole, *few[number + 1 :])
        try:
            with torch.no_grad():
                evaluate("loop", model, guide, uncut, layout, 1, prior=guide is None)
        except Exception:  # a program may raise anything at shapes it was not made for
            continue
        return True
    return False


def _has_length(context: object, size: int) -> bool:
    parts = context if isinstance(context, tuple) else (context,)
    return any(isinstance(part, Tensor) and part.dim() and len(part) == size for part in parts)


def _rows_stand_alone(model: Program, guide: Program | None, args: tuple, layout: Layout) -> bool:
    """Whether some data, in another order, get the same densities alone as among all."""
    size, prior = num_data(args[0]), guide is None
    count = min(_TRIAL_DATA, size - 1)
    if count == 0:
        return True
    # not the first ones: what is cut to a part that begins alike would look the same
    rows = torch.linspace(size - 1, max(size // 4, 1), count).long()
    rows = rows.to(args[0][0].device if isinstance(args[0], tuple) else args[0].device)
    with torch.no_grad():
        among = evaluate("loop", model, guide, args, layout, 1, prior=prior)
        values = {
            name: value.index_select(data_axis(value, name, layout), rows.to(value.device))
            for name, value in among.values.items()
        }
        try:
            alone = evaluate("loop", model, guide, take(args, rows), layout, 1, values, prior=prior)
        except StructureVaries:
            raise
        except Exception:  # a table that was cut has no row for a label, say
            return False
    return _agree(alone, _select(among, rows))


def _select(run: Evaluation, rows: Tensor) -> Evaluation:
    """The log-probabilities of some of the data."""

    def pick(sites: Mapping[str, Tensor]) -> dict[str, Tensor]:
        return {name: term[:, rows.to(term.device)] for name, term in sites.items()}

    return Evaluation(pick(run.model_sites), pick(run.guide_sites), run.values)


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
    site = _first_difference(expected, got)
    return site and f"{site} differs from a loop over particles"


def _is_reproducible(model: Program, guide: Program | None, args: tuple, layout: Layout) -> bool:
    prior = guide is None
    first = evaluate("loop", model, guide, args, layout, 1, prior=prior)
    second = evaluate("loop", model, guide, args, layout, 1, first.values, prior=prior)
    return _agree(first, second)


def _agree(expected: Evaluation, got: Evaluation) -> bool:
    """Whether two evaluations at the same latents have the same densities."""
    return _first_difference(expected, got) is None


def _first_difference(expected: Evaluation, got: Evaluation) -> str | None:
    """The first site whose log-probabilities differ."""
    precise = all(value.dtype == torch.float64 for value in expected.values.values())
    # in another order, sums over a thousand pixels differ by about 1e-6 in single precision
    rtol, atol = (1e-9, 1e-8) if precise and expected.values else (2e-5, 1e-3)
    for role, ours, theirs in (
        ("model", got.model_sites, expected.model_sites),
        ("guide", got.guide_sites, expected.guide_sites),
    ):
        for name, reference in theirs.items():
            found = ours.get(name)
            if found is None or not torch.allclose(
                found, reference, rtol=rtol, atol=atol, equal_nan=True
            ):
                return f"{role} site '{name}'"
    return None
