r"""The variational autoencoder as a pair of Pyro programs.

The model draws a code from the prior and data from the likelihood; the guide draws the code from
the posterior's approximation:

.. math:: z_n \sim p(z), \quad x_n \sim p(x \mid z_n); \qquad z_n \sim q(z \mid x_n),

.. math:: \log p(x_n) \ge \mathbb{E}_{q(z \mid x_n)}
          \bigl[\log p(x_n, z) - \log q(z \mid x_n)\bigr] = \mathrm{ELBO}_n.

Prior, posterior and likelihood are modules that return distributions: swap one, keep the rest.
"""

from __future__ import annotations

import pyro
import torch
from pyro.distributions.torch_distribution import TorchDistributionMixin
from torch import Tensor, nn

from .checks import check_counts
from .generative import GenerativeModel, check_parts, draw


class VAE(GenerativeModel):
    """A variational autoencoder from its three parts.

    ``model(x, *context)`` and ``guide(x, *context)`` are plain Pyro programs: they train under
    ``pyro.infer.SVI`` and under :func:`pyrovae.inference.fit`, and draw under
    ``pyro.infer.Predictive``. The context (labels, an index) goes to posterior and likelihood.

    Args:
        prior: ``prior()`` returns a distribution over codes.
        posterior: ``posterior(x, *context)`` returns one.
        likelihood: ``likelihood(z, *context)`` returns a distribution over data.
        name: in Pyro's parameter store; see :class:`~pyrovae.models.generative.GenerativeModel`.

    References:
        Kingma and Welling, *Auto-encoding variational Bayes*, 2014. Rezende, Mohamed and Wierstra,
        *Stochastic backpropagation and approximate inference in deep generative models*, 2014.

    Example:
        >>> from pyrovae.models.nets import MLP
        >>> from pyrovae.models.priors import StandardNormal
        >>> from pyrovae.models.posteriors import DiagonalNormal
        >>> from pyrovae.models.likelihoods import Bernoulli
        >>> vae = VAE(StandardNormal(40), DiagonalNormal(MLP(784, 80)), Bernoulli(MLP(40, 784)))
        >>> vae.sample(64).shape
        torch.Size([64, 784])
        >>> vae.reconstruct(torch.zeros(5, 784)).shape
        torch.Size([5, 784])
    """

    def __init__(
        self,
        prior: nn.Module,
        posterior: nn.Module,
        likelihood: nn.Module,
        name: str | None = None,
    ) -> None:
        check_parts(prior=prior, posterior=posterior, likelihood=likelihood)
        super().__init__(name)
        self.prior, self.posterior, self.likelihood = prior, posterior, likelihood

    def model(self, x: Tensor, *context: Tensor) -> Tensor:
        """Draw z from the prior and x, observed, from the likelihood."""
        with self._data(x):
            z = pyro.sample("z", self._prior(*context))
            return self._observe(x, self.likelihood(z, *context))

    def guide(self, x: Tensor, *context: Tensor) -> Tensor:
        """Draw z from the posterior's approximation."""
        with self._data(x):
            return pyro.sample("z", self.posterior(x, *context))

    def _prior(self, *context: Tensor) -> TorchDistributionMixin:
        """What z is drawn from: what kinds of VAEs differ in."""
        return self.prior()

    @torch.no_grad()
    def sample(self, num_samples: int, *context: Tensor) -> Tensor:
        """Draw ``num_samples`` data from the model: ``(num_samples, *data)``."""
        check_counts(num_samples=num_samples)
        z = self._prior(*context).sample(torch.Size((num_samples,)))
        return draw(num_samples, self.likelihood(z, *context))

    @torch.no_grad()
    def reconstruct(self, x: Tensor, *context: Tensor) -> Tensor:
        """The likelihood's mean at a code drawn from q(z | x): the shape of ``x``."""
        return self.likelihood(self.posterior(x, *context).sample(), *context).mean
