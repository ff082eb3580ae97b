"""The tables of a report, of the results of one data set."""

from __future__ import annotations

import math
from typing import Any

from .choice import believed, compared, name_of, published, trusted
from .gaps import gaps
from .rows import Results, Row
from .statistics import combined, difference, score, unpaired
from .tables import Cell, Table, chance, doubts, number, seconds, words


def tables(results: Results) -> list[Table]:
    """All that these results fill."""
    costs = gaps(results)
    costs = without(costs, *(set(_empty(results)) & {"data", "model", "objective"}))
    if len({row.estimator for row in results.rows if row.refined}) == 1:
        costs = without(costs, "normals by")
    found = (_scores(results), _differences(results), costs, _trainings(results))
    return [one for one in found if one.rows]


SCORES = [
    ("data", "data set"),
    ("model", "which programs"),
    ("objective", "what trained them"),
    ("estimator", "how log p(x) was estimated"),
    ("log p(x)", "mean over data and seeds, nats; higher is better"),
    ("± Monte Carlo", "error from the finite number of samples"),
    ("± test set", "error from the finite number of data; a dash where there is one"),
    ("± seed", "error from training anew; a dash where there is one seed"),
    ("± binarisation", "error from having drawn the bits once; one draw cannot tell"),
    ("k̂ or R̂ too high", "share of data whose estimate nothing vouches for, unknown ones included"),
    ("side", "of log p(x), in expectation"),
    ("ELBO", "mean log-weight of the same samples"),
    ("gap", "log p(x) less the ELBO"),
    ("seeds", "trainings"),
    ("data N", "scored data"),
    ("published", "log p(x), with its error where it is known"),
    ("distance", "ours less the published number"),
    (
        "± distance",
        "Monte Carlo, seed, the published number's own and, of a part of the test set, "
        "the error by data, as far as known",
    ),
    ("seconds", "of the estimate, all seeds"),
]


def _scores(results: Results) -> Table:
    best = believed(results.rows)
    rows = [_scored(results, row, row is best) for row in results.rows]
    table = Table("scores", "log p(x), its errors apart (nats per datum)", SCORES, rows)
    return without(table, *_empty(results))


def _scored(results: Results, row: Row, best: bool) -> tuple[Cell, ...]:
    found = score(row)
    side = "both" if row.direction == "lower and upper" else row.direction
    side += ", of simulated data" if row.simulated else ""
    drawn = results.dynamic.get(row.point[0], False) and not row.simulated
    return (
        *map(words, row.point),
        words(row.estimator),
        number(found.value, 3, strong=best),
        number(found.monte_carlo, 3),
        number(found.data),
        number(found.seed, 3),
        Cell("one draw", math.inf) if drawn else number(math.nan),
        doubts(found.unreliable, found.undiagnosed),
        words(side),
        number(found.elbo),
        number(found.value - found.elbo) if math.isfinite(found.value) else number(math.nan),
        Cell(str(found.num_seeds), found.num_seeds),
        Cell(f"{found.num_data:,}", found.num_data),
        *_published(results, row),
        seconds(sum(run.seconds for run in row.runs)),
    )


def _published(results: Results, row: Row) -> tuple[Cell, Cell, Cell]:
    known = published(results, row)
    if known is None:
        return number(math.nan), number(math.nan), number(math.nan)
    value, away, error = distance(row, known)
    text = number(value).text
    if "spread" in known:
        text += f" ± {known['spread']:.2f}"
    return Cell(text, value), number(away, signed=True), number(error)


def distance(row: Row, known: dict[str, Any]) -> tuple[float, float, float]:
    """The published number, ours less it, and the error of that: ours and the published one's.

    The error by data is left out where both numbers are of the same test set, all of it.
    """
    found, value = score(row), float(known["value"])
    by_data = math.nan if row.runs[0].whole else found.data
    spread = float(known.get("spread", math.nan))
    return value, found.value - value, combined(found.own, spread, by_data)


def _empty(results: Results) -> list[str]:
    """Columns that would say the same of every row, or nothing."""
    here = [row.point for row in results.rows] + [record.point for record in results.records]
    found = [
        name
        for i, name in enumerate(("data", "model", "objective"))
        if len({point[i] for point in here}) == 1
    ]
    if len({row.estimator for row in results.rows}) == 1:
        found.append("estimator")
    if all(published(results, row) is None for row in results.rows):
        found += ["published", "distance", "± distance"]
    if not any(results.dynamic.get(point[0]) for point in here):
        found.append("± binarisation")
    return found


def without(table: Table, *headers: str) -> Table:
    """A table without some of its columns."""
    keep = [i for i, (header, _) in enumerate(table.headers) if header not in headers]
    return Table(
        table.name,
        table.caption,
        [table.headers[i] for i in keep],
        [[row[i] for i in keep] for row in table.rows],
    )


DIFFERENCES = [
    ("row", "what is compared"),
    ("with", "what it is compared with"),
    ("difference", "mean over the same data and the same seeds, nats; positive is better"),
    ("± test set", "paired over data"),
    ("p by data", "chance of so large a mean without a difference, on other data"),
    ("± seed", "paired over seeds; a dash where there is one"),
    ("p by seeds", "the same with other seeds"),
    ("sure", "both p-values below 5%, of two rows that can be believed"),
]


def _differences(results: Results) -> Table:
    rows = []
    for row, other in compared(results):
        if unpaired(row, other) is not None:  # which `refusals` tells
            continue
        found = difference(row, other)
        if not math.isfinite(found.value):
            sure = Cell("not finite", -1.5)
        elif not (trusted(row) and trusted(other)):
            sure = Cell("doubtful: k̂ or R̂", -1.0)
        elif math.isnan(found.p_data) or math.isnan(found.p_seed):
            sure = Cell("unknown", -0.5)
        else:
            sure = Cell("yes" if found.sure else "no", float(found.sure))
        rows.append(
            (
                words(name_of(row, results.rows)),
                words(name_of(other, results.rows)),
                number(found.value, 3, signed=True),
                number(found.data, 3),
                chance(found.p_data),
                number(found.seed, 3),
                chance(found.p_seed),
                sure,
            )
        )
    return Table("differences", "Differences, paired by data and by seed", DIFFERENCES, rows)


def refusals(results: Results) -> list[str]:
    """Which rows are not compared, and why."""
    found = []
    for row, other in compared(results):
        if (why := unpaired(row, other)) is not None and not (row.simulated or other.simulated):
            names = f"{name_of(row, results.rows)} and {name_of(other, results.rows)}"
            found.append(f"{names} are not compared: {why}.")
    return found


TRAININGS = [
    ("data", "data set"),
    ("model", "which programs"),
    ("objective", "what trained them"),
    ("seed", "of the training"),
    ("epochs", "that it went on for"),
    ("kept", "the epoch whose parameters are kept"),
    ("validation bound", "the objective's own, at that epoch, nats"),
    ("seconds", "of training"),
    ("state", "of the cell"),
]


def _trainings(results: Results) -> Table:
    rows = []
    for record in results.records:
        told = record.training
        rows.append(
            (
                *map(words, record.point),
                Cell(str(record.seed), record.seed),
                number(_known(told.get("epochs")), 0),
                number(_known(told.get("best_epoch")), 0),
                number(_known(told.get("validation_elbo"))),
                seconds(_known(told.get("seconds"))),
                words("failed" if record.failed else "done"),
            )
        )
    table = Table("trainings", "Trainings", TRAININGS, rows)
    return without(table, *(set(_empty(results)) & {"data", "model", "objective"}))


def _known(value: Any) -> float:
    return float(value) if isinstance(value, int | float) else math.nan
