r"""The errors of a row, kept apart, and of the difference between two.

For seeds s = 1..S and data n = 1..N a row holds estimates :math:`L_{sn}` with Monte Carlo standard
errors :math:`\sigma_{sn}`. Its value is their mean; it has four errors:

- *Monte Carlo*: :math:`\sqrt{\sum_{sn} \sigma_{sn}^2} / SN`, from the finite number of samples;
- *test set*: the standard error over n of :math:`\bar L_{\cdot n}`, Monte Carlo noise taken out
  (left in where it is not known);
- *seed*: the standard error over s of :math:`\bar L_{s \cdot}`, from training anew. Monte Carlo
  noise stays in: the variance of a few seeds is too rough for anything to be taken from it;
- *binarisation*: from having drawn the test set's bits once. One draw cannot tell: it is unknown.

What makes an image hard is common to two models, and so is what a seed decides: a difference is
taken of the same images and the same seeds, :math:`D_{sn} = L_{sn} - L'_{sn}`, and has an error by
data and one by seeds. Student's t says how likely so large a mean is where there is no difference.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from scipy import stats

from .rows import Array, Row

NAN = math.nan


@dataclass(frozen=True)
class Score:
    """A row's numbers, in nats per datum; NaN where an error is not known."""

    value: float
    monte_carlo: float
    data: float
    seed: float
    elbo: float
    unreliable: float
    undiagnosed: float
    num_seeds: int
    num_data: int

    @property
    def own(self) -> float:
        """How far a second study of the same data would be: the error by seed, which holds the
        Monte Carlo noise too, but of few seeds may be small by chance; at least that noise."""
        return float(np.fmax(self.monte_carlo, self.seed))


@dataclass(frozen=True)
class Difference:
    """The mean of one row minus another's, with its errors and p-values by data and by seeds."""

    value: float
    data: float
    seed: float
    p_data: float
    p_seed: float
    num_seeds: int
    num_data: int

    @property
    def sure(self) -> bool:
        """Beyond both errors at 5 %: it would be found on other images, and with other seeds."""
        return self.p_data < 0.05 and self.p_seed < 0.05


def score(row: Row) -> Score:
    """The errors of a row."""
    values = np.stack([run.log_evidence for run in row.runs])
    stderr = np.stack([run.stderr for run in row.runs])
    seeds, size = values.shape
    with np.errstate(invalid="ignore"):  # of infinite values no error is known
        noise = float(np.mean(stderr**2))
        known = noise if math.isfinite(noise) else 0.0
        spread = _variance(values.mean(0)) - known / seeds
        return Score(
            value=float(values.mean()),
            monte_carlo=math.sqrt(noise / values.size),
            data=math.sqrt(max(spread, 0.0) / size) if spread == spread else NAN,
            seed=standard_error(values.mean(1)),
            elbo=float(np.mean([run.elbo.mean() for run in row.runs])),
            unreliable=float(np.mean([run.unreliable.mean() for run in row.runs])),
            undiagnosed=float(np.mean([run.undiagnosed.mean() for run in row.runs])),
            num_seeds=seeds,
            num_data=size,
        )


def unpaired(row: Row, other: Row) -> str | None:
    """Why two rows cannot be compared datum by datum; None where they can."""
    mine, its = row.runs[0], other.runs[0]
    if mine.simulated or its.simulated:
        return "data drawn from a model are that model's own"
    if not (mine.fingerprint and its.fingerprint and mine.split and its.split):
        return "the file of one does not say of which data it is"
    if mine.fingerprint != its.fingerprint:
        return (
            f"one is of data {mine.fingerprint[:8]}, the other of data {its.fingerprint[:8]}, by "
            "their fingerprints"
        )
    if mine.split != its.split:
        return f"one is of the {mine.split} data, the other of the {its.split} data"
    if not len(np.intersect1d(mine.datum, its.datum)):
        return "they have no datum in common"
    if not {run.seed for run in row.runs} & {run.seed for run in other.runs}:
        return "they have no seed in common"
    return None


def difference(row: Row, other: Row) -> Difference:
    """Row minus other on the data and seeds that both have.

    Raises:
        ValueError: they are not to be paired; see `unpaired`.
    """
    if (why := unpaired(row, other)) is not None:
        raise ValueError(why)
    theirs = {run.seed: run for run in other.runs}
    gaps: list[Array] = []
    with np.errstate(invalid="ignore"):  # −∞ less −∞ is not known
        for run in row.runs:
            if run.seed in theirs:
                it = theirs[run.seed]
                _, left, right = np.intersect1d(run.datum, it.datum, return_indices=True)
                gaps.append(run.log_evidence[left] - it.log_evidence[right])
        values = np.stack(gaps)
        by_data, by_seed = values.mean(0), values.mean(1)
        return Difference(
            value=float(values.mean()),
            data=standard_error(by_data),
            seed=standard_error(by_seed),
            p_data=p_value(by_data),
            p_seed=p_value(by_seed),
            num_seeds=len(by_seed),
            num_data=len(by_data),
        )


def standard_error(values: Array) -> float:
    """Of a mean; NaN of a single value.

    >>> standard_error(np.array([1.0, 3.0]))
    1.0
    """
    return math.sqrt(_variance(values) / len(values))


def p_value(values: Array) -> float:
    """Of a mean of zero, by Student's t, two-sided; NaN of a single value.

    >>> round(p_value(np.array([1.0, 2.0, 3.0])), 3)
    0.074
    """
    error = standard_error(values)
    mean = float(values.mean())
    if math.isnan(error) or math.isnan(mean):
        return NAN
    if error == 0:
        return 1.0 if mean == 0 else 0.0
    return float(2 * stats.t.sf(abs(mean / error), len(values) - 1))


def combined(*errors: float) -> float:
    """Independent errors together, without those that are not known; NaN where none is.

    >>> combined(3.0, float("nan"), 4.0)
    5.0
    """
    known = [error for error in errors if not math.isnan(error)]
    return math.hypot(*known) if known else NAN


def _variance(values: Array) -> float:
    return float(values.var(ddof=1)) if len(values) > 1 else NAN
