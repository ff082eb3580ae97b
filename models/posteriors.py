r"""Posteriors q(z | x): modules whose call returns a distribution over codes, event shape ``(Z,)``.

Amortised ones hold an encoder that maps x to the distribution's parameters; :class:`PerDatum` holds
the parameters of each datum instead, and so has no amortisation gap.
"""

from __future__ import annotations

import math

import pyro.distributions as dist
import torch
from pyro.distributions.torch_distribution import TorchDistributionMixin
from torch import Tensor, nn

from .checks import check_counts
from .independent import NormalVector


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


class PerDatum(nn.Module):
    """N(μ_n, diag σ_n²) with parameters of its own for each of N data: not amortised.

    Called with the data alone it must be given all of them, in order. For mini-batches, pass the
    index of each datum as the last context, and hide it from the likelihood with
    :class:`~pyrovae.models.nets.WithoutContext`.

    Args:
        num_data: N.
        latent_dim: Z.

    Raises:
        ValueError: another number of data and no index; a size under 1.

    Example:
        >>> posterior = PerDatum(num_data=100, latent_dim=2)
        >>> x = torch.zeros(100, 784)
        >>> posterior(x).batch_shape, posterior(x[:10], torch.arange(10)).batch_shape
        (torch.Size([100]), torch.Size([10]))
    """

    def __init__(self, num_data: int, latent_dim: int) -> None:
        super().__init__()
        check_counts(num_data=num_data, latent_dim=latent_dim)
        self.num_data, self.latent_dim = num_data, latent_dim
        self.loc = nn.Parameter(torch.zeros(num_data, latent_dim))
        self.log_scale = nn.Parameter(torch.zeros(num_data, latent_dim))

    def forward(self, x: Tensor, *context: Tensor) -> TorchDistributionMixin:
        rows: slice | Tensor = slice(None)
        if context:
            rows = context[-1]
        elif len(x) != self.num_data:
            raise ValueError(
                f"x must hold all {self.num_data} data or come with their index as the last "
                f"context, but holds {len(x)}"
            )
        return NormalVector(dist.Normal(self.loc[rows], self.log_scale[rows].exp()), 1)
