"""Names of rows, and which of them can be believed, compared, and held against the literature."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from .rows import Point, Results, Row, same_data
from .statistics import score

DOUBTED = 0.05  # share of the data that nothing vouches for, from which a row is not believed
AXES = ("data", "model", "objective", "estimator")
LOWER = ("lower", "lower and upper")  # of a sandwich the lower side is its value


def label(point: Point, points: Sequence[Point]) -> str:
    """A point's name, without what all points have in common."""
    parts = [part for i, part in enumerate(point) if len({other[i] for other in points}) > 1]
    return ", ".join(parts) if parts else point[1]


def name_of(row: Row, rows: Sequence[Row]) -> str:
    """A row's name, without what all rows have in common."""
    points = list(dict.fromkeys(one.point for one in rows))
    estimators = {one.estimator for one in rows}
    parts = [] if len(points) == 1 else [label(row.point, points)]
    if len(estimators) > 1 or not parts:
        parts.append(row.estimator)
    return ", ".join(parts)


def trusted(row: Row) -> bool:
    """Whether a row is a finite number of real data, with little that nothing vouches for."""
    found = score(row)
    return found.unreliable < DOUBTED and math.isfinite(found.value) and not row.simulated


def believed(rows: Sequence[Row]) -> Row | None:
    """The trusted lower estimate that is highest; without one, the highest on no known side.

    Means over different data are no better or worse than each other: it is one over the most data.
    An upper estimate is never chosen: the worse it is, the higher.
    """
    for sides in (LOWER, ("consistent",)):
        found = _widest([row for row in rows if row.direction in sides and trusted(row)])
        if found:
            return max(found, key=_value)
    return None


def lowest_upper(rows: Sequence[Row]) -> Row | None:
    """The trusted upper estimate that is lowest, of those over the most data."""
    found = _widest([row for row in rows if row.direction == "upper" and trusted(row)])
    return min(found, key=_value, default=None)


def _widest(rows: Sequence[Row]) -> list[Row]:
    """Rows of the same data: of the set with most data, and of those the one with most rows."""
    if not rows:
        return []
    alike = [[row for row in rows if same_data(one.runs[0], row.runs[0])] for one in rows]
    return max(alike, key=lambda group: (len(group[0].runs[0].datum), len(group)))


def second(rows: Sequence[Row], best: Row) -> Row | None:
    """The best trusted row of another model or objective under the same estimator."""
    rivals = [
        row
        for row in rows
        if row.estimator == best.estimator and row.point != best.point and trusted(row)
    ]
    return max(_widest(rivals), key=_value, default=None)


def _value(row: Row) -> float:
    return score(row).value


def compared(results: Results) -> list[tuple[Row, Row]]:
    """Which rows are compared: each with the first of its data and estimator; of a single model,
    each estimator with the one most to be believed; and those that the study names. Of an upper
    bound the higher is not the better: it is not among them."""
    rows = [row for row in results.rows if row.direction != "upper"]
    found = _usual(rows)
    for row, other in _named(rows, results.study.get("compare", [])):
        if (row, other) not in found and (other, row) not in found:
            found.append((row, other))
    return found


def _named(rows: Sequence[Row], asked: Sequence[dict[str, Any]]) -> list[tuple[Row, Row]]:
    """The pairs that a study names; what one names of neither side is the same on both."""
    known = {(*row.point, row.estimator): row for row in rows}
    found = []
    for one in asked:
        for key, row in known.items():
            here = dict(zip(AXES, key, strict=True))
            if here.items() >= one["row"].items():
                there = {**here, **one["with"]}
                other = known.get(tuple(there[axis] for axis in AXES))
                if other is not None and other is not row:
                    found.append((row, other))
    return found


def _usual(rows: Sequence[Row]) -> list[tuple[Row, Row]]:
    if len({row.point for row in rows}) == 1:
        same = [row for row in rows if not row.simulated]
        reference = believed(same)
        return [] if reference is None else [(r, reference) for r in same if r is not reference]
    found: list[tuple[Row, Row]] = []
    first: dict[tuple[str, str], Row] = {}
    for row in rows:
        key = row.point[0], row.estimator
        if key in first:
            found.append((row, first[key]))
        first.setdefault(key, row)
    return found


def published(results: Results, row: Row) -> dict[str, Any] | None:
    """The published number of a row, if the study names one."""
    here = dict(zip(AXES, (*row.point, row.estimator), strict=True))
    for one in results.study.get("published", []):
        if all(one[key] == here[key] for key in one.keys() & here.keys()):
            return dict(one)
    return None
