"""Tables of a TOML text read by type, every fault gathered with its line."""

from __future__ import annotations

import tomllib
from pathlib import Path
from types import UnionType
from typing import Any, get_args, get_origin, get_type_hints

from ..runs import Settings
from ..scoring import Question
from .lines import Lines

TYPES = {**get_type_hints(Question), **get_type_hints(Settings), "parts": int}
POSITIVE = ("epochs", "batch_size", "learning_rate", "patience", "clip", "subset", "parts")
COUNTED = ("warm_up", "subset_seed", "seed")


class Fields:
    """What a text holds, and the faults found so far.

    Args:
        file: that the text is of.
        text: in TOML.
        content: the same, parsed.
    """

    def __init__(self, file: Path, text: str, content: dict[str, Any]) -> None:
        self.file, self.text, self.content = file, text, content
        self.lines = Lines(text)
        self.faults: list[tuple[int, str]] = []

    def fault(self, what: str, *path: Any) -> None:
        """Note what is wrong with a key, or with the table around it."""
        self.faults.append((self.lines.find(*path), what))

    def known(self, table: dict[str, Any], names: Any, *path: Any) -> None:
        """A fault for each key of a table that is none of these."""
        for key in table:
            if key not in names:
                self.fault(f"unknown key '{key}'; there are {', '.join(names)}", *path, key)

    def table(self, *path: Any) -> dict[str, Any]:
        """The table of that path; an empty one where there is none."""
        found: Any = self.content
        for key in path:
            found = found.get(key, {})
        if isinstance(found, dict):
            return found
        self.fault(f"'{path[-1]}' should be a table; found {found!r:.40}", *path)
        return {}

    def value(
        self, table: dict[str, Any], key: str, kind: Any, path: tuple[Any, ...], default: Any
    ) -> Any:
        """A key's value, if it is of its kind; else the default."""
        if key not in table:
            return default
        if fits(table[key], kind):
            return table[key]
        wanted = getattr(kind, "__name__", str(kind))
        self.fault(f"{key} should be of type {wanted}; found {table[key]!r:.60}", *path, key)
        return default

    def settings(
        self,
        table: dict[str, Any],
        names: tuple[str, ...],
        path: tuple[Any, ...],
        known: tuple[str, ...] = (),
    ) -> dict[str, Any]:
        """Settings of these names in a table, which may hold others that are ``known``."""
        self.known(table, known or names, *path)
        found = {}
        for key in table:
            if key in names:
                value = self.value(table, key, TYPES[key], path, None)
                if value is not None:
                    if key in POSITIVE and value <= 0:
                        self.fault(f"{key} should be more than 0; found {value!r}", *path, key)
                    if key in COUNTED and value < 0:
                        self.fault(f"{key} should be at least 0; found {value!r}", *path, key)
                    found[key] = value
        return found


def fits(value: Any, kind: Any) -> bool:
    """Whether a TOML value is of a type; a whole number is a number, a truth value is none."""
    if isinstance(kind, UnionType):
        return any(fits(value, one) for one in get_args(kind))
    kind = get_origin(kind) or kind
    if isinstance(value, bool):
        return kind is bool
    return isinstance(value, kind) or (kind is float and isinstance(value, int))


def line_of(error: tomllib.TOMLDecodeError, text: str) -> int:
    """The line that the parser names in its message; of an end that came too soon, the last."""
    _, found, rest = str(error).partition("line ")
    digits = rest.partition(",")[0]
    return int(digits) if found and digits.isdigit() else text.count("\n") + 1
