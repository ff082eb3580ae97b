"""Losses and gradients from graphs, made when batches of a new form come, and checked.

A graph repeats what one run did. Where a program's run depends on values, or on anything but its
inputs and parameters, a graph is wrong, and nothing would show it. So each one is compared with the
program itself, on other data, other random numbers and other parameters, before it is trusted.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from typing import Any

import pyro
import torch
from torch import Tensor
from torch.utils._pytree import TreeSpec, tree_flatten, tree_unflatten

from ..modules import Modules, unnoticed
from .backends import CAPTURING, Captured, Replay, lower
from .comparison import check_equal, is_exact, other_rows
from .gain import Gain
from .rebinding import tensors_stay
from .told import Unrepeatable, explained, tell
from .tracing import form_of, known_values, trace

_MOST = 4  # graphs, each of which takes its time to make
_ANY = 500  # forms, of which none is worth it
_OFTEN = 5  # a form that comes no more often, as that of an epoch's last batch, is not worth it
_SHIFT = 1e-2  # relative, of parameters, for one of the comparisons


Loss = Callable[[tuple, Tensor | None], Tensor]  # of arguments, and of the weight of the latents


@dataclass
class _Graph:
    """A graph, the function it stands for, and when the two were last compared.

    Attributes:
        replay: runs it; on a GPU with all that is captured along.
        plain: runs it alone.
        whole: the function.
        reached: which parameters have a gradient.
        calls: how often it was run.
        agreed: how often it had been when the two last agreed.
        epoch: in which the two were compared.
    """

    replay: Replay
    plain: Replay
    whole: Callable[..., tuple[Tensor, ...]]
    reached: list[bool]
    epoch: int
    calls: int = 0
    agreed: int = 0


class CompiledGradients:
    """The loss of a batch and its gradients, by a graph for each form that batches often have.

    A graph is compared with the program again now and then, on the batch at hand: in its second
    run, its third, fifth, ninth and so on, and in the first of every epoch.

    Args:
        loss: ``loss(args, weight)``, a scalar with a graph.
        modules: what it stands on, whose buffers trials leave as they are.
        device: where.

    Attributes:
        then: on a GPU, what is captured along: it is given loss and gradients, those of parameters
            without an effect None.
        epoch: of training, for whoever trains to set.
        seen: how often batches of each form came, by name.
        norm: over the gradients of the last batch; None where no graph has found it.
    """

    def __init__(self, loss: Loss, modules: Modules, device: torch.device) -> None:
        self.loss, self.modules, self.device = loss, modules, device
        self.then: Callable[[Tensor, list[Tensor | None]], None] | None = None
        self.gain = Gain()
        self.graphs: dict[Hashable, _Graph] = {}
        self.seen: dict[str, int] = {}
        self.epoch = 0
        self.norm: Tensor | None = None
        self.reason: str | None = None
        self.told_of_forms = False

    def __call__(
        self, args: tuple, weight: float, tensors: Sequence[Tensor]
    ) -> tuple[Tensor, list[Tensor | None]] | None:
        """Loss and gradients, in the order of ``tensors``; None where there is no graph.

        One that fails may have drawn random numbers.
        """
        if self.reason is not None:
            return None
        leaves, form, inputs = _parted(args)
        if weight != 1:
            inputs.append(torch.tensor(weight, dtype=torch.float64, device=self.device))
        try:
            others = () if form is None else known_values(leaves)
        except Unrepeatable as error:
            self.give_up(str(error))
            return None
        key = (form_of(inputs), form and repr(form), others, tuple(map(id, tensors)))
        if key not in self.graphs:
            name = repr(key[:-1])
            self.seen[name] = self.seen.get(name, 0) + 1
            if len(self.seen) > _ANY:
                self.give_up(
                    "batches come in ever other forms, or with ever other values beside them"
                )
                return None
            if self.seen[name] <= _OFTEN or self._has_enough():
                self.gain.waited += 1
                return None

            def run(*given: Tensor) -> Tensor:
                found = iter(given)
                filled: list[Any] = [
                    next(found) if isinstance(leaf, Tensor) else leaf for leaf in leaves
                ]
                whole = tuple(filled) if form is None else tree_unflatten(filled, form)
                return self.loss(whole, next(found, None))

            try:
                with self.gain.making():
                    self.graphs[key] = self._make(run, inputs, tensors)
            except Exception as error:  # a tracer or a compiler may raise anything
                self.give_up(explained(error))
                return None
        graph = self.graphs[key]
        try:
            self._look_again(graph, inputs)
            found = list(graph.replay(inputs))
        except Exception as error:  # of other data than it was made on; without a graph it may do
            self.give_up(explained(error) + _doubtful(graph.calls - graph.agreed))
            return None
        graph.calls += 1
        self.gain.runs += 1
        self.norm = found.pop() if len(found) > 1 + sum(graph.reached) else None
        return _sorted(found, graph.reached)

    def _look_again(self, graph: _Graph, inputs: list[Tensor]) -> None:
        """Compare graph and program on a batch, where it is time to."""
        calls = graph.calls
        is_power = calls > 0 and calls & (calls - 1) == 0
        if graph.epoch == self.epoch and not is_power:
            return
        graph.epoch = self.epoch
        with pyro.validation_enabled(False):
            self._agree(graph.plain, graph.whole, inputs, calls)
        graph.agreed = calls

    def _has_enough(self) -> bool:
        """Whether batches came in so many forms that another graph would not pay off."""
        if len(self.graphs) < _MOST:
            return False
        if not self.told_of_forms:
            tell(f"batches of more than {_MOST} forms; those of the others are run as they are")
        self.told_of_forms = True
        return True

    def give_up(self, reason: str) -> None:
        """Compile nothing from here on, and say why."""
        self.reason = reason
        self.gain.give_up(reason)

    def _make(
        self, run: Callable[..., Tensor], inputs: list[Tensor], tensors: Sequence[Tensor]
    ) -> _Graph:
        reached: list[bool] = []

        def whole(*given: Tensor) -> tuple[Tensor, ...]:
            value = run(*given)
            gradients = torch.autograd.grad(value, list(tensors), allow_unused=True)
            reached[:] = [one is not None for one in gradients]
            found = [one for one in gradients if one is not None]
            if self.device.type in CAPTURING or not found:
                return (value.detach(), *found)
            # a gradient is nearest when it was just made
            norms = torch.stack([torch.linalg.vector_norm(one) for one in found])
            return (value.detach(), *found, torch.linalg.vector_norm(norms))

        with pyro.validation_enabled(False):  # it looks at values
            with unnoticed(self.modules, self.device):
                run(*_copies(inputs))  # what is found out on a first batch is no part of a step
            with unnoticed(self.modules, self.device), tensors_stay(self.modules):
                traced = trace(whole, _copies(inputs))
            with unnoticed(self.modules, self.device):
                replay = plain = lower(
                    traced,
                    _copies(inputs),
                    lambda replay: self._compare(replay, whole, inputs, tensors),
                )
            if self.device.type in CAPTURING:
                then = self.then and functools.partial(_hand_on, self.then, reached)
                with unnoticed(self.modules, self.device):
                    replay = Captured(plain, inputs, then)
        return _Graph(replay, plain, whole, list(reached), self.epoch)

    def _compare(
        self,
        replay: Replay,
        whole: Callable[..., tuple[Tensor, ...]],
        inputs: list[Tensor],
        tensors: Sequence[Tensor],
    ) -> None:
        """Raise unless a graph does what the program does."""
        others = other_rows(inputs)
        before = [t.detach().clone() for t in tensors]
        try:
            for seed, given in enumerate((inputs, others, others)):
                if seed == 2:
                    with torch.no_grad():
                        for tensor in tensors:
                            tensor.mul_(1 + _SHIFT)
                self._agree(replay, whole, given, seed)
        finally:
            with torch.no_grad():
                for tensor, value in zip(tensors, before, strict=True):
                    tensor.copy_(value)

    def _agree(
        self,
        replay: Replay,
        whole: Callable[..., tuple[Tensor, ...]],
        given: list[Tensor],
        seed: int,
    ) -> None:
        gain, copies = self.gain, _copies(given)
        with unnoticed(self.modules, self.device, seed), gain.timed(gain.before, self.device):
            expected = [value.clone() for value in whole(*_copies(given))]
        with unnoticed(self.modules, self.device, seed), gain.timed(gain.after, self.device):
            found = replay(copies)
        check_equal(found, expected, is_exact(expected))


def _parted(args: tuple) -> tuple[list[Any], TreeSpec | None, list[Tensor]]:
    """Leaves of arguments, their form, and the tensors among them, in the order of their memory."""
    if all(isinstance(arg, Tensor) for arg in args):  # at once, because it is for every step
        return list(args), None, [arg.contiguous() for arg in args]
    leaves, form = tree_flatten(args)
    return leaves, form, [leaf.contiguous() for leaf in leaves if isinstance(leaf, Tensor)]


def _copies(tensors: Sequence[Tensor]) -> list[Tensor]:
    """What a program may write to in a trial."""
    return [value.clone() for value in tensors]


def _doubtful(steps: int) -> str:
    """What a disagreement that was found late may have done."""
    return f"; {steps:,} steps since the last comparison may have been others" if steps > 1 else ""


def _sorted(found: Sequence[Tensor], reached: list[bool]) -> tuple[Tensor, list[Tensor | None]]:
    """The loss, and a gradient for each parameter."""
    value, *gradients = found
    following = iter(gradients)
    return value, [next(following) if one else None for one in reached]


def _hand_on(
    then: Callable[[Tensor, list[Tensor | None]], None],
    reached: list[bool],
    found: Sequence[Tensor],
) -> None:
    then(*_sorted(found, reached))
