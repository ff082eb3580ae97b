"""Likelihoods of data in [0, 1]: binary ones, and grey ones."""

from __future__ import annotations

import pyro.distributions as dist
from pyro.distributions.torch_distribution import TorchDistributionMixin
from torch import Tensor, nn

from ..distributions import BernoulliVector, TiltedUniform


class Bernoulli(nn.Module):
    """Binary data, from a network that returns logits.

    Args:
        net: maps ``(z, *context)`` to logits, ``(..., *data)``.
        event_dim: dimensions of one datum.

    Example:
        >>> import torch
        >>> Bernoulli(nn.Linear(40, 784))(torch.zeros(5, 40)).event_shape
        torch.Size([784])
    """

    def __init__(self, net: nn.Module, event_dim: int = 1) -> None:
        super().__init__()
        self.net, self.event_dim = net, event_dim

    def forward(self, z: Tensor, *context: Tensor) -> TorchDistributionMixin:
        pixels = dist.Bernoulli(logits=self.net(z, *context))
        return BernoulliVector(pixels, self.event_dim) if self.event_dim else pixels


class ContinuousBernoulli(nn.Module):
    """Data in [0, 1] with a normalised density, from a network that returns logits.

    References:
        Loaiza-Ganem and Cunningham, *The continuous Bernoulli: fixing a pervasive error in
        variational autoencoders*, 2019.

    Example:
        >>> import torch
        >>> grey = torch.full((5, 784), 0.5)
        >>> ContinuousBernoulli(nn.Linear(40, 784))(torch.zeros(5, 40)).log_prob(grey).shape
        torch.Size([5])
    """

    def __init__(self, net: nn.Module, event_dim: int = 1) -> None:
        super().__init__()
        self.net, self.event_dim = net, event_dim

    def forward(self, z: Tensor, *context: Tensor) -> TorchDistributionMixin:
        return TiltedUniform(self.net(z, *context)).to_event(self.event_dim)
