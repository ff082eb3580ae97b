r"""A VAE whose codes come from clusters, each datum's being a latent that is summed out.

.. math:: y_n \sim \mathrm{Cat}(\pi), \quad z_n \sim N(\mu_{y_n}, \sigma_{y_n}^2), \quad
          x_n \sim p(x \mid z_n).

The class y is marked for enumeration: objectives and estimators sum over it exactly, per datum. So
the evidence is that of a :class:`~pyrovae.models.VAE` with the same mixture as prior, and the
classes have posteriors, :math:`p(y \mid z)`.
"""

from __future__ import annotations

import operator
from typing import Any

import pyro
import pyro.distributions as dist
import torch
from torch import Tensor, nn

from .checks import check_counts
from .distributions import NormalVector
from .generative import GenerativeModel, check_parts, draw
from .nets import OneHot
from .priors import GaussianMixture

ENUMERATED = {"enumerate": "parallel"}


def class_logits(classifier: nn.Module, num_classes: int, *inputs: Tensor) -> Tensor:
    """What the classifier returns.

    Raises:
        ValueError: the logits of another number of classes, over which the sum would then go.
    """
    logits: Tensor = classifier(*inputs)
    if logits.shape[-1] != num_classes:
        raise ValueError(
            f"classifier must return {num_classes} logits, one for each class, but returns "
            f"{logits.shape[-1]}"
        )
    return logits


class MixtureVAE(GenerativeModel):
    r"""A VAE with a discrete component in its prior.

    Without a classifier the guide draws z alone, :math:`q(z \mid x)`, and the model sums over y.
    With one the guide is :math:`q(y \mid x) \, q(z \mid x, y)`, enumerated too: train it with
    ``TraceEnum_ELBO``, whose expectation over y is exact.

    Args:
        prior: the mixture.
        posterior: ``posterior(x, *context)``; with a classifier ``posterior(x, y, *context)``, y as
            M numbers of which one is 1.
        likelihood: ``likelihood(z, *context)``.
        classifier: a network that maps ``(x, *context)`` to M logits, or None.
        name: see :class:`~pyrovae.models.generative.GenerativeModel`.

    Raises:
        TypeError: the prior is no :class:`~pyrovae.models.priors.GaussianMixture`.

    References:
        Kingma, Mohamed, Rezende and Welling, *Semi-supervised learning with deep generative
        models*, 2014. Jiang, Zheng, Tan, Tang and Zhou, *Variational deep embedding: an
        unsupervised and generative approach to clustering*, 2017.

    Example:
        >>> from pyrovae.models.nets import MLP
        >>> from pyrovae.models.posteriors import DiagonalNormal
        >>> from pyrovae.models.likelihoods import Bernoulli
        >>> mixture = MixtureVAE(
        ...     GaussianMixture(4, num_components=10),
        ...     DiagonalNormal(MLP(64, 2 * 4)),
        ...     Bernoulli(MLP(4, 64)),
        ... )
        >>> mixture.responsibilities(torch.zeros(5, 64)).shape
        torch.Size([5, 10])
    """

    def __init__(
        self,
        prior: GaussianMixture,
        posterior: nn.Module,
        likelihood: nn.Module,
        classifier: nn.Module | None = None,
        name: str | None = None,
    ) -> None:
        super().__init__(name)
        if not isinstance(prior, GaussianMixture):
            raise TypeError(f"prior must be a GaussianMixture, but is a {type(prior).__name__}")
        check_parts(posterior=posterior, likelihood=likelihood)
        if classifier is not None:
            check_parts(classifier=classifier)
        self.prior, self.posterior, self.likelihood = prior, posterior, likelihood
        self.classifier = classifier
        self.one_hot = OneHot(prior.num_components)

    def model(self, x: Tensor, *context: Tensor) -> Tensor:
        """Draw a class, a code of that class, and x, observed."""
        with self._data(x):
            y = pyro.sample("y", dist.Categorical(logits=self.prior.logits), infer=ENUMERATED)
            loc, scale = self.prior.loc[y], self.prior.log_scale.exp()[y]
            z = pyro.sample("z", NormalVector(dist.Normal(loc, scale), 1))
            return self._observe(x, self.likelihood(z, *context))

    def guide(self, x: Tensor, *context: Tensor) -> Any:
        """Draw the code, and before it the class where there is a classifier."""
        with self._data(x):
            if self.classifier is None:
                return pyro.sample("z", self.posterior(x, *context))
            logits = self._logits(x, *context)
            y = pyro.sample("y", dist.Categorical(logits=logits), infer=ENUMERATED)
            return pyro.sample("z", self.posterior(x, self.one_hot(y), *context))

    def _logits(self, x: Tensor, *context: Tensor) -> Tensor:
        assert self.classifier is not None
        return class_logits(self.classifier, self.prior.num_components, x, *context)

    @torch.no_grad()
    def responsibilities(self, x: Tensor, *context: Tensor) -> Tensor:
        """The classes' probabilities, ``(N, M)``: the classifier's, or p(y | z) at a draw of z."""
        if self.classifier is not None:
            return self._logits(x, *context).softmax(-1)
        z = self.posterior(x, *context).sample()[..., None, :]
        components = NormalVector(dist.Normal(self.prior.loc, self.prior.log_scale.exp()), 1)
        return (self.prior.logits.log_softmax(-1) + components.log_prob(z)).softmax(-1)

    @torch.no_grad()
    def sample(self, num_samples: int, *context: Tensor, y: int | None = None) -> Tensor:
        """Draw data, ``(num_samples, *data)``: of all classes, or of one.

        Raises:
            TypeError: the class is no whole number.
            ValueError: no sample is asked for, or a class that is not there, or the contexts are
                neither as many nor one for all.
        """
        check_counts(num_samples=num_samples)
        if y is None:
            z = self.prior().sample(torch.Size((num_samples,)))
        else:
            try:
                y = operator.index(y)
            except TypeError:
                raise TypeError(f"y must be a whole number or None, but is {y!r}") from None
            if not 0 <= y < self.prior.num_components:
                raise ValueError(
                    f"y must be between 0 and {self.prior.num_components - 1}, but is {y}"
                )
            loc = self.prior.loc[y].expand(num_samples, -1)
            z = torch.normal(loc, self.prior.log_scale[y].exp().expand_as(loc))
        return draw(num_samples, self.likelihood(z, *context))

    @torch.no_grad()
    def reconstruct(self, x: Tensor, *context: Tensor) -> Tensor:
        """The likelihood's mean at a code drawn from the guide."""
        more: tuple[Tensor, ...] = ()
        if self.classifier is not None:
            y = dist.Categorical(logits=self._logits(x, *context)).sample()
            more = (self.one_hot(y),)
        return self.likelihood(self.posterior(x, *more, *context).sample(), *context).mean
