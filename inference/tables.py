"""Tables in plain text: columns aligned, numbers to the right, readable in a log file."""

from __future__ import annotations

import unicodedata
from collections.abc import Mapping, Sequence


def width(text: str) -> int:
    """Columns that a text takes on a terminal: the hat of k̂ takes none.

    >>> width("k̂"), len("k̂")
    (1, 2)
    """
    return sum(
        2 if unicodedata.east_asian_width(c) in "WF" else 1
        for c in text
        if not unicodedata.combining(c)
    )


def table(headers: Sequence[str], rows: Sequence[Sequence[str]], left: Sequence[int] = (0,)) -> str:
    """Rows under their headers; the columns numbered in ``left`` are aligned left, others right.

    >>> print(table(("prior", "nats"), [("vamp", "-1.5"), ("normal", "-12.0")]))
    prior    nats
    ------  -----
    vamp     -1.5
    normal  -12.0
    """
    lines = [list(headers), *(list(row) for row in rows)]
    for line in lines:
        if len(line) != len(headers):
            raise ValueError(f"a row should have {len(headers)} cells; found {len(line)}: {line}")
    widths = [max(width(line[i]) for line in lines) for i in range(len(headers))]
    lines.insert(1, ["-" * w for w in widths])

    def pad(cell: str, column: int) -> str:
        blank = " " * (widths[column] - width(cell))
        return cell + blank if column in left else blank + cell

    return "\n".join(
        "  ".join(pad(cell, i) for i, cell in enumerate(line)).rstrip() for line in lines
    )


def aligned(explained: Mapping[str, str]) -> list[str]:
    """One line for each name, with what it is behind it.

    >>> aligned({"a.png": "one", "long.png": "two"})
    ['a.png     one', 'long.png  two']
    """
    longest = max(map(width, explained), default=0)
    return [f"{name}{' ' * (longest - width(name))}  {what}" for name, what in explained.items()]
