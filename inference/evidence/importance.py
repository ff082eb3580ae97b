r"""Importance sampling: log p(x) from draws of a guide.

.. math:: \hat L_K(x_n) = \log \frac1K \sum_{k=1}^{K} w_{kn}, \quad
          w_{kn} = \frac{p(x_n, z_{kn})}{q(z_{kn} \mid x_n)}, \quad z_{kn} \sim q(\cdot \mid x_n).

The mean weight is unbiased for p(x), so by Jensen's inequality its logarithm is low in expectation,
by about CV² / 2K; it is exact, with K = 1, when q is the posterior.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from ..frozen import thawed
from ..particles import draw
from ..paths import Path
from ..precision import InBfloat16
from ..programs import Program, check_count, check_number
from ..rng import capture, restore
from ..target import Target
from ..weights import Weights, log_weights
from .accumulator import Strata, WeightSums
from .pareto import smooth_tail
from .parts import Scores, Tile
from .proposals import Proposal, Scaled, StudentT
from .scoring import Estimator
from .tiles import Tiles, plan_tiles

_COMPARED = 32  # data whose estimate is made in both precisions


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
        bfloat16: run the layers of the model's networks in bfloat16. The model is another one then:
            by how much it shifts log p(x) is measured on the first 32 data, with the same draws,
            and told beside the estimate; ``diagnostics["log_evidence_float32"]`` has theirs.
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
    bfloat16: bool = False

    @property
    def direction(self) -> str:  # type: ignore[override]
        return "consistent" if self.smooth or self.bfloat16 else "lower"

    def _check(self) -> None:
        check_count("num_samples", self.num_samples)
        if not isinstance(self.smooth, bool):
            raise TypeError(f"smooth must be True or False, but is {self.smooth!r}")
        if not isinstance(self.bfloat16, bool):
            raise TypeError(f"bfloat16 must be True or False, but is {self.bfloat16!r}")
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
        if not self.bfloat16:
            return sampling_tiles(few, self.num_samples, size, self.memory)
        handler = InBfloat16()
        rounded = replace(few, model=handler(few.model))
        sizes = sampling_tiles(rounded, self.num_samples, size, self.memory)
        if not handler.num_layers:
            raise ValueError(
                "bfloat16 must be False for this model: it runs no linear or convolutional layer"
            )
        return sizes

    def _score(self, tile: Tile) -> Scores:
        if not self.bfloat16:
            return self._weigh(tile)
        device = tile.plan.layout.device or torch.device("cpu")
        before = capture(device)
        replays = tile.replays and tile.replays.of("bfloat16")
        scores = self._weigh(replace(tile, model=InBfloat16()(tile.model), replays=replays))
        if tile.first + tile.rows.start < _COMPARED:
            restore(before, device)
            exact = self._weigh(tile)
            scores.fields["log_evidence_float32"] = exact.fields["log_evidence"]
        return scores

    def _weigh(self, tile: Tile) -> Scores:
        if self.defensive == 0 and self.proposal is None:
            sums = WeightSums(self.num_samples, rest=self.smooth)
            for log_weight in stream(tile, self.num_samples):
                sums.add(log_weight)
            return finish(Strata.of(sums), self.num_samples, self.smooth)
        strata = self._mixture(tile)
        return finish(strata, self.num_samples, self.smooth)

    def _mixture(self, tile: Tile) -> Strata:
        target = Target(tile.model, tile.guide, tile.args, tile.plan)
        path = Path(
            target, "guide" if self.proposal is None else self.proposal.build(target), tile.replays
        )
        of_prior = self._of_prior
        counts = [of_prior, self.num_samples - of_prior]
        strata = Strata(counts, rest=self.smooth)
        drawn = [k for k, total in zip(("prior", "proposal"), counts, strict=True) if total]
        for kind, sums in zip(drawn, strata.strata, strict=True):
            for count in tile.sizes.particle_counts(sums.num_samples):
                drawn_from = Path(target, "prior") if kind == "prior" else path
                log_weight = self._log_weight(path, *drawn_from.draw(count), of_prior)
                sums.add(log_weight)
        return strata

    def _log_weight(self, path: Path, u: Tensor, outside: Tensor, of_prior: int) -> Tensor:
        own = "guide" if isinstance(path.start, str) else "start"
        found = path.log_densities(u, "joint", own, *(["prior"] if of_prior else []))
        proposal = found[own]
        if of_prior:
            share = of_prior / self.num_samples
            proposal = torch.logaddexp(
                found["prior"] + math.log(share), proposal + math.log1p(-share)
            )
        log_weight = (found["joint"] - proposal).masked_fill(outside, -torch.inf)
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
        log_weight = _replayed(tile, count)
        if log_weight is None:
            weights = _weights(tile, count)
            log_weight = weights.log_weight
            if not (log_weight < torch.inf).all():
                raise ValueError(_name_fault(weights))
        yield log_weight
        done += count
        tile.advance(done / num_samples)


def _weights(tile: Tile, count: int, guide: Program | None = None) -> Weights:
    guide = tile.guide if guide is None else guide
    return log_weights(tile.model, guide, *tile.args, num_particles=count, plan=tile.plan)


def _replayed(tile: Tile, count: int) -> Tensor | None:
    """Log-weights by a graph; None where there is none, or where they show a fault."""
    if tile.replays is None:
        return None
    guide = thawed(tile.guide)

    def function(moving: tuple[Tensor, ...], fixed: tuple) -> tuple[Tensor, ...]:
        return (_weights(replace(tile, args=fixed), count, guide).log_weight,)

    device = tile.plan.layout.device or torch.device("cpu")
    before = capture(device)
    found = tile.replays(f"{count} weights", function, (), tile.args)
    if found is not None and not (found[0] < torch.inf).all():
        restore(before, device)  # to name the fault, the program draws the same again
        return None
    return None if found is None else found[0]


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
