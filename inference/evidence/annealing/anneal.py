r"""Chains that are led from the start to the joint, and weighed on the way.

.. math:: \log w_c = \sum_{t=1}^{T} (\beta_t - \beta_{t-1}) \,
          \bigl[\log p(x, u_{t-1}) - \log \pi_0(u_{t-1})\bigr], \quad
          u_t \sim \mathcal{T}_{\beta_t}(\cdot \mid u_{t-1}).

With kernels that leave :math:`\pi_{\beta_t}` as it is, :math:`\mathbb{E}\, w = p(x)`. The same
chains led from the joint to the start, begun at an exact draw of the posterior, have
:math:`\mathbb{E}\, w = 1 / p(x)`. With resampling the chains are particles, and the mean weights
between two resamplings multiply.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from ...kernels import Kernel, Move
from ...paths import Path, Point
from ..journal import Keeper
from .pilot import Frozen
from .resampling import effective, systematic


@dataclass
class Chains:
    """All that changes while chains are led along a path.

    Attributes:
        point: where they are.
        log_weight: since the last resampling, ``(C, N)``.
        log_mean: what the resamplings have put aside, ``(N,)``.
        ancestor: which of the first particles each descends from, ``(C, N)``.
        drift: what the families' shares gained by resampling alone, ``(C, N)``.
        accepted: sum of the mean acceptance of the moves, ``(N,)``.
        diverged: how many moves broke down, ``(N,)``.
        resampled: how often each datum was resampled, ``(N,)``.
        step: how many temperatures are passed.
        moves: how many moves were made.
    """

    point: Point
    log_weight: Tensor
    log_mean: Tensor
    ancestor: Tensor
    drift: Tensor
    accepted: Tensor
    diverged: Tensor
    resampled: Tensor
    step: int = 0
    moves: int = 0

    @classmethod
    def begin(cls, point: Point, outside: Tensor | None = None) -> Chains:
        """Weightless chains at a point; those outside the support have a weight of zero."""
        log_weight = torch.zeros_like(point.log_joint)
        if outside is not None:
            log_weight = log_weight.masked_fill(outside, -math.inf)
        zero = torch.zeros_like(log_weight[0])
        numbers = torch.arange(len(log_weight), device=log_weight.device)[:, None]
        ancestor, drift = numbers.expand_as(log_weight).clone(), torch.zeros_like(log_weight)
        return cls(point, log_weight, zero, ancestor, drift, zero, zero, zero)

    def state(self) -> dict:
        """What a journal keeps."""
        kept = {n: value for n, value in vars(self).items() if n != "point"}
        return {"u": self.point.u} | kept

    @classmethod
    def restore(cls, state: dict, path: Path) -> Chains:
        """Go on from what a journal kept: the densities are evaluated again."""
        rest = {name: value for name, value in state.items() if name != "u"}
        return cls(point=path.point(state["u"]), **rest)

    def reweigh(self, step: Tensor) -> None:
        """Let β grow by ``step``, ``(N,)``."""
        ratio = self.point.log_ratio()
        self.log_weight = self.log_weight + torch.where(step != 0, step * ratio, 0.0)

    def move(
        self, path: Path, kernel: Kernel, beta: Tensor, step: Tensor, scale: Tensor
    ) -> Move | None:
        """One move of the kernel at β, ``(N,)``; None where there is nothing to move."""
        if path.target.dim == 0:
            return None
        made = kernel.move(path, self.point, beta, step, scale)
        self.point = made.point
        self.accepted = self.accepted + made.acceptance.mean(0)
        self.diverged = self.diverged + made.diverged.sum(0)
        self.moves += 1
        return made

    def resample(self, threshold: float) -> None:
        """Resample the data whose effective sample size is below a share of the particles."""
        count = len(self.log_weight)
        needed = effective(self.log_weight) < threshold * count
        needed &= self.log_weight.logsumexp(0).isfinite()
        if not bool(needed.any()):
            return
        chosen = torch.where(needed, systematic(self.log_weight), _numbers(self.log_weight))
        before = self._shares(self.log_weight.softmax(0))
        self.point = self.point.take(chosen)
        self.ancestor = self.ancestor.gather(0, chosen)
        after = self._shares(torch.full_like(self.log_weight, 1 / count))
        self.drift = self.drift + torch.where(needed, after - before, 0.0)
        mean = self.log_weight.logsumexp(0) - math.log(count)
        self.log_mean = self.log_mean + torch.where(needed, mean, 0.0)
        self.log_weight = torch.where(needed, 0.0, self.log_weight)
        self.resampled = self.resampled + needed

    def _shares(self, share: Tensor) -> Tensor:
        """The shares of the first particles' families, ``(C, N)``, from those of particles."""
        return torch.zeros_like(share).scatter_add(0, self.ancestor, share)

    def stderr(self) -> Tensor:
        """Standard error of the log of the estimate, ``(N,)``; NaN for a single chain.

        A family's share of the estimate differs from that of the others by its luck on the way, and
        by what resampling rounded it to: only the first is an error.
        """
        families = self.families()
        count = len(families)
        luck = families.softmax(0) - 1 / count - self.drift
        error = luck.square().sum(0).sqrt()
        return error if count > 1 else torch.full_like(error, math.nan)

    def families(self) -> Tensor:
        """log-weights of the first particles' families, ``(C, N)``: they add up to the estimate.

        Without resampling they are the chains' weights.
        """
        top = self.log_weight.amax(0).clamp(min=torch.finfo(self.log_weight.dtype).min)
        share = torch.zeros_like(self.log_weight)
        share = share.scatter_add(0, self.ancestor, (self.log_weight - top).exp())
        return share.log() + top + self.log_mean

    def diagnostics(self) -> dict[str, Tensor]:
        """Mean acceptance and the number of moves that broke down, ``(N,)`` each."""
        unknown = torch.full_like(self.accepted, math.nan)
        return {
            "acceptance": self.accepted / self.moves if self.moves else unknown,
            "divergences": self.diverged,
        }


@dataclass(frozen=True)
class Journey:
    """How chains are led along a path.

    Args:
        path: the densities between.
        kernel: what moves them.
        frozen: temperatures, step sizes, scale.
        threshold: the share of effective particles below which they are resampled; 0 for never.
        moves: of the kernel at each temperature.
        settle: also move once the last temperature is reached.
        observe: is told the temperature's number and the chains after each move.
        extra: what else the journal keeps.
    """

    path: Path
    kernel: Kernel
    frozen: Frozen
    threshold: float = 0.0
    moves: int = 1
    settle: bool = False
    keeper: Keeper = field(default_factory=Keeper)
    advance: Callable[[float], None] = lambda share: None
    observe: Callable[[int, Chains], None] | None = None
    extra: dict[str, Any] = field(default_factory=dict)

    def lead(self, chains: Chains, *, backwards: bool = False) -> Chains:
        """Lead chains from where they are to the end, or back to the start."""
        betas, steps = self.frozen.betas, self.frozen.step_size
        if backwards:
            betas, steps = betas.flip(0), steps.flip(0)
        total = len(betas) - 1
        while chains.step < total:
            now = chains.step + 1
            chains.reweigh(betas[now] - betas[now - 1])
            if self.threshold and now < total:
                chains.resample(self.threshold)
            if now < total or self.settle:
                for _ in range(self.moves):
                    chains.move(self.path, self.kernel, betas[now], steps[now], self.frozen.scale)
                    if self.observe is not None:
                        self.observe(now, chains)
            chains.step = now
            self.keeper.offer(
                chains=chains.state(),
                frozen=self.frozen.state(),
                spent=self.path.target.spent,
                **self.extra,
            )
            self.advance(now / total)
        return chains


def _numbers(log_weight: Tensor) -> Tensor:
    count = torch.arange(len(log_weight), device=log_weight.device)
    return count[:, None].expand_as(log_weight)
