"""The figures of a report, drawn with matplotlib, each for the page and for papers.

On the page text and axes take the page's colour, light or dark; colours of lines are readable on
both. Files for papers are black on white.
"""

from __future__ import annotations

import io
import math
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import matplotlib
import numpy as np
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure

from .results import Point, Results, Row
from .statistics import score, standard_error

PALETTE = (
    "#3b82c4",
    "#d9534f",
    "#2f9e64",
    "#9b6bb3",
    "#c98a1b",
    "#4aa8a8",
    "#c0609a",
    "#7d8a2e",
    "#8a6d5a",
    "#6b7fd7",
)
INK = "#010203"  # stands for the colour of the text, which the page chooses
SIDES = {"lower": ">", "upper": "<", "consistent": "o", "lower and upper": "D"}


@dataclass(frozen=True)
class Drawn:
    """A figure: its name, what it shows, and how it is drawn into an empty one."""

    name: str
    caption: str
    size: tuple[float, float]
    draw: Callable[[Any], None]

    def svg(self, ink: str = INK) -> str:
        """As SVG; inline, ``ink`` becomes the colour of the text around it."""
        settings = {
            "svg.hashsalt": self.name,
            "svg.fonttype": "none",
            **dict.fromkeys(
                ("text.color", "axes.labelcolor", "axes.edgecolor", "xtick.color", "ytick.color"),
                ink,
            ),
        }
        with matplotlib.rc_context(settings):
            content = io.StringIO()
            self._figure(FigureCanvasSVG).savefig(
                content, format="svg", transparent=True, metadata={"Date": None, "Creator": None}
            )
        return content.getvalue()

    def inline(self) -> str:
        """For the page: without a head, its size left to the page, its names its own."""
        text = self.svg()
        text = text[text.index("<svg") :].replace(INK, "currentColor")
        text = re.sub(r'(<svg[^>]*?) width="[^"]*"', r"\1", text, count=1)
        text = re.sub(r'(<svg[^>]*?) height="[^"]*"', r"\1", text, count=1)
        return re.sub(r'(id="|url\(#|href="#)', rf"\g<1>{self.name}-", text)

    def pdf(self) -> bytes:
        from matplotlib.backends.backend_pdf import FigureCanvasPdf

        content = io.BytesIO()
        self._figure(FigureCanvasPdf).savefig(
            content, format="pdf", metadata={"CreationDate": None}
        )
        return content.getvalue()

    def _figure(self, canvas: Any) -> Figure:
        figure = Figure(figsize=self.size, layout="constrained")
        canvas(figure)
        self.draw(figure)
        return figure


def figures(results: Results) -> list[Drawn]:
    """All that these results can show."""
    found = [
        _scores(results),
        _curves(results),
        _budgets(results),
        _costs(results),
        _tails(results),
        _sandwiches(results),
    ]
    return [one for one in found if one is not None]


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


def _colours(points: Sequence[Any]) -> dict[Any, str]:
    return {point: PALETTE[i % len(PALETTE)] for i, point in enumerate(dict.fromkeys(points))}


def _scores(results: Results) -> Drawn | None:
    rows = results.rows
    if not rows:
        return None

    def draw(figure: Any) -> None:
        axes = figure.subplots()
        colours = _colours([row.point if len(results.points) > 1 else row.kind for row in rows])
        for y, row in enumerate(rows):
            colour = colours[row.point if len(results.points) > 1 else row.kind]
            found = score(row)
            error = _largest(found.seed, found.monte_carlo)
            axes.errorbar(
                found.value, y, xerr=error, fmt=SIDES.get(row.direction, "o"), color=colour,
                ms=7, capsize=3,
            )  # fmt: skip
            for run in row.runs:
                axes.plot(run.log_evidence.mean(), y, "|", color=colour, alpha=0.5, ms=9)
        axes.set_yticks(range(len(rows)), [name_of(row, rows) for row in rows])
        axes.invert_yaxis()
        axes.set_xlabel("mean log p(x), nats per datum")
        axes.grid(alpha=0.25, axis="x")

    caption = (
        "log p(x) of every row. Bars: the larger of the errors by seed and by Monte Carlo; ticks: "
        "seeds. The error by data, which all rows share, is left out. ▷ low in expectation, ◁ "
        "high, ○ on no known side, ◇ both sides known."
    )
    return Drawn("scores", caption, (8, 1.2 + 0.32 * len(rows)), draw)


def _largest(*errors: float) -> float:
    known = [error for error in errors if math.isfinite(error)]
    return max(known, default=0.0)


def _curves(results: Results) -> Drawn | None:
    curves = [c for c in results.curves if np.isfinite(c.columns["validation_elbo"]).any()]
    if not curves:
        return None
    points = list(dict.fromkeys(curve.point for curve in curves))

    def draw(figure: Any) -> None:
        left, right = figure.subplots(1, 2, sharey=True)
        colours = _colours(points)
        seen = []
        for point in points:
            alike = [curve for curve in curves if curve.point == point]
            for number, curve in enumerate(alike):
                bound = curve.columns["validation_elbo"]
                name = label(point, points) if number == 0 else None
                style = {"color": colours[point], "lw": 1.1, "alpha": 0.75}
                left.plot(curve.columns["epoch"], bound, label=name, **style)
                right.plot(np.cumsum(curve.columns["seconds"]), bound, **style)
                seen.append(bound[len(bound) // 10 :])
        values = np.concatenate(seen)
        values = values[np.isfinite(values)]
        if len(values):
            low, high = np.quantile(values, 0.02), values.max()
            margin = 0.06 * (high - low) or 1.0
            left.set_ylim(low - margin, high + margin)
        left.set_xlabel("epoch")
        right.set_xlabel("seconds")
        left.set_ylabel("validation bound, nats")
        for axes in (left, right):
            axes.grid(alpha=0.25)
        figure.legend(loc="outside lower center", ncols=4, frameon=False)

    caption = (
        "Training: each objective's own bound of the validation data, against epochs and against "
        "seconds; a line for each seed. Bounds of two objectives are not comparable with each "
        "other."
    )
    return Drawn("training", caption, (9.5, 4.2), draw)


def _grouped(rows: Sequence[Row], value: Callable[[Row], float]) -> dict[tuple[Point, str], list]:
    """Rows of one point that differ by a budget alone, by that budget."""
    found: dict[tuple[Point, str], list[Row]] = {}
    for row in rows:
        found.setdefault((row.point, row.kind), []).append(row)
    return {
        key: sorted(group, key=value)
        for key, group in found.items()
        if len({value(row) for row in group}) > 1
    }


def _budgets(results: Results) -> Drawn | None:
    groups = _grouped(results.rows, lambda row: row.runs[0].num_samples)
    if not groups:
        return None

    def draw(figure: Any) -> None:
        axes = figure.subplots()
        colours = _colours(list(groups))
        for (point, kind), rows in groups.items():
            k = [row.runs[0].num_samples for row in rows]
            scores = [score(row) for row in rows]
            name = kind if len(results.points) == 1 else f"{label(point, results.points)}, {kind}"
            axes.errorbar(
                k, [one.value for one in scores], [one.monte_carlo for one in scores],
                marker="o", ms=5, capsize=3, color=colours[point, kind], label=name,
            )  # fmt: skip
        axes.set_xscale("log")
        axes.set_xlabel("samples K per datum")
        axes.set_ylabel("mean log p(x), nats")
        axes.grid(alpha=0.25, which="both")
        axes.legend(frameon=False)

    return Drawn(
        "bound-against-samples",
        "The estimate against the number of samples. A lower bound rises towards log p(x) with K.",
        (7.5, 4.2),
        draw,
    )


def _costs(results: Results) -> Drawn | None:
    """Of the point with most estimators: how far each is from the one most to be believed."""
    by_point: dict[Point, list[Row]] = {}
    for row in results.rows:
        if not any(run.simulated for run in row.runs):
            by_point.setdefault(row.point, []).append(row)
    if not by_point or max(map(len, by_point.values())) < 3:
        return None
    rows = max(by_point.values(), key=len)
    best = believed(rows)
    centre = score(best).value

    def draw(figure: Any) -> None:
        left, right = figure.subplots(1, 2, sharey=True)
        colours = _colours([row.kind for row in rows])
        told = set()
        for row in rows:
            found, run = score(row), row.runs[0]
            cost = run.evaluations + 2 * np.nan_to_num(run.gradients)
            seconds = np.mean([one.seconds for one in row.runs]) / found.num_data
            distance = abs(found.value - centre)
            name = None if row.kind in told else row.kind
            told.add(row.kind)
            for axes, x in ((left, cost), (right, seconds)):
                if not (x > 0):
                    continue
                if row is not best and distance > 0:
                    axes.plot(x, distance, "o", color=colours[row.kind], ms=7, label=name)
                    name = None if axes is left else name
                if found.monte_carlo > 0:
                    axes.plot(x, found.monte_carlo, "_", color=colours[row.kind], ms=12)
        for axes in (left, right):
            axes.set_xscale("log")
            axes.set_yscale("log")
            axes.grid(alpha=0.25, which="both")
        left.set_xlabel("decoder runs per datum (a gradient counts 2)")
        right.set_xlabel("seconds per datum")
        left.set_ylabel("nats")
        handles, names = _legend(left, right)
        once = dict(zip(names, handles, strict=True))
        figure.legend(
            list(once.values()), list(once), loc="outside lower center", ncols=3, frameon=False
        )

    return Drawn(
        "error-against-cost",
        f"Error against cost. Dots: distance from {best.estimator}, the lower estimate that is "
        "highest among those to be believed; dashes: each one's own Monte Carlo error.",
        (9.5, 4.4),
        draw,
    )


def _legend(*panels: Any) -> tuple[list[Any], list[str]]:
    handles: list[Any] = []
    names: list[str] = []
    for axes in panels:
        more, called = axes.get_legend_handles_labels()
        handles += more
        names += called
    return handles, names


def believed(rows: Sequence[Row]) -> Row:
    """The lower estimate that is highest, of those with k̂ too high for under 5 % of the data."""
    scores = {id(row): score(row) for row in rows}
    trusted = [row for row in rows if scores[id(row)].unreliable < 0.05]
    lower = [row for row in trusted if row.direction == "lower"] or trusted or list(rows)
    return max(lower, key=lambda row: scores[id(row)].value)


def _tails(results: Results) -> Drawn | None:
    rows = [row for row in results.rows if any(np.isfinite(run.khat).any() for run in row.runs)]
    if not rows:
        return None

    def draw(figure: Any) -> None:
        axes = figure.subplots()
        colours = _colours([name_of(row, rows) for row in rows])
        for row in rows:
            khat = np.concatenate([run.khat for run in row.runs])
            khat = np.sort(khat[np.isfinite(khat)])
            share = np.arange(1, len(khat) + 1) / len(khat)
            name = name_of(row, rows)
            axes.step(khat, share, where="post", color=colours[name], label=name, lw=1.4)
        axes.axvline(0.7, color=INK, lw=0.9, ls=":")
        axes.text(0.7, 0.02, " 0.7", ha="left")
        axes.set_xlabel("k̂ of a datum")
        axes.set_ylabel("share of the data at or below")
        axes.grid(alpha=0.25)
        figure.legend(loc="outside right center", frameon=False, fontsize=8)

    return Drawn(
        "khat",
        "How heavy the weights' tails are, over the data. Right of the threshold (0.7; less for "
        "few samples) an estimate and its error mean nothing.",
        (9, 4.2),
        draw,
    )


def _sandwiches(results: Results) -> Drawn | None:
    rows = [row for row in results.rows if row.runs[0].upper is not None]
    if not rows:
        return None

    def draw(figure: Any) -> None:
        axes = figure.subplots()
        for y, row in enumerate(rows):
            for run in row.runs:
                assert run.upper is not None
                low, high = run.log_evidence.mean(), run.upper.mean()
                axes.plot([low, high], [y, y], color=PALETTE[0], lw=6, alpha=0.35)
                axes.plot(low, y, ">", color=PALETTE[0], ms=8)
                axes.plot(high, y, "<", color=PALETTE[1], ms=8)
                error = standard_error(run.upper - run.log_evidence)
                axes.annotate(
                    f"{high - low:+.3f} ± {error:.3f}",
                    (max(low, high), y),
                    xytext=(10, -3),
                    textcoords="offset points",
                )
        axes.set_yticks(range(len(rows)), [name_of(row, results.rows) for row in rows])
        axes.set_ylim(len(rows) - 0.5, -0.5)
        axes.margins(x=0.3)
        axes.ticklabel_format(axis="x", useOffset=False)
        axes.set_xlabel("mean log p(x) of simulated data, nats")
        axes.grid(alpha=0.25, axis="x")

    return Drawn(
        "sandwich",
        "Sandwiches: the lower and the upper estimate of the same data, drawn from the model, and "
        "the gap, which is the most that either can be off on average.",
        (8, 1.3 + 0.5 * len(rows)),
        draw,
    )
