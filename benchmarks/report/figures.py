"""The figures of a report: scores, training, and whether the numbers can be believed."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from .choice import label, name_of
from .doubt import budgets, costs, sandwiches, tails
from .drawing import Drawn, colours, short
from .rows import Array, Curve, Point, Results, Row, same_data
from .statistics import score

SIDES = {"lower": ">", "upper": "<", "consistent": "o", "lower and upper": "D"}


def figures(results: Results) -> list[Drawn]:
    """All that the results of one data set can show."""
    found = [
        _scores(results),
        _curves(results),
        budgets(results),
        costs(results),
        tails(results),
        sandwiches(results),
    ]
    return [one for one in found if one is not None]


def _scores(results: Results) -> Drawn | None:
    rows = results.rows
    if not any(math.isfinite(score(row).value) for row in rows):
        return None

    held_out = [row.runs[0] for row in rows if not row.simulated] or [rows[0].runs[0]]
    widest = max(held_out, key=lambda run: len(run.datum))

    def _part(row: Row) -> str:
        """Of how many data a row is, where they are not those of the others."""
        run = row.runs[0]
        return "" if row.simulated or same_data(run, widest) else f" ({len(run.datum):,} data)"

    def draw(figure: Any) -> None:
        axes = figure.subplots()
        by_point = len(results.points) > 1
        colour = colours([row.point if by_point else row.kind for row in rows])
        for y, row in enumerate(rows):
            found = score(row)
            here = colour[row.point if by_point else row.kind]
            if not math.isfinite(found.value):
                axes.annotate(
                    " no finite number", (0, y), xycoords=("axes fraction", "data"), va="center"
                )
                continue
            error = _largest(found.seed, found.monte_carlo)
            style = SIDES.get(row.direction, "o")
            axes.errorbar(found.value, y, xerr=error, fmt=style, color=here, ms=7, capsize=3)
            for run in row.runs:
                axes.plot(run.log_evidence.mean(), y, "|", color=here, alpha=0.5, ms=9)
        axes.set_yticks(range(len(rows)), [short(name_of(row, rows)) + _part(row) for row in rows])
        axes.set_ylim(len(rows) - 0.5, -0.5)
        axes.set_xlabel("mean log p(x), nats per datum")
        axes.grid(alpha=0.25, axis="x")

    alike = all(row.simulated or same_data(row.runs[0], widest) for row in rows)
    shared = ", which all rows share," if alike else ""
    caption = (
        "log p(x) of every row. Bars: the larger of the errors by seed and by Monte Carlo; ticks: "
        f"seeds. The error by data{shared} is left out. ▷ low in expectation, ◁ high, ○ on no "
        "known side, ◇ both sides known."
    )
    if not alike:
        caption += " Rows of other data, with their number, are not to be compared with the rest."
    return Drawn("scores", caption, (8, 1.2 + 0.32 * len(rows)), draw)


def _largest(*errors: float) -> float:
    known = [error for error in errors if math.isfinite(error)]
    return max(known, default=0.0)


def _curves(results: Results) -> Drawn | None:
    curves = [curve for curve in results.curves if np.isfinite(curve.bound).any()]
    if not curves:
        return None
    points = list(dict.fromkeys(curve.point for curve in curves))

    def draw(figure: Any) -> None:
        left, right = figure.subplots(1, 2, sharey=True)
        colour = colours(points)
        for point in points:
            alike = [curve for curve in curves if curve.point == point]
            _training(left, right, alike, colour[point], short(label(point, points)))
        low, high = _limits(curves)
        left.set_ylim(low, high)
        left.set_xlabel("epoch")
        left.xaxis.get_major_locator().set_params(integer=True)
        right.set_xlabel("seconds")
        left.set_ylabel("validation bound, nats")
        for axes in (left, right):
            axes.grid(alpha=0.25)
        figure.legend(
            *left.get_legend_handles_labels(), loc="outside lower center", ncols=4, frameon=False
        )

    caption = (
        "Training: each objective's own bound of the validation data, against epochs and against "
        "seconds. Thin: a line for each seed; thick: their mean. Bounds of two objectives are not "
        "comparable with each other."
    )
    return Drawn("training", caption, (9.5, 4.2), draw)


def _training(left: Any, right: Any, alike: Sequence[Curve], colour: str, name: str) -> None:
    """The seeds of one point thin, and their mean thick, as far as all of them go."""
    alone = len(alike) == 1
    for curve in alike:
        style = {"color": colour, "lw": 1.8 if alone else 0.8, "alpha": 1.0 if alone else 0.45}
        left.plot(curve.epoch, curve.bound, label=name if alone else None, **style)
        right.plot(np.cumsum(curve.seconds), curve.bound, **style)
    if alone:
        return
    length = min(len(curve.bound) for curve in alike)
    mean = np.mean([curve.bound[:length] for curve in alike], 0)
    seconds = np.mean([np.cumsum(curve.seconds)[:length] for curve in alike], 0)
    left.plot(alike[0].epoch[:length], mean, color=colour, lw=2.2, label=name)
    right.plot(seconds, mean, color=colour, lw=2.2)


def _limits(curves: Sequence[Curve]) -> tuple[float, float]:
    """Of the axis, without the first steep tenth."""
    parts: list[Array] = [curve.bound[len(curve.bound) // 10 :] for curve in curves]
    values = np.concatenate(parts)
    values = values[np.isfinite(values)]
    if not len(values):
        values = np.concatenate([curve.bound[np.isfinite(curve.bound)] for curve in curves])
    low, high = float(np.quantile(values, 0.02)), float(values.max())
    margin = 0.06 * (high - low) or 1.0
    return low - margin, high + margin


def names(points: Sequence[Point]) -> list[str]:
    """Of points, without what they have in common."""
    return [label(point, points) for point in points]
