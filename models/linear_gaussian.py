r"""The VAE that can be solved: a linear decoder with Gaussian noise.

.. math:: z \sim N(0, I_Z), \quad x \mid z \sim N(W z + b, \sigma^2 I_D),

whose evidence and posterior are closed forms, with :math:`\Lambda = I + W^\top W / \sigma^2`:

.. math:: p(x) = N(b, W W^\top + \sigma^2 I), \quad
          p(z \mid x) = N(\Lambda^{-1} W^\top (x - b) / \sigma^2, \; \Lambda^{-1}).

Every estimator and objective can be held against it (Tipping and Bishop, *Probabilistic principal
component analysis*, 1999).
"""

from __future__ import annotations

import math
from typing import cast

import pyro
import pyro.distributions as dist
import torch
from pyro.distributions.torch_distribution import TorchDistributionMixin
from torch import Tensor, nn

from .checks import check_counts
from .likelihoods import Gaussian
from .nets import MLP
from .posteriors import DiagonalNormal
from .priors import StandardNormal
from .vae import VAE


class LinearGaussianVAE(nn.Module):
    """A linear-Gaussian VAE with its exact evidence, exact posterior and exact guide.

    Args:
        data_dim: D.
        latent_dim: Z.
        scale: the noise σ, fixed.

    Raises:
        ValueError: a dimension under 1, a scale that is not positive.

    Attributes:
        decoder: the linear map of z, its ``weight`` is W and its ``bias`` is b.

    Example:
        >>> _ = torch.manual_seed(0)
        >>> linear = LinearGaussianVAE(data_dim=10, latent_dim=3).double()
        >>> x = linear.sample(5)
        >>> linear.log_evidence(x).shape
        torch.Size([5])
        >>> from pyrovae.inference import log_weights
        >>> weights = log_weights(linear.model, linear.exact_guide, x, num_particles=7)
        >>> bool((weights.log_weight - linear.log_evidence(x)).abs().max() < 1e-9)
        True
    """

    def __init__(self, data_dim: int, latent_dim: int, scale: float = 1.0) -> None:
        super().__init__()
        check_counts(data_dim=data_dim, latent_dim=latent_dim)
        self.data_dim, self.latent_dim, self.scale = data_dim, latent_dim, scale
        decoder = nn.Linear(latent_dim, data_dim)
        nn.init.normal_(decoder.weight, std=1 / math.sqrt(latent_dim))
        nn.init.normal_(decoder.bias)
        self.vae = VAE(
            StandardNormal(latent_dim),
            DiagonalNormal(MLP(data_dim, 2 * latent_dim, hidden=())),
            Gaussian(decoder, scale),
        )

    @property
    def decoder(self) -> nn.Linear:
        return cast(nn.Linear, self.vae.likelihood.get_submodule("net"))

    def model(self, x: Tensor) -> Tensor:
        """The generative program; sites ``z`` and ``x``."""
        return self.vae.model(x)

    def guide(self, x: Tensor) -> Tensor:
        """A trainable guide: linear in x, diagonal."""
        return self.vae.guide(x)

    def exact_guide(self, x: Tensor) -> Tensor:
        """The posterior as a guide: its weights are constant and equal to p(x)."""
        with pyro.plate("data", len(x), dim=-1):
            return pyro.sample("z", self.posterior(x))

    def posterior(self, x: Tensor) -> TorchDistributionMixin:
        """The exact p(z | x); batch shape ``(N,)``, event shape ``(Z,)``."""
        weight, bias = self.decoder.weight, self.decoder.bias
        identity = torch.eye(self.latent_dim, dtype=weight.dtype, device=weight.device)
        factor = torch.linalg.cholesky(identity + weight.T @ weight / self.scale**2)
        loc = torch.cholesky_solve(((x - bias) @ weight / self.scale**2).T, factor).T
        # Λ = F Fᵀ gives Λ⁻¹ = F⁻ᵀ F⁻¹: the precision's factor is what the density needs
        return dist.MultivariateNormal(loc, precision_matrix=factor @ factor.T)

    def log_evidence(self, x: Tensor) -> Tensor:
        """The exact log p(x), ``(N,)`` in nats, rounded to the parameters' dtype."""
        # in single precision, terms of 1/σ² that cancel would leave half a nat of error at σ = 0.01
        weight, bias = self.decoder.weight.double(), self.decoder.bias.double()
        noise = weight.new_full((self.data_dim,), self.scale**2)
        evidence = dist.LowRankMultivariateNormal(bias, weight, noise)
        return evidence.log_prob(x.double()).to(self.decoder.weight.dtype)

    def sample(self, num_samples: int) -> Tensor:
        """Draw data from the model, ``(num_samples, D)``."""
        return self.vae.sample(num_samples)

    def reconstruct(self, x: Tensor) -> Tensor:
        """The mean of x at a code drawn from the trainable guide."""
        return self.vae.reconstruct(x)
