"""The folder of a study.

    study.json                    what is studied: the file's text, its cells, published numbers
    cells/ID.json                 a finished cell's record, or a failed one's
    trainings/ID/                 a run folder, as `pyrovae train` makes it
    trainings/ID/evidence-ID.nc   an estimate, or a part of one
    locks/                        who works on what; gone with the process, however it ends

Whatever is there under its name is finished, and whole: all files are written in one step. A file
that does not read is set aside, not deleted, and made anew; so is a failed record that is retried.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import shlex
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import xarray as xr
from filelock import FileLock

from ...inference.files import write_atomically
from ..runs import Run, check_writable, open_run
from .study import Cell, Estimation, Study, address

STUDY, CELL = "pyrovae-study-1", "pyrovae-cell-1"
FOLDERS = ("cells", "trainings", "locks")


@dataclass(frozen=True)
class Folder:
    """Where everything is."""

    path: Path

    def begin(self, study: Study, cells: Sequence[Cell]) -> None:
        """Write down what is studied here.

        Raises:
            FileExistsError: another study's results are here.
            OSError: nothing can be written here.
        """
        file = self.path / "study.json"
        there = [one.name for one in self.path.iterdir()] if self.path.exists() else []
        # without the file another runner may just be beginning
        if not file.exists() and any(name not in FOLDERS and name[0] != "." for name in there):
            raise FileExistsError(
                f"output: {self.path} exists and is no study's; choose another --output"
            )
        check_writable(self.path, make=True)
        for name in FOLDERS:
            (self.path / name).mkdir(exist_ok=True)
        with self.lock("study"):
            self._write(file, study, cells)

    def _write(self, file: Path, study: Study, cells: Sequence[Cell]) -> None:
        commands = [shlex.join(["pyrovae", *sys.argv[1:]])]
        if file.exists():
            before = read_json(file)
            if before is None or before.get("name") != study.name:
                raise FileExistsError(
                    f"output: {self.path} holds the study "
                    f"'{None if before is None else before.get('name')}'; choose another --output"
                )
            commands = [*before.get("commands", []), *commands]
        write_json(
            file,
            {
                "format": STUDY,
                "name": study.name,
                "title": study.title,
                "question": study.question,
                "toml": study.text,
                "cells": [
                    {
                        "id": cell.id,
                        "data": cell.data,
                        "model": cell.model,
                        "objective": cell.objective,
                        "seed": cell.seed,
                        "training_id": cell.training_id,
                    }
                    for cell in cells
                ],
                "compare": list(study.compare),
                "published": list(study.published),
                "command": commands[0],
                "commands": list(dict.fromkeys(commands)),
                "created": now(),
            },
        )

    def record(self, cell: Cell) -> Path:
        return self.path / "cells" / f"{cell.id}.json"

    def training(self, cell: Cell) -> Path:
        return self.path / "trainings" / cell.training_id

    def evidence(self, cell: Cell, one: Estimation, part: int | None = None) -> Path:
        """The file of an estimate, or of one of its parts."""
        of = "" if part is None else f"-part{part}"
        return self.training(cell) / f"evidence-{address(one.spec())}{of}.nc"

    def lock(self, name: str) -> FileLock:
        """Held by one process at a time."""
        return FileLock(self.path / "locks" / f"{name}.lock")

    def finished(self, cell: Cell) -> dict[str, Any] | None:
        """A cell's record, where its files are what they were; a damaged record is set aside."""
        file = self.record(cell)
        if not file.exists():
            return None
        content = read_json(file)
        if content is None or content.get("format") != CELL or content.get("id") != cell.id:
            set_aside(file)
            return None
        if content["status"] == "done":
            if {one["estimator"] for one in content["estimates"]} != {
                one.label for one in cell.estimations
            }:
                set_aside(file)
                return None
            for one in content["estimates"]:
                path = self.path / one["file"]
                if not path.exists() or sha256(path) != one["sha256"]:
                    if path.exists():
                        set_aside(path)
                    set_aside(file)
                    return None
        return content

    def trained(self, cell: Cell) -> Run | None:
        """The finished training of a cell; None where there is none yet.

        Raises:
            ValueError: what is there is damaged.
        """
        path = self.training(cell)
        if not (path / "run.json").exists():
            return None
        run = open_run(path)
        return run if run.result is not None else None


def read_json(file: Path) -> dict[str, Any] | None:
    """A JSON object from a file; None where it holds none."""
    try:
        content = json.loads(file.read_bytes())
    except (ValueError, OSError):
        return None
    return content if isinstance(content, dict) else None


def write_json(file: Path, content: Mapping[str, Any]) -> None:
    """Write a JSON object, whole or not at all."""
    write_atomically(file, (json.dumps(content, indent=1, ensure_ascii=False) + "\n").encode())


def readable(file: Path) -> bool:
    """Whether a file of evidence is there and reads; one that does not is set aside."""
    if not file.exists():
        return False
    try:
        with xr.open_dataset(file, engine="scipy") as found:
            found.load()
        return True
    except Exception:  # whatever a damaged file makes the reader raise
        set_aside(file)
        return False


def set_aside(path: Path, why: str = "damaged") -> None:
    """Rename what is not wanted, so that it can be looked at and is in nobody's way."""
    with contextlib.suppress(FileNotFoundError):  # another runner has done so
        path.rename(path.with_name(f"{path.name}.{why}-{time.time_ns()}"))


def sha256(file: Path) -> str:
    return hashlib.sha256(file.read_bytes()).hexdigest()


def now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
