"""Functions run as they are a few times, and from then on by graphs.

Some of what a function takes changes with every call, the rest seldom: what it makes of the rest
alone is made once, and again only when the rest is another.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_flatten, tree_unflatten

from ..rng import capture, forked, restore
from .backends import CAPTURING, Captured, Replay, as_traced, lower
from .comparison import check_equal, is_exact, other_rows
from .gain import Gain
from .hoisting import hoisted
from .told import Differs, explained
from .tracing import Traced, form_of, known_values, trace

_OFTEN = 3
_MOST = 8  # graphs of one function
_BETWEEN = 256  # calls between two comparisons, at most, while what is fixed changes


class Doubtful(Exception):
    """A graph that has been used does not do what its function does, and may not have done it."""


Function = Callable[[tuple[Tensor, ...], tuple], tuple[Tensor, ...]]  # of moving, fixed


@dataclass
class _Graph:
    """A function's two parts, and what the first has made of what is fixed.

    Attributes:
        once: makes of what is fixed what there is to make.
        again: the rest.
        exact: whether all is in double precision.
        carried: what the first part made.
        fixed: of what.
        versions: how often each of these had been written to.
        taken: how often that was another.
        calls: of the second part, since it was last compared with the function.
        last: function and inputs of the last of these.
    """

    once: Replay
    again: Replay
    exact: bool
    carried: list[Tensor] = field(default_factory=list)
    fixed: list[Tensor] = field(default_factory=list)
    versions: list[int] = field(default_factory=list)
    taken: int = 0
    calls: int = 0
    last: tuple[Callable[..., tuple[Tensor, ...]], Sequence[Tensor], list[Tensor]] | None = None

    def take(self, fixed: list[Tensor]) -> bool:
        """Make of what is fixed what there is to make; whether it is another than before."""
        versions = [0 if value.is_inference() else value._version for value in fixed]
        known = all(map(operator.is_, self.fixed, fixed)) and versions == self.versions
        if self.taken and known:
            return False
        self.fixed, self.versions, self.taken = fixed, versions, self.taken + 1
        self.carried = list(self.once([value.contiguous() for value in fixed]))
        return True

    def __call__(self, moving: Sequence[Tensor]) -> Sequence[Tensor]:
        return self.again([*moving, *self.carried])


class Replays:
    """The graphs of the functions that one computation calls again and again, by name.

    Functions may draw random numbers, in evaluation mode, but stand on nothing that changes besides
    what they are given.

    Args:
        device: where.
        gain: to add to what graphs take to make, and save.

    Attributes:
        gain: what they took to make, and what they save.
        costs: what callers note of a function, by name.
    """

    def __init__(self, device: torch.device, gain: Gain | None = None) -> None:
        self.device = device
        self.gain = Gain() if gain is None else gain
        self.costs: dict[str, list[int]] = {}
        self._others: dict[str, Replays] = {}
        self._graphs: dict[Hashable, _Graph] = {}
        self._seen: dict[Hashable, int] = {}
        self._given_up: set[str] = set()

    def of(self, variant: str) -> Replays:
        """Graphs of the same functions in a program's variant."""
        return self._others.setdefault(variant, Replays(self.device, self.gain))

    def __call__(
        self, name: str, function: Function, moving: tuple[Tensor, ...], fixed: tuple
    ) -> tuple[Tensor, ...] | None:
        """What a function makes of its inputs, by a graph; None where there is none (yet).

        Args:
            name: of the function, the same for the same one.
            function: ``function(moving, fixed)`` of tensors and of anything that holds tensors.
            moving: what is another in every call.
            fixed: what is the same for many.
        """
        if name in self._given_up:
            return None
        moving = tuple(value.contiguous() for value in moving)  # code is made for their strides
        leaves, form = tree_flatten(fixed)
        tensors = [leaf for leaf in leaves if isinstance(leaf, Tensor)]

        def whole(*given: Tensor) -> tuple[Tensor, ...]:
            rest = iter(given[len(moving) :])
            filled = [next(rest) if isinstance(leaf, Tensor) else leaf for leaf in leaves]
            return function(given[: len(moving)], tree_unflatten(filled, form))

        before = capture(self.device)
        try:
            others = known_values(leaves)
            key = (name, form_of(moving), form_of(tensors), repr(form), others)
            graph = self._find(key, whole, moving, tensors)
            if graph is None:
                self.gain.waited += 1
                return None
            found = graph(moving)
        except Doubtful:
            raise
        except Exception as error:  # a tracer, a compiler or other data may raise anything
            restore(before, self.device)
            self._given_up.add(name)
            self.gain.give_up(explained(error))
            return None
        graph.calls += 1
        graph.last = whole, moving, tensors
        self.gain.runs += 1
        # what a captured graph returns is written over by its next run
        captured = isinstance(graph.again, Captured)
        return tuple(value.clone() for value in found) if captured else tuple(found)

    def settle(self) -> None:
        """Compare every graph with its function once more, on what it was last run on.

        Raises:
            Doubtful: they differ.
        """
        for graph in self._graphs.values():
            if graph.calls and graph.last is not None:
                whole, moving, tensors = graph.last
                graph.take(tensors)
                self._agree_still(graph, whole, moving, tensors)
        for other in self._others.values():
            other.settle()

    def _find(
        self,
        key: tuple[Any, ...],
        whole: Callable[..., tuple[Tensor, ...]],
        moving: tuple[Tensor, ...],
        tensors: list[Tensor],
    ) -> _Graph | None:
        graph = self._graphs.get(key)
        if graph is None:
            self._seen[key] = self._seen.get(key, 0) + 1
            if self._seen[key] <= _OFTEN:
                return None
            if len(self._graphs) == _MOST:
                self.gain.give_up(
                    f"data of more than {_MOST} forms; the others are run as they are"
                )
                return None
            with self.gain.making():
                graph = self._graphs[key] = self._make(whole, moving, tensors)
                graph.take(tensors)
        elif graph.take(tensors) and (
            graph.taken & (graph.taken - 1) == 0 or graph.calls >= _BETWEEN
        ):
            self._agree_still(graph, whole, moving, tensors)
        return graph

    def _make(
        self,
        whole: Callable[..., tuple[Tensor, ...]],
        moving: tuple[Tensor, ...],
        tensors: list[Tensor],
    ) -> _Graph:
        tensors = [value.contiguous() for value in tensors]
        with forked(self.device):
            before, after = hoisted(trace(whole, [*moving, *tensors]), len(moving))
        once = as_traced(before, tensors)
        given = [*moving, *once(tensors)]
        exact = is_exact([*moving, *tensors, *before.held])

        def check(again: Replay) -> None:
            graph = _Graph(once, again, exact)
            for data in ([*moving, *tensors], other_rows([*moving, *tensors])):
                graph.take(data[len(moving) :])
                self._agree(graph, whole, data[: len(moving)], data[len(moving) :])

        with forked(self.device):
            again = lower(Traced(after, []), given, check)
            if self.device.type in CAPTURING:
                again = Captured(again, given)
        return _Graph(once, again, exact)

    def _agree_still(
        self,
        graph: _Graph,
        whole: Callable[..., tuple[Tensor, ...]],
        moving: Sequence[Tensor],
        tensors: list[Tensor],
    ) -> None:
        """Raise unless a graph still does what its function does; Doubtful where it was used."""
        try:
            self._agree(graph, whole, moving, tensors)
        except Differs as error:
            if graph.calls:
                raise Doubtful(explained(error)) from error
            raise
        graph.calls = 0

    def _agree(
        self,
        graph: _Graph,
        whole: Callable[..., tuple[Tensor, ...]],
        moving: Sequence[Tensor],
        tensors: Sequence[Tensor],
    ) -> None:
        """Raise unless graph and function say the same."""
        seed, gain = graph.taken, self.gain
        with forked(self.device, seed), gain.timed(gain.before, self.device), torch.no_grad():
            expected = whole(*moving, *tensors)
        with forked(self.device, seed), gain.timed(gain.after, self.device):
            found = graph(moving)
        check_equal(found, expected, graph.exact)
