r"""What of the ELBO's gap the family of guides costs, and what amortising costs.

.. math:: \log p(x) - \mathcal{L}[q] = (\log p(x) - \mathcal{L}[q^*])
          + (\mathcal{L}[q^*] - \mathcal{L}[q])

q* is what refined importance sampling has fitted to each datum, q the guide.
"""

from __future__ import annotations

import numpy as np

from .choice import trusted
from .rows import Array, Results, Row, same_data
from .statistics import score, standard_error
from .tables import Cell, Table, doubts, number, words

GAPS = [
    ("data", "data set"),
    ("model", "which programs"),
    ("objective", "what trained them"),
    ("normals by", "the refined estimate, which has fitted a normal to each datum"),
    ("log p(x) by", "the highest estimate of the same data that can be believed, or the refined"),
    ("k̂ or R̂ too high", "share of data whose log p(x) nothing vouches for"),
    ("approximation", "log p(x) less the ELBO of the best normal of each datum, nats"),
    ("± approximation", "Monte Carlo and test set"),
    ("amortisation", "that ELBO less the guide's, nats"),
    ("± amortisation", "test set"),
    ("data N", "scored data"),
]


def gaps(results: Results) -> Table:
    """A row for each that was scored by refined importance sampling."""
    rows = [_gaps(results, row) for row in results.rows if row.refined]
    return Table("gaps", "Inference gaps: what the guide costs (nats per datum)", GAPS, rows)


def _gaps(results: Results, refined: Row) -> tuple[Cell, ...]:
    best = _best(results, refined)
    local = _over_seeds(refined, "elbo")
    approximation = _over_seeds(best, "log_evidence") - local
    amortisation = local - _over_seeds(refined, "guide_elbo")
    # their spread over the data holds the noise of the samples too, which is not counted twice
    found = score(best)
    error = float(np.fmax(found.monte_carlo, standard_error(approximation)))  # of what is known
    return (
        *map(words, refined.point),
        words(refined.estimator),
        words(best.estimator),
        doubts(found.unreliable, found.undiagnosed),
        number(float(approximation.mean())),
        number(error),
        number(float(amortisation.mean())),
        number(standard_error(amortisation)),
        Cell(f"{len(local):,}", len(local)),
    )


def _best(results: Results, refined: Row) -> Row:
    seeds = [run.seed for run in refined.runs]
    others = [
        row
        for row in results.rows
        if row.point == refined.point
        and trusted(row)
        and [run.seed for run in row.runs] == seeds
        and same_data(row.runs[0], refined.runs[0])
    ]
    for side in ("lower", "consistent"):  # which may be above log p(x), and make gaps of noise
        if found := [row for row in others if row.direction == side]:
            return max(found, key=lambda row: score(row).value)
    return refined


def _over_seeds(row: Row, name: str) -> Array:
    return np.stack([getattr(run, name) for run in row.runs]).mean(0)
