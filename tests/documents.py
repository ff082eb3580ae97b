"""What a page in Markdown holds: blocks of code by language, and commands that can be typed."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

from typer.main import get_command

from pyrovae.benchmarks.cli import app

ROOT = Path(__file__).resolve().parents[1]


def blocks(text: str, language: str) -> list[str]:
    """The fenced blocks of a language, in order."""
    return re.findall(rf"^```{language}\n(.*?)^```", text, re.DOTALL | re.MULTILINE)


def commands(text: str) -> list[str]:
    """The lines of its shell blocks, continued ones joined, without comments."""
    lines = [
        line.partition("#")[0].strip()
        for block in blocks(text, "(?:sh|bash)")
        for line in block.replace("\\\n", " ").splitlines()
    ]
    return [line for line in lines if line]


def can_be_typed(line: str) -> bool:
    """Whether ``pyrovae ...`` is a command with these options; Click says what is wrong with it.

    ``torchrun ... -m pyrovae ...`` is looked at from there on.
    """
    words = shlex.split(line)
    if words[0] == "torchrun":
        words = words[words.index("pyrovae") :]
    program, name, *words = words
    assert program == "pyrovae"
    command = vars(get_command(app))["commands"][name]
    with command.make_context(name, words) as context:
        return bool(context.params)
