"""The figures that say whether the numbers can be believed: samples, cost, tails, sandwiches."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from .choice import believed, label, name_of
from .drawing import INK, PALETTE, Drawn, colours, logarithmic, short
from .rows import Array, Point, Results, Row, same_data
from .statistics import score, standard_error
from .tables import number


def _grouped(
    rows: Sequence[Row], value: Callable[[Row], float]
) -> dict[tuple[Point, str], list[Row]]:
    """Rows of one point, of the same data, that differ by a budget alone, by that budget."""
    found: dict[tuple[Point, str], list[Row]] = {}
    for row in rows:
        alike = found.setdefault((row.point, row.kind), [])
        if math.isfinite(score(row).value) and (
            not alike or same_data(alike[0].runs[0], row.runs[0])
        ):
            alike.append(row)
    return {
        key: sorted(group, key=value)
        for key, group in found.items()
        if len({value(row) for row in group}) > 1
    }


def budgets(results: Results) -> Drawn | None:
    """The estimate against K, where rows differ by that alone."""
    groups = _grouped(results.rows, lambda row: row.runs[0].num_samples)
    if not groups:
        return None

    def draw(figure: Any) -> None:
        axes = figure.subplots()
        colour = colours(list(groups))
        for (point, kind), rows in groups.items():
            k = [row.runs[0].num_samples for row in rows]
            scores = [score(row) for row in rows]
            name = kind if len(results.points) == 1 else f"{label(point, results.points)}, {kind}"
            axes.errorbar(
                k, [one.value for one in scores], [one.monte_carlo for one in scores],
                marker="o", ms=5, capsize=3, color=colour[point, kind], label=short(name),
            )  # fmt: skip
        logarithmic(axes, "x")
        counts = sorted({row.runs[0].num_samples for rows in groups.values() for row in rows})
        axes.set_xticks(counts, [f"{k:,}" for k in counts])
        axes.set_xticks([], minor=True)
        axes.set_xlabel("samples K per datum")
        axes.set_ylabel("mean log p(x), nats")
        axes.grid(alpha=0.25, which="both")
        axes.legend(*axes.get_legend_handles_labels(), frameon=False)

    return Drawn(
        "bound-against-samples",
        "The estimate against the number of samples. A lower bound rises towards log p(x) with K.",
        (7.5, 4.2),
        draw,
    )


def costs(results: Results) -> Drawn | None:
    """Of the point with most estimators: how far each is from the one most to be believed."""
    by_point: dict[Point, list[Row]] = {}
    for row in results.rows:
        if not row.simulated and math.isfinite(score(row).value):
            by_point.setdefault(row.point, []).append(row)
    rows = max(by_point.values(), key=len, default=[])
    best = believed(rows)
    rows = [row for row in rows if best is not None and same_data(row.runs[0], best.runs[0])]
    if best is None or len(rows) < 3:
        return None
    reference, centre = best, score(best).value

    def draw(figure: Any) -> None:
        left, right = figure.subplots(1, 2, sharey=True)
        colour = colours([row.kind for row in rows])
        for row in rows:
            away = abs(score(row).value - centre) if row is not reference else 0.0
            _cost(left, right, row, away, colour[row.kind])
        for axes in (left, right):
            logarithmic(axes, "x")
            axes.grid(alpha=0.25, which="both")
        logarithmic(left, "y")
        left.set_xlabel("decoder runs per datum (a gradient counts 2)")
        right.set_xlabel("seconds per datum")
        left.set_ylabel("nats")
        once: dict[str, Any] = {}
        for axes in (left, right):
            for handle, name in zip(*axes.get_legend_handles_labels(), strict=True):
                once.setdefault(name, handle)
        figure.legend(
            list(once.values()), list(once), loc="outside lower center", ncols=3, frameon=False
        )

    return Drawn(
        "error-against-cost",
        f"Error against cost. Dots: distance from {best.estimator}, the estimate most to be "
        "believed here; dashes: each one's own Monte Carlo error.",
        (9.5, 4.4),
        draw,
    )


def _cost(left: Any, right: Any, row: Row, away: float, colour: str) -> None:
    """A row's distance and Monte Carlo error, over its evaluations and over its seconds."""
    found, run = score(row), row.runs[0]
    evaluations = run.evaluations + 2 * np.nan_to_num(run.gradients)
    seconds = float(np.mean([one.seconds for one in row.runs])) / found.num_data
    for axes, x in ((left, evaluations), (right, seconds)):
        if not x > 0:  # or not known
            continue
        if away > 0:
            axes.plot(x, away, "o", color=colour, ms=7, label=short(row.kind))
        if found.monte_carlo > 0:
            axes.plot(x, found.monte_carlo, "_", color=colour, ms=12)


def tails(results: Results) -> Drawn | None:
    """The distribution of k̂ over the data."""
    rows = [row for row in results.rows if any(np.isfinite(run.khat).any() for run in row.runs)]
    if not rows:
        return None

    def draw(figure: Any) -> None:
        axes = figure.subplots()
        colour = colours([name_of(row, rows) for row in rows])
        for row in rows:
            khat: Array = np.concatenate([run.khat for run in row.runs])
            khat = np.sort(khat[np.isfinite(khat)])
            share = np.arange(1, len(khat) + 1) / len(khat)
            name = name_of(row, rows)
            style = {"color": colour[name], "label": short(name)}
            if len(khat) == 1:
                axes.plot(khat, share, "o", **style)
            axes.step(khat, share, where="post", lw=1.4, **style if len(khat) > 1 else {})
        for limit, its in _thresholds(rows).items():
            only = len(_thresholds(rows)) == 1 or len(its) > 1
            ink = INK if only else colour[name_of(its[0], rows)]
            axes.axvline(limit, color=ink, lw=1.1, ls=":")
            counts = {row.runs[0].num_samples for row in its}
            of = f" (K = {counts.pop():,})" if len(counts) == 1 else ""
            axes.text(limit, 0.01, f" {limit:.2f}{of}", color=ink, ha="left", fontsize=8)
        axes.set_ylim(-0.05, 1.05)
        axes.set_xlabel("k̂ of a datum")
        axes.set_ylabel("share of the data at or below")
        axes.grid(alpha=0.25)
        handles, names = axes.get_legend_handles_labels()
        figure.legend(handles, names, loc="outside right upper", frameon=False, fontsize=8)

    return Drawn(
        "khat",
        "How heavy the weights' tails are, over the data. Right of its threshold (dotted: "
        "min(1 − 1/log₁₀ K, 0.7) of K samples, in the row's colour where it is one row's alone) "
        "an estimate and its error mean nothing.",
        (9, max(4.2, 1.0 + 0.2 * len(rows))),
        draw,
    )


def _thresholds(rows: Sequence[Row]) -> dict[float, list[Row]]:
    """The thresholds there are, and whose they are; that of few samples may be none."""
    found: dict[float, list[Row]] = {}
    for row in rows:
        limit = round(row.runs[0].khat_threshold, 3)
        if math.isfinite(limit):
            found.setdefault(limit, []).append(row)
    return found


def sandwiches(results: Results) -> Drawn | None:
    """Lower and upper estimates of the same data."""
    rows = [row for row in results.rows if row.sandwich is not None]
    if not rows:
        return None

    def draw(figure: Any) -> None:
        axes = figure.subplots()
        for y, row in enumerate(rows):
            for run in row.runs:
                assert run.upper is not None
                low, high = float(run.log_evidence.mean()), float(run.upper.mean())
                axes.plot([low, high], [y, y], color=PALETTE[0], lw=6, alpha=0.35)
                axes.plot(low, y, ">", color=PALETTE[0], ms=8)
                axes.plot(high, y, "<", color=PALETTE[1], ms=8)
            gap, error, at = *sandwich_gap(row), _right_end(row)
            if math.isfinite(at):
                axes.annotate(
                    number(gap, 3, signed=True).text
                    + ("" if math.isnan(error) else f" ± {error:.3f}"),
                    (at, y),
                    xytext=(10, -3),
                    textcoords="offset points",
                )
        axes.set_yticks(range(len(rows)), [short(name_of(row, results.rows)) for row in rows])
        axes.set_ylim(len(rows) - 0.5, -0.5)
        axes.margins(x=0.1)
        low, high = axes.get_xlim()
        axes.set_xlim(low, high + 0.35 * (high - low))  # where the gaps are written
        axes.ticklabel_format(axis="x", useOffset=False)
        axes.set_xlabel("mean log p(x), nats per datum")
        axes.grid(alpha=0.25, axis="x")

    return Drawn(
        "sandwich",
        f"Sandwiches: the lower and the upper estimate of the same data, {_whose(rows)}; and the "
        "gap between them, with its error by data.",
        (8, 1.3 + 0.5 * len(rows)),
        draw,
    )


def sandwich_gap(row: Row) -> tuple[float, float]:
    """The mean gap of a sandwich over seeds and data, and its standard error by data."""
    gaps = row.sandwich
    assert gaps is not None
    with np.errstate(invalid="ignore"):
        return float(gaps.mean()), standard_error(gaps.mean(0))


def _right_end(row: Row) -> float:
    return max(
        float(side.mean()) for run in row.runs for side in (run.log_evidence, run.upper)
        if side is not None
    )  # fmt: skip


def _whose(rows: Sequence[Row]) -> str:
    if all(row.simulated for row in rows):
        return "drawn from the model, so that the gap is the most that either can be off on average"
    held = (
        "held out, with draws of the posterior that the study names: an upper estimate as far as "
        "those are exact"
    )
    if not any(row.simulated for row in rows):
        return held
    drawn = ", ".join(dict.fromkeys(row.estimator for row in rows if row.simulated))
    rest = ", ".join(dict.fromkeys(row.estimator for row in rows if not row.simulated))
    return f"drawn from the model ({drawn}), or {held} ({rest})"
