"""Data as a DataLoader gives them: its order, its batches.

To enter an epoch in its middle, the generators that the loader draws from are put back to where
they stood when the epoch began, and the batches before are skipped.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader

from ..rng import capture, forked, restore
from .tensors import Batch, check_x, move


class LoaderData:
    """Batches from a DataLoader: each a tensor, or a list or tuple of the programs' arguments.

    The order is the loader's. To enter an epoch in its middle, the generators the loader draws
    from are put back to where they stood when the epoch began, and the batches before are skipped.
    """

    def __init__(
        self, loader: DataLoader[Any], context: tuple[Any, ...], device: torch.device, name: str
    ) -> None:
        self.loader = loader
        self.context = tuple(move(c, device) if isinstance(c, Tensor) else c for c in context)
        self.device = device
        self.name = name
        self._began: dict[str, Any] = {}

    @property
    def num_batches(self) -> int | None:
        """Batches in an epoch; None where the loader cannot say."""
        try:
            return len(self.loader)
        except TypeError:
            return None

    def _generators(self) -> list[torch.Generator]:
        batch_sampler = getattr(self.loader, "batch_sampler", None)
        owners = (
            self.loader,
            getattr(self.loader, "sampler", None),
            batch_sampler,
            getattr(batch_sampler, "sampler", None),
        )
        found = {id(g): g for o in owners if (g := getattr(o, "generator", None)) is not None}
        return list(found.values())

    def loader_state(self) -> dict[str, Any]:
        """The generators as they stood when the epoch began."""
        return self._began

    def set_loader_state(self, state: dict[str, Any]) -> None:
        """Begin the next epoch from these states of the generators."""
        self._began = state

    def _set_generators(self, states: list[Tensor]) -> None:
        for generator, state in zip(self._generators(), states, strict=True):
            generator.set_state(state)

    def _batch(self, item: Any) -> Batch:
        arguments = move(item, self.device)
        if not isinstance(arguments, tuple):
            arguments = (arguments,)
        first = arguments[0] if arguments else None
        n = check_x(self.name, first)
        return (*arguments, *self.context), n, None

    def batches(self, transform: None, seed: int, epoch: int, start: int = 0) -> Iterator[Batch]:
        """The batches of an epoch, from number ``start`` on."""
        if start:
            now = capture(self.device)
            restore(self._began["ambient"], self.device)
            self._set_generators(self._began["generators"])
        else:
            own = [generator.get_state() for generator in self._generators()]
            self._began = {"ambient": capture(self.device), "generators": own}
        batches = iter(self.loader)
        for _ in range(start):
            next(batches)
        if start:
            restore(now, self.device)
        for item in batches:
            yield self._batch(item)

    def in_order(self) -> Iterator[Batch]:
        """The loader's batches, for validation: the same ones each time."""
        own = [generator.get_state() for generator in self._generators()]
        try:
            for item in self.loader:
                yield self._batch(item)
        finally:
            self._set_generators(own)

    def peek(self, seed: int) -> Batch:
        """The first batch, without moving any generator."""
        own = [generator.get_state() for generator in self._generators()]
        with forked(self.device, seed):
            item = next(iter(self.loader), None)
        self._set_generators(own)
        if item is None:
            raise ValueError(f"{self.name}: must hold at least one batch, but the loader is empty")
        return self._batch(item)

    def fingerprint(self, checksum: bool) -> dict[str, Any]:
        """What can be told of a loader without reading it."""
        dataset = self.loader.dataset
        size = len(dataset) if hasattr(dataset, "__len__") else None
        return {
            "shape": f"DataLoader of {size} in {type(dataset).__name__}",
            "batch_size": self.loader.batch_size,
        }
