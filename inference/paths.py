r"""The densities between a start and the joint, along which chains are led.

Between a start :math:`\pi_0` (guide, prior, or a proposal) and the joint lie

.. math:: \log \pi_\beta(u) = (1 - \beta) \log \pi_0(u) + \beta \log p(x, u),

each with a β of its own for every datum.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, Protocol

import torch
from torch import Tensor

from .compilation import Replays
from .target import Target, gradient_of


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
        start: "guide", "prior", or a density of one's own, a dataclass of tensors.
        replays: where densities and gradients are to be traced and compiled, their graphs.
    """

    def __init__(self, target: Target, start: str | Start, replays: Replays | None = None) -> None:
        self.target, self.start, self.replays = target, start, replays

    def draw(self, count: int) -> tuple[Tensor, Tensor]:
        """Draws of the start, ``(C, N, D)``, and where they lie outside the support, ``(C, N)``.

        Those that do have a weight of zero; their coordinates are set to 0.
        """
        start = self.start
        u = self.target.draw(start, count) if isinstance(start, str) else start.draw(count)
        outside = ~u.isfinite().all(-1)
        return torch.where(outside[..., None], torch.zeros_like(u), u), outside

    def log_densities(self, u: Tensor, *kinds: str) -> dict[str, Tensor]:
        """Log-densities at u, ``(C, N)`` each, by kind: as a target's, or "start"."""
        found = self._run(f"densities {kinds}", _densities, u, kinds=kinds)
        return dict(zip(kinds, found, strict=True))

    def point(self, u: Tensor) -> Point:
        """Evaluate both densities and their gradients at u."""
        return Point(u, *self._run("point", _point, u))

    def slope_of_joint(self, u: Tensor) -> Tensor:
        """The gradient of log p(x, u) at u, ``(C, N, D)``."""
        return self._run("slope of the joint", _slope, u)[0]

    def leapfrog(
        self, u: Tensor, momentum: Tensor, stride: Tensor, beta: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        """A step of the integrator: coordinates, and then momenta by the gradient there.

        Args:
            u: ``(C, N, D)``.
            momentum: ``(C, N, D)``.
            stride: ``(N, D)``.
            beta: ``(N,)``; None for the joint.
        """
        given = (u, momentum, stride) if beta is None else (u, momentum, stride, beta)
        name = "step along the joint" if beta is None else "step"
        u, momentum = self._run(name, _leapfrog, *given)
        return u, momentum

    def _run(
        self, name: str, function: Callable[..., tuple[Tensor, ...]], *inputs: Tensor, **how: Any
    ) -> tuple[Tensor, ...]:
        """Call a function of a path and of tensors, by a graph where there is one."""
        if self.replays is None:
            return function(self, *inputs, **how)
        start = None if isinstance(self.start, str) else vars(self.start)

        def of_another(moving: tuple[Tensor, ...], fixed: tuple) -> tuple[Tensor, ...]:
            return function(self._on(*fixed), *moving, **how)

        found = self.replays(name, of_another, inputs, (self.target.args, start))
        if found is not None:
            self.target.take_up([n * len(inputs[0]) for n in self.replays.costs[name]])
            return found
        before = self.target.spent
        found = function(self, *inputs, **how)
        spent = zip(before, self.target.spent, strict=True)
        self.replays.costs[name] = [(b - a) // len(inputs[0]) for a, b in spent]
        return found

    def _on(self, args: tuple, start: dict[str, Any] | None) -> Path:
        """The path of other data of the same form."""
        mine = self.start
        other = mine if start is None or isinstance(mine, str) else _remade(mine, start)
        return Path(self.target.on(args), other)


def _remade(start: Any, values: dict[str, Any]) -> Any:
    return replace(start, **values)


def _densities(path: Path, u: Tensor, kinds: tuple[str, ...]) -> tuple[Tensor, ...]:
    found = path.target.log_densities(u, *(kind for kind in kinds if kind != "start"))
    if "start" in kinds and not isinstance(path.start, str):
        found["start"] = path.start.log_density(u)
    return tuple(found[kind] for kind in kinds)


def _point(path: Path, u: Tensor) -> tuple[Tensor, ...]:
    start = path.start
    if isinstance(start, str):
        found = path.target.gradients(u, start, "joint")
        (log_start, slope_start), (log_joint, slope_joint) = found.values()
        return log_start, log_joint, slope_start, slope_joint
    ((log_joint, slope_joint),) = path.target.gradients(u, "joint").values()
    with torch.enable_grad():
        at = u.detach().requires_grad_()
        density = start.log_density(at)
        return density.detach(), log_joint, gradient_of(density, at), slope_joint


def _slope(path: Path, u: Tensor, beta: Tensor | None = None) -> tuple[Tensor, ...]:
    """The gradient of log π_β; without a β, that of the joint."""
    start = path.start
    with torch.enable_grad():
        at = u.detach().requires_grad_()
        kinds = ["joint"] if beta is None or not isinstance(start, str) else [start, "joint"]
        found = path.target.log_densities(at, *kinds, slope=True)
        total = found["joint"] if beta is None else beta * found["joint"]
        if beta is not None:
            density = found[start] if isinstance(start, str) else start.log_density(at)
            total = total + (1 - beta) * density
        path.target.num_gradients += len(u)
        return (gradient_of(total, at),)


def _leapfrog(
    path: Path, u: Tensor, momentum: Tensor, stride: Tensor, beta: Tensor | None = None
) -> tuple[Tensor, ...]:
    u = u + stride * momentum
    return u, momentum + stride * _slope(path, u, beta)[0]


def log_between(point: Point, beta: Tensor) -> Tensor:
    """log π_β, ``(C, N)``; an end that has no part in it does not spoil it."""
    start = torch.where(beta < 1, (1 - beta) * point.log_start, 0.0)
    return start + torch.where(beta > 0, beta * point.log_joint, 0.0)


def slope_between(point: Point, beta: Tensor) -> Tensor:
    wide = beta[..., None].to(point.u.dtype)
    start = torch.where(wide < 1, (1 - wide) * point.slope_start, 0.0)
    return start + torch.where(wide > 0, wide * point.slope_joint, 0.0)
