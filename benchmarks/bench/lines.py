"""On which line of a TOML text a table or a key stands; the standard parser does not tell."""

from __future__ import annotations

import re
import tomllib
from typing import Any

_TABLE = re.compile(r"\s*\[\[?(?P<key>.+?)\]\]?\s*(#.*)?$")
_KEY = re.compile(r"\s*(?P<key>[^#=\[]+?)\s*=")


class Lines:
    """The lines of a text's keys, by their path.

    >>> lines = Lines("seeds = [1]\\n[model.VAE]\\nname = 'vae'\\n[[exclude]]\\n[[exclude]]\\n")
    >>> lines.find("model", "VAE", "name"), lines.find("exclude", 1), lines.find("model", "none")
    (3, 5, 2)
    """

    def __init__(self, text: str) -> None:
        self._lines: dict[tuple[Any, ...], int] = {}
        table: tuple[Any, ...] = ()
        counts: dict[tuple[Any, ...], int] = {}
        for number, line in enumerate(text.splitlines(), 1):
            if (match := _TABLE.match(line)) and (path := _path(match["key"])):
                table = path
                if line.lstrip().startswith("[["):
                    counts[path] = counts.get(path, -1) + 1
                    table = (*path, counts[path])
                for length in range(1, len(table) + 1):
                    self._lines.setdefault(table[:length], number)
            elif (match := _KEY.match(line)) and (path := _path(match["key"])):
                for length in range(1, len(path) + 1):
                    self._lines.setdefault(table + path[:length], number)

    def find(self, *path: Any) -> int:
        """The line of a key, or of the nearest table around it; 1 where there is none."""
        while path:
            if path in self._lines:
                return self._lines[path]
            path = path[:-1]
        return 1


def _path(key: str) -> tuple[str, ...]:
    """A dotted key's parts; nothing where it is none, as within a text of several lines."""
    try:
        found: Any = tomllib.loads(f"{key} = 0")
    except tomllib.TOMLDecodeError:
        return ()
    parts = []
    while isinstance(found, dict):
        (part,) = found
        parts.append(part)
        found = found[part]
    return tuple(parts)
