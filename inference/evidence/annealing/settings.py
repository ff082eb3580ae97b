"""What the estimators that anneal have in common: a start, temperatures, a kernel, a pilot."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ...kernels import HMC, Kernel, Path, check_kernel
from ...programs import Program, check_count
from ...target import Target, check_differentiable
from ..proposals import Proposal, Scaled, StudentT
from ..scoring import Estimator, Tile
from ..tiles import Tiles, plan_tiles
from .anneal import Chains
from .pilot import Frozen, run_pilot
from .schedules import Schedule, Sigmoid, check_schedule

_LEAST_PILOT = 100


@dataclass(frozen=True)
class Annealing(Estimator):
    """Settings of estimators that lead chains from a start to the joint.

    Args:
        num_chains: C, chains for each datum.
        num_temperatures: T, steps from the start to the joint.
        start: "guide", "prior", or a proposal built from the guide: ``Scaled(...)``,
            ``StudentT(...)``.
        schedule: ``Linear()``, ``Sigmoid()``, or ``EqualLength()``, found in the pilot run.
        kernel: ``HMC(...)`` or ``Langevin(...)``; its step sizes are tuned in the pilot run, for
            each datum and temperature, and frozen.
        pilot_temperatures: of the pilot run; by default a tenth of T, but at least 100, or T.
    """

    num_chains: int = 16
    num_temperatures: int = 1000
    start: str | Proposal = "guide"
    schedule: Schedule = Sigmoid()
    kernel: Kernel = HMC()
    pilot_temperatures: int | None = None

    def _check(self) -> None:
        for name in ("num_chains", "num_temperatures"):
            check_count(name, getattr(self, name))
        if self.pilot_temperatures is not None:
            check_count("pilot_temperatures", self.pilot_temperatures)
        if self.start not in ("guide", "prior") and not isinstance(self.start, Scaled | StudentT):
            raise ValueError(
                "start must be 'guide', 'prior', Scaled(...) or StudentT(...), but is "
                f"{self.start!r}"
            )
        check_schedule(self.schedule)
        check_kernel(self.kernel)

    @property
    def num_samples(self) -> int:
        return self.num_chains

    def _proposal(self, guide: Program | None) -> Program | None:
        return None if self.start == "prior" else super()._proposal(guide)

    def _sizes(self, few: Tile, size: int) -> Tiles:
        return chain_tiles(few, self.num_chains, size, self.memory)

    def _path(self, tile: Tile) -> Path:
        return path_of(tile, self.start)

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
            return Frozen(**kept["frozen"]), Chains.restore(kept["chains"], path), kept["first"]
        frozen = self._pilot(path)
        u, outside = path.draw(self.num_chains)
        chains = Chains.begin(path.point(u), outside)
        first = chains.point.log_ratio().masked_fill(outside, -torch.inf)
        return frozen, chains, first


def path_of(tile: Tile, start: str | Proposal) -> Path:
    """The densities between a start and the joint of a tile."""
    target = Target(tile.model, tile.guide, tile.args, tile.plan)
    return Path(target, start if isinstance(start, str) else start.build(target))


def chain_tiles(few: Tile, num_chains: int, size: int, memory: int | None) -> Tiles:
    """Tiles that hold all chains of a datum, and as many data as memory allows."""
    target = Target(few.model, few.guide, few.args, few.plan)
    kind = "prior" if few.guide is None else "guide"
    u = target.draw(kind, 6)
    u = torch.where(u.isfinite(), u, torch.zeros_like(u))
    check_differentiable(target, u)
    tiles = plan_tiles(
        lambda particles: target.gradients(u[:particles], kind, "joint"),
        few.args,
        few.plan,
        num_chains,
        size,
        memory,
    )
    return Tiles(tiles.data, num_chains)
