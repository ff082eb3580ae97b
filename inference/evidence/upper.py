r"""Estimates from above: the evidence upper bound, the chi upper bound, the harmonic mean.

.. math:: \mathrm{EUBO} = \mathbb{E}_{p(z \mid x)} \log w, \quad
          \mathrm{CUBO}_n = \frac1n \log \mathbb{E}_q w^n, \quad
          \frac1{p(x)} = \mathbb{E}_{p(z \mid x)} \frac{1}{p(x \mid z)}.

The EUBO exceeds log p(x) by KL(posterior ‖ q). All three bounds hold for expectations. What
samples make of them may lie below: chains that have not reached the posterior, and the largest
weights, which no sample has seen.
"""

from __future__ import annotations

from dataclasses import dataclass

from ..programs import check_count, check_number
from .accumulator import WeightSums
from .annealing.importance import summed
from .importance import sampling_tiles, stream
from .pareto import pareto_shape
from .parts import Scores, Tile
from .posterior import Sampling, mixing, of_chains
from .scoring import Estimator
from .tiles import Tiles


@dataclass(frozen=True)
class EvidenceUpperBound(Sampling):
    r"""The mean log-weight under the posterior (EUBO): above log p(x) by KL(posterior ‖ guide).

    Draws are those of Hamiltonian chains. Where they have not reached the posterior (R̂ above
    1.05) the number is too low, and may be no bound.

    Args:
        num_chains: see :class:`Sampling`, for this and the further settings.

    References:
        Ji and Shen, *Stochastic variational inference via upper bound*, 2019.

    Example:
        >>> import torch
        >>> from pyrovae.models import LinearGaussianVAE
        >>> _ = torch.manual_seed(0)
        >>> linear = LinearGaussianVAE(data_dim=10, latent_dim=3)
        >>> x = linear.sample(4)
        >>> upper = EvidenceUpperBound(num_draws=50)(linear.model, linear.exact_guide, x)
        >>> bool((upper.log_evidence - linear.log_evidence(x)).abs().max() < 1e-4)  # no gap there
        True
    """

    direction = "upper"
    bias_weight = 0.0

    def _score(self, tile: Tile) -> Scores:
        path, drawn = self._draw(tile)
        log_weight = drawn["log_joint"] - drawn["log_start"]
        found = mixing(log_weight)
        ess = found["posterior_ess"].to(log_weight.device)
        fields = {
            "log_evidence": log_weight.mean((0, 1)),
            "stderr": log_weight.flatten(0, 1).std(0) / ess.clamp(min=1.0).sqrt(),
            "ess": ess,
            **of_chains(drawn),
            **found,
        }
        return Scores(fields, path.target.num_evaluations, path.target.num_gradients)


@dataclass(frozen=True)
class HarmonicMean(Sampling):
    r"""The harmonic mean of the likelihood over the posterior: **a warning, not an estimator**.

    .. math:: \log \hat p(x) = -\log \frac1S \sum_s \frac{1}{p(x \mid z_s)}, \quad
              z_s \sim p(z \mid x).

    It is consistent, and its variance is infinite for most models: posterior draws do not visit
    where the likelihood is small and the reciprocal large, so the number is usually too high, by an
    amount that no sample shows, and hardly depends on the prior. k̂ of the reciprocals says so.

    Args:
        num_chains: see :class:`Sampling`, for this and the further settings.

    References:
        Newton and Raftery, *Approximate Bayesian inference with the weighted likelihood bootstrap*,
        1994. Neal, *The harmonic mean of the likelihood: worst Monte Carlo method ever*, 2008.

    Example:
        >>> import torch
        >>> from pyrovae.models import LinearGaussianVAE
        >>> _ = torch.manual_seed(0)
        >>> linear = LinearGaussianVAE(data_dim=20, latent_dim=10)
        >>> x = linear.sample(20)
        >>> estimate = HarmonicMean(num_draws=50, start="prior")(linear.model, None, x)
        >>> bool(estimate.mean().value > linear.log_evidence(x).mean() + 1.0)
        True
    """

    direction = "upper"
    bias_weight = 0.5

    def _score(self, tile: Tile) -> Scores:
        path, drawn = self._draw(tile)
        by_chain = self._log_prior(path, drawn) - drawn["log_joint"]  # log of 1 / p(x | z)
        reciprocal = by_chain.flatten(0, 1)
        sums = summed(reciprocal)
        share = (reciprocal - reciprocal.amax(0)).exp()
        worth = mixing(share.reshape(by_chain.shape))
        ess = worth["posterior_ess"].to(share.device).clamp(min=1.0)
        fields = {
            "log_evidence": -sums.log_evidence(),
            "stderr": share.std(0) / share.mean(0) / ess.sqrt(),
            "ess": sums.ess(),
            **of_chains(drawn),
            **mixing(by_chain),
        }
        target = path.target
        return Scores(fields, target.num_evaluations, target.num_gradients, sums.largest())


@dataclass(frozen=True)
class ChiUpperBound(Estimator):
    r"""The chi upper bound, :math:`\mathrm{CUBO}_n`, from draws of the guide.

    .. math:: \frac1n \log \frac1K \sum_k w_k^n, \quad z_k \sim q(z \mid x).

    The expectation of :math:`w^n` bounds :math:`p(x)^n` from above; its sample mean is low, by a
    bias of about :math:`n \, \mathrm{stderr}^2 / 2`, and by far more where the largest weights were
    not drawn. k̂ is that of :math:`w^n`, n times that of the weights.

    Args:
        num_samples: K.
        power: n, at least 1; at 1 it is importance sampling.
        seed: see :class:`Estimator` for this and the further settings.

    References:
        Dieng, Tran, Ranganath, Paisley and Blei, *Variational inference via χ upper bound
        minimization*, 2017.

    Example:
        >>> import torch
        >>> from pyrovae.models import LinearGaussianVAE
        >>> _ = torch.manual_seed(0)
        >>> linear = LinearGaussianVAE(data_dim=10, latent_dim=3)
        >>> x = linear.sample(4)
        >>> upper = ChiUpperBound(num_samples=100)(linear.model, linear.exact_guide, x)
        >>> bool((upper.log_evidence - linear.log_evidence(x)).abs().max() < 1e-4)  # no gap there
        True
    """

    num_samples: int = 5000
    power: float = 2.0

    direction = "upper"

    @property
    def bias_weight(self) -> float:  # type: ignore[override]
        return -0.5 * self.power

    def _check(self) -> None:
        check_count("num_samples", self.num_samples)
        check_number("power", self.power, 1)

    def _sizes(self, few: Tile, size: int) -> Tiles:
        return sampling_tiles(few, self.num_samples, size, self.memory)

    def _score(self, tile: Tile) -> Scores:
        weights, powers = WeightSums(self.num_samples), WeightSums(self.num_samples)
        for log_weight in stream(tile, self.num_samples):
            weights.add(log_weight)
            powers.add(self.power * log_weight)
        fields = {
            "log_evidence": powers.log_evidence() / self.power,
            "stderr": powers.stderr() / self.power,
            "ess": powers.ess(),
            "khat": pareto_shape(powers.largest()),
            "elbo": weights.elbo(),
            "elbo_stderr": weights.elbo_stderr(),
        }
        return Scores(fields, self.num_samples)
