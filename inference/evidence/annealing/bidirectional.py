r"""Bidirectional Monte Carlo: log p(x) between two annealed estimates.

Forward chains give a lower bound. The same chains led backwards, from an exact draw of the
posterior to the start, have :math:`\mathbb{E}\, w = 1 / p(x)`, and give an upper bound,

.. math:: \mathbb{E} \log \hat p_\to \;\le\; \log p(x) \;\le\; \mathbb{E} \log \hat p_\leftarrow,

so that their distance says how far off either can be. An exact draw is at hand for data that the
model has simulated, where the latents are those the data were made of; and for real data where the
posterior is known.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace

import torch
import xarray as xr
from torch import Tensor

from ...paths import Path
from ...programs import Data, Program, num_data
from ...rng import derive
from ...ways import data_axis, evaluate
from ...weights import simulate
from ..accumulator import Strata
from ..estimate import Estimate
from ..journal import Journal
from ..pareto import pareto_shape
from ..parts import Scores, Tile
from ..scope import check_finite, device_of, move, scoring_scope
from ..scoring import estimate
from .anneal import Chains, Journey
from .importance import elbo_of, summed
from .pilot import Frozen
from .settings import Annealing


@dataclass(frozen=True)
class Sandwich:
    """Two estimates with log p(x) between them.

    Attributes:
        lower: from the forward chains.
        upper: from the backward chains.
        data: what was scored: x, or the data that were simulated in its form.
    """

    lower: Estimate
    upper: Estimate
    data: Data

    @property
    def gap(self) -> Tensor:
        """Upper less lower, ``(N,)`` in nats: its expectation bounds the error of either."""
        return self.upper.log_evidence - self.lower.log_evidence

    def mean_gap(self) -> tuple[float, float]:
        """The mean gap and its standard error over data; NaN for a single datum."""
        size = len(self.gap)
        error = float(self.gap.std()) / math.sqrt(size) if size > 1 else math.nan
        return float(self.gap.mean()), error

    def __len__(self) -> int:
        return len(self.lower)

    def to_dataset(self) -> xr.Dataset:
        """The lower estimate's ``xarray.Dataset``, with the upper one's as ``upper_*``."""
        lower, upper = self.lower.to_dataset(), self.upper.to_dataset()
        joined = lower.assign(
            {f"upper_{name}": upper[name] for name in upper.data_vars if name != "elbo"}
        )
        joined.attrs["direction"] = "lower and upper"
        return joined.assign(gap=("datum", self.gap.numpy()))

    def __repr__(self) -> str:
        low, high = self.lower.mean(), self.upper.mean()
        gap, error = self.mean_gap()
        return (
            f"Sandwich({len(self.gap)} data: {low.value:.3f} ± {low.monte_carlo_stderr:.3f} <= "
            f"mean log p(x) <= {high.value:.3f} ± {high.monte_carlo_stderr:.3f}, "
            f"gap {gap:.3f} ± {error:.3f})"
        )


@dataclass(frozen=True)
class BidirectionalMonteCarlo(Annealing):
    r"""A sandwich around log p(x), from annealing in both directions (BDMC).

    Args:
        num_chains: see :class:`Annealing`, for this and the further settings.
        posterior: a program ``posterior(x, *context)`` that draws the exact posterior, so that the
            data given are scored. Without one, x gives only the form: data are simulated, and the
            sandwich tells how well the same settings do on real data that look like them.

    The standard error of the upper estimate is that of the chains given their beginning; for
    simulated data all begin at one draw, and only the spread over data shows what that adds.

    References:
        Grosse, Ghahramani and Adams, *Sandwiching the marginal likelihood using bidirectional
        Monte Carlo*, 2015.

    Example:
        >>> from pyrovae.models import LinearGaussianVAE
        >>> _ = torch.manual_seed(0)
        >>> linear = LinearGaussianVAE(data_dim=10, latent_dim=3)
        >>> x = linear.sample(8)
        >>> bdmc = BidirectionalMonteCarlo(
        ...     num_chains=32, num_temperatures=200, start="prior", posterior=linear.exact_guide
        ... )
        >>> sandwich = bdmc(linear.model, None, x)
        >>> exact = linear.log_evidence(x).mean()
        >>> bool(sandwich.lower.mean().value - 0.1 < exact < sandwich.upper.mean().value + 0.1)
        True
    """

    posterior: Program | Known | None = None

    direction = "lower"

    def _check(self) -> None:
        super()._check()
        posterior = self.posterior
        if not (posterior is None or isinstance(posterior, Known) or callable(posterior)):
            raise TypeError(f"posterior must be a Pyro program or None, but is {posterior!r}")

    def __call__(  # type: ignore[override]
        self, model: Program, guide: Program | None, x: Data, *context: object
    ) -> Sandwich:
        """Estimate log p(x) from below and from above for every datum; see :class:`Estimator`."""
        data, estimator = x, self
        if self.posterior is None:
            seed = self.seed
            if seed is None:  # a call that is taken up again must simulate the same data
                seed = Journal(self.checkpoint).seed(lambda: int(torch.randint(2**62, ())))
            data, latents = _simulate(model, (x, *context), seed)
            estimator = replace(self, seed=seed, posterior=Known(latents))
        found = estimate(estimator, model, self._proposal(guide), data, context)
        return _apart(found, data)

    def _score(self, tile: Tile) -> Scores:
        path = self._path(tile)
        frozen, forward, first, backward = self._ways(tile, path)

        def journey(begun: Chains, done: float) -> Journey:
            other = {"other": begun.state(), "first": first}
            return Journey(
                path,
                self.kernel,
                frozen,
                keeper=tile.keeper,
                advance=lambda share: tile.advance(done + share / 2),
                extra=other,
            )

        # the journal keeps the one that moves as "chains", and the one that waits as "other"
        if forward.step < len(frozen.betas) - 1:
            forward = journey(backward, 0.0).lead(forward)
        backward = journey(forward, 0.5).lead(backward, backwards=True)
        up, down = summed(forward.log_weight), summed(backward.log_weight)
        upper = Strata.of(down).fields()
        fields = Strata.of(up).fields() | elbo_of(first) | forward.diagnostics()
        fields |= {
            "upper": -upper["log_evidence"],
            "upper_stderr": upper["stderr"],
            "upper_ess": upper["ess"],
            "upper_khat": pareto_shape(down.largest()),
        }
        fields |= {f"upper_{name}": value for name, value in backward.diagnostics().items()}
        target = path.target
        return Scores(fields, target.num_evaluations, target.num_gradients, up.largest())

    def _ways(self, tile: Tile, path: Path) -> tuple[Frozen, Chains, Tensor, Chains]:
        """Chains in both directions, at their beginnings or where a journal left them."""
        if (kept := tile.keeper.resume()) is not None:
            path.target.take_up(kept["spent"])
            moving, waiting = (Chains.restore(kept[name], path) for name in ("chains", "other"))
            frozen = Frozen(**kept["frozen"])
            ends_forward = waiting.step == len(frozen.betas) - 1
            pair = (waiting, moving) if ends_forward else (moving, waiting)
            return frozen, pair[0], kept["first"], pair[1]
        frozen, forward, first = self._begin(tile, path)
        posterior = self.posterior
        assert posterior is not None  # the call has simulated where there was none
        draws = posterior if isinstance(posterior, Known) else _Drawn(posterior)
        u = path.target.coordinates(draws(tile, self.num_chains))
        if not bool(u.isfinite().all()):
            raise ValueError("posterior must draw inside the support of the model, but does not")
        u = u.expand(self.num_chains, *u.shape[1:]).contiguous()
        return frozen, forward, first, Chains.begin(path.point(u))


@dataclass(frozen=True)
class Known:
    """Latents that data were simulated from: one exact draw of the posterior of each.

    Args:
        latents: by site, as the program drew them.
    """

    latents: Mapping[str, Tensor]

    def __call__(self, tile: Tile, count: int) -> dict[str, Tensor]:
        layout, found = tile.plan.layout, {}
        for name in layout.latents.keys() - layout.auxiliary:
            value = self.latents[name][None]
            axis = data_axis(value, name, layout)
            value = value.narrow(axis, tile.rows.start, tile.rows.stop - tile.rows.start)
            found[name] = value.expand(count, *value.shape[1:])
        return found

    def __repr__(self) -> str:
        return "Known(simulated)"


@dataclass(frozen=True)
class _Drawn:
    """Draws of a program that is the posterior."""

    program: Program

    def __call__(self, tile: Tile, count: int) -> dict[str, Tensor]:
        values = evaluate("loop", None, self.program, tile.args, tile.plan.layout, count).values
        return {n: value for n, value in values.items() if n not in tile.plan.layout.auxiliary}


def _simulate(model: Program, args: tuple, seed: int) -> tuple[Data, Mapping[str, Tensor]]:
    """Data in the form of x, and the latents that they were made of."""
    num_data(args[0])
    check_finite(args)
    with scoring_scope(model, None) as manual_seed:
        manual_seed(derive(seed, "simulate"))
        moved = move(args, device_of(model, None))
        dream = simulate(model, *moved)
        return dream.as_data(moved[0]), dream.latents


def _apart(found: Estimate, data: Data) -> Sandwich:
    """The two estimates that stand in one."""
    own = {n: value for n, value in found.diagnostics.items() if not n.startswith("upper")}
    other = {
        n.removeprefix("upper_"): value
        for n, value in found.diagnostics.items()
        if n.startswith("upper_")
    }
    unknown = torch.full_like(found.log_evidence, math.nan)
    upper = replace(
        found,
        log_evidence=found.diagnostics["upper"],
        direction="upper",
        bias_weight=0.5,
        elbo=unknown,
        elbo_stderr=unknown,
        stderr=other["stderr"],
        ess=other["ess"],
        khat=other["khat"],
        diagnostics={n: v for n, v in other.items() if n not in Estimate.CORE},
    )
    return Sandwich(replace(found, diagnostics=own), upper, data)
