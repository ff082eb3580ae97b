"""A learned mixture as prior."""

from __future__ import annotations

import math

import torch
from pyro.distributions.torch_distribution import TorchDistributionMixin
from torch import nn

from ..checks import check_counts
from ..distributions import DiagonalNormalMixture


class GaussianMixture(nn.Module):
    """A learned mixture of M diagonal normals, started on a sphere of unit components.

    Example:
        >>> GaussianMixture(2, num_components=10)().log_prob(torch.zeros(5, 2)).shape
        torch.Size([5])
    """

    def __init__(self, latent_dim: int, num_components: int = 10) -> None:
        super().__init__()
        check_counts(latent_dim=latent_dim, num_components=num_components)
        self.latent_dim, self.num_components = latent_dim, num_components
        start = torch.randn(num_components, latent_dim)
        self.logits = nn.Parameter(torch.zeros(num_components))
        self.loc = nn.Parameter(start * (math.sqrt(latent_dim) / start.norm(dim=-1, keepdim=True)))
        self.log_scale = nn.Parameter(torch.zeros(num_components, latent_dim))

    def forward(self) -> TorchDistributionMixin:
        return DiagonalNormalMixture(self.logits, self.loc, self.log_scale.exp())
