"""A figure in its three forms: inline SVG for the page, SVG and PDF for papers.

On the page text and axes take the page's colour, light or dark; colours of lines are readable on
both. Files for papers are dark on white, and stand alone.
"""

from __future__ import annotations

import html
import io
import math
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import matplotlib
from matplotlib.backends.backend_pdf import FigureCanvasPdf
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter

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
_RAISED = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")
LONGEST = 44  # characters of a name in a figure


@dataclass(frozen=True)
class Drawn:
    """A figure: its name, what it shows, and how it is drawn into an empty one."""

    name: str
    caption: str
    size: tuple[float, float]
    draw: Callable[[Any], None]

    def svg(self) -> str:
        """As a file for papers: dark on white."""
        with _settings(self.name):
            return self._svg(facecolor="white")

    def pdf(self) -> bytes:
        """The same as PDF."""
        with _settings(self.name):
            content = io.BytesIO()
            self._figure(FigureCanvasPdf).savefig(
                content, format="pdf", facecolor="white", metadata={"CreationDate": None}
            )
            return content.getvalue()

    def inline(self) -> str:
        """For the page: without a head, its size left to the page, its names its own."""
        with _settings(self.name):
            text = self._svg(transparent=True)
        text = text[text.index("<svg") :].replace(INK, "currentColor")
        text = re.sub(r"<metadata>.*?</metadata>\s*", "", text, flags=re.DOTALL)
        text = re.sub(r'(<svg[^>]*?) width="[^"]*"', r"\1", text, count=1)
        text = re.sub(r'(<svg[^>]*?) height="[^"]*"', r"\1", text, count=1)
        text = re.sub(r'(\bid="|url\(#|href="#)', rf"\g<1>{self.name}-", text)
        told = f'<svg role="img" aria-label="{html.escape(self.caption)}"'
        return text.replace("<svg", told, 1)

    def _svg(self, **asked: Any) -> str:
        content = io.StringIO()
        self._figure(FigureCanvasSVG).savefig(
            content, format="svg", metadata={"Date": None, "Creator": None}, **asked
        )
        return content.getvalue()

    def _figure(self, canvas: Any) -> Figure:
        figure = Figure(figsize=self.size, layout="constrained")
        canvas(figure)
        self.draw(figure)
        return figure


@contextmanager
def _settings(name: str) -> Iterator[None]:
    """Of matplotlib, whatever the user's own are. A ``$`` in a name is no mathematics."""
    inked = ("text.color", "axes.labelcolor", "axes.edgecolor", "xtick.color", "ytick.color")
    with matplotlib.rc_context():
        matplotlib.rcdefaults()
        matplotlib.rcParams.update(
            {
                "svg.hashsalt": name,
                "svg.fonttype": "none",
                "pdf.fonttype": 42,
                "text.parse_math": False,
                **dict.fromkeys(inked, INK),
            }
        )
        yield


def logarithmic(axes: Any, *which: str) -> None:
    """Logarithmic axes ("x", "y") whose ticks are written without mathematics, which is off."""
    for name in which:
        getattr(axes, f"set_{name}scale")("log")
        axis = getattr(axes, f"{name}axis")
        axis.set_major_formatter(FuncFormatter(lambda x, _: tick(x)))
        axis.set_minor_formatter(FuncFormatter(partial(_minor_tick, axis)))


def _minor_tick(axis: Any, x: float, _: int) -> str:
    """2 and 5 between few powers of ten; nothing between many."""
    low, high = sorted(axis.get_view_interval())
    digit = round(x / 10 ** math.floor(math.log10(x)))
    return tick(x) if high < 50 * low and digit in (2, 5) else ""


def tick(x: float) -> str:
    """A value of a logarithmic axis.

    >>> tick(0.01), tick(5000.0), tick(1e6), tick(2e-5)
    ('0.01', '5,000', '10⁶', '2·10⁻⁵')
    """
    if 1e-4 < x < 1e6:
        return f"{x:,.0f}" if x >= 1 else f"{x:g}"
    digit, _, power = f"{x:.0e}".partition("e")
    raised = str(int(power)).translate(_RAISED)
    return f"10{raised}" if digit == "1" else f"{digit}·10{raised}"


def colours(names: Sequence[Any]) -> dict[Any, str]:
    """A colour for each of these."""
    return {name: PALETTE[i % len(PALETTE)] for i, name in enumerate(dict.fromkeys(names))}


def short(name: str) -> str:
    """A name as a figure can show it.

    Matplotlib leaves names that begin with an underscore out of its legends.

    >>> short("_x"), short("a" * 50)[-3:]
    (' _x', 'aa…')
    """
    name = " ".join(name.split())
    name = name if len(name) <= LONGEST else f"{name[: LONGEST - 1]}…"
    return f" {name}" if name.startswith("_") else name
