r"""Several estimates of log p(x) on one table, and in words which of them to believe.

Estimates of the same data are held against one another by their sides: a lower bound cannot lie
above an upper one, the highest lower bound is the closest to log p(x), and one that is
significantly below it is low by at least that much. Differences are taken datum by datum, so that
what data differ by is not among their errors.
"""

from __future__ import annotations

import itertools
import json
import math
from dataclasses import dataclass

import xarray as xr

from ..tables import table
from .annealing.bidirectional import Sandwich
from .estimate import RELIABLE_RHAT, Estimate

_SIGNIFICANT = 3.0  # combined errors
_CONTRADICTORY = 5.0
_LIGHT = 0.05  # the share of data that may be in doubt


@dataclass(frozen=True)
class Difference:
    """A mean difference of two estimates over the same data, in nats, and its Monte Carlo error."""

    value: float
    stderr: float

    def exceeds(self, errors: float) -> bool:
        """Whether it is above zero by more than so many errors, and by more than rounding.

        Never where the error is not known.
        """
        return self.value == math.inf or self.value > errors * self.stderr + 1e-3


@dataclass(frozen=True)
class EvidenceComparison:
    """Estimates of the same data, by name.

    Attributes:
        estimates: by name, in the order given.
    """

    estimates: dict[str, Estimate]

    # --- what the sides say ----------------------------------------------------------------------

    def side(self, *directions: str) -> list[str]:
        """Names of the estimates on these sides."""
        return [n for n, one in self.estimates.items() if one.direction in directions]

    def difference(self, first: str, second: str) -> Difference:
        """The first less the second, paired by datum; leading biases of lower bounds left in.

        Where an estimate does not know its error, that of the difference is what its values over
        the data show; NaN for a single datum.
        """
        a, b = self.estimates[first], self.estimates[second]
        off = a.log_evidence - b.log_evidence
        known = ~off.isnan()  # where both are −infinity there is no difference
        off, noise = off[known], (a.stderr.square() + b.stderr.square())[known]
        if len(off) == 0:
            return Difference(math.nan, math.nan)
        error = float(noise.sum()) ** 0.5 / len(off)
        if math.isnan(error) and len(off) > 1:
            error = float(off.std()) / math.sqrt(len(off))
        return Difference(float(off.mean()), error)

    @property
    def best_lower(self) -> str | None:
        """A lower bound that no other exceeds significantly.

        Of several, one that its own diagnoses do not speak against, the most precise and cheapest.
        """
        lower = self.side("lower")
        if not lower:
            return None
        highest = max(lower, key=lambda name: self.estimates[name].mean().value)
        beaten = {
            low
            for low, high in itertools.permutations(lower, 2)
            if self.difference(high, low).exceeds(_SIGNIFICANT)
        }
        equal = [name for name in lower if name not in beaten] or [highest]

        def rank(name: str) -> tuple[bool, float, float, float]:
            one = self.estimates[name]
            error = one.mean().monte_carlo_stderr
            cost = float(one.provenance.get("evaluations", 0.0))
            unknown = math.inf if math.isnan(error) else error
            return doubt(one) is not None, unknown, cost, _seconds(one)

        return min(equal, key=rank)

    @property
    def best_upper(self) -> str | None:
        """The lowest upper bound among those that nothing speaks against."""
        below = {high for _, high, _ in self.contradictions}
        upper = [n for n in self.side("upper") if n not in below and not doubt(self.estimates[n])]
        return min(upper, key=lambda name: self.estimates[name].mean().value) if upper else None

    @property
    def contradictions(self) -> list[tuple[str, str, Difference]]:
        """Pairs of a lower bound and an upper one below it, by more than five errors."""
        pairs = []
        for low in self.side("lower"):
            for high in self.side("upper"):
                off = self.difference(low, high)
                if off.exceeds(_CONTRADICTORY):
                    pairs.append((low, high, off))
        return pairs

    # --- in words --------------------------------------------------------------------------------

    def verdict(self) -> list[str]:
        """Sentences: which number to believe, which not, and why."""
        lines = []
        for low, high, off in self.contradictions:
            lines.append(
                f"{low}, a lower bound, lies {off.value:.2f} ± {off.stderr:.2f} above {high}, an "
                f"upper one: {_blame(self.estimates, low, high)}"
            )
        best = self.best_lower
        if best is None:
            lines.append("no lower bound is among them: nothing says how low log p(x) may be")
            return lines + self._on_uppers(best)
        mean = self.estimates[best].mean()
        reason = doubt(self.estimates[best])
        lines.append(
            f"believe {best}: {mean.value:.2f} ± {mean.monte_carlo_stderr:.2f}, a lower bound that "
            f"no other exceeds by three errors{f', though {reason}' if reason else ''}"
        )
        for name in self.side("lower"):
            if name != best and (off := self.difference(best, name)).exceeds(_SIGNIFICANT):
                reason = doubt(self.estimates[name]) or "no diagnosis of its own shows it"
                lines.append(
                    f"{name} is low by {off.value:.2f} ± {off.stderr:.2f} or more: {reason}"
                )
        return lines + self._on_consistent(best) + self._on_uppers(best)

    def _on_consistent(self, best: str) -> list[str]:
        lines = []
        for name in self.side("consistent"):
            below, above = self.difference(best, name), self.difference(name, best)
            reason = doubt(self.estimates[name])
            if below.exceeds(_SIGNIFICANT):
                why = reason or "its error is larger than it says"
                lines.append(f"{name} lies {below.value:.2f} below a lower bound: {why}")
            elif above.exceeds(_SIGNIFICANT):
                trust = f"doubtful: {reason}" if reason else "nothing speaks against it"
                lines.append(
                    f"{name} lies {above.value:.2f} ± {above.stderr:.2f} above {best}; {trust}"
                )
            else:
                lines.append(f"{name} agrees with {best}{f', though {reason}' if reason else ''}")
        return lines

    def _on_uppers(self, best: str | None) -> list[str]:
        lines = []
        high = self.best_upper
        for name in self.side("upper"):
            if reason := doubt(self.estimates[name]):
                lines.append(f"{name} is no upper bound to be relied on: {reason}")
        if high is None:
            lines.append(
                "no upper bound that can be relied on is among them: how far log p(x) lies above "
                "is not known"
            )
        elif best is not None:
            off = self.difference(high, best)
            lines.append(
                f"{high} bounds it from above: mean log p(x) is within {max(off.value, 0.0):.2f} ± "
                f"{off.stderr:.2f} of {best}{_unless(self.estimates[high])}"
            )
        return lines

    # --- as a table ------------------------------------------------------------------------------

    def __str__(self) -> str:
        headers = ["estimate", "side", "log p(x)", "± MC", "k̂ median", "k̂ 95%", "k̂ high"]
        headers += ["R̂ high", "evals", "gradients", "seconds"]
        best = self.best_lower
        if best is not None:
            headers.insert(4, f"less {best}")
        rows = []
        for name, one in self.estimates.items():
            mean = one.mean()
            cells = [name, one.direction, f"{mean.value:.3f}", _number(mean.monte_carlo_stderr)]
            if best is not None:
                off = self.difference(name, best)
                cells.append("" if name == best else f"{off.value:+.3f} ± {off.stderr:.3f}")
            unknown = bool(one.khat.isnan().all())
            cells += [_quantile(one, 0.5), _quantile(one, 0.95)]
            cells.append("-" if unknown else _share(too_high(one)))
            cells.append(_share(unmixed(one)))
            for cost in ("evaluations", "gradients"):
                cells.append(f"{float(one.provenance.get(cost, 0)):,.0f}")
            cells.append(f"{_seconds(one):.1f}")
            rows.append(cells)
        size = len(next(iter(self.estimates.values())))
        what = f"nats per datum, means over {size:,} data; evaluations and gradients per datum"
        lines = [table(headers, rows, left=(0, 1)), "", what]
        return "\n".join([*lines, *(f"- {line}" for line in self.verdict())])

    __repr__ = __str__

    def to_dataset(self) -> xr.Dataset:
        """All estimates, over ``estimate`` and ``datum``; provenances and verdict in attributes."""
        names = list(self.estimates)
        joined = xr.concat(
            [one.to_dataset()[list(Estimate.CORE)] for one in self.estimates.values()],
            dim="estimate",
            combine_attrs="drop",
        ).assign_coords(
            estimate=names, side=("estimate", [self.estimates[n].direction for n in names])
        )
        joined.attrs = {
            "units": "nats",
            "verdict": "\n".join(self.verdict()),
            "provenance": json.dumps({n: dict(e.provenance) for n, e in self.estimates.items()}),
        }
        return joined


def compare_evidence(
    *estimates: Estimate | Sandwich, **named: Estimate | Sandwich
) -> EvidenceComparison:
    """Put estimates of the same data on one table, and say which to believe.

    Args:
        estimates: named after their estimators.
        named: with names of your own. A sandwich gives two rows.

    Raises:
        ValueError: fewer than two, or of different numbers of data.
        TypeError: something that is no estimate.

    Example:
        >>> import torch
        >>> from pyrovae.inference import ImportanceSampling, PriorMonteCarlo
        >>> from pyrovae.models import LinearGaussianVAE
        >>> _ = torch.manual_seed(0)
        >>> linear = LinearGaussianVAE(data_dim=20, latent_dim=5)
        >>> x = linear.sample(50)
        >>> good = ImportanceSampling(100)(linear.model, linear.exact_guide, x)
        >>> bad = PriorMonteCarlo(100)(linear.model, None, x)
        >>> comparison = compare_evidence(guide=good, prior=bad)
        >>> comparison.best_lower
        'guide'
        >>> [line for line in comparison.verdict() if "prior" in line][0].startswith("prior is low")
        True
    """
    found: dict[str, Estimate] = {}

    def add(name: str, one: object) -> None:
        if isinstance(one, Sandwich):
            add(f"{name}, lower", one.lower)
            add(f"{name}, upper", one.upper)
        elif isinstance(one, Estimate):
            number, free = 1, name
            while free in found:
                number += 1
                free = f"{name} #{number}"
            found[free] = one
        else:
            raise TypeError(f"estimates must be Estimates or Sandwiches, but one is {one!r}")

    for one in estimates:
        whole = one.lower if isinstance(one, Sandwich) else one
        provenance = whole.provenance if isinstance(whole, Estimate) else {}
        add(str(provenance.get("estimator", "estimate")), one)
    for name, one in named.items():
        add(name, one)
    if len(found) < 2:
        raise ValueError(f"estimates must be at least two, but are {len(found)}")
    sizes = {name: len(one) for name, one in found.items()}
    if len(set(sizes.values())) > 1:
        raise ValueError(f"estimates must be of the same data, but hold {sizes}")
    data = {n: e.provenance["data"] for n, e in found.items() if "data" in e.provenance}
    if len(set(data.values())) > 1:
        raise ValueError(
            "estimates must be of the same data, but are not (bidirectional Monte Carlo without a "
            f"posterior scores data that it simulates): {data}"
        )
    return EvidenceComparison(found)


def too_high(estimate: Estimate) -> float:
    """The share of data whose k̂ is known and too high."""
    known = ~estimate.khat.isnan()
    return float((known & ~estimate.reliable).double().mean())


def unmixed(estimate: Estimate) -> float:
    """The share of data whose chains have not mixed; NaN where there are none."""
    rhat = estimate.diagnostics.get("rhat")
    return math.nan if rhat is None else float((~(rhat < RELIABLE_RHAT)).double().mean())


def doubt(estimate: Estimate) -> str | None:
    """What an estimate's own diagnoses say against it; None where they say nothing."""
    reasons = [
        f"its guide cannot draw all values of latent '{name}'"
        for name in estimate.provenance.get("unreached", ())
    ]
    if (share := too_high(estimate)) > _LIGHT:
        reasons.append(f"k̂ is too high for {share:.0%} of the data")
    if (share := unmixed(estimate)) > _LIGHT:
        reasons.append(f"R̂ is above {RELIABLE_RHAT} for {share:.0%} of the data")
    unknown = float(estimate.khat.isnan().double().mean())
    of_weights = estimate.direction == "upper" and "rhat" not in estimate.diagnostics
    if of_weights and unknown > _LIGHT:  # no upper bound, where the tail is not known
        reasons.append(f"k̂ is unknown for {unknown:.0%} of the data")
    if bool(estimate.stderr.isnan().all()):
        reasons.append("its error is not known")
    lost = float((~estimate.log_evidence.isfinite()).double().mean())
    if lost:
        reasons.append(f"it is not finite for {lost:.0%} of the data")
    if (noise := float(estimate.stderr.nan_to_num(nan=0.0).median())) > 0.5:
        reasons.append(f"its error is {noise:.1f} nats for half of the data")
    acceptance = estimate.diagnostics.get("acceptance")
    if acceptance is not None and bool((low := (acceptance < 0.2).double().mean()) > _LIGHT):
        reasons.append(f"chains of {float(low):.0%} of the data hardly moved")
    return " and ".join(reasons) or None


def _unless(estimate: Estimate) -> str:
    """What no diagnosis of chains can show."""
    return ", if the chains have met every mode" if "rhat" in estimate.diagnostics else ""


def _blame(estimates: dict[str, Estimate], low: str, high: str) -> str:
    reasons = [f"{name}: {why}" for name in (low, high) if (why := doubt(estimates[name]))]
    return "; ".join(reasons) or "one of them is wrong, and no diagnosis says which"


def _seconds(estimate: Estimate) -> float:
    return float(estimate.provenance.get("seconds", 0.0))


def _number(value: float) -> str:
    return "-" if math.isnan(value) else f"{value:.3f}"


def _share(value: float) -> str:
    return "-" if math.isnan(value) else f"{value:.0%}"


def _quantile(estimate: Estimate, q: float) -> str:
    known = estimate.khat[~estimate.khat.isnan()]
    return f"{known.quantile(q, interpolation='higher'):.2f}" if len(known) else "-"
