"""The uniform prior on a sphere."""

from __future__ import annotations

import torch
from pyro.distributions.torch_distribution import TorchDistributionMixin
from torch import Tensor, nn

from ..distributions.von_mises_fisher import SphereUniform


class UniformSphere(nn.Module):
    r"""Codes of length 1, uniform on the sphere :math:`S^{Z-1}`.

    Unlike a normal it has no centre that codes crowd around. It goes with
    :class:`~pyrovae.models.posteriors.VonMisesFisherPosterior`, whose codes lie on the same sphere;
    their KL divergence is a closed form.

    Args:
        latent_dim: Z, the dimension of the space around the sphere, at least 2.

    Raises:
        ValueError: a smaller one.

    References:
        Davidson, Falorsi, De Cao, Kipf and Tomczak, *Hyperspherical variational auto-encoders*,
        2018.

    Example:
        >>> UniformSphere(3)().sample(torch.Size((5,))).norm(dim=-1)
        tensor([1.0000, 1.0000, 1.0000, 1.0000, 1.0000])
    """

    like: Tensor

    def __init__(self, latent_dim: int) -> None:
        super().__init__()
        if latent_dim < 2:
            raise ValueError(f"latent_dim must be at least 2 for a sphere, but is {latent_dim}")
        self.latent_dim = latent_dim
        # a buffer, so that the prior follows the module's device and dtype
        self.register_buffer("like", torch.zeros(latent_dim), persistent=False)

    def forward(self) -> TorchDistributionMixin:
        return SphereUniform(self.like)
