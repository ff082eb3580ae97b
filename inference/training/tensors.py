"""Data as tensors: checked, whole on their device, shuffled and cut into batches.

A batch is a gather along a permutation drawn for the epoch, so no Python loop runs over data. Order
and transform come from generators seeded by the epoch's number: an epoch can be begun again and
entered at any batch, which is what an exact resume needs.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import torch
from torch import Tensor

from ..rng import derive
from ..support import not_finite
from .checkpoint import crc32

X = Tensor | tuple[Tensor, ...]
Batch = tuple[tuple[Any, ...], int, Tensor | None]  # arguments, number of data, their rows in x


def parts_of(name: str, value: Any) -> tuple[Tensor, ...]:
    """The tensors of ``value``, a tensor or a tuple of them."""
    parts = value if isinstance(value, tuple) else (value,)
    for part in parts:
        if not isinstance(part, Tensor):
            raise TypeError(
                f"{name}: must be a tensor, a tuple of tensors or a DataLoader, but "
                f"{'holds' if isinstance(value, tuple) else 'is'} a {type(part).__name__}"
            )
    return parts


def check_x(name: str, value: Any) -> int:
    """The number of data in ``value``, which must be tensors of one leading dimension, finite.

    Raises:
        TypeError: it is something else than a tensor or a tuple of tensors.
        ValueError: it is empty, its parts disagree, or it holds NaN or infinity.
    """
    parts = parts_of(name, value)
    sizes = [part.shape[0] if part.dim() else 0 for part in parts]
    if not parts or 0 in sizes:
        shapes = [tuple(part.shape) for part in parts]
        raise ValueError(f"{name}: must hold at least one datum, but has shape {shapes}")
    if len(set(sizes)) > 1:
        raise ValueError(f"{name}: its parts must hold the same number of data, but hold {sizes}")
    for part in parts:
        if fault := not_finite(part):
            raise ValueError(f"{name}: must be finite, but {fault}")
    return sizes[0]


def move(value: Any, device: torch.device) -> Any:
    """``value``, its tensors on ``device``; a list becomes a tuple."""
    if isinstance(value, Tensor):
        return value.to(device, non_blocking=True)
    if isinstance(value, list | tuple):  # a collated tuple arrives as a list
        return tuple(move(item, device) for item in value)
    return value


def _take(value: X, pick: Callable[[Tensor], Tensor]) -> X:
    return tuple(pick(part) for part in value) if isinstance(value, tuple) else pick(value)


class TensorData:
    """x and context as tensors, whole on one device.

    Args:
        x: a tensor, or a tuple of tensors that the programs get as their one ``x``.
        context: further arguments. Tensors whose leading dimension is the number of data are cut
            into batches with x; anything else is passed as it is.
        batch_size: number of data in a batch; the last one of an epoch may be smaller.
        name: what errors call x.
    """

    def __init__(
        self, x: X, context: tuple[Any, ...], batch_size: int, device: torch.device, name: str
    ) -> None:
        self.num_data = check_x(name, x)
        self.name = name
        self.device = device
        self.batch_size = min(batch_size, self.num_data)
        self.x = _take(x, lambda part: part.to(device))
        self.context = tuple(move(c, device) if isinstance(c, Tensor) else c for c in context)
        self.batched = tuple(
            isinstance(c, Tensor) and c.dim() > 0 and len(c) == self.num_data for c in context
        )
        for i, (value, batched) in enumerate(zip(self.context, self.batched, strict=True)):
            if batched:
                check_x(f"context[{i}]", value)

    @property
    def num_batches(self) -> int:
        """Batches in an epoch."""
        return -(-self.num_data // self.batch_size)

    @property
    def ragged(self) -> bool:
        """Whether the last batch of an epoch is smaller than the others."""
        return self.num_data % self.batch_size != 0

    def _batch(self, x: X, pick: Callable[[Tensor], Tensor]) -> tuple[Any, ...]:
        context = (
            pick(c) if batched else c for c, batched in zip(self.context, self.batched, strict=True)
        )
        return (_take(x, pick), *context)

    def part(self, args: tuple[Any, ...], rows: slice, size: int) -> tuple[Any, ...]:
        """Some data of a batch of ``size``, with their share of the context."""
        x, *context = args
        pick = partial(torch.narrow, dim=0, start=rows.start, length=rows.stop - rows.start)
        cut = (pick(c) if batched else c for c, batched in zip(context, self.batched, strict=True))
        return (_take(x, pick), *cut)

    def transformed(self, transform: Callable[..., X] | None, seed: int, epoch: int) -> X:
        """x as the transform makes it for this epoch.

        Raises:
            TypeError, ValueError: what comes back is not x's kind, or no longer N finite data.
        """
        if transform is None:
            return self.x
        generator = torch.Generator(self.device).manual_seed(derive(seed, "transform", epoch))
        x = transform(self.x, generator)
        if isinstance(x, tuple) != isinstance(self.x, tuple):
            kind = type(self.x).__name__
            raise TypeError(f"transform: must return a {kind}, but returned a {type(x).__name__}")
        if (n := check_x("transform", x)) != self.num_data:
            raise ValueError(f"transform: must return {self.num_data} data, but returned {n}")
        return x

    def batches(
        self, transform: Callable[..., X] | None, seed: int, epoch: int, start: int = 0
    ) -> Iterator[Batch]:
        """The batches of an epoch in its random order, from number ``start`` on."""
        x = self.transformed(transform, seed, epoch)
        generator = torch.Generator(self.device).manual_seed(derive(seed, "order", epoch))
        order = torch.randperm(self.num_data, generator=generator, device=self.device)
        for rows in order.split(self.batch_size)[start:]:
            yield self._batch(x, partial(torch.index_select, dim=0, index=rows)), len(rows), rows

    def in_order(self) -> Iterator[Batch]:
        """The batches in the data's own order, untransformed: for validation."""
        for first in range(0, self.num_data, self.batch_size):
            n = min(self.batch_size, self.num_data - first)
            rows = torch.arange(first, first + n)
            part = partial(torch.narrow, dim=0, start=first, length=n)
            yield self._batch(self.x, part), n, rows

    def fingerprint(self, checksum: bool) -> dict[str, Any]:
        """What tells these data from others: shapes, and a checksum of the bytes if asked."""
        x = self.x if isinstance(self.x, tuple) else (self.x,)
        tensors = [*x, *(c for c in self.context if isinstance(c, Tensor))]
        shapes = ", ".join(f"{tuple(t.shape)} {str(t.dtype).split('.')[-1]}" for t in tensors)
        if not checksum:
            return {"shape": shapes}
        value = 0
        for tensor in tensors:
            value = crc32(tensor, value)
        return {"shape": shapes, "crc32": value}

    def whole(self) -> Iterator[tuple[int, tuple[int, ...]]]:
        """Number and shape of each context tensor that is passed whole."""
        for i, (value, batched) in enumerate(zip(self.context, self.batched, strict=True)):
            if isinstance(value, Tensor) and value.dim() and not batched:
                yield i, tuple(value.shape)

    def loader_state(self) -> dict[str, Any]:
        """Nothing: an epoch is made from its number."""
        return {}

    def set_loader_state(self, state: dict[str, Any]) -> None:
        """Nothing to set."""
