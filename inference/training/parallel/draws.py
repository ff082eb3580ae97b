"""Random numbers of a whole batch, of which a process uses those of its own data.

Every process has the same generator, and draws for all data of the batch; it then works on its own
rows alone. So a datum gets the same noise whoever works on it, and no number depends on how many
processes there are.

Which axis of a draw runs over the data is told by no shape alone: as many particles, or latents,
may be there as data. So a run on the whole batch is recorded. Where the same draw, in a run on a
part, has another length, there the data are.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode


class Unsplittable(ValueError):
    """The random numbers of a part of a batch cannot be told from those of the whole."""


@dataclass(frozen=True)
class Draw:
    """A call that drew random numbers: its operator, and the shapes in its arguments."""

    name: str
    shapes: tuple[tuple[int, ...] | None, ...]


def _shape(argument: Any) -> tuple[int, ...] | None:
    if isinstance(argument, Tensor):
        return tuple(argument.shape)
    if isinstance(argument, list | tuple) and all(isinstance(one, int) for one in argument):
        return tuple(argument)
    return None


@functools.cache
def _is_random(function: Any) -> bool:
    return torch.Tag.nondeterministic_seeded in function.tags


def _draw(function: Any, args: tuple[Any, ...]) -> Draw:
    return Draw(str(function), tuple(_shape(one) for one in args))


class Recording(TorchDispatchMode):
    """While entered, notes every draw in :attr:`draws`."""

    def __init__(self) -> None:
        super().__init__()
        self.draws: list[Draw] = []

    def __torch_dispatch__(
        self, function: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        if _is_random(function):
            self.draws.append(_draw(function, args))
        return function(*args, **(kwargs or {}))


class OwnRows(TorchDispatchMode):
    """While entered, draws for all data of a batch, and gives out the rows of a part.

    Args:
        draws: of a run on the whole batch.
        total: number of data in it.
        rows: the part's.

    Raises:
        Unsplittable: a draw is not the one that was recorded, or its rows cannot be told.
    """

    def __init__(self, draws: list[Draw], total: int, rows: slice) -> None:
        super().__init__()
        self.draws, self.total, self.rows = draws, total, rows
        self.size = rows.stop - rows.start
        self.done = 0

    def __torch_dispatch__(
        self, function: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        if not _is_random(function):
            return function(*args, **(kwargs or {}))
        here = _draw(function, args)
        whole = self.draws[self.done] if self.done < len(self.draws) else None
        self.done += 1
        if whole is None or whole.name != here.name or len(whole.shapes) != len(here.shapes):
            found = "nothing" if whole is None else whole.name
            raise Unsplittable(
                f"draw {self.done} is {here.name} for a part of the batch, but {found} for the "
                "whole: which random numbers the programs draw depends on the data"
            )
        axes = [self._axis(*pair) for pair in zip(whole.shapes, here.shapes, strict=True)]
        told = {axis for axis in axes if axis is not None}
        if not told:  # one draw for all data
            return function(*args, **(kwargs or {}))
        if len(told) > 1:
            raise self._unclear(here, whole)
        axis = told.pop()
        full = [
            argument if own is None else self._widened(argument, shape, axis)
            for argument, shape, own in zip(args, whole.shapes, axes, strict=True)
        ]
        return self._narrowed(function, args, full, kwargs or {}, axis)

    def _axis(self, whole: tuple[int, ...] | None, here: tuple[int, ...] | None) -> int | None:
        """Where the data are, counted from the right; None where they are nowhere."""
        if whole == here:
            return None
        if whole is not None and here is not None and len(whole) == len(here):
            places = [i for i, (a, b) in enumerate(zip(whole, here, strict=True)) if a != b]
            if len(places) == 1 and whole[places[0]] == self.total and here[places[0]] == self.size:
                return places[0] - len(whole)
        raise self._unclear(Draw("", (here,)), Draw("", (whole,)))

    def _unclear(self, here: Draw, whole: Draw) -> Unsplittable:
        return Unsplittable(
            f"draw {self.done} has the shape {here.shapes} for {self.size} data, but "
            f"{whole.shapes} for {self.total}: it should have one axis over the data"
        )

    def _widened(self, argument: Any, shape: tuple[int, ...] | None, axis: int) -> Any:
        """An argument of the size for the whole batch; what other data have there is anything."""
        assert shape is not None
        if not isinstance(argument, Tensor):
            return list(shape)
        wide = argument.narrow(axis, 0, 1).expand(shape).clone()
        wide.narrow(axis, self.rows.start, self.size).copy_(argument)
        return wide

    def _narrowed(
        self, function: Any, args: tuple[Any, ...], full: list[Any], kwargs: Any, axis: int
    ) -> Any:
        found = function(*full, **kwargs)
        if function._schema.is_mutable:
            if found is not full[0]:
                raise Unsplittable(f"draw {self.done}, {function}, writes into an argument")
            return args[0].copy_(self._own(found, axis))
        if isinstance(found, Tensor):
            return self._own(found, axis)
        return tuple(self._own(one, axis) for one in found)

    def _own(self, drawn: Tensor, axis: int) -> Tensor:
        return drawn.narrow(axis, self.rows.start, self.size).contiguous()
