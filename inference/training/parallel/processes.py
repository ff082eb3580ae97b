"""The processes that train one model together, as a run sees them."""

from __future__ import annotations

import zlib
from collections.abc import Callable, Iterable
from typing import Any, TypeVar

import torch
import torch.distributed as processes
from torch import Tensor

from ..checkpoint import crc32

T = TypeVar("T")


class Processes:
    """A group of processes, of which each runs the same program.

    Attributes:
        rank: number of this one, from 0.
        count: how many there are.
    """

    def __init__(self, group: Any) -> None:
        if not processes.is_available() or not isinstance(group, processes.ProcessGroup):
            raise TypeError(
                "group: must be a process group, torch.distributed.group.WORLD say, of "
                f"torch.distributed.init_process_group, but is {group!r}"
            )
        self.group = group
        self.rank, self.count = processes.get_rank(group), processes.get_world_size(group)

    @property
    def first(self) -> bool:
        """Whether this one speaks and writes for all."""
        return self.rank == 0

    def rows(self, size: int) -> slice:
        """This one's part of so many data: parts differ by one datum at most."""
        return slice(size * self.rank // self.count, size * (self.rank + 1) // self.count)

    def add(self, tensors: list[Tensor]) -> None:
        """Replace each tensor by its sum over all processes: as few messages as there are types."""
        kinds = {tensor.dtype for tensor in tensors}
        for kind in sorted(kinds, key=str):
            alike = [tensor for tensor in tensors if tensor.dtype == kind]
            flat = torch.cat([tensor.reshape(-1) for tensor in alike])
            processes.all_reduce(flat, group=self.group)
            parts = flat.split([tensor.numel() for tensor in alike])
            for tensor, part in zip(alike, parts, strict=True):
                tensor.copy_(part.view_as(tensor))

    def by_first(self, function: Callable[[], T]) -> T:
        """What the first process gets by a call; all get its result, or its exception."""
        answer: list[Any] = [None, None]
        if self.first:
            try:
                answer[0] = function()
            except Exception as error:  # raised below, in every process
                answer[1] = error
        processes.broadcast_object_list(answer, group=self.group, group_src=0)
        if answer[1] is not None:
            raise answer[1]
        result: T = answer[0]
        return result

    def from_all(self, value: T) -> list[T]:
        """Every process's value, by rank."""
        found: list[Any] = [None] * self.count
        processes.all_gather_object(found, value, group=self.group)
        return found

    def check_same(self, what: str, tensors: Iterable[Tensor], hint: str) -> None:
        """Compare tensors with every process's, by their bytes.

        Raises:
            RuntimeError: another process has others.
        """
        value = zlib.crc32(b"")
        for tensor in tensors:
            value = crc32(tensor, value)
        found = self.from_all(value)
        if len(set(found)) > 1:
            other = next(rank for rank, one in enumerate(found) if one != found[0])
            raise RuntimeError(f"group: {what} of process {other} are not those of 0: {hint}")
