r"""Sums over log-weights that arrive in tiles: memory does not grow with the number of samples.

Kept per datum, in float64: :math:`\log \sum_k w_k`, :math:`\log \sum_k w_k^2`, the sum and the
sum of squares of :math:`\log w_k` (for the ELBO), and the largest weights (for the Pareto fit).
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from .pareto import tail_length


class WeightSums:
    """Running sums over K samples for N data.

    Args:
        num_samples: K, how many samples will be added in all.
        tail: how many of the largest are kept; by default what the Pareto fit of K needs.
        rest: also add up all others by themselves, which nothing can then cancel.

    Example:
        >>> sums = WeightSums(num_samples=4)
        >>> sums.add(torch.zeros(3, 2, dtype=torch.float64))
        >>> sums.add(torch.zeros(1, 2, dtype=torch.float64))
        >>> sums.log_evidence().round(decimals=9), sums.ess().round(decimals=9)
        (tensor([0., 0.], dtype=torch.float64), tensor([4., 4.], dtype=torch.float64))
    """

    def __init__(self, num_samples: int, tail: int | None = None, rest: bool = False) -> None:
        self.num_samples = num_samples
        self.count = 0
        wanted = tail_length(num_samples) + 1 if tail is None else tail
        self._tail = min(wanted, num_samples)
        self._others: tuple[Tensor, Tensor] | None = None
        self._keeps_rest = rest

    def add(self, log_weight: Tensor) -> None:
        """Add a tile of log-weights, ``(k, N)`` in float64."""
        first = log_weight.logsumexp(0)
        second = (2 * log_weight).logsumexp(0)
        if self.count == 0:
            # squares are summed about a first value, lest they cancel
            self._origin = torch.nan_to_num(log_weight[0], neginf=0.0)
            self._log_sum, self._log_squares = first, second
            self._sum = torch.zeros_like(first)
            self._squares = torch.zeros_like(first)
            self._largest = log_weight[:0]
        else:
            self._log_sum = torch.logaddexp(self._log_sum, first)
            self._log_squares = torch.logaddexp(self._log_squares, second)
        deviation = log_weight - self._origin
        self._sum = self._sum + deviation.sum(0)
        self._squares = self._squares + deviation.square().sum(0)
        pool = torch.cat([self._largest, log_weight])
        self._largest, where = pool.topk(min(self._tail, len(pool)), dim=0)
        if self._keeps_rest:
            self._put_aside(pool.scatter(0, where, -math.inf))
        self.count += len(log_weight)

    def _put_aside(self, others: Tensor) -> None:
        first, second = others.logsumexp(0), (2 * others).logsumexp(0)
        if self._others is not None:
            first = torch.logaddexp(self._others[0], first)
            second = torch.logaddexp(self._others[1], second)
        self._others = first, second

    def log_evidence(self) -> Tensor:
        """log of the mean weight, ``(N,)``."""
        return self._log_sum - math.log(self.count)

    def ess(self) -> Tensor:
        """Effective sample size, ``(N,)``; 0 where every weight is zero."""
        return torch.nan_to_num((2 * self._log_sum - self._log_squares).exp(), nan=0.0)

    def stderr(self) -> Tensor:
        """Standard error of the log-evidence by the delta method; NaN for one sample."""
        if self.count == 1:
            return torch.full_like(self._log_sum, math.nan)
        return (1 / self.ess() - 1 / self.count).clamp(min=0).sqrt()

    def log_sums(self) -> tuple[Tensor, Tensor]:
        """log of the sum of the weights, and of their squares, ``(N,)``."""
        return self._log_sum, self._log_squares

    def log_rest(self) -> tuple[Tensor, Tensor]:
        """The same of all weights but the largest, where ``rest`` was asked for."""
        assert self._others is not None
        return self._others

    def largest(self) -> Tensor:
        """The largest log-weights in descending order, ``(M + 1, N)``: what k̂ is fitted to."""
        return self._largest

    def elbo(self) -> Tensor:
        """Mean log-weight, ``(N,)``."""
        return self._origin + self._sum / self.count

    def elbo_stderr(self) -> Tensor:
        """Standard error of the mean log-weight, ``(N,)``; NaN for one sample."""
        if self.count == 1:
            return torch.full_like(self._sum, math.nan)
        variance = (self._squares - self._sum.square() / self.count) / (self.count - 1)
        return (variance.clamp(min=0) / self.count).sqrt()


class Strata:
    r"""Weights whose samples come from several distributions in fixed shares.

    With :math:`n_s` of K samples from stratum s the mean weight has the variance
    :math:`\sum_s n_s \mathrm{Var}_s(w) / K^2`: what strata differ by adds nothing.

    Args:
        counts: :math:`n_s`, how many samples each stratum will be given.
        rest: see :class:`WeightSums`.
    """

    def __init__(self, counts: Sequence[int], rest: bool = False) -> None:
        self.num_samples = sum(counts)
        self._tail = min(tail_length(self.num_samples) + 1, self.num_samples)
        self.strata = [WeightSums(count, self._tail, rest) for count in counts if count]

    @classmethod
    def of(cls, sums: WeightSums) -> Strata:
        """A single stratum."""
        whole = cls([sums.num_samples])
        whole.strata = [sums]
        return whole

    def fields(self) -> dict[str, Tensor]:
        """log_evidence, stderr, ess, elbo and elbo_stderr, ``(N,)`` each."""
        sums, squares = (
            torch.stack(parts) for parts in zip(*(s.log_sums() for s in self.strata), strict=True)
        )
        shares = torch.tensor([s.count / self.num_samples for s in self.strata])
        shares = shares.to(sums)[:, None]
        total = sums.logsumexp(0)
        counts = self.num_samples * shares
        # sum of (w - its stratum's mean)^2, over the square of the sum of all w
        spread = (squares - 2 * total).exp() - (2 * (sums - total)).exp() / counts
        alone = torch.where(counts > 1, torch.zeros_like(counts), torch.nan)
        means = torch.stack([s.elbo() for s in self.strata])
        errors = torch.stack([s.elbo_stderr() for s in self.strata])
        return {
            "log_evidence": total - math.log(self.num_samples),
            "stderr": (spread + alone).sum(0).clamp(min=0).sqrt(),
            "ess": torch.nan_to_num((2 * total - squares.logsumexp(0)).exp(), nan=0.0),
            "elbo": (shares * means).sum(0),
            "elbo_stderr": (shares * errors).square().sum(0).sqrt(),
        }

    def largest(self) -> Tensor:
        """The largest log-weights of all, in descending order."""
        pool = torch.cat([stratum.largest() for stratum in self.strata])
        return pool.topk(min(self._tail, len(pool)), dim=0).values

    def log_rest(self) -> tuple[Tensor, Tensor]:
        """log of the sum, and of that of squares, of all weights but the largest."""
        pool = torch.cat([stratum.largest() for stratum in self.strata])
        where = pool.topk(min(self._tail, len(pool)), dim=0).indices
        left = pool.scatter(0, where, -math.inf)
        parts = [stratum.log_rest() for stratum in self.strata]
        first = torch.stack([left.logsumexp(0), *(part[0] for part in parts)])
        second = torch.stack([(2 * left).logsumexp(0), *(part[1] for part in parts)])
        return first.logsumexp(0), second.logsumexp(0)
