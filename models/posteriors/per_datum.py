"""A posterior that is not amortised."""

from __future__ import annotations

import pyro.distributions as dist
import torch
from pyro.distributions.torch_distribution import TorchDistributionMixin
from pyro.poutine.util import is_validation_enabled
from torch import Tensor, nn

from ..checks import check_counts
from ..distributions import NormalVector


class PerDatum(nn.Module):
    """N(μ_n, diag σ_n²) with parameters of its own for each of N data: not amortised.

    Pass the index of each datum as the last context, and hide it from the likelihood with
    :class:`~pyrovae.models.nets.WithoutContext`. Out of training, data alone will do where they are
    all of them, in order.

    Args:
        num_data: N.
        latent_dim: Z.

    Raises:
        ValueError: no index in training, or for another number of data; an index that is not one
            row number for each datum (on a GPU a number out of range is torch's own error); a size
            under 1.

    Example:
        >>> posterior = PerDatum(num_data=100, latent_dim=2).eval()
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
        loc: Tensor = self.loc
        log_scale: Tensor = self.log_scale
        if context:
            rows = self._rows(context[-1], len(x))
            # unlike an index in brackets, it does not count from the end
            loc, log_scale = (nn.functional.embedding(rows, each) for each in (loc, log_scale))
        elif self.training and torch.is_grad_enabled():  # data are shuffled, as by fit
            raise ValueError(
                "in training the last context must be the index of each datum, "
                "torch.arange(num_data) for all of them, but there is none"
            )
        elif len(x) != self.num_data:
            raise ValueError(
                f"x must hold all {self.num_data} data or come with their index as the last "
                f"context, but holds {len(x)}"
            )
        return NormalVector(dist.Normal(loc, log_scale.exp()), 1)

    def _rows(self, index: Tensor, num_data: int) -> Tensor:
        whole = not index.is_floating_point() and index.dtype != torch.bool
        if not whole or index.shape != (num_data,):  # another context would be taken for the index
            raise ValueError(
                f"the last context must be the index of each datum, {num_data} integers, but is "
                f"{index.dtype} of shape {tuple(index.shape)}"
            )
        # looking would make a GPU wait
        look = index.device.type == "cpu" and is_validation_enabled()
        if look and not bool(((index >= 0) & (index < self.num_data)).all()):
            raise ValueError(
                f"the last context must be the index of each datum, from 0 to {self.num_data - 1}, "
                f"but goes from {int(index.min())} to {int(index.max())}"
            )
        return index.long()
