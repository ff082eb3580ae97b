"""How many particles and data to take at a time, so that memory stays within a budget.

The cost of a row (one particle of one datum) is measured, not guessed: the bytes of every tensor
that a small run makes are counted at two numbers of particles; the slope is what a row costs, the
intercept what every tile costs anyway (the pseudo-inputs of a VampPrior, say).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from ..particles import ParticlePlan
from ..programs import num_data

# a tile on a CPU is fastest while it fits into the cache; on a GPU when it fills the device
CPU_MEMORY = 32 * 2**20
GRADIENT_MEMORY = 4 * CPU_MEMORY  # a chain's step has costs of its own, which many rows share
CUDA_MEMORY = 2**30
_OVERHEAD_SHARE = 4


@dataclass(frozen=True)
class Tiles:
    """Sizes of a tile: ``data`` times ``particles`` rows at most."""

    data: int
    particles: int

    def data_slices(self, start: int, stop: int) -> Iterator[slice]:
        """Slices that cover the data from ``start`` to ``stop``.

        Example:
            >>> list(Tiles(data=2, particles=100).data_slices(4, 7))
            [slice(4, 6, None), slice(6, 7, None)]
        """
        return (slice(i, min(i + self.data, stop)) for i in range(start, stop, self.data))

    def particle_counts(self, num_samples: int) -> Iterator[int]:
        """Counts that add up to exactly ``num_samples``.

        Example:
            >>> list(Tiles(data=1, particles=100).particle_counts(250))
            [100, 100, 50]
        """
        return (
            min(self.particles, num_samples - done)
            for done in range(0, num_samples, self.particles)
        )


class _CountBytes(TorchDispatchMode):
    """Adds up the storage of every tensor that an operation makes."""

    def __init__(self) -> None:
        super().__init__()
        self.total = 0

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        known = {
            leaf.untyped_storage().data_ptr()
            for leaf in tree_leaves((args, kwargs))
            if isinstance(leaf, Tensor)
        }
        for leaf in tree_leaves(result):
            if isinstance(leaf, Tensor) and leaf.untyped_storage().data_ptr() not in known:
                self.total += leaf.untyped_storage().nbytes()
        return result


def plan_tiles(
    measure: Callable[[int], object],
    few: tuple,
    plan: ParticlePlan,
    num_samples: int,
    size: int,
    memory: int | None = None,
    cpu_memory: int = CPU_MEMORY,
) -> Tiles:
    """Choose tile sizes for K samples of N data.

    Args:
        measure: evaluates so many particles of each of a few data, as the scored run will.
        few: ``(x, *context)`` of these data.
        plan: how particles are drawn.
        num_samples: K.
        size: N.
        memory: bytes a tile may make; by default what suits the device.
        cpu_memory: what suits a CPU.
    """
    if memory is None:
        on_gpu = plan.layout.device is not None and plan.layout.device.type == "cuda"
        memory = CUDA_MEMORY if on_gpu else cpu_memory
    counts = []
    few_particles, more = 2, 6
    with torch.no_grad():
        for particles in (few_particles, more):
            with _CountBytes() as counter:
                measure(particles)
            counts.append(counter.total)
    per_row = max((counts[1] - counts[0]) / ((more - few_particles) * num_data(few[0])), 1.0)
    overhead = max(counts[0] - few_particles * num_data(few[0]) * per_row, 0.0)
    rows = max(int(max(memory, _OVERHEAD_SHARE * overhead) / per_row), 1)
    data = size if not plan.sliceable else min(max(rows // num_samples, 1), size)
    particles = max(min(rows // data, num_samples), 1)
    # equal tiles: 5 of 1000 rather than 4 of 1200 and one of 200
    return Tiles(data, math.ceil(num_samples / math.ceil(num_samples / particles)))
