r"""What is left of log-gamma functions once their large terms have cancelled.

Densities of counts add and subtract log-gamma functions that are far larger than their sum: of a
count of 1e5, single precision knows :math:`\log\Gamma` to 0.1 nats. Written

.. math:: \log\Gamma(a + 1) = a \log a - a + s(a), \quad
          s(a) = \tfrac12 \log 2\pi a + \frac{1}{12 a} - \frac{1}{360 a^3} + \dots,

the linear terms cancel on paper, the terms :math:`a \log a` combine to
:math:`\sum_i a_i \log (b_i / a_i)` with :math:`\sum_i (b_i - a_i) = 0`, which is small where each
:math:`b_i` is near its :math:`a_i`, and s is of the order of a logarithm.

Loader, *Fast and accurate computation of binomial probabilities*, 2000.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

# where the first term of the series that is left out is 3e-17
_LARGE = 10.0


def stirling(a: Tensor) -> Tensor:
    """s(a), for a of at least 0: ``lgamma(a + 1) - a log a + a``.

    Example:
        >>> stirling(torch.tensor([0.0, 1.0, 1e30]))
        tensor([ 0.0000,  1.0000, 35.4577])
    """
    is_large = a >= _LARGE
    large, small = torch.where(is_large, a, _LARGE), torch.where(is_large, 1.0, a)
    inverse = 1 / large
    square = inverse**2
    series = torch.zeros_like(square)
    for term in (1 / 156, -691 / 360360, 1 / 1188, -1 / 1680, 1 / 1260, -1 / 360, 1 / 12):
        series = term + square * series
    positive = small.clamp(min=torch.finfo(a.dtype).tiny)
    return torch.where(
        is_large,
        0.5 * (2 * math.pi * large).log() + inverse * series,
        (small + 1).lgamma() - small * positive.log() + small,
    )


def log_ratio(a: Tensor, difference: Tensor, otherwise: Tensor) -> Tensor:
    """log(b / a) for a of at least 0, from b - a where that is small, and as given elsewhere.

    Args:
        a: the divisor.
        difference: b - a.
        otherwise: log(b / a) by other means, finite also where a is 0.

    Example:
        >>> a, b = torch.tensor([1e6, 0.0]), torch.tensor([1e6 + 0.25, 1.0])
        >>> log_ratio(a, torch.tensor([0.25, 1.0]), torch.tensor([0.0, 7.0]))
        tensor([2.5000e-07, 7.0000e+00])
    """
    is_near = (difference.abs() < a / 2) & (a > 0)
    # elsewhere the quotient may overflow, and its gradient is then no number
    quotient = torch.where(is_near, difference, 0.0) / torch.where(is_near, a, 1.0)
    return torch.where(is_near, quotient.log1p(), otherwise)
