"""Why something is not compiled, in words for whoever called."""

from __future__ import annotations

import contextlib
import linecache
import os
import sys
import traceback
import warnings
from pathlib import Path

import pyro
import torch

_INSIDE = (
    *(f"{Path(file).parent}{os.sep}" for file in (torch.__file__, pyro.__file__)),
    contextlib.__file__,
    f"{Path(__file__).parents[1]}{os.sep}",
)
_LOOKS = "trying to get value out of a tracing tensor"


class Unrepeatable(Exception):
    """A program's run is not to be had from a graph; the message says why."""


class Differs(Exception):
    """A graph does not do what the program does."""


class NotCompiled(UserWarning):
    """A program that was to be compiled is run as it is; the message says why."""


def tell(reason: str, what: str = "going on without it") -> None:
    """Warn, at the line that called us."""
    warnings.warn(f"compile: {what}: {reason}", NotCompiled, stacklevel=outside())


def outside() -> int:
    """The level, for whoever calls this and warns, of the line that called us."""
    level, frame = 1, sys._getframe(1)
    while frame.f_back is not None and frame.f_code.co_filename.startswith(_INSIDE):
        frame, level = frame.f_back, level + 1
    return level


def explained(error: Exception) -> str:
    """What an error says, in short, and at which line of the program it came up."""
    lines = [line for line in str(error).splitlines() if line.strip()]
    text = lines[0][:200] if lines else "no reason given"
    if _LOOKS in text:
        text = "the program looks at a value (a condition, .item(), or a function that needs one)"
    elif not isinstance(error, Unrepeatable | Differs):
        text = f"{type(error).__name__}: {text}"
    for frame in reversed(traceback.extract_tb(error.__traceback__)):
        if not frame.filename.startswith((*_INSIDE, "<")):
            code = linecache.getline(frame.filename, frame.lineno or 0).strip()
            return f"{text}, in line {frame.lineno} of {Path(frame.filename).name}: {code}"
    return text
