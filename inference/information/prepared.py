"""A program pair made ready to be looked at: data checked and moved, draws seeded."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

import torch

from ..evidence.scope import check_finite, check_plan, device_of, move, scoring_scope
from ..particles import ParticlePlan, with_plan
from ..programs import Program, num_data
from ..slicing import take

T = TypeVar("T")


def prepared(
    model: Program,
    guide: Program,
    args: tuple,
    seed: int,
    use: Callable[[tuple, ParticlePlan], T],
) -> T:
    """What ``use`` makes of the data and a plan, with no trace left behind."""
    num_data(args[0])
    check_finite(args)
    if not callable(guide):
        raise TypeError(f"guide must be a Pyro program, but is {guide!r}")
    with scoring_scope(model, guide) as manual_seed:
        manual_seed(seed)
        moved = move(args, device_of(model, guide))

        def look(plan: ParticlePlan) -> T:
            check_plan(plan)
            return use(moved, plan)

        return with_plan(model, guide, moved, "auto", look)


def blocks(args: tuple, plan: ParticlePlan, size: int) -> list[slice]:
    """Slices of the data, or all of them where they cannot be cut."""
    total = num_data(args[0])
    if not plan.sliceable:
        return [slice(0, total)]
    return [slice(i, min(i + size, total)) for i in range(0, total, size)]


def part(args: tuple, plan: ParticlePlan, rows: slice) -> tuple:
    """Some of the data, as the plan allows."""
    return take(args, rows) if plan.sliceable else args


def mean_and_error(draws: torch.Tensor) -> tuple[float, float]:
    """Mean over data of ``(S, N)``, and its Monte Carlo error; NaN for a single draw."""
    count, size = draws.shape
    if count == 1:
        return float(draws.mean()), float("nan")
    return float(draws.mean()), float((draws.var(0).sum() / count).sqrt() / size)
