r"""Importance sampling: log p(x) from draws of a guide.

.. math:: \hat L_K(x_n) = \log \frac1K \sum_{k=1}^{K} w_{kn}, \quad
          w_{kn} = \frac{p(x_n, z_{kn})}{q(z_{kn} \mid x_n)}, \quad z_{kn} \sim q(\cdot \mid x_n).

The mean weight is unbiased for p(x), so by Jensen's inequality its logarithm is low in expectation,
by about CV² / 2K; it is exact, with K = 1, when q is the posterior.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass

import torch
from torch import Tensor
from torch.utils.data import DataLoader, RandomSampler
from tqdm.auto import tqdm

from ..frozen import freeze_guide
from ..particles import ParticlePlan, with_plan
from ..programs import Data, Program, check_count, num_data
from ..slicing import take
from ..weights import Weights, log_weights
from .accumulator import WeightSums
from .estimate import Estimate, concatenate, versions
from .pareto import pareto_shape
from .scope import check_finite, check_plan, check_support, device_of, move, scoring_scope
from .tiles import Tiles, plan_tiles

_BLOCK = 64  # data whose support is checked, and whose tails are fitted, in one go


@dataclass(frozen=True)
class _Sampling:
    """Settings that the estimators here share."""

    num_samples: int = 5000
    seed: int | None = 0
    memory: int | None = None
    particles: str = "auto"
    progress: bool = False

    def __post_init__(self) -> None:
        check_count("num_samples", self.num_samples)
        if self.memory is not None:
            check_count("memory", self.memory)
        seed = self.seed
        if seed is not None and (isinstance(seed, bool) or not isinstance(seed, int) or seed < 0):
            raise ValueError(f"seed must be a whole number of at least 0 or None, but is {seed!r}")


@dataclass(frozen=True)
class ImportanceSampling(_Sampling):
    """log p(x) by importance sampling from the guide: low in expectation.

    The weights are streamed in tiles, so memory does not grow with K; the guide's encoder runs
    once per datum where its latents are drawn independently of each other.

    Args:
        num_samples: K, used exactly.
        seed: makes the estimate reproducible, bit for bit on a CPU; None draws one.
        memory: bytes that one tile may make; None suits the device.
        particles: how to draw many particles: "auto", "plate", "tile" or "loop".
        progress: show a progress bar.

    References:
        Burda, Grosse and Salakhutdinov, *Importance weighted autoencoders*, 2016.

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

    def __call__(
        self, model: Program, guide: Program, x: Data | DataLoader, *context: object
    ) -> Estimate:
        """Estimate log p(x) for every datum.

        Args:
            model: ``model(x, *context)``.
            guide: ``guide(x, *context)``.
            x: tensor, tuple of tensors, or a DataLoader whose items are the programs' arguments.
            context: what else both programs take. A tensor with one entry per datum is cut along
                with the data; one that all data share may have any length.

        Raises:
            ProgramError: the pair has no per-datum weights; names the site.
            ValueError: data that are empty, not finite, or out of a site's support.
            TypeError: x is no tensor, or the guide no program.
        """
        if not callable(guide):
            raise TypeError(
                f"guide must be a Pyro program, but is {guide!r}: PriorMonteCarlo needs none"
            )
        return _estimate(self, model, guide, x, context)


@dataclass(frozen=True)
class PriorMonteCarlo(_Sampling):
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

    def __call__(
        self, model: Program, guide: Program | None, x: Data | DataLoader, *context: object
    ) -> Estimate:
        """Estimate log p(x) for every datum; see :meth:`ImportanceSampling.__call__`."""
        return _estimate(self, model, None, x, context)


def _estimate(
    settings: _Sampling,
    model: Program,
    guide: Program | None,
    x: Data | DataLoader,
    context: tuple,
) -> Estimate:
    seed = settings.seed
    if seed is None:
        seed = int(torch.randint(2**62, ()))
    if isinstance(x, DataLoader):
        if context:
            raise TypeError("with a DataLoader the context comes from its items, not beside it")
        if isinstance(x.sampler, RandomSampler):
            raise ValueError(
                "x must be a DataLoader with shuffle=False: its order is the estimate's"
            )
        batches: Iterable[tuple] = (
            tuple(item) if isinstance(item, list | tuple) else (item,) for item in x
        )
    else:
        batches = [(x, *context)]
    seeds = torch.Generator().manual_seed(seed)
    estimates = [_score(settings, model, guide, args, seed, seeds) for args in batches]
    if not estimates:
        raise ValueError("x must hold at least one datum, but the DataLoader is empty")
    return concatenate(estimates)


def _score(
    settings: _Sampling,
    model: Program,
    guide: Program | None,
    args: tuple,
    seed: int,
    seeds: torch.Generator,
) -> Estimate:
    size = num_data(args[0])
    check_finite(args)
    before = seeds.get_state()
    with scoring_scope(model, guide) as manual_seed:
        manual_seed(seed)
        args = move(args, device_of(model, guide))

        def use(plan: ParticlePlan) -> Estimate:
            seeds.set_state(before)
            draws = _Draws(seed, seeds, manual_seed)
            return _score_as_planned(settings, model, guide, args, size, draws, plan)

        return with_plan(model, guide, args, settings.particles, use)


@dataclass(frozen=True)
class _Draws:
    """Where the random numbers of a scored run come from: one seed for each tile."""

    seed: int
    seeds: torch.Generator
    manual_seed: Callable[[int], None]

    def next_tile(self) -> None:
        self.manual_seed(int(torch.randint(2**62, (), generator=self.seeds)))


def _score_as_planned(
    settings: _Sampling,
    model: Program,
    guide: Program | None,
    args: tuple,
    size: int,
    draws: _Draws,
    plan: ParticlePlan,
) -> Estimate:
    began = time.perf_counter()
    check_plan(plan)
    few = take(args, slice(0, 1)) if plan.sliceable else args
    frozen = None if guide is None else freeze_guide(guide, few, plan)
    tiles = plan_tiles(model, frozen, few, plan, settings.num_samples, size, settings.memory)
    sums: list[WeightSums] = []
    khat: list[Tensor] = []
    block = max(tiles.data, _BLOCK)
    with tqdm(total=size, unit="datum", disable=not settings.progress) as bar:
        for start in range(0, size, block):
            stop = min(start + block, size)
            check_support(model, guide, take(args, slice(start, stop)), plan)
            for rows in tiles.data_slices(start, stop):
                draws.next_tile()
                part = take(args, rows)
                sums.append(_score_rows(settings.num_samples, model, guide, part, plan, tiles))
                bar.update(rows.stop - rows.start)
            tails = [one.largest() for one in sums[len(khat) :]]
            khat += pareto_shape(torch.cat(tails, 1)).split([t.shape[1] for t in tails])
    fields = ("log_evidence", "stderr", "ess", "elbo", "elbo_stderr")
    return Estimate(
        **{name: torch.cat([getattr(one, name)() for one in sums]).cpu() for name in fields},
        khat=torch.cat(khat).cpu(),
        direction="lower",
        num_samples=settings.num_samples,
        provenance={
            "estimator": type(settings).__name__,
            "settings": asdict(settings),
            "seed": draws.seed,
            "guide_way": plan.guide_way,
            "model_way": plan.model_way,
            "tile": asdict(tiles),
            "device": str(plan.layout.device or "cpu"),
            "versions": versions(),
            "seconds": time.perf_counter() - began,
        },
    )


def _score_rows(
    num_samples: int,
    model: Program,
    guide: Program | None,
    args: tuple,
    plan: ParticlePlan,
    tiles: Tiles,
) -> WeightSums:
    """Stream K samples for one tile of data."""
    if guide is not None:
        guide = freeze_guide(guide, args, plan)
    sums = WeightSums(num_samples)
    for count in tiles.particle_counts(num_samples):
        weights = log_weights(model, guide, *args, num_particles=count, plan=plan)
        log_weight = weights.log_weight
        if not (log_weight < torch.inf).all():
            raise ValueError(_name_fault(weights))
        sums.add(log_weight)
    return sums


def _name_fault(weights: Weights) -> str:
    """Which site made a log-weight NaN or +infinity."""
    for role, sites in (("model", weights.model_sites), ("guide", weights.guide_sites)):
        for name, log_prob in sites.items():
            bad = ~(log_prob < torch.inf) if role == "model" else ~(log_prob > -torch.inf)
            if bad.any():
                value = log_prob[bad][0].item()
                return f"{role} site '{name}' has a log-probability of {value} for a sample"
    return "a log-weight is not a number"
