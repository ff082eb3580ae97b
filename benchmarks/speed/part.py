"""A part of the benchmark: what was timed, as a table, as numbers, and as bars."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

Times = dict[str, list[float]]  # by contender, one for each round or epoch
FLOOR = "matrix products alone (floor)"


@dataclass(frozen=True)
class Part:
    """What one part found.

    Attributes:
        name: in files and on the command line.
        title: what was timed.
        table: as Markdown.
        note: how to read it.
        times: by panel of the picture, the times of the contenders.
        unit: of these.
        record: what else was measured.
    """

    name: str
    title: str
    table: str
    note: str
    times: Mapping[str, Times] = field(default_factory=dict)
    unit: str = ""
    record: Any = None

    def text(self) -> str:
        """The part as a section of a page."""
        return f"## {self.title}\n\n{self.table}\n\n{self.note}\n"


def compared(times: Times, against: Sequence[str]) -> list[tuple[str, float, float, float, list]]:
    """Each contender's median, quartiles, and how many times longer others take (median of rounds).

    Contenders are timed in turn, so that a round's ratio is of one moment.
    """
    rows = []
    for name, values in times.items():
        middle = statistics.median(values)
        low, _, high = quartiles(values)
        ratios = [
            statistics.median(a / b for a, b in zip(times[other], values, strict=True))
            if other in times
            else float("nan")
            for other in against
        ]
        rows.append((name, middle, low, high, ratios))
    return rows


def quartiles(values: Sequence[float]) -> tuple[float, float, float]:
    """The quartiles; of a single value, thrice itself."""
    if len(values) == 1:
        return (values[0],) * 3
    low, middle, high = statistics.quantiles(values, n=4, method="inclusive")
    return low, middle, high
