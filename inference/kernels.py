r"""Markov kernels that move all chains of all data at once.

Between a start :math:`\pi_0` (guide or prior) and the joint lie the densities

.. math:: \log \pi_\beta(u) = (1 - \beta) \log \pi_0(u) + \beta \log p(x, u),

each with a β of its own for every datum. A kernel leaves :math:`\pi_\beta` as it is: momenta are
drawn, the leapfrog integrator follows Hamilton's equations for L steps, and the end is accepted
with probability :math:`\min(1, e^{-\Delta H})`. Step sizes belong to the datum and are *given*:
nothing here adapts. A move that meets NaN or infinity is rejected, by its own chain alone.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from .programs import check_count, check_number
from .target import Target, gradient_of

_DIVERGED = 1000.0  # nats of energy, as in Stan


class Start(Protocol):
    """A density over coordinates that can be drawn from (:class:`evidence.proposals.Local`)."""

    def draw(self, count: int) -> Tensor: ...

    def log_density(self, u: Tensor) -> Tensor: ...


@dataclass(frozen=True)
class Point:
    """Where the chains are: coordinates, and the start's and the joint's densities there.

    Attributes:
        u: ``(C, N, D)``.
        log_start: ``(C, N)``.
        log_joint: ``(C, N)``.
        slope_start: gradient of the first, ``(C, N, D)``.
        slope_joint: and of the second.
    """

    u: Tensor
    log_start: Tensor
    log_joint: Tensor
    slope_start: Tensor
    slope_joint: Tensor

    def log_ratio(self) -> Tensor:
        """log p(x, u) − log π₀(u), ``(C, N)``: what β multiplies."""
        return self.log_joint - self.log_start

    def where(self, chosen: Tensor, other: Point) -> Point:
        """This point for the chains chosen, ``(C, N)``, the other one for the rest."""
        wide = chosen[..., None]
        return Point(
            torch.where(wide, self.u, other.u),
            torch.where(chosen, self.log_start, other.log_start),
            torch.where(chosen, self.log_joint, other.log_joint),
            torch.where(wide, self.slope_start, other.slope_start),
            torch.where(wide, self.slope_joint, other.slope_joint),
        )

    def take(self, chains: Tensor) -> Point:
        """Chains by number, ``(C, N)``, for each datum."""
        wide = chains[..., None].expand(*chains.shape, self.u.shape[-1])
        return Point(
            self.u.gather(0, wide),
            self.log_start.gather(0, chains),
            self.log_joint.gather(0, chains),
            self.slope_start.gather(0, wide),
            self.slope_joint.gather(0, wide),
        )


class Path:
    """The densities between a start and the joint.

    Args:
        target: the densities of a program pair.
        start: "guide", "prior", or a density of one's own.
    """

    def __init__(self, target: Target, start: str | Start) -> None:
        self.target, self.start = target, start

    def draw(self, count: int) -> tuple[Tensor, Tensor]:
        """Draws of the start, ``(C, N, D)``, and where they lie outside the support, ``(C, N)``.

        Those that do have a weight of zero; their coordinates are set to 0.
        """
        start = self.start
        u = self.target.draw(start, count) if isinstance(start, str) else start.draw(count)
        outside = ~u.isfinite().all(-1)
        return torch.where(outside[..., None], torch.zeros_like(u), u), outside

    def point(self, u: Tensor) -> Point:
        """Evaluate both densities and their gradients at u."""
        if isinstance(self.start, str):
            found = self.target.gradients(u, self.start, "joint")
            (log_start, slope_start), (log_joint, slope_joint) = found.values()
        else:
            ((log_joint, slope_joint),) = self.target.gradients(u, "joint").values()
            with torch.enable_grad():
                at = u.detach().requires_grad_()
                density = self.start.log_density(at)
                log_start, slope_start = density.detach(), gradient_of(density, at)
        return Point(u, log_start, log_joint, slope_start, slope_joint)

    def slope(self, u: Tensor, beta: Tensor) -> Tensor:
        """The gradient of log π_β at u, ``(C, N, D)``."""
        only_joint, own = bool((beta == 1).all()), not isinstance(self.start, str)
        with torch.enable_grad():
            at = u.detach().requires_grad_()
            kinds = ["joint"] if only_joint or own else [str(self.start), "joint"]
            found = self.target.log_densities(at, *kinds, slope=True)
            total = beta * found["joint"]
            if not only_joint:
                start = self.start.log_density(at) if not isinstance(self.start, str) else None
                total = total + (1 - beta) * (found[str(self.start)] if start is None else start)
            self.target.num_gradients += len(u)
            return gradient_of(total, at)


def log_between(point: Point, beta: Tensor) -> Tensor:
    """log π_β, ``(C, N)``; an end that has no part in it does not spoil it."""
    start = torch.where(beta < 1, (1 - beta) * point.log_start, 0.0)
    return start + torch.where(beta > 0, beta * point.log_joint, 0.0)


def _slope_between(point: Point, beta: Tensor) -> Tensor:
    wide = beta[..., None].to(point.u.dtype)
    start = torch.where(wide < 1, (1 - wide) * point.slope_start, 0.0)
    return start + torch.where(wide > 0, wide * point.slope_joint, 0.0)


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
        momentum = momentum + 0.5 * stride * _slope_between(point, beta)
        for _ in range(self._draw_steps() - 1):
            u = u + stride * momentum
            momentum = momentum + stride * path.slope(u, beta)
        end = path.point(u + stride * momentum)
        momentum = momentum + 0.5 * stride * _slope_between(end, beta)
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
