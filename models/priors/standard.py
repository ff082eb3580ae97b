"""The standard normal prior."""

from __future__ import annotations

import pyro.distributions as dist
import torch
from pyro.distributions.torch_distribution import TorchDistributionMixin
from torch import Tensor, nn

from ..checks import check_counts
from ..distributions import NormalVector


class StandardNormal(nn.Module):
    """N(0, I).

    Example:
        >>> StandardNormal(3)().event_shape
        torch.Size([3])
    """

    loc: Tensor

    def __init__(self, latent_dim: int) -> None:
        super().__init__()
        check_counts(latent_dim=latent_dim)
        self.latent_dim = latent_dim
        # a buffer, so that the prior follows the module's device and dtype
        self.register_buffer("loc", torch.zeros(latent_dim), persistent=False)

    def forward(self) -> TorchDistributionMixin:
        return NormalVector(dist.Normal(self.loc, torch.ones_like(self.loc)), 1)
