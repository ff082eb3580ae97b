r"""The conditional VAE: a VAE told a context, whose prior may know it too.

.. math:: z_n \sim p(z \mid y_n), \quad x_n \sim p(x \mid z_n, y_n); \qquad
          z_n \sim q(z \mid x_n, y_n).

Its evidence, estimated like any other, is the conditional :math:`\log p(x \mid y)`.
"""

from __future__ import annotations

import torch
from pyro.distributions.torch_distribution import TorchDistributionMixin
from torch import Tensor, nn

from .checks import check_counts
from .generative import draw
from .vae import VAE


class ConditionalVAE(VAE):
    """A VAE whose programs take ``(x, *context)``, with one entry of each context per datum.

    Contexts are vectors that networks join to their input; labels and images are made vectors by
    :class:`~pyrovae.models.nets.EncodedContext`. Without a context it is a :class:`VAE`.

    Args:
        prior: ``prior()``, the same for all; or, with ``conditional_prior``, ``prior(*context)``:
            any posterior module does, fed with the context alone.
        posterior: ``posterior(x, *context)``.
        likelihood: ``likelihood(z, *context)``.
        conditional_prior: whether the prior is told the context.
        name: see :class:`~pyrovae.models.generative.GenerativeModel`.

    References:
        Sohn, Lee and Yan, *Learning structured output representation using deep conditional
        generative models*, 2015.

    Example:
        >>> from pyrovae.models.nets import MLP
        >>> from pyrovae.models.posteriors import DiagonalNormal
        >>> from pyrovae.models.likelihoods import Bernoulli
        >>> conditional = ConditionalVAE(
        ...     DiagonalNormal(MLP(10, 2 * 4)),
        ...     DiagonalNormal(MLP(64 + 10, 2 * 4)),
        ...     Bernoulli(MLP(4 + 10, 64)),
        ...     conditional_prior=True,
        ... )
        >>> y = torch.eye(10)
        >>> conditional.sample(10, y).shape  # one of each class
        torch.Size([10, 64])
    """

    def __init__(
        self,
        prior: nn.Module,
        posterior: nn.Module,
        likelihood: nn.Module,
        conditional_prior: bool = False,
        name: str | None = None,
    ) -> None:
        super().__init__(prior, posterior, likelihood, name)
        self.conditional_prior = conditional_prior

    def _prior(self, *context: Tensor) -> TorchDistributionMixin:
        if not self.conditional_prior:
            return self.prior()
        if not context:
            raise ValueError("context must be given, for conditional_prior=True, but there is none")
        return self.prior(*context)

    @torch.no_grad()
    def sample(self, num_samples: int, *context: Tensor) -> Tensor:
        """Draw ``num_samples`` data, ``(num_samples, *data)``: each of its own context.

        Raises:
            ValueError: the contexts are neither as many nor one for all.
        """
        check_counts(num_samples=num_samples)
        prior = self._prior(*context)
        if prior.batch_shape not in ((), (1,), (num_samples,)):
            raise ValueError(
                f"context must have one entry for each of num_samples = {num_samples}, or one for "
                f"all, but the prior has batch shape {tuple(prior.batch_shape)}"
            )
        z = prior.expand(torch.Size((num_samples,))).sample()
        return draw(num_samples, self.likelihood(z, *context))
