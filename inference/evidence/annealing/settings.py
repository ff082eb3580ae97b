"""What the estimators that anneal have in common: a start, temperatures, a kernel, a pilot."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

from ...paths import Path
from ...programs import check_count
from ..moving import Moving
from ..parts import Tile
from .anneal import Chains
from .pilot import Frozen, run_pilot
from .schedules import Schedule, Sigmoid, check_schedule

_LEAST_PILOT = 100


@dataclass(frozen=True)
class Annealing(Moving):
    """Settings of estimators that lead chains from a start to the joint.

    Args:
        num_chains: C, chains for each datum.
        num_temperatures: T, steps from the start to the joint.
        schedule: ``Linear()``, ``Sigmoid()``, or ``EqualLength()``, found in the pilot run.
        pilot_temperatures: of the pilot run, which tunes step sizes for each datum and temperature;
            by default a tenth of T, but at least 100, or T.
        start: see :class:`~pyrovae.inference.evidence.moving.Moving`, for this and the kernel.
    """

    num_temperatures: int = 1000
    schedule: Schedule = field(default=Sigmoid(), kw_only=True)
    pilot_temperatures: int | None = field(default=None, kw_only=True)

    def _check(self) -> None:
        super()._check()
        check_count("num_temperatures", self.num_temperatures)
        if self.pilot_temperatures is not None:
            check_count("pilot_temperatures", self.pilot_temperatures)
        check_schedule(self.schedule)

    @property
    def num_samples(self) -> int:
        return self.num_chains

    def _pilot(self, path: Path) -> Frozen:
        wanted = self.pilot_temperatures
        if wanted is None:
            wanted = max(min(self.num_temperatures, _LEAST_PILOT), self.num_temperatures // 10)
        return run_pilot(
            path, self.kernel, self.schedule, self.num_temperatures, self.num_chains, wanted
        )

    def _begin(self, tile: Tile, path: Path) -> tuple[Frozen, Chains, Tensor]:
        """The pilot's result, the chains and the log-weights they began with; or those kept."""
        if (kept := tile.keeper.resume()) is not None:
            path.target.take_up(kept["spent"])
            return Frozen(**kept["frozen"]), Chains.restore(kept["chains"], path), kept["first"]
        frozen = self._pilot(path)
        u, outside = path.draw(self.num_chains)
        chains = Chains.begin(path.point(u), outside)
        first = chains.point.log_ratio().masked_fill(outside, -torch.inf)
        return frozen, chains, first
