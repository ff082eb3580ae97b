"""All parts of the speed benchmark in one run: a table, the raw numbers, and a picture."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from ...inference import NoGain
from ..machine import describe_machine, keep, suffix
from . import annealing, compiling, importance_weights, own_models, training_steps
from .part import Part
from .picture import draw

PARTS: dict[str, Callable[[int, str], Part]] = {
    "training": training_steps.measure,
    "models": own_models.measure,
    "scoring": importance_weights.measure,
    "annealing": annealing.measure,
    "compiling": compiling.measure,
}
ROUNDS = 5


def bench(
    names: Sequence[str] = tuple(PARTS),
    rounds: int = ROUNDS,
    device: str = "cpu",
    output: Path | None = None,
    show: Callable[[str], None] = print,
) -> list[Part]:
    """Measure parts of the benchmark, one after another, and show each when it is done.

    Args:
        names: which parts.
        rounds: in each of which all contenders have their turn.
        device: where.
        output: a folder for ``speed.md``, ``speed.json`` and ``speed.png``.
        show: what to do with a part's text.

    Raises:
        ValueError: an unknown part.
    """
    if unknown := [name for name in names if name not in PARTS]:
        raise ValueError(f"parts should be of {', '.join(PARTS)}; found '{unknown[0]}'")
    parts = []
    machine = describe_machine()
    chosen = "" if set(names) == set(PARTS) else "".join(f" --part {name}" for name in names)
    command = f"pyrovae bench speed{chosen} --rounds {rounds} --device {device}"
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "posterior collapse")  # noise has nothing to tell
        warnings.simplefilter("ignore", NoGain)  # short runs do not
        for name in names:
            parts.append(PARTS[name](rounds, device))
            show(parts[-1].text())
            if output is not None:  # after each, for what comes may take long
                _keep(output, parts, command, machine, device)
    return parts


def _keep(
    folder: Path, parts: Sequence[Part], command: str, machine: dict[str, Any], device: str
) -> None:
    sections = "\n".join(part.text() for part in parts)
    text = (
        f"# Speed\n\n`{command}`, contenders in turn, medians; {machine['summary']}\n\n{sections}"
    )
    record = {
        "command": command,
        "machine": machine,
        "parts": {
            part.name: {"unit": part.unit, "times": part.times, "more": part.record}
            for part in parts
        },
    }
    name = f"speed{suffix(device)}"
    keep(folder, name, text, record)
    if any(part.times for part in parts):
        draw(parts, folder / f"{name}.png")
