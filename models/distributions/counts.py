r"""Counts that vary more than Poisson or binomial ones, by their mean and their dispersion.

A Poisson variable whose rate is gamma distributed with shape θ and mean μ has variance
:math:`\mu + \mu^2 / \theta` and the negative binomial probabilities

.. math:: P(x) = \frac{\Gamma(x + \theta)}{\Gamma(\theta) \, x!} \, p^\theta q^x,
          \quad p = \frac{\theta}{\theta + \mu}, \quad q = \frac{\mu}{\theta + \mu}.

With s from :mod:`~pyrovae.models.distributions.stirling` and :math:`n = x + \theta`,

.. math:: \log P(x) = s(n) - s(\theta) - s(x) - \log(1 + x / \theta)
          + \theta \log \frac{n p}{\theta} + x \log \frac{n q}{x},
          \quad n q - x = \theta - n p = p (\mu - x).

A binomial variable out of n whose chance is beta distributed with mean m and concentration c,
that is Beta(a, b) with :math:`a = c m` and :math:`b = c (1 - m)`, has, for :math:`y = n - x` and
with the chance :math:`r = (x + a) / (n + c)`,

.. math:: \log P(x) = s(n) - s(x) - s(y) + s(c) - s(a) - s(b) + s(x + a) + s(y + b) - s(n + c)
          + \log \frac{a}{x + a} + \log \frac{b}{y + b} - \log \frac{c}{n + c}
          + x \log \frac{n r}{x} + y \log \frac{n (1 - r)}{y}
          + a \log \frac{c r}{a} + b \log \frac{c (1 - r)}{b},

each of the last four from :math:`n r - x = a - c r = c (n m - x) / (n + c)`. Both stay exact as θ
and c go to infinity, to the Poisson and the binomial distribution.
"""

from __future__ import annotations

import pyro.distributions as dist
import torch
from pyro.distributions.torch_distribution import TorchDistribution
from torch import Tensor
from torch.distributions import constraints
from torch.nn.functional import logsigmoid

from .stirling import log_ratio, stirling

# beyond them gradients in single precision overflow; at the upper one the limit is reached
_LEAST, _MOST = 1e-12, 1e30


class GammaPoisson(TorchDistribution):
    """Independent counts with mean μ and inverse dispersion θ: negative binomial.

    Unlike Pyro's distribution of that name it is given by its mean, and errs by some units in the
    last place of :math:`1 + |x - μ|` nats.

    Args:
        log_mean: log μ; at ``-inf`` the count is 0.
        concentration: θ; taken to lie between 1e-12 and 1e30, where the count is Poisson in every
            digit. Infinity will do. The batch shape is what both broadcast to.

    Example:
        >>> x = torch.tensor(3.0)
        >>> one = GammaPoisson(torch.tensor(2.0).log(), torch.tensor([5.0, float("inf")]))
        >>> q = torch.tensor(2.0 / 7.0)
        >>> torch.allclose(one.log_prob(x)[0], dist.NegativeBinomial(5.0, probs=q).log_prob(x))
        True
        >>> torch.allclose(one.log_prob(x)[1], dist.Poisson(2.0).log_prob(x))
        True
    """

    arg_constraints = {  # noqa: RUF012 - the torch.distributions convention
        "log_mean": constraints.real,
        "concentration": constraints.positive,
    }
    support = constraints.nonnegative_integer

    def __init__(
        self, log_mean: Tensor, concentration: Tensor, validate_args: bool | None = None
    ) -> None:
        self.log_mean, self.concentration = log_mean, concentration
        batch_shape = torch.broadcast_shapes(log_mean.shape, concentration.shape)
        super().__init__(batch_shape, validate_args=validate_args)

    def log_prob(self, value: Tensor) -> Tensor:
        if self._validate_args:
            self._validate_sample(value)
        # that of -inf would be 0 times infinity at a count of 0
        log_mean = self.log_mean.clamp(min=-1e4)
        theta = self.concentration.clamp(_LEAST, _MOST)
        x = value.to(log_mean.dtype)
        log_odds = log_mean - theta.log()
        p, log_p, log_q = (-log_odds).sigmoid(), logsigmoid(-log_odds), logsigmoid(log_odds)
        # the product p μ = q θ, by what is neither infinite nor a small number of few digits
        is_small = log_odds < 0
        mean = log_mean.masked_fill(~is_small, 0.0).exp()
        share = torch.where(is_small, p * mean, theta * log_odds.sigmoid())
        difference = share - p * x
        n, log_excess = x + theta, (x / theta).log1p()
        of_theta = log_ratio(theta, -difference, log_excess + log_p)
        of_x = log_ratio(x, difference, n.log() + log_q - x.clamp(min=1).log())
        return (
            (stirling(n) - stirling(theta) - log_excess - stirling(x)) + theta * of_theta + x * of_x
        )

    @property
    def mean(self) -> Tensor:
        return self.log_mean.exp().expand(self.batch_shape)

    @property
    def variance(self) -> Tensor:
        return self.mean + self.mean.square() / self.concentration

    def sample(self, sample_shape: torch.Size = torch.Size()) -> Tensor:  # noqa: B008
        with torch.no_grad():
            theta = self.concentration.clamp(_LEAST, _MOST)
            theta = theta.expand(self._extended_shape(sample_shape))
            gamma = dist.Gamma(theta, torch.ones_like(theta)).sample()
            return torch.poisson(self.log_mean.exp() * (gamma / theta))


class ZeroInflated(dist.ZeroInflatedDistribution):
    """Pyro's, exact also where its ``softplus`` is cut off.

    Args:
        base_dist: counts.
        gate_logits: log-odds that the count is 0 without having been drawn.

    Example:
        >>> counts = GammaPoisson(torch.tensor(1.0), torch.tensor(2.0))
        >>> half = ZeroInflated(counts, gate_logits=torch.tensor(0.0))
        >>> x = torch.tensor([0.0, 1.0])
        >>> half.log_prob(x).exp() - counts.log_prob(x).exp() / 2
        tensor([0.5000, 0.0000])
    """

    def log_prob(self, value: Tensor) -> Tensor:
        if self._validate_args:
            self._validate_sample(value)
        drawn = logsigmoid(-self.gate_logits) + self.base_dist.log_prob(value)
        return torch.where(value == 0, torch.logaddexp(logsigmoid(self.gate_logits), drawn), drawn)


class BetaBinomialByMean(TorchDistribution):
    """Independent counts out of ``total_count``, of mean chance m and concentration c.

    Args:
        logits: log-odds of m.
        concentration: c, taken to lie between 1e-12 and 1e30, where the count is binomial in every
            digit. Infinity will do. The batch shape is what both broadcast to.
        total_count: n.

    Example:
        >>> ten = BetaBinomialByMean(torch.tensor(0.0), torch.tensor(2.0), 10)
        >>> x = torch.arange(11)
        >>> torch.allclose(ten.log_prob(x).exp(), torch.tensor(1 / 11))  # a uniform chance
        True
    """

    arg_constraints = {  # noqa: RUF012 - the torch.distributions convention
        "logits": constraints.real,
        "concentration": constraints.positive,
    }

    def __init__(
        self,
        logits: Tensor,
        concentration: Tensor,
        total_count: int,
        validate_args: bool | None = None,
    ) -> None:
        self.logits, self.concentration, self.total_count = logits, concentration, total_count
        batch_shape = torch.broadcast_shapes(logits.shape, concentration.shape)
        super().__init__(batch_shape, validate_args=validate_args)

    @constraints.dependent_property(is_discrete=True, event_dim=0)
    def support(self) -> constraints.Constraint:
        return constraints.integer_interval(0, self.total_count)

    def _beta(self) -> tuple[Tensor, Tensor, Tensor]:
        """c, a and b."""
        c = self.concentration.clamp(_LEAST, _MOST)
        tiny = torch.finfo(self.logits.dtype).tiny
        a, b = (c * (sign * self.logits).sigmoid() for sign in (1, -1))
        return c, a.clamp(min=tiny), b.clamp(min=tiny)

    def log_prob(self, value: Tensor) -> Tensor:
        if self._validate_args:
            self._validate_sample(value)
        c, a, b = self._beta()
        n, logits, x = self.total_count, self.logits, value.to(self.logits.dtype)
        y = n - x
        # n m - x = y - n (1 - m), by the smaller chance, which has more digits
        chance = (-logits.abs()).sigmoid()
        excess = torch.where(logits > 0, y - n * chance, n * chance - x)
        difference = excess * (c / (n + c))
        log_p = stirling(x.new_tensor(n)) + (stirling(c) - stirling(n + c)) + (n / c).log1p()
        for k, alpha, sign in ((x, a, 1), (y, b, -1)):
            log_m = logsigmoid(sign * logits)
            log_r = ((k + alpha) / (n + c)).clamp(min=torch.finfo(c.dtype).tiny).log()
            of_sum = log_ratio(k + alpha, -k, c.log() + log_m - (k + alpha).log())
            of_k = log_ratio(k, sign * difference, log_r - (k.clamp(min=1) / n).log())
            of_alpha = log_ratio(alpha, -sign * difference, log_r - log_m)
            log_p = log_p - stirling(k) + (stirling(k + alpha) - stirling(alpha))
            log_p = log_p + torch.where(k > 0, of_sum, 0.0) + k * of_k + alpha * of_alpha
        return log_p

    @property
    def mean(self) -> Tensor:
        return (self.total_count * self.logits.sigmoid()).expand(self.batch_shape)

    @property
    def variance(self) -> Tensor:
        binomial = self.mean * (-self.logits).sigmoid()
        return binomial * (1 + (self.total_count - 1) / (1 + self.concentration))

    def sample(self, sample_shape: torch.Size = torch.Size()) -> Tensor:  # noqa: B008
        with torch.no_grad():
            _, a, b = self._beta()
            chance = dist.Beta(a, b).expand(self._extended_shape(sample_shape)).sample()
            return dist.Binomial(self.total_count, chance).sample()
