r"""Systematic resampling, for each datum by itself.

With normalised weights W and one uniform number v, particle i is copied as often as one of the
points :math:`(j + v) / C` falls into its share of [0, 1]: :math:`C W_i` times in expectation, and
never more than one off (Kitagawa, *Monte Carlo filter and smoother for non-Gaussian nonlinear
state space models*, 1996).
"""

from __future__ import annotations

import torch
from torch import Tensor


def systematic(log_weight: Tensor) -> Tensor:
    """Numbers of the particles that go on, ``(C, N)``, in ascending order.

    Example:
        >>> _ = torch.manual_seed(0)
        >>> weight = torch.tensor([[0.5], [0.0], [0.25], [0.25]], dtype=torch.float64)
        >>> systematic(weight.log()).flatten()
        tensor([0, 0, 2, 3])
    """
    count, size = log_weight.shape
    share = log_weight.softmax(0)
    edges = share.cumsum(0)
    edges = edges / edges[-1:]
    shift = torch.rand(1, size, dtype=torch.float64, device=log_weight.device)
    rank = torch.arange(count, dtype=torch.float64, device=log_weight.device)[:, None]
    points = (rank + shift) / count
    found = torch.searchsorted(edges.T.contiguous(), points.T.contiguous(), right=True).T
    # rounding may leave the last point beyond the last particle that has a weight
    last = count - 1 - (share.flip(0) > 0).double().argmax(0)
    return torch.minimum(found, last[None])


def effective(log_weight: Tensor) -> Tensor:
    """Effective sample size of weights, ``(N,)``; 0 where all are zero."""
    ess = (2 * log_weight.logsumexp(0) - (2 * log_weight).logsumexp(0)).exp()
    return torch.nan_to_num(ess, nan=0.0)
