r"""The semi-supervised VAE (M2): a label is a latent where it is not known.

.. math:: y_n \sim \mathrm{Cat}(1/C), \quad z_n \sim p(z), \quad x_n \sim p(x \mid z_n, y_n);
          \qquad y_n \sim q(y \mid x_n), \quad z_n \sim q(z \mid x_n, y_n).

Data with and without labels stand in one batch. The evidence of a datum is log p(x, y) where its
label is known, and :math:`\log p(x) = \log \sum_y p(x, y)` elsewhere.
"""

from __future__ import annotations

import math
from typing import Any

import pyro
import pyro.distributions as dist
import torch
from pyro.poutine.util import is_validation_enabled
from torch import Tensor, nn

from .checks import check_counts
from .generative import GenerativeModel, check_parts, draw
from .mixture import ENUMERATED, class_logits
from .nets import OneHot

UNKNOWN = -1
_WHOLE = (torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64)


class _Classified(dist.Categorical):
    """Classes by a classifier, which training teaches the labels that are known."""

    def taught(self, loss: Tensor) -> _Classified:
        self.teaching = loss
        return self

    def penalty(self) -> Tensor:
        return self.teaching

    def expand(self, batch_shape: Any, _instance: Any = None) -> _Classified:
        new = super().expand(batch_shape, self._get_checked_instance(_Classified, _instance))
        return new.taught(self.teaching)


class SemiSupervisedVAE(GenerativeModel):
    r"""A VAE of data of which some are labelled.

    Its programs take x alone, or x and the labels ``(N,)``: whole numbers, -1 where unknown. Train
    it with ``Penalised(TraceEnum_ELBO(max_plate_nesting=1))``: the expectation over unknown labels
    is exact, and the classifier is taught the known ones, whose cross-entropy is weighted with
    ``label_weight``.

    A known label takes the place of the class that is drawn. That class is then nobody's: its prior
    sums to one, and the guide draws it from the prior.

    Args:
        num_classes: C.
        classifier: a network that maps x to C logits.
        prior: ``prior()``, of z.
        posterior: ``posterior(x, y)``, y as C numbers of which one is 1.
        likelihood: ``likelihood(z, y)``.
        label_weight: α, of the cross-entropy of each known label; in the paper those of all labels
            together weigh a tenth of the number of data.
        name: see :class:`~pyrovae.models.generative.GenerativeModel`.

    References:
        Kingma, Mohamed, Rezende and Welling, *Semi-supervised learning with deep generative
        models*, 2014.

    Example:
        >>> from pyrovae.models.nets import MLP
        >>> from pyrovae.models.posteriors import DiagonalNormal
        >>> from pyrovae.models.priors import StandardNormal
        >>> from pyrovae.models.likelihoods import Bernoulli
        >>> m2 = SemiSupervisedVAE(
        ...     10,
        ...     MLP(64, 10),
        ...     StandardNormal(4),
        ...     DiagonalNormal(MLP(64 + 10, 2 * 4)),
        ...     Bernoulli(MLP(4 + 10, 64)),
        ... )
        >>> m2.classify(torch.zeros(5, 64)).shape
        torch.Size([5])
    """

    logits: Tensor

    def __init__(
        self,
        num_classes: int,
        classifier: nn.Module,
        prior: nn.Module,
        posterior: nn.Module,
        likelihood: nn.Module,
        label_weight: float = 1.0,
        name: str | None = None,
    ) -> None:
        super().__init__(name)
        check_counts(num_classes=num_classes)
        if not isinstance(label_weight, int | float):
            raise TypeError(f"label_weight must be a number, but is {label_weight!r}")
        if not 0 <= label_weight < math.inf:
            raise ValueError(f"label_weight must be at least 0 and finite, but is {label_weight}")
        check_parts(classifier=classifier, prior=prior, posterior=posterior, likelihood=likelihood)
        self.num_classes, self.label_weight = num_classes, label_weight
        self.classifier, self.prior = classifier, prior
        self.posterior, self.likelihood = posterior, likelihood
        self.one_hot = OneHot(num_classes)
        self.register_buffer("logits", torch.zeros(num_classes), persistent=False)

    def model(self, x: Tensor, label: Tensor | None = None) -> Tensor:
        """Draw a class and a code, and x, observed; observe the labels that are known."""
        with self._data(x):
            y = pyro.sample("y", dist.Categorical(logits=self.logits), infer=ENUMERATED)
            if label is not None:
                known, label = self._known(x, label)
                among = dist.Categorical(logits=self.logits.expand(len(x), -1))
                pyro.sample("label", among.mask(known), obs=label)
                y = torch.where(known, label, y)
            z = pyro.sample("z", self.prior())
            return self._observe(x, self.likelihood(z, self.one_hot(y)))

    def guide(self, x: Tensor, label: Tensor | None = None) -> Tensor:
        """Draw the class, where it is not known, and the code."""
        with self._data(x):
            logits = class_logits(self.classifier, self.num_classes, x)
            if label is None:
                y = pyro.sample("y", dist.Categorical(logits=logits), infer=ENUMERATED)
            else:
                known, label = self._known(x, label)
                loss = nn.functional.cross_entropy(logits, label, reduction="none") * known
                drawn = torch.where(known[:, None], self.logits, logits)
                among = _Classified(logits=drawn).taught(self.label_weight * loss)
                y = torch.where(known, label, pyro.sample("y", among, infer=ENUMERATED))
            return pyro.sample("z", self.posterior(x, self.one_hot(y)))

    def _known(self, x: Tensor, label: Tensor) -> tuple[Tensor, Tensor]:
        """Which labels are known, and labels in which the others are 0."""
        if not isinstance(label, Tensor):
            raise TypeError(f"label must be a tensor, but is a {type(label).__name__}")
        if label.shape != x.shape[:1] or label.dtype not in _WHOLE:
            raise ValueError(
                f"label must be whole numbers of shape {tuple(x.shape[:1])}, {UNKNOWN} where it is "
                f"unknown, but is {label.dtype} of shape {tuple(label.shape)}"
            )
        label = label.long()
        # looking would make a GPU wait, and there torch's own check of an index fails
        look = label.device.type == "cpu" and is_validation_enabled()
        if look and not bool(((label >= UNKNOWN) & (label < self.num_classes)).all()):
            raise ValueError(
                f"label must be between 0 and {self.num_classes - 1}, or {UNKNOWN} where it is "
                f"unknown, but goes from {int(label.min())} to {int(label.max())}"
            )
        known = label != UNKNOWN
        return known, torch.where(known, label, 0)

    @torch.no_grad()
    def classify(self, x: Tensor) -> Tensor:
        """The likeliest class of each datum by the classifier, ``(N,)``."""
        return class_logits(self.classifier, self.num_classes, x).argmax(-1)

    @torch.no_grad()
    def sample(self, num_samples: int, label: Tensor | None = None) -> Tensor:
        """Draw data, ``(num_samples, *data)``: of the labels given, one each, or of any.

        Raises:
            TypeError: the label is no tensor.
            ValueError: the labels are neither as many nor one for all, or not of the classes.
        """
        check_counts(num_samples=num_samples)
        if label is None:
            label = dist.Categorical(logits=self.logits).sample(torch.Size((num_samples,)))
        y = self.one_hot(label)
        if y.shape[:-1] not in ((), (1,), (num_samples,)):
            raise ValueError(
                f"label must have one entry for each of num_samples = {num_samples}, or one for "
                f"all, but has shape {tuple(label.shape)}"
            )
        z = self.prior().sample(torch.Size((num_samples,)))
        return draw(num_samples, self.likelihood(z, y))

    @torch.no_grad()
    def reconstruct(self, x: Tensor, label: Tensor | None = None) -> Tensor:
        """The likelihood's mean at a code drawn from the guide; classes not given are guessed."""
        guess = self.classify(x)
        if label is not None:
            known, label = self._known(x, label)
            guess = torch.where(known, label, guess)
        y = self.one_hot(guess)
        return self.likelihood(self.posterior(x, y).sample(), y).mean
