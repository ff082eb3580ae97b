r"""Baselines: what a score-function gradient subtracts from its signal to vary less.

A baseline of a draw is anything that does not depend on it, since
:math:`\mathbb{E}_q[b \, \nabla_\phi \log q_\phi(z)] = 0`. Each turns the signal of a particle, what
its draw was worth, into its advantage.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ...programs import ProgramError, check_number
from ..bounds import ELBO, Bound
from ..step import Step


def signal(bound: Bound, log_weight: Tensor) -> tuple[Tensor, float]:
    """What each particle's draw is held answerable for, ``(K, N)``, and the weight of that.

    A term of the ELBO depends on its own particle alone; other bounds on all of them at once.
    """
    if isinstance(bound, ELBO):
        return log_weight, 1 / len(log_weight)
    return bound(log_weight).expand(log_weight.shape), 1.0


class Baseline(ABC):
    """Turns log-weights, ``(K, N)`` without a graph, into advantages, ``(K, N)``."""

    @abstractmethod
    def advantage(self, bound: Bound, log_weight: Tensor, step: Step) -> tuple[Tensor, Tensor]:
        """The advantage of each draw, and a loss of the baseline's own, a scalar to be lowered."""

    def check(self, num_particles: int) -> None:  # noqa: B027 - most take any number
        """Raise ValueError where so many particles leave it nothing to work on."""


@dataclass(frozen=True)
class NoBaseline(Baseline):
    """The signal itself."""

    def advantage(self, bound: Bound, log_weight: Tensor, step: Step) -> tuple[Tensor, Tensor]:
        worth, weight = signal(bound, log_weight)
        return weight * worth, log_weight.new_zeros(())


@dataclass(frozen=True)
class MovingAverage(Baseline):
    """The average signal of the steps before, over all data.

    It changes at every step that takes a gradient, and stands in the objective's state.

    Args:
        decay: how much of the average stays at each step.

    References:
        Mnih and Gregor, *Neural variational inference and learning in belief networks*, 2014.
    """

    decay: float = 0.9

    def __post_init__(self) -> None:
        check_number("decay", self.decay, 0, 1)
        if self.decay == 1:
            raise ValueError("decay must be in [0, 1), but is 1: the average would never move")

    def advantage(self, bound: Bound, log_weight: Tensor, step: Step) -> tuple[Tensor, Tensor]:
        worth, weight = signal(bound, log_weight)
        now, before = worth.mean(), step.memory.get("average")
        # nothing is known at the first step; this step's own average would depend on its draws
        advantage = weight * (worth if before is None else worth - before)
        if torch.is_grad_enabled():
            kept = now if before is None else self.decay * before + (1 - self.decay) * now
            step.memory["average"] = kept.detach()
        return advantage, log_weight.new_zeros(())


@dataclass(frozen=True)
class LeaveOneOut(Baseline):
    r"""The bound without the particle: in its place stands the mean :math:`\log w` of the others.

    For the IWAE that is VIMCO's baseline; for the ELBO the others' mean.

    References:
        Mnih and Rezende, *Variational inference for Monte Carlo objectives*, 2016.

    Example:
        >>> from pyrovae.inference import bounds
        >>> equal = torch.zeros(3, 1)
        >>> LeaveOneOut().advantage(bounds.IWAE(), equal, step=None)[0].abs().max() < 1e-6
        tensor(True)
    """

    def check(self, num_particles: int) -> None:
        if num_particles < 2:
            raise ValueError(
                "num_particles must be at least 2 for a leave-one-out baseline, "
                f"but is {num_particles}"
            )

    def advantage(self, bound: Bound, log_weight: Tensor, step: Step) -> tuple[Tensor, Tensor]:
        count, size = log_weight.shape
        # weights of zero are left out of the mean; without any other, 0 depends on no draw either
        known = log_weight.isfinite()
        finite = log_weight.masked_fill(~known, 0.0)
        number = known.sum(0) - known.long()
        others = (finite.sum(0) - finite) / number.clamp(min=1)
        # [particle, which one is replaced, datum]
        replaced = log_weight[:, None].repeat(1, count, 1)
        replaced.diagonal(dim1=0, dim2=1).copy_(others.T)
        without = bound(replaced.reshape(count, count * size)).reshape(count, size)
        return bound(log_weight) - without, log_weight.new_zeros(())


@dataclass(frozen=True)
class NetworkBaseline(Baseline):
    """A network's guess of the signal from x, trained by least squares along with the rest.

    Args:
        net: maps x, as the programs get it, to ``(N,)`` or ``(N, 1)``.

    References:
        Mnih and Gregor, *Neural variational inference and learning in belief networks*, 2014.
    """

    net: nn.Module

    def __post_init__(self) -> None:
        if not isinstance(self.net, nn.Module):
            raise TypeError(f"net must be a torch.nn.Module, but is {self.net!r}")

    def advantage(self, bound: Bound, log_weight: Tensor, step: Step) -> tuple[Tensor, Tensor]:
        if step.plan.layout.subsample:
            raise ProgramError(
                "the data plate draws a part of x for itself, which a network baseline does not "
                "see: pass it the batches instead"
            )
        worth, weight = signal(bound, log_weight)
        size = log_weight.shape[1]
        guess = self.net(step.args[0])
        if guess.numel() != size:
            raise ValueError(
                f"net must return one number for each of {size} data, but its output has shape "
                f"{tuple(guess.shape)}"
            )
        error = worth - guess.reshape(size)
        return weight * error.detach(), error.square().mean(0).sum()
