"""What the estimators that move latents have in common: chains, a start, a kernel."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch

from ..differentiability import check_differentiable
from ..kernels import HMC, Kernel, check_kernel
from ..paths import Path
from ..programs import Program, check_count
from ..target import Target
from .parts import Tile
from .proposals import Proposal, Scaled, StudentT
from .scoring import Estimator
from .tiles import GRADIENT_MEMORY, Tiles, plan_tiles


@dataclass(frozen=True)
class Moving(Estimator):
    """Settings of estimators that move chains between a start and the joint.

    Args:
        num_chains: C, chains for each datum.
        start: "guide", "prior", or a proposal built from the guide: ``Scaled(...)``,
            ``StudentT(...)``. From the prior no guide is needed.
        kernel: ``HMC(...)`` or ``Langevin(...)``; its step sizes are tuned for each datum before
            anything is scored, and frozen.
    """

    num_chains: int = 16
    start: str | Proposal = field(default="guide", kw_only=True)
    kernel: Kernel = field(default=HMC(), kw_only=True)

    def _check(self) -> None:
        check_count("num_chains", self.num_chains)
        if self.start not in ("guide", "prior") and not isinstance(self.start, Scaled | StudentT):
            raise ValueError(
                "start must be 'guide', 'prior', Scaled(...) or StudentT(...), but is "
                f"{self.start!r}"
            )
        check_kernel(self.kernel)

    def _proposal(self, guide: Program | None) -> Program | None:
        return None if self.start == "prior" else super()._proposal(guide)

    def _sizes(self, few: Tile, size: int) -> Tiles:
        return chain_tiles(few, self.num_chains, size, self.memory)

    def _path(self, tile: Tile) -> Path:
        """The densities between the start and the joint of a tile."""
        target = Target(tile.model, tile.guide, tile.args, tile.plan)
        start = self.start
        density = start if isinstance(start, str) else start.build(target)
        return Path(target, density, tile.replays)


def chain_tiles(few: Tile, num_chains: int, size: int, memory: int | None) -> Tiles:
    """Tiles that hold all chains of a datum, and as many data as memory allows.

    Raises:
        ProgramError: a latent cannot be moved along the model's gradient.
    """
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
        GRADIENT_MEMORY,
    )
    return Tiles(tiles.data, num_chains)
