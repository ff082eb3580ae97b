"""The tables of a report, and in a few sentences what they come to."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from typing import Any

from .figures import believed, label, name_of
from .results import Point, Results, Row
from .statistics import Score, difference, score
from .tables import Cell, Table, chance, number, percent, words

Published = dict[str, Any]


def tables(results: Results) -> list[Table]:
    """All that these results fill."""
    found = [_scores(results), _differences(results), _trainings(results)]
    return [one for one in found if one is not None and one.rows]


def _scores(results: Results) -> Table:
    headers = [
        ("data", "data set"),
        ("model", "which programs"),
        ("objective", "what trained them"),
        ("estimator", "how log p(x) was estimated"),
        ("log p(x)", "mean over data and seeds, nats; higher is better"),
        ("± Monte Carlo", "error from the finite number of samples"),
        ("± test set", "error from the finite number of data"),
        ("± seed", "error from training anew; a dash where there is one seed"),
        ("± binarisation", "error from having drawn the bits once; one draw cannot tell"),
        ("k̂ or R̂ too high", "share of data whose estimate nothing vouches for"),
        ("side", "of log p(x), in expectation"),
        ("ELBO", "mean log-weight of the same samples"),
        ("gap", "log p(x) less the ELBO"),
        ("seeds", "trainings"),
        ("data N", "scored data"),
        ("published", "log p(x)"),
        ("distance", "ours less the published number"),
        ("seconds", "of the estimate, all seeds"),
    ]
    best = _best(results)
    rows = []
    for row in results.rows:
        found, known = score(row), published(results, row)
        away = math.nan if known is None else found.value - float(known["value"])
        side = row.direction + (", of simulated data" if row.runs[0].simulated else "")
        rows.append(
            (
                *map(words, row.point),
                words(row.estimator),
                number(found.value, 3, strong=row is best),
                number(found.monte_carlo, 3),
                number(found.data),
                number(found.seed, 3),
                Cell("one draw", math.inf),
                percent(found.unreliable),
                words(side),
                number(found.elbo),
                number(found.value - found.elbo),
                Cell(str(found.num_seeds), found.num_seeds),
                Cell(f"{found.num_data:,}", found.num_data),
                number(math.nan if known is None else float(known["value"])),
                number(away, signed=True),
                number(sum(run.seconds for run in row.runs), 0),
            )
        )
    table = Table("scores", "log p(x), its four errors apart (nats per datum)", headers, rows)
    return without(table, *_empty(results))


def _empty(results: Results) -> list[str]:
    """Columns that would say the same of every row, or nothing."""
    found = [
        name
        for i, name in enumerate(("data", "model", "objective"))
        if len({row.point[i] for row in results.rows}) == 1
    ]
    if len({row.estimator for row in results.rows}) == 1:
        found.append("estimator")
    if all(published(results, row) is None for row in results.rows):
        found += ["published", "distance"]
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


def _differences(results: Results) -> Table | None:
    pairs = list(compared(results))
    if not pairs:
        return None
    headers = [
        ("row", "what is compared"),
        ("with", "what it is compared with"),
        ("difference", "mean over the same data and the same seeds, nats; positive is better"),
        ("± test set", "paired over data"),
        ("p by data", "chance of so large a mean without a difference, on other data"),
        ("± seed", "paired over seeds"),
        ("p by seeds", "the same with other seeds"),
        ("sure", "both p-values below 5 %"),
    ]
    rows = []
    for row, other in pairs:
        found = difference(row, other)
        if found is None:
            continue
        rows.append(
            (
                words(name_of(row, results.rows)),
                words(name_of(other, results.rows)),
                number(found.value, 3, signed=True),
                number(found.data, 3),
                chance(found.p_data),
                number(found.seed, 3),
                chance(found.p_seed),
                Cell("yes" if found.sure else "no", float(found.sure)),
            )
        )
    return Table("differences", "Differences, paired by data and by seed", headers, rows)


def compared(results: Results) -> Sequence[tuple[Row, Row]]:
    """Which rows are compared: each with the first of its data and estimator; of a single model,
    each estimator with the one most to be believed."""
    if len(results.points) == 1:
        same = [row for row in results.rows if not row.runs[0].simulated]
        if len(same) < 2:
            return []
        reference = believed(same)
        return [(row, reference) for row in same if row is not reference]
    found, first = [], {}
    for row in results.rows:
        key = row.point[0], row.estimator
        if key in first:
            found.append((row, first[key]))
        first.setdefault(key, row)
    return found


def _trainings(results: Results) -> Table:
    headers = [
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
    rows = []
    for record in results.records:
        training = record["training"] or {}
        rows.append(
            (
                words(record["data"]),
                words(record["model"]),
                words(record["objective"]),
                Cell(str(record["seed"]), record["seed"]),
                number(training.get("epochs", math.nan), 0),
                number(training.get("best_epoch", math.nan), 0),
                number(training.get("validation_elbo", math.nan)),
                number(training.get("seconds", math.nan), 0),
                words(record["status"]),
            )
        )
    return without(Table("trainings", "Trainings", headers, rows), *_empty(results))


def published(results: Results, row: Row) -> Published | None:
    """The published number of a row, if the study names one."""
    here = dict(zip(("data", "model", "objective"), row.point, strict=True))
    here["estimator"] = row.estimator
    for one in results.study.get("published", []):
        if all(one[key] == here[key] for key in one.keys() & here.keys()):
            return dict(one)
    return None


def _best(results: Results) -> Row | None:
    same = [row for row in results.rows if not row.runs[0].simulated]
    if not same or len({row.point[0] for row in same}) > 1:
        return None  # numbers of two data sets are not comparable
    return believed(same)


def sentences(results: Results) -> list[str]:
    """What the study has found, for those who read no further."""
    if not results.rows:
        return ["Nothing is finished yet."]
    found = []
    best = _best(results)
    if best is not None:
        known = score(best)
        found.append(
            f"Highest log p(x) that can be believed: {name_of(best, results.rows)}, "
            f"{_value(known)} nats per datum."
        )
        found += _against_the_next(results, best)
    doubted = [row for row in results.rows if score(row).unreliable >= 0.05]
    if doubted:
        names = ", ".join(name_of(row, results.rows) for row in doubted[:6])
        more = f" and {len(doubted) - 6} more" if len(doubted) > 6 else ""
        found.append(f"k̂ or R̂ is too high for 5 % of the data or more under {names}{more}: read "
                     "these numbers with care.")  # fmt: skip
    for row in results.rows:
        if row.runs[0].upper is not None and row is _last_sandwich(results):
            gap = float((row.runs[0].upper - row.runs[0].log_evidence).mean())
            found.append(
                f"The tightest sandwich ({row.estimator}) leaves a gap of {gap:.3f} nats, on data "
                "drawn from the model."
            )
    for row in results.rows:
        if (one := published(results, row)) is not None:
            away = score(row).value - float(one["value"])
            found.append(
                f"{name_of(row, results.rows)} is {away:+.2f} nats from the published "
                f"{one['value']}" + (f" ({one['source']})." if "source" in one else ".")
            )
    return [re.sub(r"(?<=[ (])-(?=\d)", "−", text) for text in found]


def _last_sandwich(results: Results) -> Row:
    rows = [row for row in results.rows if row.runs[0].upper is not None]

    def gap(row: Row) -> float:
        run = row.runs[0]
        assert run.upper is not None
        return abs(float((run.upper - run.log_evidence).mean()))

    return min(rows, key=gap)


def _against_the_next(results: Results, best: Row) -> list[str]:
    """By how much the best model is better than the second best under the same estimator."""
    rivals = [
        row for row in results.rows if row.estimator == best.estimator and row.point != best.point
    ]
    if not rivals:
        return []
    second = max(rivals, key=lambda row: score(row).value)
    found = difference(best, second)
    if found is None:
        return []
    sure = (
        "more than its errors explain"
        if found.sure
        else "which other data or other seeds might turn round"
    )
    return [
        f"It leads {label(second.point, results.points)} by {found.value:.3f} ± {found.data:.3f} "
        f"(data) ± {_known(found.seed)} (seeds), {sure}."
    ]


def _value(found: Score) -> str:
    return (
        f"{found.value:.3f} ± {found.monte_carlo:.3f} (Monte Carlo) ± {_known(found.data)} (test "
        f"set) ± {_known(found.seed)} (seed)"
    )


def _known(value: float) -> str:
    return "unknown" if math.isnan(value) else f"{value:.3f}"


def state(results: Results) -> str:
    """How far the study is."""
    total = len(results.study["cells"])
    parts = [f"{len(results.records) - len(results.failed)} of {total} cells are finished"]
    if results.failed:
        parts.append(f"{len(results.failed)} have failed")
    if results.unfinished:
        parts.append(f"{results.unfinished} are not finished")
    return ", ".join(parts) + "."


def labels(points: Sequence[Point]) -> list[str]:
    """Names of points, without what they have in common."""
    return [label(point, points) for point in points]
