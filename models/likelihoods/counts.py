r"""Likelihoods of counts.

The network returns log-rates η. The mean of a count is

.. math:: \mu = e^{\eta}, \qquad \mu = \ell \, \mathrm{softmax}(\eta), \qquad \mu = \ell \, e^{\eta}

for a ``size`` of None, "total" and "factor": ℓ is then the size of the datum, known beforehand, and
the last of the context, ``(N, 1)``; the network does not see it. A cell of single-cell RNA
sequencing comes with the total of its counts, ``x.sum(-1, keepdim=True)``, of which the softmax
gives each gene its share; a region or a library with an exposure by which every rate is multiplied.
A posterior is handed all of the context, the size included: where its encoder is to see none of it,
:class:`~pyrovae.models.nets.WithoutContext` drops it. What is scored is log p(x | ℓ), in nats.
"""

from __future__ import annotations

from pyro.distributions.torch_distribution import TorchDistributionMixin
from torch import Tensor, nn

from ..checks import check_counts
from ..distributions import BetaBinomialByMean, GammaPoisson, ZeroInflated
from .features import check_positive, positive_like, split_features
from .gaussian import LearnedScale


class _OverdispersedCounts(nn.Module):
    """What a negative binomial has to be told, inflated or not."""

    def __init__(
        self,
        net: nn.Module,
        dispersion: float | LearnedScale | None = 1.0,
        size: str | None = None,
        event_dim: int = 1,
    ) -> None:
        super().__init__()
        check_positive("dispersion", dispersion)
        if size not in (None, "total", "factor"):
            raise ValueError(f"size must be None, 'total' or 'factor', but is {size!r}")
        if size == "total" and event_dim == 0:
            raise ValueError("event_dim must be at least 1 for a total to be shared out, but is 0")
        self.net, self.dispersion, self.size, self.event_dim = net, dispersion, size, event_dim

    def _counts(self, z: Tensor, context: tuple[Tensor, ...], *more: str) -> tuple:
        """The counts' distribution, and the network's features of the names given."""
        log_size = None
        if self.size is not None:
            context, size = context[:-1], (context[-1] if context else None)
            if not isinstance(size, Tensor) or size.shape[-1:] != (1,):
                found = "missing" if size is None else f"of shape {tuple(size.shape)}"
                raise ValueError(
                    f"the last context must be the size of each datum, (N, 1), but is {found}"
                )
            log_size = size.log().reshape(*size.shape[:-1], *[1] * self.event_dim)
        names = ("log rate", *(("log dispersion",) if self.dispersion is None else ()), *more)
        log_mean, *rest = split_features(self.net(z, *context), *names)
        if self.size == "total":
            log_mean = log_mean.flatten(-self.event_dim).log_softmax(-1).view_as(log_mean)
        if log_size is not None:
            log_mean = log_mean + log_size.to(log_mean.dtype)
        if self.dispersion is None:
            theta = rest.pop(0).exp()
        else:
            theta = positive_like(log_mean, self.dispersion)
        return GammaPoisson(log_mean, theta), *rest


class NegativeBinomial(_OverdispersedCounts):
    r"""Counts of mean μ and variance :math:`\mu + \mu^2 / \theta`.

    Args:
        net: maps ``(z, *context)`` to log-rates, ``(..., *data)``; with a size the mean is made of
            both as said above, and the size is kept from the network.
        dispersion: θ, the *inverse* dispersion: the larger, the closer to Poisson counts, which
            ``math.inf`` makes them. A number, a
            :class:`~pyrovae.models.likelihoods.LearnedScale` (of the data's shape for one per
            feature), or None for a network that returns log-rates and log θ side by side along its
            last dimension.
        size: None; "total" or "factor" for a last context that holds the size of each datum.
        event_dim: dimensions of one datum.

    Raises:
        ValueError: a dispersion that is not positive, another word for the size, a context without
            one, or a network whose output cannot be divided.
        TypeError: a dispersion of another kind.

    References:
        Lopez, Regier, Cole, Jordan and Yosef, *Deep generative modeling for single-cell
        transcriptomics*, 2018.

    Example:
        >>> import torch
        >>> x = torch.randint(9, (5, 100))
        >>> genes = NegativeBinomial(nn.Linear(2, 100), LearnedScale((100,)), size="total")
        >>> counts = genes(torch.zeros(5, 2), x.sum(-1, keepdim=True))
        >>> counts.log_prob(x).shape
        torch.Size([5])
        >>> torch.allclose(counts.mean.sum(-1), x.sum(-1).float())
        True
    """

    def forward(self, z: Tensor, *context: Tensor) -> TorchDistributionMixin:
        (counts,) = self._counts(z, context)
        return counts.to_event(self.event_dim)


class ZeroInflatedNegativeBinomial(_OverdispersedCounts):
    """Counts that are 0 with a chance of their own, else negative binomial.

    Args:
        net: as :class:`NegativeBinomial`'s, and after its features the log-odds of a dropout: that
            the count is 0 without having been drawn.
        dispersion: θ, as there.
        size: as there.
        event_dim: dimensions of one datum.

    Raises:
        ValueError: as there.
        TypeError: a dispersion of another kind.

    References:
        Lopez, Regier, Cole, Jordan and Yosef, *Deep generative modeling for single-cell
        transcriptomics*, 2018.

    Example:
        >>> import torch
        >>> genes = ZeroInflatedNegativeBinomial(nn.Linear(2, 3 * 100), dispersion=None)
        >>> genes(torch.zeros(5, 2)).log_prob(torch.zeros(5, 100)).shape
        torch.Size([5])
    """

    def forward(self, z: Tensor, *context: Tensor) -> TorchDistributionMixin:
        counts, gate_logits = self._counts(z, context, "dropout logit")
        return ZeroInflated(counts, gate_logits=gate_logits).to_event(self.event_dim)


class BetaBinomial(nn.Module):
    """Counts out of a total, whose chance of mean m(z) varies: Beta(c m, c (1 - m)).

    Args:
        net: maps ``(z, *context)`` to the log-odds of m, ``(..., *data)``.
        total_count: n, of every count.
        concentration: c: the larger, the closer to binomial counts, which ``math.inf`` makes them.
            A number, a :class:`~pyrovae.models.likelihoods.LearnedScale`, or None for a network
            that returns the log-odds and log c side by side along its last dimension.
        event_dim: dimensions of one datum.

    Raises:
        ValueError: a total below 1, a concentration that is not positive, or a network whose output
            cannot be halved.
        TypeError: a concentration of another kind.

    Example:
        >>> import torch
        >>> likelihood = BetaBinomial(nn.Linear(2, 30), total_count=4, concentration=2.0)
        >>> likelihood(torch.zeros(5, 2)).log_prob(torch.full((5, 30), 3)).shape
        torch.Size([5])
    """

    def __init__(
        self,
        net: nn.Module,
        total_count: int,
        concentration: float | LearnedScale | None = 1.0,
        event_dim: int = 1,
    ) -> None:
        super().__init__()
        check_counts(total_count=total_count)
        check_positive("concentration", concentration)
        self.net, self.total_count = net, total_count
        self.concentration, self.event_dim = concentration, event_dim

    def forward(self, z: Tensor, *context: Tensor) -> TorchDistributionMixin:
        logits = self.net(z, *context)
        if self.concentration is None:
            logits, log_concentration = split_features(logits, "logit", "log concentration")
            concentration = log_concentration.exp()
        else:
            concentration = positive_like(logits, self.concentration)
        counts = BetaBinomialByMean(logits, concentration, self.total_count)
        return counts.to_event(self.event_dim)
