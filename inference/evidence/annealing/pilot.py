r"""The pilot run: step sizes, and temperatures where they are asked for, before anything is scored.

A kernel that adapts inside the chain that is scored does not leave its densities as they are, and
what it yields is no bound. So a pilot with fewer temperatures anneals first, moving the step size
of each datum towards the acceptance that is wanted; what it found, as a function of β, is frozen,
and the scored chains begin afresh with other random numbers.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ...kernels import Kernel
from ...paths import Path, Point
from .schedules import EqualLength, Schedule, interpolate

_SCALE_DRAWS = 64
_SETTLING = 30  # moves at β = 0, where the chains are in equilibrium already
_FAST, _SLOW = 0.5, 0.25  # how far log step sizes follow the acceptance
_SMOOTH = 9  # temperatures that a frozen step size is averaged over


@dataclass(frozen=True)
class Frozen:
    """What the scored run uses.

    Attributes:
        betas: ``(T + 1, N)``.
        step_size: ``(T + 1, N)``.
        scale: of each coordinate, ``(N, D)``.
        acceptance: of the pilot's moves, its mean by datum, ``(N,)``.
    """

    betas: Tensor
    step_size: Tensor
    scale: Tensor
    acceptance: Tensor

    def state(self) -> dict[str, Any]:
        return dict(vars(self))


def find_scale(path: Path) -> Tensor:
    """The standard deviation of the start's draws, ``(N, D)``; 1 where they do not vary."""
    u, outside = path.draw(_SCALE_DRAWS)
    keep = (~outside)[..., None]
    count = keep.sum(0).clamp(min=2)
    mean = torch.where(keep, u, 0.0).sum(0) / count
    spread = (torch.where(keep, u - mean, 0.0).square().sum(0) / (count - 1)).sqrt()
    return torch.where(spread > 0, spread, torch.ones_like(spread))


class Adapting:
    """Chains whose step sizes follow their acceptance: never ones that are scored.

    Args:
        path: the densities.
        kernel: what moves the chains.
        point: where the chains are.
        log_step: log of the step sizes, ``(N,)``.
        scale: of each coordinate, ``(N, D)``.
    """

    def __init__(
        self, path: Path, kernel: Kernel, point: Point, log_step: Tensor, scale: Tensor
    ) -> None:
        self.path, self.kernel, self.point = path, kernel, point
        self.log_step, self.scale = log_step, scale

    @classmethod
    def begin(cls, path: Path, kernel: Kernel, num_chains: int) -> Adapting:
        """Chains at draws of the path's start."""
        scale = find_scale(path)
        u, _ = path.draw(num_chains)
        point = path.point(u)
        dim = max(path.target.dim, 1)
        first = point.log_joint.new_full((path.target.num_data,), dim)
        return cls(path, kernel, point, -0.25 * first.log(), scale)

    def settle(self) -> None:
        """Find the step sizes at β = 0, where the chains are in equilibrium already."""
        for _ in range(_SETTLING):
            self.move(torch.zeros_like(self.log_step), _FAST)

    def move(self, beta: Tensor, rate: float = _SLOW) -> Tensor:
        """One move at β, ``(N,)``; the mean acceptance."""
        if self.path.target.dim == 0:
            return torch.ones_like(self.log_step)
        made = self.kernel.move(self.path, self.point, beta, self.log_step.exp(), self.scale)
        self.point = made.point
        mean = made.acceptance.mean(0)
        self.log_step = self.log_step + rate * (mean - self.kernel.target_acceptance)
        return mean


def run_pilot(
    path: Path,
    kernel: Kernel,
    schedule: Schedule,
    num_temperatures: int,
    num_chains: int,
    pilot_temperatures: int,
) -> Frozen:
    """Anneal once with step sizes that adapt, and freeze them."""
    device, size = path.target.device, path.target.num_data
    betas = schedule.betas(pilot_temperatures).to(device)
    chains = Adapting.begin(path, kernel, num_chains)
    chains.settle()
    steps, variances = [chains.log_step], [_variance(chains.point.log_ratio())]
    accepted = torch.zeros_like(chains.log_step)
    for beta in betas[1:]:
        accepted = accepted + chains.move(beta.expand(size))
        steps.append(chains.log_step)
        variances.append(_variance(chains.point.log_ratio()))
    found = _moving_mean(torch.stack(steps))
    grid = betas[:, None].expand(-1, size)
    if isinstance(schedule, EqualLength):
        variance = _moving_mean(torch.stack(variances))
        wanted = schedule.freeze(betas, variance, num_temperatures)
    else:
        wanted = schedule.betas(num_temperatures).to(device)[:, None].expand(-1, size)
    return Frozen(
        wanted,
        interpolate(wanted.contiguous(), grid, found).exp(),
        chains.scale,
        accepted / pilot_temperatures,
    )


def _variance(log_ratio: Tensor) -> Tensor:
    """Over the chains whose ratio is finite, ``(N,)``; 0 where there are fewer than two."""
    usable = log_ratio.isfinite()
    count = usable.sum(0)
    clean = torch.where(usable, log_ratio, 0.0)
    mean = clean.sum(0) / count.clamp(min=1)
    square = torch.where(usable, clean - mean, 0.0).square().sum(0)
    return square / (count - 1).clamp(min=1)


def _moving_mean(curve: Tensor) -> Tensor:
    """Averages over neighbouring temperatures, ``(T, N)``; at the ends over those there are."""
    width = min(_SMOOTH, len(curve))
    total = torch.cat([torch.zeros_like(curve[:1]), curve.cumsum(0)])
    index = torch.arange(len(curve), device=curve.device)
    low = (index - width // 2).clamp(min=0)
    high = (index + width // 2 + 1).clamp(max=len(curve))
    return (total[high] - total[low]) / (high - low)[:, None]
