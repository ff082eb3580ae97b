"""The benchmark as bars: a panel for each thing timed, the shorter the bar the faster."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from pathlib import Path

from ..pictures.figures import COLOURS, GREY, blank_figure, save_figure
from .part import FLOOR, Part, Times, quartiles

_COLUMNS = 2
_OURS = ("fit", "ImportanceSampling", "AIS")


def draw(parts: Sequence[Part], path: Path) -> None:
    """Draw medians and quartiles of everything that was timed."""
    panels = [(title, part.unit, times) for part in parts for title, times in part.times.items()]
    rows = -(-len(panels) // _COLUMNS)
    bars = [len(times) for _, _, times in panels]
    longest = [max(bars[i : i + _COLUMNS]) for i in range(0, len(bars), _COLUMNS)]
    heights = [0.29 * most + 0.9 for most in longest]  # inches; as thick a bar in every panel
    figure = blank_figure(6.2 * _COLUMNS, sum(heights))
    axes = figure.subplots(rows, _COLUMNS, squeeze=False, height_ratios=heights)
    for axis, (title, unit, times) in zip(axes.flat, panels, strict=False):
        _panel(axis, title, unit, times)
    for axis in axes.flat[len(panels) :]:
        axis.axis("off")
    save_figure(figure, path)


def _panel(axis: object, title: str, unit: str, times: Times) -> None:
    from matplotlib.axes import Axes

    assert isinstance(axis, Axes)
    names = sorted(times, key=lambda name: -statistics.median(times[name]))
    for place, name in enumerate(names):
        low, middle, high = quartiles(times[name])
        error = [[middle - low], [high - middle]]
        axis.barh(place, middle, xerr=error, color=_colour(name), height=0.7, ecolor=GREY)
        axis.text(high, place, f" {middle:.3g}", va="center", fontsize=8, color=GREY)
    axis.set_yticks(range(len(names)), names, fontsize=8)
    axis.set_title(title, fontsize=9, loc="left", fontweight="bold")
    axis.set_xlabel(unit, fontsize=8)
    axis.tick_params(axis="x", labelsize=8)
    axis.margins(x=0.14)
    axis.spines[["top", "right"]].set_visible(False)


def _colour(name: str) -> str:
    if name == FLOOR:
        return "#cccccc"
    if name.startswith(_OURS):
        return COLOURS[0] if "compile=True" in name else "#8fb8d8"
    return COLOURS[1]
