"""What ``pyrovae bench STUDY`` does, in words to those who wait for it."""

from __future__ import annotations

import shlex
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from ...inference.tables import table
from ..pairs import find_device
from .checks import check
from .cost import forecast
from .folder import Folder, read_json
from .progress import in_words
from .reading import read_study
from .runner import run_study
from .study import Cell, Study
from .workers import Cluster, Processes, Workers, default_size


@dataclass(frozen=True)
class Bench:
    """What is asked for: which study, where, by whom."""

    study: str
    output: Path | None = None
    device: str = "auto"
    data_folder: str | None = None
    retry: bool = False
    processes: int | None = None
    workers: int | None = None
    scheduler: str | None = None
    small: bool = False

    def read(self) -> tuple[Study, list[Cell]]:
        """The study and its cells, all of them checked."""
        folder = self.data_folder
        if self.scheduler is None:
            find_device(self.device)
        elif folder is not None:
            folder = str(Path(folder).resolve())  # workers may have been started elsewhere
        study = read_study(self.study, self.small)
        return study, check(study, folder, self.device)

    def folder(self, study: Study) -> Folder:
        return Folder(Path("runs") / study.name if self.output is None else self.output)


def run(asked: Bench, say: Callable[[str], None] = print) -> bool:
    """Run a study; returns whether a cell has failed.

    Raises:
        StudyError, FileNotFoundError, FileExistsError, OSError, ValueError: it cannot be run.
        Stopped: Ctrl-C.
    """
    study, cells = asked.read()
    folder = asked.folder(study)
    folder.begin(study, cells)
    with _workers(asked, folder) as workers:
        say(f"{study.title}: {_count(cells)}, {workers.size} at once, in {folder.path}")
        summary = run_study(cells, folder, workers, asked.retry, say)
    if summary.failed:
        say(f"\n{len(summary.failed)} failed; --retry tries them again:")
        for cell, why in summary.failed:
            say(f"  {cell.label}: {why}")
    say(f"next: pyrovae report {shlex.quote(str(folder.path))}")
    return bool(summary.failed)


def preview(asked: Bench, say: Callable[[str], None] = print) -> None:
    """List the cells of a study with what each will cost, and run none of them."""
    study, cells = asked.read()
    folder = asked.folder(study)
    expected = forecast(cells)
    rows: list[tuple[str, ...]] = []
    fails: dict[str, None] = {}  # of seeds that are alike, once
    left = 0.0
    for one in expected:
        cell = one.cell
        there = _there(cell, folder, asked.retry)
        left += 0.0 if there else one.seconds
        for why in one.fails:
            fails[f"{cell.data}, {cell.model}, {cell.objective}: {why}"] = None
        rows.append(
            (
                cell.id,
                cell.data,
                cell.model,
                cell.objective,
                str(cell.seed),
                in_words(one.training),
                in_words(one.estimates),
                "there" if there else "to do",
            )
        )
    headers = ("cell", "data", "model", "objective", "seed", "training", "estimates", "state")
    say(f"{study.title}: {_count(cells)}")
    say(table(headers, rows, left=(0, 1, 2, 3, 7)))
    for fault in fails:
        say(f"will fail: {fault}")
    size = asked.processes or asked.workers or default_size()
    say(f"to do: at most about {in_words(left)} of one core; {in_words(left / size)} with {size}")


def _there(cell: Cell, folder: Folder, retry: bool) -> bool:
    """Whether a run would leave a cell as it is."""
    record = read_json(folder.record(cell))
    return record is not None and not (retry and record.get("status") == "failed")


def _count(cells: Sequence[Cell]) -> str:
    estimates = sum(len(cell.estimations) for cell in cells)
    return f"{_plural(len(cells), 'cell')}, {_plural(estimates, 'estimate')}"


def _plural(count: int, what: str) -> str:
    return f"{count} {what}" if count == 1 else f"{count:,} {what}s"


def _workers(asked: Bench, folder: Folder) -> Workers:
    if asked.workers is not None or asked.scheduler is not None:
        return Cluster(folder, asked.scheduler, asked.workers)
    return Processes(folder, asked.processes or default_size())
