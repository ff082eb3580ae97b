r"""Importance sampling: log p(x) from draws of a guide.

.. math:: \hat L_K(x_n) = \log \frac1K \sum_{k=1}^{K} w_{kn}, \quad
          w_{kn} = \frac{p(x_n, z_{kn})}{q(z_{kn} \mid x_n)}, \quad z_{kn} \sim q(\cdot \mid x_n).

The mean weight is unbiased for p(x), so by Jensen's inequality its logarithm is low in expectation,
by about CV² / 2K; it is exact, with K = 1, when q is the posterior.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from ..particles import draw
from ..programs import Program, check_count, check_number
from ..target import Target
from ..weights import Weights, log_weights
from .accumulator import Strata, WeightSums
from .pareto import smooth_tail
from .proposals import Local, Proposal, Scaled, StudentT
from .scoring import Estimator, Scores, Tile
from .tiles import Tiles, plan_tiles


@dataclass(frozen=True)
class ImportanceSampling(Estimator):
    r"""log p(x) by importance sampling from the guide: low in expectation.

    The weights are streamed in tiles, so memory does not grow with K; the guide's encoder runs
    once per datum where its latents are drawn independently of each other.

    With ``defensive`` = α, a share α of the samples is drawn from the prior, and all are weighed
    by the mixture :math:`\alpha p(z) + (1 - \alpha) q(z \mid x)`: no weight exceeds
    :math:`p(x \mid z) / \alpha`, whatever the guide misses.

    Args:
        num_samples: K, used exactly.
        smooth: replace the largest weights by quantiles of the Pareto distribution fitted to them
            (PSIS): less variance, no bound any more.
        defensive: α, the share of the prior; 0 for none.
        proposal: ``Scaled(factor)`` or ``StudentT(df)``, built from the guide's moments in
            unconstrained coordinates, in the guide's place.
        seed: see :class:`Estimator` for this and the further settings.

    References:
        Burda, Grosse and Salakhutdinov, *Importance weighted autoencoders*, 2016. Hesterberg,
        *Weighted average importance sampling and defensive mixture distributions*, 1995. Vehtari,
        Simpson, Gelman, Yao and Gabry, *Pareto smoothed importance sampling*, 2024.

    Example:
        >>> from pyrovae.models import LinearGaussianVAE
        >>> _ = torch.manual_seed(0)
        >>> linear = LinearGaussianVAE(data_dim=10, latent_dim=3)
        >>> x = linear.sample(5)
        >>> estimate = ImportanceSampling(num_samples=1000)(linear.model, linear.exact_guide, x)
        >>> bool((estimate.log_evidence - linear.log_evidence(x)).abs().max() < 1e-4)
        True
        >>> estimate.direction
        'lower'
    """

    num_samples: int = 5000
    smooth: bool = False
    defensive: float = 0.0
    proposal: Proposal | None = None

    @property
    def direction(self) -> str:  # type: ignore[override]
        return "consistent" if self.smooth else "lower"

    def _check(self) -> None:
        check_count("num_samples", self.num_samples)
        if not isinstance(self.smooth, bool):
            raise TypeError(f"smooth must be True or False, but is {self.smooth!r}")
        check_number("defensive", self.defensive, 0, 1)
        if self.defensive == 1:
            raise ValueError("defensive must be below 1, but is 1: that is PriorMonteCarlo")
        if not isinstance(self.proposal, Scaled | StudentT | None):
            raise TypeError(
                f"proposal must be Scaled(...), StudentT(...) or None, but is {self.proposal!r}"
            )
        share = self._of_prior
        if self.defensive and not 0 < share < self.num_samples:
            raise ValueError(
                f"num_samples must leave a sample to the prior and one to the guide, but "
                f"{self.num_samples} at defensive={self.defensive} leave {share} and "
                f"{self.num_samples - share}"
            )

    @property
    def _of_prior(self) -> int:
        """How many of the samples are the prior's."""
        return round(self.defensive * self.num_samples)

    def _sizes(self, few: Tile, size: int) -> Tiles:
        return sampling_tiles(few, self.num_samples, size, self.memory)

    def _score(self, tile: Tile) -> Scores:
        if self.defensive == 0 and self.proposal is None:
            sums = WeightSums(self.num_samples, rest=self.smooth)
            for log_weight in stream(tile, self.num_samples):
                sums.add(log_weight)
            return finish(Strata.of(sums), self.num_samples, self.smooth)
        strata = self._mixture(tile)
        return finish(strata, self.num_samples, self.smooth)

    def _mixture(self, tile: Tile) -> Strata:
        target = Target(tile.model, tile.guide, tile.args, tile.plan)
        local = None if self.proposal is None else self.proposal.build(target)
        of_prior = self._of_prior
        counts = [of_prior, self.num_samples - of_prior]
        strata = Strata(counts, rest=self.smooth)
        drawn = [k for k, total in zip(("prior", "proposal"), counts, strict=True) if total]
        for kind, sums in zip(drawn, strata.strata, strict=True):
            for count in tile.sizes.particle_counts(sums.num_samples):
                u = self._draw(target, local, kind, count)
                sums.add(self._log_weight(target, local, u, of_prior / self.num_samples))
        return strata

    @staticmethod
    def _draw(target: Target, local: Local | None, kind: str, count: int) -> Tensor:
        if kind == "prior":
            return target.draw("prior", count)
        return target.draw("guide", count) if local is None else local.draw(count)

    @staticmethod
    def _log_weight(target: Target, local: Local | None, u: Tensor, share: float) -> Tensor:
        usable = u.isfinite().all(-1)
        u = torch.where(usable[..., None], u, torch.zeros_like(u))
        kinds = ["joint", *(["prior"] if share else []), *(["guide"] if local is None else [])]
        found = target.log_densities(u, *kinds)
        own = found["guide"] if local is None else local.log_density(u)
        if share:
            own = torch.logaddexp(found["prior"] + math.log(share), own + math.log1p(-share))
        log_weight = (found["joint"] - own).masked_fill(~usable, -torch.inf)
        if not (log_weight < torch.inf).all():
            raise ValueError("a log-weight of the mixture is not a number")
        return log_weight


@dataclass(frozen=True)
class PriorMonteCarlo(Estimator):
    r"""log p(x) by averaging the likelihood over the prior: low in expectation, often hopeless.

    .. math:: \hat L_K(x_n) = \log \frac1K \sum_k p(x_n \mid z_k), \quad z_k \sim p(z).

    Needs K of the order of exp KL(posterior ‖ prior). Settings as in :class:`ImportanceSampling`;
    the guide is not used.

    Example:
        >>> from pyrovae.models import LinearGaussianVAE
        >>> _ = torch.manual_seed(0)
        >>> linear = LinearGaussianVAE(data_dim=2, latent_dim=1)
        >>> x = linear.sample(3)
        >>> estimate = PriorMonteCarlo(num_samples=20_000)(linear.model, None, x)
        >>> error = (estimate.log_evidence - linear.log_evidence(x)).abs()
        >>> bool((error < 5 * estimate.stderr).all())
        True
    """

    num_samples: int = 5000

    direction = "lower"

    def _check(self) -> None:
        check_count("num_samples", self.num_samples)

    def _proposal(self, guide: Program | None) -> None:
        return None

    def _sizes(self, few: Tile, size: int) -> Tiles:
        return sampling_tiles(few, self.num_samples, size, self.memory)

    def _score(self, tile: Tile) -> Scores:
        sums = WeightSums(self.num_samples)
        for log_weight in stream(tile, self.num_samples):
            sums.add(log_weight)
        return finish(Strata.of(sums), self.num_samples)


def sampling_tiles(few: Tile, num_samples: int, size: int, memory: int | None) -> Tiles:
    """Tiles for K samples that are drawn from the guide and weighed."""
    return plan_tiles(
        lambda particles: draw(few.model, few.guide, few.args, few.plan, particles),
        few.args,
        few.plan,
        num_samples,
        size,
        memory,
    )


def stream(tile: Tile, num_samples: int) -> Iterator[Tensor]:
    """Log-weights of K samples of the guide, ``(k, n)`` at a time.

    Raises:
        ValueError: a log-weight is NaN or infinite; names the site.
    """
    done = 0
    for count in tile.sizes.particle_counts(num_samples):
        weights = log_weights(
            tile.model, tile.guide, *tile.args, num_particles=count, plan=tile.plan
        )
        log_weight = weights.log_weight
        if not (log_weight < torch.inf).all():
            raise ValueError(_name_fault(weights))
        yield log_weight
        done += count
        tile.advance(done / num_samples)


def finish(strata: Strata, num_samples: int, smooth: bool = False) -> Scores:
    """What sums of weights say, their tail smoothed by choice."""
    fields, largest = strata.fields(), strata.largest()
    if smooth:
        fields |= smooth_tail(largest, *strata.log_rest(), num_samples)
    return Scores(fields, num_evaluations=num_samples, largest=largest)


def _name_fault(weights: Weights) -> str:
    """Which site made a log-weight NaN or +infinity."""
    for role, sites in (("model", weights.model_sites), ("guide", weights.guide_sites)):
        for name, log_prob in sites.items():
            bad = ~(log_prob < torch.inf) if role == "model" else ~(log_prob > -torch.inf)
            if bad.any():
                value = log_prob[bad][0].item()
                return f"{role} site '{name}' has a log-probability of {value} for a sample"
    return "a log-weight is not a number"
