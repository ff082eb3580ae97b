r"""Markov kernels that move all chains of all data at once.

A kernel leaves a density :math:`\pi_\beta` of a path as it is: momenta are drawn, the leapfrog
integrator follows Hamilton's equations for L steps, and the end is accepted with probability
:math:`\min(1, e^{-\Delta H})`. Step sizes belong to the datum and are *given*: nothing here adapts.
A move that meets NaN or infinity is rejected, by its own chain alone.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from .paths import Path, Point, log_between, slope_between
from .programs import check_count, check_number

_DIVERGED = 1000.0  # nats of energy, as in Stan


@dataclass(frozen=True)
class Move:
    """Where a kernel led.

    Attributes:
        point: the chains afterwards.
        acceptance: the probability with which each was accepted, ``(C, N)``.
        diverged: where the energy broke down, ``(C, N)``.
    """

    point: Point
    acceptance: Tensor
    diverged: Tensor


@dataclass(frozen=True)
class HMC:
    """Hamiltonian Monte Carlo.

    Args:
        num_leapfrog: L, steps and gradients of one move, on average.
        target_acceptance: what the step sizes are tuned to, in a pilot run.
        jitter: the number of steps varies by this share, at random, from move to move, lest all
            trajectories of a length come back to where they began.

    References:
        Neal, *MCMC using Hamiltonian dynamics*, 2011.

    Example:
        >>> HMC(num_leapfrog=5)
        HMC(num_leapfrog=5, target_acceptance=0.8, jitter=0.5)
    """

    num_leapfrog: int = 10
    target_acceptance: float = 0.8
    jitter: float = 0.5

    def __post_init__(self) -> None:
        check_count("num_leapfrog", self.num_leapfrog)
        check_number("target_acceptance", self.target_acceptance, 0, 1, strict=True)
        check_number("jitter", self.jitter, 0, 1)

    def move(
        self, path: Path, point: Point, beta: Tensor, step_size: Tensor, scale: Tensor
    ) -> Move:
        """One move of every chain.

        Args:
            path: the densities.
            point: where the chains are.
            beta: ``(N,)``.
            step_size: ``(N,)``.
            scale: of each coordinate, ``(N, D)``; the momenta's inverse standard deviation.
        """
        dtype = point.u.dtype
        stride = step_size.to(dtype)[:, None] * scale.to(dtype)
        momentum = torch.randn_like(point.u)
        kinetic = 0.5 * momentum.double().square().sum(-1)
        before = log_between(point, beta) - kinetic
        u = point.u
        momentum = momentum + 0.5 * stride * slope_between(point, beta)
        between = None if bool((beta == 1).all()) else beta
        for _ in range(self._draw_steps() - 1):
            u, momentum = path.leapfrog(u, momentum, stride, between)
        end = path.point(u + stride * momentum)
        momentum = momentum + 0.5 * stride * slope_between(end, beta)
        gain = log_between(end, beta) - 0.5 * momentum.double().square().sum(-1) - before
        # a chain that stands where the density is zero may go anywhere else
        sound = gain.isfinite() | ((gain == torch.inf) & (before == -torch.inf))
        gain = gain.masked_fill(~sound, -torch.inf)
        acceptance = gain.clamp(max=0).exp()
        accepted = torch.rand_like(acceptance) < acceptance
        return Move(end.where(accepted, point), acceptance, gain < -_DIVERGED)

    def _draw_steps(self) -> int:
        """How many steps all chains take: chance alone decides, so the kernel stays reversible."""
        spread = int(self.jitter * self.num_leapfrog)
        low, high = max(self.num_leapfrog - spread, 1), self.num_leapfrog + spread
        return int(torch.randint(low, high + 1, ()))


@dataclass(frozen=True)
class Langevin:
    """The Metropolis-adjusted Langevin algorithm: HMC with a single step.

    Args:
        target_acceptance: what the step sizes are tuned to; 0.574 is best in high dimensions.

    References:
        Roberts and Rosenthal, *Optimal scaling of discrete approximations to Langevin diffusions*,
        1998.

    Example:
        >>> Langevin().num_leapfrog
        1
    """

    target_acceptance: float = 0.574

    def __post_init__(self) -> None:
        check_number("target_acceptance", self.target_acceptance, 0, 1, strict=True)

    @property
    def num_leapfrog(self) -> int:
        return 1

    def move(
        self, path: Path, point: Point, beta: Tensor, step_size: Tensor, scale: Tensor
    ) -> Move:
        """One move of every chain; see :meth:`HMC.move`."""
        one = HMC(1, self.target_acceptance, jitter=0.0)
        return one.move(path, point, beta, step_size, scale)


Kernel = HMC | Langevin


def check_kernel(kernel: object) -> None:
    """Refuse what is no kernel."""
    if not isinstance(kernel, HMC | Langevin):
        raise TypeError(f"kernel must be HMC(...) or Langevin(...), but is {kernel!r}")
