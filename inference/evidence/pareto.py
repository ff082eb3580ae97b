r"""The Pareto shape k̂ of the largest importance weights: can an estimate be believed?

The tail of the weights above their M-th largest is fitted by a generalised Pareto distribution,

.. math:: p(y \mid \sigma, k) = \frac1\sigma \Bigl(1 + k \frac{y}{\sigma}\Bigr)^{-1/k - 1},

whose moments up to 1/k exist. With k̂ > 0.5 the variance of the weights is infinite, and above
min(1 − 1/log10 K, 0.7) neither the estimate nor its error means anything at K samples (Vehtari,
Simpson, Gelman, Yao and Gabry, *Pareto smoothed importance sampling*, 2024). The fit is Zhang and
Stephens' (*A new and efficient estimation method for the generalized Pareto distribution*, 2009):
the posterior mean of σ/k over a grid, here for all data at once; with the weak prior of the paper
on PSIS, worth ten observations at k = 0.5.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

_PRIOR_COUNT, _PRIOR_SHAPE = 10, 0.5
MIN_TAIL = 5
_ROUNDING = 1e-5  # log-weights that differ by less are equal but for single precision


def tail_length(num_samples: int) -> int:
    """How many of the largest weights make the tail: min(0.2 K, 3 √K), rounded up.

    Example:
        >>> tail_length(1000), tail_length(100)
        (95, 20)
    """
    return math.ceil(min(0.2 * num_samples, 3 * math.sqrt(num_samples)))


def pareto_shape(largest: Tensor) -> Tensor:
    r"""Fit the tail of the weights.

    Args:
        largest: the M + 1 largest log-weights of each datum in descending order, ``(M + 1, N)``;
            the smallest is the threshold.

    Returns:
        k̂, ``(N,)``. −∞ where the tail is constant (an exact proposal), or takes few values, as
        with discrete latents, and the largest at least five times; NaN where it takes few values
        and the largest more rarely, or has fewer than five weights.

    Example:
        >>> u = (torch.arange(2000, dtype=torch.float64) + 0.5) / 2000  # quantiles of Pareto(k=0.6)
        >>> largest = (-0.6 * u.log()).sort(descending=True).values[:, None]
        >>> round(float(pareto_shape(largest)), 1)
        0.6
    """
    size = largest.shape[0] - 1
    if size < MIN_TAIL:
        return largest.new_full(largest.shape[1:], math.nan)
    relative = largest - largest[0]
    # what varies by less than single precision resolves is rounding, not a tail
    constant = relative[-1] > -_ROUNDING
    # where a few weights are all there is, the others underflow: the tail is what can be told apart
    underflow = ~(relative[-1] > math.log(torch.finfo(largest.dtype).tiny))
    gaps = relative[:-1] - relative[1:]
    # of two neighbours among M that are spread over the tail, one in 500 is as close as this
    is_tie = gaps < 2e-3 / size * -relative[-1]
    discrete = ~constant & ~underflow & (is_tie.double().mean(0) > 0.5)
    tied = ~constant & ~underflow & ~discrete & is_tie[size - _quartile(size) :].all(0)
    weight = relative.exp()
    special = constant | underflow | discrete | tied
    exceedances = torch.where(special, torch.ones_like(weight[:-1]), weight[:-1] - weight[-1])
    k, _ = _fit(exceedances.flip(0))
    k = torch.where(constant, torch.full_like(k, -math.inf), k)
    # the largest of few values, seen again and again, is an upper bound of the weights; and weights
    # that are equal but for a thousandth take few values where single precision has no more
    is_bounded = is_tie[: MIN_TAIL - 1].all(0) | (relative[-1] > -1e-3)
    of_discrete = torch.full_like(k, math.nan).masked_fill(is_bounded, -math.inf)
    k = torch.where(discrete, of_discrete, k)
    for n in underflow.nonzero().flatten().tolist():
        tail = weight[:, n][weight[:, n] > torch.finfo(largest.dtype).tiny]
        k[n] = _fit(tail.flip(0)[:, None])[0][0] if len(tail) >= MIN_TAIL else math.inf
    for n in tied.nonzero().flatten().tolist():
        above = ~is_tie[:, n].flip(0).cumprod(0).bool().flip(0)  # above the threshold and its ties
        tail = weight[:-1, n][above] - weight[-1, n]
        k[n] = _fit(tail.flip(0)[:, None])[0][0] if len(tail) >= MIN_TAIL else math.nan
    return k


def _quartile(size: int) -> int:
    """Which of a sample in ascending order, counted from 1, is its first quartile."""
    return int(size / 4 + 0.5)


def _fit(y: Tensor) -> tuple[Tensor, Tensor]:
    """Shape and scale of generalised Pareto samples, ``(M, N)``, ascending: ``(N,)`` each."""
    size = y.shape[0]
    grid = 30 + math.isqrt(size)
    steps = torch.arange(1, grid + 1, dtype=y.dtype, device=y.device)[:, None]
    quartile = y[_quartile(size) - 1]
    theta = 1 / y[-1] + (1 - (grid / (steps - 0.5)).sqrt()) / (3 * quartile)
    shape = torch.stack([torch.log1p(-row * y).mean(0) for row in theta])
    profile = size * ((-theta / shape).log() - shape - 1)
    theta_mean = (profile.softmax(0) * theta).sum(0)
    k = torch.log1p(-theta_mean * y).mean(0)
    scale = -k / theta_mean
    return (k * size + _PRIOR_COUNT * _PRIOR_SHAPE) / (size + _PRIOR_COUNT), scale


def smooth_tail(
    largest: Tensor, log_rest: Tensor, log_rest_squares: Tensor, num_samples: int
) -> dict[str, Tensor]:
    r"""The evidence after the tail's weights became quantiles of the distribution fitted to them.

    The m-th smallest of the M largest weights becomes the quantile (m − 1/2) / M of the generalised
    Pareto distribution above the threshold, and no more than the largest weight. Where the tail
    has no shape (k̂ is not finite) the weights stay.

    Args:
        largest: the M + 1 largest log-weights in descending order, ``(M + 1, N)``.
        log_rest: log of the sum of all others, ``(N,)``.
        log_rest_squares: log of the sum of their squares, ``(N,)``.
        num_samples: K.

    Returns:
        ``log_evidence``, ``stderr`` and ``ess`` of the smoothed weights; nothing where the tail is
        too short for a fit.
    """
    size = largest.shape[0] - 1
    if size < MIN_TAIL:
        return {}
    khat = pareto_shape(largest)
    weight = (largest - largest[0]).exp()  # in units of the largest
    threshold, raw = weight[-1], weight[:-1]
    usable = khat.isfinite() & (threshold > 0) & (raw[-1] > threshold)
    shape, scale = _fit(torch.where(usable, raw - threshold, torch.ones_like(raw)).flip(0))
    rank = torch.arange(size, 0, -1, dtype=weight.dtype, device=weight.device)[:, None] - 0.5
    quantile = scale * torch.expm1(-shape * torch.log1p(-rank / size)) / shape
    usable = usable & quantile.isfinite().all(0)
    # in logarithms: of quantiles far below the largest weight not even the squares may underflow
    log_smoothed = torch.where(usable, (quantile + threshold).clamp(max=1.0).log(), raw.log())
    parts = torch.cat([log_smoothed + largest[0], largest[-1:], log_rest[None]])
    squares = torch.cat([2 * parts[:-1], log_rest_squares[None]])
    nothing = largest[0] == -torch.inf  # every weight is zero
    log_sum = parts.logsumexp(0).masked_fill(nothing, -torch.inf)
    ess = (2 * log_sum - squares.logsumexp(0)).exp().nan_to_num(nan=0.0).masked_fill(nothing, 0.0)
    return {
        "log_evidence": log_sum - math.log(num_samples),
        "stderr": (1 / ess - 1 / num_samples).clamp(min=0).sqrt(),
        "ess": ess,
    }
