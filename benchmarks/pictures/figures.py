"""Figures on canvases of their own, as PNG files."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import matplotlib
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from ...inference.files import write_atomically

COLOURS = ("#1b6ca8", "#d1495b", "#2e8b57", "#8d5a97", "#c7862b")
GREY = "#555555"


def blank_figure(width: float, height: float) -> Figure:
    """A figure in inches, on a canvas of its own."""
    figure = Figure(figsize=(width, height), dpi=130, layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def save_figure(figure: Figure, path: Path) -> None:
    """Write a figure as a PNG file, whole or not at all."""
    content = io.BytesIO()
    figure.savefig(content, format="png")
    write_atomically(Path(path), content.getvalue())


def cycle(count: int) -> list[str]:
    """So many colours, over again where they run out."""
    return [COLOURS[i % len(COLOURS)] for i in range(count)]


def of_ten(label: int) -> Any:
    """The colour of a class."""
    return matplotlib.colormaps["tab10"](label % 10)
