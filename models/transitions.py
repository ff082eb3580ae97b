r"""Transitions :math:`p(z_t \mid z_{t-1})`: modules whose call on a code returns the next one's
distribution.

Any module that maps ``(..., Z)`` to a distribution over codes is one: ``DiagonalNormal(net)`` of
the posteriors with a network of one's own, or ``Gaussian(nn.Linear(Z, Z), scale)`` of the
likelihoods, the linear transition with fixed noise.
"""

from __future__ import annotations

import pyro.distributions as dist
from pyro.distributions.torch_distribution import TorchDistributionMixin
from torch import Tensor, nn
from torch.nn.functional import softplus

from .checks import check_counts
from .distributions import NormalVector
from .nets import MLP


class GatedTransition(nn.Module):
    r"""A normal whose mean is for each coordinate between a linear and a free function.

    .. math:: z_t \sim N\bigl((1 - g) \odot (A z_{t-1} + b) + g \odot h, \;
              \mathrm{diag}\,\mathrm{softplus}(B \, \mathrm{relu}(h) + c)\bigr),

    where the gate :math:`g = g(z_{t-1})`, in [0, 1], and the proposal :math:`h = h(z_{t-1})` are
    networks with one hidden layer. A starts as the identity: codes begin as a random walk that the
    gate bends.

    Args:
        latent_dim: Z.
        hidden_dim: units of each hidden layer.

    Raises:
        ValueError: a size under 1.

    References:
        Krishnan, Shalit and Sontag, *Structured inference networks for nonlinear state space
        models*, 2017.

    Example:
        >>> import torch
        >>> GatedTransition(latent_dim=3)(torch.zeros(7, 5, 3)).batch_shape
        torch.Size([7, 5])
    """

    def __init__(self, latent_dim: int, hidden_dim: int = 200) -> None:
        super().__init__()
        check_counts(latent_dim=latent_dim, hidden_dim=hidden_dim)
        self.latent_dim, self.hidden_dim = latent_dim, hidden_dim
        self.gate = MLP(latent_dim, latent_dim, (hidden_dim,), nn.ReLU)
        self.proposal = MLP(latent_dim, latent_dim, (hidden_dim,), nn.ReLU)
        self.linear = nn.Linear(latent_dim, latent_dim)
        self.variance = nn.Linear(latent_dim, latent_dim)
        nn.init.eye_(self.linear.weight)
        nn.init.zeros_(self.linear.bias)

    def forward(self, z: Tensor) -> TorchDistributionMixin:
        gate, proposal = self.gate(z).sigmoid(), self.proposal(z)
        loc = (1 - gate) * self.linear(z) + gate * proposal
        scale = softplus(self.variance(proposal.relu())).sqrt()
        return NormalVector(dist.Normal(loc, scale), 1)
