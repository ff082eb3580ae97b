r"""The jackknife of importance sampling: its bias taken off, order by order.

.. math:: \sum_{j=0}^{m} c_j \, \bar L_{K - j}, \quad
          c_j = \frac{(-1)^j (K - j)^m}{(m - j)! \, j!},

with :math:`\bar L_{K-j}` the mean of :math:`\log \hat p` over all subsets that leave j samples
out. Enumerating them would cost K terms for the first order and K² for the second. With the shares
:math:`a_k = w_k / \sum w`,

.. math:: \bar L_{K-1} = \log \frac{\sum w}{K - 1} + \frac1K \sum_k \log(1 - a_k), \quad
          \bar L_{K-2} = \log \frac{\sum w}{K - 2} +
          \binom{K}{2}^{-1} \sum_{k<l} \log(1 - a_k - a_l),

and the pairs of small shares follow from their power sums by the series of the logarithm: only the
few shares above a twentieth are paired one by one.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from ..programs import check_count
from .accumulator import Strata, WeightSums
from .importance import finish, sampling_tiles, stream
from .parts import Scores, Tile
from .scoring import Estimator
from .tiles import CPU_MEMORY, Tiles

_SMALL = 0.05  # shares up to here are summed by series: at most twenty are larger
_TERMS = 16  # (2 * 0.05)^17 / 17 is below rounding


@dataclass(frozen=True)
class JackknifeImportanceSampling(Estimator):
    r"""log p(x) by importance sampling with a bias of :math:`O(K^{-(m+1)})` in place of 1/K.

    No bound any more: it may lie above log p(x). Errors, ESS and k̂ are those of the weights.

    Args:
        num_samples: K, more than the order.
        order: m, 1 or 2.
        seed: see :class:`Estimator` for this and the further settings.

    References:
        Nowozin, *Debiasing evidence approximations: on importance-weighted autoencoders and
        jackknife variational inference*, 2018.

    Example:
        >>> from pyrovae.models import LinearGaussianVAE
        >>> _ = torch.manual_seed(0)
        >>> linear = LinearGaussianVAE(data_dim=10, latent_dim=3)
        >>> x = linear.sample(4)
        >>> estimate = JackknifeImportanceSampling(100)(linear.model, linear.exact_guide, x)
        >>> bool((estimate.log_evidence - linear.log_evidence(x)).abs().max() < 1e-4)
        True
    """

    num_samples: int = 5000
    order: int = 1

    direction = "consistent"
    bias_weight = 0.0

    def _check(self) -> None:
        check_count("num_samples", self.num_samples)
        if isinstance(self.order, bool) or self.order not in (1, 2):
            raise ValueError(f"order must be 1 or 2, but is {self.order!r}")
        if self.num_samples <= self.order:
            raise ValueError(
                f"num_samples must be larger than the order, {self.order}, but is "
                f"{self.num_samples}"
            )

    def _sizes(self, few: Tile, size: int) -> Tiles:
        tiles = sampling_tiles(few, self.num_samples, size, self.memory)
        # unlike sums, the jackknife needs every weight of a datum at once
        fitting = max((self.memory or CPU_MEMORY) // (8 * self.num_samples), 1)
        return Tiles(min(tiles.data, fitting) if few.plan.sliceable else size, tiles.particles)

    def _score(self, tile: Tile) -> Scores:
        sums, parts = WeightSums(self.num_samples), []
        for log_weight in stream(tile, self.num_samples):
            sums.add(log_weight)
            parts.append(log_weight)
        scores = finish(Strata.of(sums), self.num_samples)
        scores.fields["log_evidence"] = jackknife(torch.cat(parts), self.order)
        return scores


def jackknife(log_weight: Tensor, order: int) -> Tensor:
    """The jackknife of order 1 or 2 of the log of the mean weight, ``(K, N) -> (N,)``.

    −infinity where all weights are zero; NaN where one weight is all there is, so that leaving it
    out leaves nothing.

    Example:
        >>> jackknife(torch.zeros(5, 1, dtype=torch.float64), order=2).abs() < 1e-12
        tensor([True])
    """
    size = len(log_weight)
    total = log_weight.logsumexp(0)
    relative = log_weight - torch.where(total > -torch.inf, total, 0.0)
    means = [-math.log(size), _leaving_one(relative)]
    if order == 2:
        means.append(_leaving_two(relative))
    value = torch.zeros_like(total)
    for out, mean in enumerate(means):
        sign = (-1) ** out * (size - out) ** order
        value = value + sign / (math.factorial(order - out) * math.factorial(out)) * mean
    return total + torch.where(total > -torch.inf, value, 0.0)


def _leaving_one(relative: Tensor) -> Tensor:
    """Mean over k of log((1 − a_k) / (K − 1)), from the log-shares."""
    size = len(relative)
    first = relative.argmax(0, keepdim=True)
    left = torch.log1p(-relative.exp()).scatter(0, first, _without(relative, first)[None])
    return left.mean(0) - math.log(size - 1)


def _without(relative: Tensor, out: Tensor) -> Tensor:
    """log of the sum of all shares but those numbered, added up and not subtracted from 1."""
    return relative.scatter(0, out, -torch.inf).logsumexp(0)


def _leaving_two(relative: Tensor) -> Tensor:
    """Mean over pairs of log((1 − a_k − a_l) / (K − 2)), from the log-shares."""
    size, shares = len(relative), relative.exp()
    first, second = relative.topk(2, dim=0).indices.split(1)
    # pairs with the largest: of what it leaves, the others have larger shares
    rest = _without(relative, first)
    of_rest = torch.log1p(-(relative - rest).exp().clamp(max=1.0)) + rest
    with_first = of_rest.scatter(0, second, _without(relative, torch.cat([first, second]))[None])
    total = with_first.scatter(0, first, 0.0).sum(0)
    shares = shares.scatter(0, first, 0.0)
    return (total + _other_pairs(shares, size - 1)) / math.comb(size, 2) - math.log(size - 2)


def _other_pairs(shares: Tensor, count: int) -> Tensor:
    """Sum of log(1 − a_k − a_l) over the pairs of so many shares, of which none is above 1/2.

    What stands beside them in the tensor is zero.
    """
    size = len(shares)
    big = shares > _SMALL
    small = torch.where(big, torch.zeros_like(shares), shares)
    number = count - big.double().sum(0)
    powers = [number, *(small.pow(r).sum(0) for r in range(1, _TERMS + 1))]
    total = torch.zeros_like(shares[0])
    for r in range(1, _TERMS + 1):  # log(1 - s) = -sum_r s^r / r over all pairs of small shares
        ordered = sum(math.comb(r, s) * powers[s] * powers[r - s] for s in range(r + 1))
        total = total - (ordered - 2**r * powers[r]) / (2 * r)
    most = int(big.sum(0).max())
    large, where = torch.where(big, shares, -1.0).topk(most, dim=0)
    rank = torch.arange(size, device=shares.device)[:, None]
    for place in range(most):
        chosen = large[place] > 0
        share = torch.where(chosen, large[place], 0.0)
        others = torch.log1p(-(shares + share).clamp(max=1.0))
        # each pair once: with the small shares, and with the large ones that come later
        partner = ~big & (shares > 0)
        for later in range(place + 1, most):
            partner = partner | ((rank == where[later]) & (large[later] > 0))
        alone = number - (partner & ~big).double().sum(0)  # small shares that are zero
        pairs = torch.where(partner, others, 0.0).sum(0) + alone * torch.log1p(-share)
        total = total + torch.where(chosen, pairs, 0.0)
    return total
