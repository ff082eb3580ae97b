"""How an objective draws its particles: found out on the first batch, without leaving a mark.

The plan is made in evaluation mode, in which layers that draw or mix data do not hide whether a net
takes a leading dimension. What several runs of a program in one step need, that they say the same,
is looked at in the mode in which they will run.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ..agreement import agree
from ..frozen import freeze_guide
from ..modules import Modules, unnoticed
from ..particles import ParticlePlan, plan_batch
from ..programs import Program, ProgramError, num_data
from ..slicing import has_length, take
from ..ways import evaluate
from .bounds import ELBO, Bound
from .gradients import Gradient, Relaxed, StraightThrough
from .step import OneSubsample


@dataclass(frozen=True)
class Plans:
    """How particles are drawn from a program pair.

    Attributes:
        key: what they were made for.
        wrapped: for the programs as the gradient rule runs them.
        plain: for the programs as they are.
    """

    key: tuple[object, ...]
    wrapped: ParticlePlan
    plain: ParticlePlan


def make_plans(
    key: tuple[object, ...],
    model: Program,
    guide: Program,
    args: tuple,
    bound: Bound,
    rule: Gradient,
    num_particles: int,
    particles: str,
) -> Plans:
    """Look at a program pair and one batch.

    Raises:
        ProgramError: bound or rule make no sense for the programs; names the site or plate.
    """
    # a guide that is asked for its density again is kept, which the plate alone can do
    count = max(num_particles, 2 if rule.rescores else 1)
    modules, programs = Modules(model, guide), rule.wrap(model, guide)
    trial = _trial(args, modules)
    with _looking(modules, training=False):
        wrapped = plain = plan_batch(*programs, trial, particles, count)
        if isinstance(rule, Relaxed | StraightThrough):
            plain = plan_batch(model, guide, trial, particles, count)
    rule.check_latents(wrapped.layout)
    if wrapped.layout.nested_subsamples and not isinstance(bound, ELBO):
        raise ProgramError(
            f"plate '{min(wrapped.layout.nested_subsamples)}' inside the data plate draws a part "
            "of itself, from which no bound but the ELBO can be estimated without bias; this "
            f"is {type(bound).__name__}"
        )
    if rule.rescores:
        with _looking(modules):
            _check_runs(programs[1], args, rule, wrapped)
    return Plans(key, wrapped, plain)


@contextmanager
def _looking(modules: Modules, training: bool | None = None) -> Iterator[None]:
    """Run programs without a gradient and without a mark, on one part of what plates draw."""
    device = next((p.device for root in modules.roots() for p in root.parameters()), None)
    quiet = unnoticed(modules, device or torch.device("cpu"), training=training)
    with torch.no_grad(), quiet, OneSubsample():
        yield


def _check_runs(guide: Program, args: tuple, rule: Gradient, plan: ParticlePlan) -> None:
    """Refuse a guide that says different things in several runs, for a rule that needs several."""
    again = freeze_guide(guide, args, plan)
    first = evaluate(plan.guide_way, None, again, args, plan.layout, 2)
    second = evaluate(plan.guide_way, None, again, args, plan.layout, 2, first.values)
    if not agree(first, second):
        raise ProgramError(
            "the guide gives equal draws different densities in two runs (dropout?), of which "
            f"{type(rule).__name__} needs several in a step: use Pathwise, or take the chance out "
            "of the guide"
        )


def form(args: tuple) -> tuple[object, ...]:
    """What about a batch may decide how particles are drawn.

    A context that is None may stand for other latents; one as long as the batch is tiled with it;
    and a lone datum shows nothing of what couples data.
    """
    size = num_data(args[0])
    contexts = (
        has_length(arg, size) if isinstance(arg, Tensor | tuple) else type(arg).__name__
        for arg in args[1:]
    )
    return (size == 1, *contexts)


def _trial(args: tuple, modules: Modules) -> tuple:
    """The batch to plan on: one datum less where it has as many as a batch norm has features.

    Among so many, particles' leading dimension passes for the data's, and the data for features.
    """
    size = num_data(args[0])
    features = {
        module.num_features
        for root in modules.roots()
        for module in root.modules()
        if isinstance(module, nn.modules.batchnorm._BatchNorm)
    }
    return take(args, slice(0, size - 1)) if size in features and size > 1 else args
