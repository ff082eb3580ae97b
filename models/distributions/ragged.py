r"""Sequences of unequal length, side by side in one tensor.

Given their codes, the steps of a sequence are independent, and those beyond its length L are
padding, which has no density:

.. math:: \log p(x_{1:T}) = \sum_{t \le L} \log p(x_t).
"""

from __future__ import annotations

from collections.abc import Callable

import pyro.distributions as dist
import torch
from pyro.distributions.torch_distribution import TorchDistributionMixin
from torch import Tensor


class Ragged(dist.Independent):
    """The steps of a distribution as one event, less those that are not there.

    A value's padding may be anything, NaN included: neither the density nor its gradient sees it.
    A draw has all T steps.

    Args:
        steps: of batch shape ``(..., T)``.
        present: which steps belong to their sequence, ``(..., T)``, the first always; None where
            all do.

    Example:
        >>> steps = dist.Normal(torch.zeros(2, 3, 4), 1.0).to_event(1)  # N = 2, T = 3, D = 4
        >>> present = torch.tensor([[True, True, True], [True, False, False]])
        >>> x = torch.ones(2, 3, 4)
        >>> x[1, 1:] = torch.nan
        >>> one, parts = Ragged(steps, present), steps.log_prob(torch.ones(4))
        >>> one.event_shape
        torch.Size([3, 4])
        >>> torch.allclose(one.log_prob(x), torch.stack([parts[0].sum(), parts[1, 0]]))
        True
    """

    def __init__(self, steps: TorchDistributionMixin, present: Tensor | None = None) -> None:
        super().__init__(steps, 1)
        self.present = present

    def expand(self, batch_shape: torch.Size, _instance: object = None) -> Ragged:
        whole = torch.Size(batch_shape) + self.event_shape[:1]
        return type(self)(self.base_dist.expand(whole), self.present)

    def log_prob(self, value: Tensor) -> Tensor:
        return self._sum(self.base_dist.log_prob, value)

    def log_prob_slope(self, value: Tensor) -> Tensor:
        """A number whose gradient is that of :meth:`log_prob`, for kernels that follow it alone."""
        steps = self.base_dist
        return self._sum(getattr(steps, "log_prob_slope", steps.log_prob), value)

    def entropy(self) -> Tensor:
        return self._present_only(self.base_dist.entropy()).sum(-1)

    def _sum(self, log_prob: Callable[[Tensor], Tensor], value: Tensor) -> Tensor:
        if self.present is not None:
            # padding may lie where the density or its slope is no number: a datum of the same
            # sequence lies in the support
            wide = (..., *[None] * len(self.base_dist.event_shape))
            first = value.narrow(-len(self.event_shape), 0, 1)
            value = torch.where(self.present[wide], value, first)
        return self._present_only(log_prob(value)).sum(-1)

    def _present_only(self, term: Tensor) -> Tensor:
        return term if self.present is None else torch.where(self.present, term, 0.0)
