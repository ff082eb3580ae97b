"""How an objective draws its particles: found out on the first batch, without leaving a mark.

The plan is made in evaluation mode, in which layers that draw or mix data do not hide whether a net
takes a leading dimension. What several runs of a program in one step need, that they say the same,
is looked at in the mode in which they will run.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ..agreement import agree
from ..frozen import freeze_guide
from ..modules import Buffers, Modules, mode
from ..particles import ParticlePlan, plan_batch
from ..programs import Program, ProgramError, num_data
from ..rng import forked
from ..slicing import has_length, take
from ..ways import evaluate
from .bounds import ELBO, Bound
from .gradients import Gradient, Relaxed, StraightThrough
from .step import OneSubsample


@dataclass(frozen=True)
class Plans:
    """How particles are drawn from a program pair.

    Attributes:
        pair: what the plans were made for.
        wrapped: for the programs as the gradient rule runs them.
        plain: for the programs as they are.
    """

    pair: tuple[Program, Program, tuple[object, ...], frozenset[str]]
    wrapped: ParticlePlan
    plain: ParticlePlan


def make_plans(
    model: Program,
    guide: Program,
    args: tuple,
    bound: Bound,
    rule: Gradient,
    num_particles: int,
    particles: str,
) -> tuple[ParticlePlan, ParticlePlan]:
    """Plans for the programs as a gradient rule runs them, and as they are.

    Raises:
        ProgramError: bound or rule make no sense for the programs; names the site or plate.
    """
    # a guide that is asked for its density again is kept, which the plate alone can do
    count = max(num_particles, 2 if rule.rescores else 1)
    trial = _trial(args, model, guide)
    programs = rule.wrap(model, guide)
    with unnoticed(model, guide, training=False), OneSubsample():
        wrapped = plain = plan_batch(*programs, trial, particles, count)
        if isinstance(rule, Relaxed | StraightThrough):
            plain = plan_batch(model, guide, trial, particles, count)
    rule.check_latents(wrapped.layout)
    _check_runs(*programs, args, bound, rule, wrapped)
    return wrapped, plain


def _check_runs(
    model: Program, guide: Program, args: tuple, bound: Bound, rule: Gradient, plan: ParticlePlan
) -> None:
    """Refuse what makes several runs of a program, or parts of one, say different things.

    Raises:
        ProgramError: names the plate, or the rule.
    """
    if plan.layout.nested_subsamples and not isinstance(bound, ELBO):
        raise ProgramError(
            f"plate '{min(plan.layout.nested_subsamples)}' inside the data plate draws a part "
            "of itself, from which no bound but the ELBO can be estimated without bias; this "
            f"is {type(bound).__name__}"
        )
    if not rule.rescores:
        return
    with unnoticed(model, guide), OneSubsample():
        again = freeze_guide(guide, args, plan)
        first = evaluate(plan.guide_way, None, again, args, plan.layout, 2)
        second = evaluate(plan.guide_way, None, again, args, plan.layout, 2, first.values)
    if not agree(first, second):
        raise ProgramError(
            f"the guide gives equal draws different densities in two runs (dropout?), of which "
            f"{type(rule).__name__} needs several in a step: use Pathwise, or take "
            "the chance out of the guide"
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


def _trial(args: tuple, model: Program, guide: Program) -> tuple:
    """The batch to plan on: one datum less where it has as many as a batch norm has features.

    Among so many, particles' leading dimension passes for the data's, and the data for features.
    """
    size = num_data(args[0])
    features = {
        module.num_features
        for root in Modules(model, guide).roots()
        for module in root.modules()
        if isinstance(module, nn.modules.batchnorm._BatchNorm)
    }
    return take(args, slice(0, size - 1)) if size in features and size > 1 else args


@contextmanager
def unnoticed(model: Program, guide: Program, training: bool | None = None) -> Iterator[None]:
    """Run programs without moving generators or buffers; by choice in another mode."""
    modules = Modules(model, guide)
    roots = modules.roots()
    buffers = Buffers(modules.buffers())
    buffers.keep()
    device = next((value.device for root in roots for value in root.parameters()), None)
    with ExitStack() as stack:
        stack.enter_context(torch.no_grad())
        stack.enter_context(forked(device or torch.device("cpu")))
        if training is not None:
            stack.enter_context(mode(roots, training))
        stack.callback(buffers.put_back)
        yield
