r"""Sums over log-weights that arrive in tiles: memory does not grow with the number of samples.

Kept per datum, in float64: :math:`\log \sum_k w_k`, :math:`\log \sum_k w_k^2`, the sum and the
sum of squares of :math:`\log w_k` (for the ELBO), and the largest weights (for the Pareto fit).
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from .pareto import tail_length


class WeightSums:
    """Running sums over K samples for N data.

    Args:
        num_samples: K, how many samples will be added in all.

    Example:
        >>> sums = WeightSums(num_samples=4)
        >>> sums.add(torch.zeros(3, 2, dtype=torch.float64))
        >>> sums.add(torch.zeros(1, 2, dtype=torch.float64))
        >>> sums.log_evidence().round(decimals=9), sums.ess().round(decimals=9)
        (tensor([0., 0.], dtype=torch.float64), tensor([4., 4.], dtype=torch.float64))
    """

    def __init__(self, num_samples: int) -> None:
        self.num_samples = num_samples
        self.count = 0
        self._tail = min(tail_length(num_samples) + 1, num_samples)

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
        self._largest = pool.topk(min(self._tail, len(pool)), dim=0).values
        self.count += len(log_weight)

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
