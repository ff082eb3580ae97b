r"""The variational autoencoder as a pair of Pyro programs.

The model draws a code from the prior and data from the likelihood; the guide draws the code from
the posterior's approximation:

.. math:: z_n \sim p(z), \quad x_n \sim p(x \mid z_n); \qquad z_n \sim q(z \mid x_n),

.. math:: \log p(x_n) \ge \mathbb{E}_{q(z \mid x_n)}
          \bigl[\log p(x_n, z) - \log q(z \mid x_n)\bigr] = \mathrm{ELBO}_n.

Prior, posterior and likelihood are modules that return distributions: swap one, keep the rest.
"""

from __future__ import annotations

import itertools
from typing import Any

import pyro
import torch
from torch import Tensor, nn

_instances = itertools.count()


class VAE(nn.Module):
    """A variational autoencoder from its three parts.

    ``model(x, *context)`` and ``guide(x, *context)`` are plain Pyro programs: they train under
    ``pyro.infer.SVI`` and under :func:`pyrovae.inference.fit`, and draw under
    ``pyro.infer.Predictive``. The context (labels, an index) goes to posterior and likelihood.

    Args:
        prior: ``prior()`` returns a distribution over codes.
        posterior: ``posterior(x, *context)`` returns one.
        likelihood: ``likelihood(z, *context)`` returns a distribution over data.
        name: under which Pyro's parameter store knows the parameters; by default one of its own
            for each VAE, copies and unpickled ones included, so that two of them stay two.

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
        super().__init__()
        self.prior, self.posterior, self.likelihood = prior, posterior, likelihood
        self._is_named = name is not None
        self.name = f"vae_{next(_instances)}" if name is None else name

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        # under its original's name, a copy would train the parameters in the store: the original's
        if not self._is_named:
            self.name = f"vae_{next(_instances)}"

    def model(self, x: Tensor, *context: Tensor) -> Tensor:
        """Draw z from the prior and x, observed, from the likelihood.

        Raises:
            ValueError: the likelihood's data have another shape than those of ``x``.
        """
        self._register()
        with pyro.plate("data", len(x), dim=-1):
            z = pyro.sample("z", self.prior())
            likelihood = self.likelihood(z, *context)
            if likelihood.event_shape != x.shape[1:]:  # a density would broadcast, and be wrong
                raise ValueError(
                    f"x must hold data of shape {tuple(likelihood.event_shape)}, as the likelihood "
                    f"does, but holds {tuple(x.shape[1:])}"
                )
            return pyro.sample("x", likelihood, obs=x)

    def guide(self, x: Tensor, *context: Tensor) -> Tensor:
        """Draw z from the posterior's approximation."""
        self._register()
        with pyro.plate("data", len(x), dim=-1):
            return pyro.sample("z", self.posterior(x, *context))

    def _register(self) -> None:
        # Pyro's own switch for modules that keep their parameters to themselves; fit and the
        # estimators, which find them there, set it and save this call a tenth of their time
        if not pyro.settings.get("module_local_params"):
            pyro.module(self.name, self)

    @torch.no_grad()
    def sample(self, num_samples: int, *context: Tensor) -> Tensor:
        """Draw ``num_samples`` data from the model: ``(num_samples, *data)``."""
        if num_samples < 1:
            raise ValueError(f"num_samples must be at least 1, but is {num_samples}")
        z = self.prior().sample(torch.Size((num_samples,)))
        return self.likelihood(z, *context).sample()

    @torch.no_grad()
    def reconstruct(self, x: Tensor, *context: Tensor) -> Tensor:
        """The likelihood's mean at a code drawn from q(z | x): the shape of ``x``."""
        return self.likelihood(self.posterior(x, *context).sample(), *context).mean
