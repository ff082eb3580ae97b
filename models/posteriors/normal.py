"""Normal posteriors, from an encoder."""

from __future__ import annotations

import math

import pyro.distributions as dist
import torch
from pyro.distributions.torch_distribution import TorchDistributionMixin
from torch import Tensor, nn

from ..checks import check_counts
from ..distributions import NormalVector


class DiagonalNormal(nn.Module):
    """N(μ(x), diag σ(x)²), from a network that returns (μ, log σ) side by side.

    Args:
        net: maps ``(x, *context)`` to ``(..., 2 Z)``.

    Raises:
        ValueError: the network's output cannot be halved.

    References:
        Kingma and Welling, *Auto-encoding variational Bayes*, 2014.

    Example:
        >>> DiagonalNormal(nn.Linear(784, 2 * 40))(torch.zeros(5, 784)).batch_shape
        torch.Size([5])
    """

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net

    def forward(self, x: Tensor, *context: Tensor) -> TorchDistributionMixin:
        output = self.net(x, *context)
        if output.shape[-1] % 2:
            raise ValueError(
                f"net must return 2 Z features (mean and log scale), but returns {output.shape[-1]}"
            )
        loc, log_scale = output.chunk(2, -1)
        return NormalVector(dist.Normal(loc, log_scale.exp()), 1)


class FullRankNormal(nn.Module):
    """N(μ(x), L(x) L(x)ᵀ), from a network that returns μ and the lower triangle of L.

    The diagonal of L is the exponential of what the network returns for it.

    Args:
        net: maps ``(x, *context)`` to ``(..., Z + Z (Z + 1) / 2)``.

    Raises:
        ValueError: the network's output is not of that form for any Z.

    Example:
        >>> FullRankNormal(nn.Linear(784, 2 + 3))(torch.zeros(5, 784)).event_shape
        torch.Size([2])
    """

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net

    def forward(self, x: Tensor, *context: Tensor) -> TorchDistributionMixin:
        output = self.net(x, *context)
        size = (math.isqrt(9 + 8 * output.shape[-1]) - 3) // 2
        if size < 1 or size + size * (size + 1) // 2 != output.shape[-1]:
            raise ValueError(
                "net must return Z + Z (Z + 1) / 2 features (mean and triangle), but returns "
                f"{output.shape[-1]}"
            )
        loc, entries = output[..., :size], output[..., size:]
        row, column = torch.tril_indices(size, size, device=output.device)
        diagonal = row == column
        # exp sees the diagonal alone: elsewhere it may overflow, and its gradient is then no number
        scales = entries.masked_fill(~diagonal, 0.0).exp()
        lower = output.new_zeros(*output.shape[:-1], size, size)
        lower[..., row, column] = torch.where(diagonal, scales, entries)
        return dist.MultivariateNormal(loc, scale_tril=lower)


class LowRankNormal(nn.Module):
    """N(μ(x), V(x) V(x)ᵀ + diag d(x)), with V of R columns: R directions in which codes go along.

    Args:
        net: maps ``(x, *context)`` to ``(..., Z (2 + R))``: the mean, log d, and V by rows.
        rank: R.

    Raises:
        ValueError: the network's output is not of that form for any Z.

    Example:
        >>> LowRankNormal(nn.Linear(784, 5 * (2 + 2)), rank=2)(torch.zeros(3, 784)).event_shape
        torch.Size([5])
    """

    def __init__(self, net: nn.Module, rank: int) -> None:
        super().__init__()
        check_counts(rank=rank)
        self.net, self.rank = net, rank

    def forward(self, x: Tensor, *context: Tensor) -> TorchDistributionMixin:
        output = self.net(x, *context)
        size, left = divmod(output.shape[-1], 2 + self.rank)
        if left or not size:
            raise ValueError(
                f"net must return Z (2 + rank) features, rank being {self.rank}, but returns "
                f"{output.shape[-1]}"
            )
        loc, log_diag, rows = output.split([size, size, size * self.rank], -1)
        factor = rows.unflatten(-1, (size, self.rank))
        return dist.LowRankMultivariateNormal(loc, factor, log_diag.exp())
