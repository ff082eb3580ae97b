r"""Bounds on log p(x): functions of the log-weights of K particles, per datum.

A bound takes ``log_weight``, ``(K, N)``, and returns ``(N,)``, in nats. Its expectation lies below
log p(x) or, where ``direction`` is "upper", above it. How its gradient is taken is another matter
(:mod:`~pyrovae.inference.objectives.gradients`), for which a bound also knows its slope

.. math:: a_k = \frac{\partial L}{\partial \log w_k}

and, where it is needed, how that changes with the same weight, :math:`\partial a_k / \partial
\log w_k`. For the bounds that are built on :math:`\log \sum_k w_k^c` both are expressions in the
self-normalised weights :math:`\tilde w_k = w_k^c / \sum_j w_j^c`.
"""

from __future__ import annotations

import itertools
import math
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from ..programs import check_count, check_number

_MOST_SUBSETS = 20_000


class Bound(ABC):
    """A function of log-weights, ``(K, N) -> (N,)``.

    Attributes:
        direction: "lower" or "upper": the side of log p(x) on which its expectation lies; a lower
            bound is raised, an upper one is lowered.
    """

    direction: ClassVar[str] = "lower"

    @abstractmethod
    def __call__(self, log_weight: Tensor) -> Tensor:
        """The bound of each datum, ``(N,)``, in nats."""

    def check(self, num_particles: int) -> None:  # noqa: B027 - most bounds take any number
        """Raise ValueError where so many particles do not make this bound."""


def slope(bound: Bound, log_weight: Tensor) -> Tensor:
    r""":math:`\partial L / \partial \log w_k`, ``(K, N)``, without a graph.

    Example:
        >>> slope(ELBO(), torch.tensor([[0.0], [3.0]]))
        tensor([[0.5000],
                [0.5000]])
    """
    with torch.enable_grad():
        leaf = log_weight.detach().requires_grad_()
        (gradient,) = torch.autograd.grad(bound(leaf).sum(), leaf)
    return gradient


def weigh(share: Tensor, value: Tensor) -> Tensor:
    """Over particles, the sum of values with shares: ``(N,)``. One of no share may be −∞."""
    return (share * value.masked_fill(share == 0, 0.0)).sum(0)


def _log_mean_exp(log_weight: Tensor) -> Tensor:
    return log_weight.logsumexp(0) - math.log(len(log_weight))


@dataclass(frozen=True)
class ELBO(Bound):
    r"""The evidence lower bound, :math:`\frac1K \sum_k \log w_k`.

    References:
        Kingma and Welling, *Auto-encoding variational Bayes*, 2014. Rezende, Mohamed and Wierstra,
        *Stochastic backpropagation and approximate inference in deep generative models*, 2014.

    Example:
        >>> ELBO()(torch.tensor([[0.0, 1.0], [2.0, 3.0]]))
        tensor([1., 2.])
    """

    def __call__(self, log_weight: Tensor) -> Tensor:
        return log_weight.mean(0)


@dataclass(frozen=True)
class IWAE(Bound):
    r"""The importance-weighted bound, :math:`\log \frac1K \sum_k w_k`.

    Tightens with K: :math:`L_K \le L_{K+1} \le \log p(x)`.

    References:
        Burda, Grosse and Salakhutdinov, *Importance weighted autoencoders*, 2016.

    Example:
        >>> IWAE()(torch.tensor([[0.0], [0.0]]))
        tensor([0.])
    """

    def __call__(self, log_weight: Tensor) -> Tensor:
        return _log_mean_exp(log_weight)


@dataclass(frozen=True)
class MIWAE(Bound):
    r"""The mean of M importance-weighted bounds of K / M particles each.

    .. math:: \frac1M \sum_{m=1}^{M} \log \frac{M}{K} \sum_{k \in \text{group } m} w_k

    Args:
        num_groups: M; it must divide the number of particles.

    References:
        Rainforth, Kosiorek, Le, Maddison, Igl, Wood and Teh, *Tighter variational bounds are not
        necessarily better*, 2018.

    Example:
        >>> log_weight = torch.randn(6, 4)
        >>> bool((MIWAE(num_groups=6)(log_weight) - ELBO()(log_weight)).abs().max() < 1e-6)
        True
    """

    num_groups: int

    def __post_init__(self) -> None:
        check_count("num_groups", self.num_groups)

    def __call__(self, log_weight: Tensor) -> Tensor:
        return _log_mean_exp(self.groups(log_weight)).mean(0)

    def groups(self, log_weight: Tensor) -> Tensor:
        """The log-weights as ``(K / M, M, N)``."""
        return log_weight.reshape(self.num_groups, -1, *log_weight.shape[1:]).transpose(0, 1)

    def check(self, num_particles: int) -> None:
        if num_particles % self.num_groups:
            raise ValueError(
                f"num_groups must divide num_particles, {num_particles}, but is {self.num_groups}"
            )


@dataclass(frozen=True)
class CIWAE(Bound):
    r"""A combination, :math:`\beta \, \mathrm{ELBO} + (1 - \beta) \, \mathrm{IWAE}`.

    Args:
        beta: the ELBO's share, in [0, 1].

    References:
        Rainforth and others, *Tighter variational bounds are not necessarily better*, 2018.

    Example:
        >>> log_weight = torch.randn(6, 4)
        >>> bool((CIWAE(beta=1.0)(log_weight) == ELBO()(log_weight)).all())
        True
    """

    beta: float

    def __post_init__(self) -> None:
        check_number("beta", self.beta, 0, 1)

    def __call__(self, log_weight: Tensor) -> Tensor:
        if self.beta == 1:
            return log_weight.mean(0)
        if self.beta == 0:  # zero times the infinity of a weight of zero is not a number
            return _log_mean_exp(log_weight)
        return self.beta * log_weight.mean(0) + (1 - self.beta) * _log_mean_exp(log_weight)


@dataclass(frozen=True)
class Renyi(Bound):
    r"""The variational Rényi bound, :math:`\frac{1}{1 - \alpha} \log \frac1K \sum_k
    w_k^{1 - \alpha}`.

    α = 0 is the IWAE and α → 1 the ELBO; both limits are taken exactly. With infinitely many
    particles α < 0 lies above log p(x), but a sample of K is low by Jensen's inequality and may
    fall on either side: so it is not called an upper bound, and is raised like the others.

    Args:
        alpha: any real number.

    References:
        Li and Turner, *Rényi divergence variational inference*, 2016.

    Example:
        >>> log_weight = torch.randn(6, 4)
        >>> bool((Renyi(alpha=0.0)(log_weight) == IWAE()(log_weight)).all())
        True
    """

    alpha: float

    def __post_init__(self) -> None:
        check_number("alpha", self.alpha)

    def __call__(self, log_weight: Tensor) -> Tensor:
        power = 1 - self.alpha
        return log_weight.mean(0) if power == 0 else _log_mean_exp(power * log_weight) / power


@dataclass(frozen=True)
class CUBO(Bound):
    r"""The χ upper bound, :math:`\frac1n \log \frac1K \sum_k w_k^n`.

    With infinitely many particles it lies above log p(x); its sample value is biased *down*, by
    Jensen's inequality, and most where the guide is poor. It says nothing about the model's
    parameters (lowering log p(x) would lower it), so only the guide is moved by it.

    Args:
        n: at least 1; the larger, the more the bound is ruled by the largest weights.

    References:
        Dieng, Tran, Ranganath, Paisley and Blei, *Variational inference via χ upper bound
        minimization*, 2017.

    Example:
        >>> CUBO(n=2)(torch.zeros(6, 4))
        tensor([0., 0., 0., 0.])
    """

    direction = "upper"

    n: float = 2.0

    def __post_init__(self) -> None:
        check_number("n", self.n, 1)

    def __call__(self, log_weight: Tensor) -> Tensor:
        return _log_mean_exp(self.n * log_weight) / self.n


@dataclass(frozen=True)
class TVO(Bound):
    r"""The thermodynamic variational objective: a left Riemann sum of

    .. math:: \log p(x) = \int_0^1 \mathbb{E}_{\pi_\beta}[\log w] \, d\beta, \quad
              \pi_\beta(z) \propto q(z \mid x)^{1 - \beta} \, p(x, z)^\beta,

    whose integrand grows with β. Each expectation is one over the particles, with self-normalised
    weights :math:`w_k^\beta`; that biases it by O(1/K), upwards in the sum's exact value. One
    interval is the ELBO.

    Args:
        num_intervals: S.
        first: the first grid point after 0; the others are log-spaced up to 1.

    References:
        Masrani, Le and Wood, *The thermodynamic variational objective*, 2019.

    Example:
        >>> [round(beta, 3) for beta in TVO(num_intervals=3, first=0.01).grid]
        [0.0, 0.01, 0.1, 1.0]
        >>> log_weight = torch.randn(6, 4)
        >>> bool((TVO(num_intervals=1)(log_weight) - ELBO()(log_weight)).abs().max() < 1e-6)
        True
    """

    num_intervals: int = 5
    first: float = 0.025

    def __post_init__(self) -> None:
        check_count("num_intervals", self.num_intervals)
        check_number("first", self.first, 0, 1, strict=True)

    @property
    def grid(self) -> tuple[float, ...]:
        """The S + 1 points from 0 to 1."""
        steps = self.num_intervals - 1
        logs = (math.log(self.first) * (1 - i / steps) for i in range(steps))
        return (0.0, *map(math.exp, logs), 1.0)

    def __call__(self, log_weight: Tensor) -> Tensor:
        intervals = self.intervals(log_weight)
        return torch.stack([width * weigh(share, log_weight) for width, _, share in intervals]).sum(
            0
        )

    def intervals(self, log_weight: Tensor) -> list[tuple[float, float, Tensor]]:
        """Of each interval its width, its left end β, and the shares w^β / Σ w^β, ``(K, N)``."""
        return [
            (right - left, left, self._shares(left, log_weight))
            for left, right in itertools.pairwise(self.grid)
        ]

    @staticmethod
    def _shares(beta: float, log_weight: Tensor) -> Tensor:
        power = beta * log_weight if beta else torch.zeros_like(log_weight)
        return power.softmax(0)


@dataclass(frozen=True)
class Jackknife(Bound):
    r"""The jackknife of the importance-weighted bound, whose bias is :math:`O(K^{-(m + 1)})`.

    .. math:: \sum_{j=0}^{m} c_j \, \bar L_{K - j}, \quad
              c_j = \frac{(-1)^j (K - j)^m}{(m - j)! \, j!},

    where :math:`\bar L_{K-j}` is the mean of the bound over all subsets of K − j particles. Less
    biased than the IWAE, but no bound any more: it may exceed log p(x).

    Args:
        order: m, the number of terms of the bias that are cancelled; fewer than particles.

    References:
        Nowozin, *Debiasing evidence approximations: on importance-weighted autoencoders and
        jackknife variational inference*, 2018.

    Example:
        >>> Jackknife(order=1)(torch.zeros(6, 4)).abs().max() < 1e-6
        tensor(True)
    """

    order: int = 1

    def __post_init__(self) -> None:
        check_count("order", self.order)

    def check(self, num_particles: int) -> None:
        if num_particles <= self.order:
            raise ValueError(
                f"num_particles must be larger than the order of the jackknife, {self.order}, "
                f"but is {num_particles}"
            )
        if (subsets := math.comb(num_particles, self.order)) > _MOST_SUBSETS:
            raise ValueError(
                f"num_particles must leave at most {_MOST_SUBSETS:,} subsets for a jackknife of "
                f"order {self.order}, but {num_particles} leave {subsets:,}"
            )

    def __call__(self, log_weight: Tensor) -> Tensor:
        size, order = len(log_weight), self.order
        total = torch.zeros_like(log_weight[0])
        for out in range(order + 1):
            sign = (-1) ** out * (size - out) ** order
            share = sign / (math.factorial(order - out) * math.factorial(out))
            total = total + share * self._leaving_out(log_weight, out)
        return total

    @staticmethod
    def _leaving_out(log_weight: Tensor, count: int) -> Tensor:
        """The mean bound over the subsets that leave ``count`` particles out."""
        if count == 0:
            return _log_mean_exp(log_weight)
        size = len(log_weight)
        out = torch.tensor(list(itertools.combinations(range(size), count)))
        left = torch.zeros(len(out), size, dtype=torch.bool).scatter(1, out, True)
        # what is left out is excluded, not subtracted: the largest weight would cancel
        kept = log_weight.masked_fill(left.to(log_weight.device)[..., None], -math.inf)
        return (kept.logsumexp(1) - math.log(size - count)).mean(0)
