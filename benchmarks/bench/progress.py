"""How far a study is, and how long it will take: from what its jobs have taken, and from
checkpoints."""

from __future__ import annotations

import itertools
import statistics
import time
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from ...inference.training.checkpoint import load as load_checkpoint
from ..runs import Run, open_run
from .folder import Folder
from .jobs import Job
from .study import Cell

SHOWN = 4  # jobs under way that one line tells of


def scores(cell: Cell) -> Iterable[Job]:
    """The estimates of a cell, each as one job or in its parts."""
    for index, one in enumerate(cell.estimations):
        for part in range(one.parts):
            yield Job(cell, index, None if one.parts == 1 else part)


@dataclass(frozen=True)
class Standing:
    """Where a training stands."""

    epoch: int
    epochs: int
    elbo: float
    seconds: float  # of one epoch, lately

    @property
    def left(self) -> float:
        """Seconds, if it is not stopped early."""
        return (self.epochs - self.epoch) * self.seconds


class Clock:
    """Counts what jobs take.

    Args:
        folder: where the trainings are.
        size: how many jobs are done at once.
    """

    def __init__(self, folder: Folder, size: int) -> None:
        self.folder, self.size = folder, size
        self.took: dict[str, list[float]] = defaultdict(list)
        self.active: dict[tuple[Any, ...], tuple[Job, float]] = {}  # and since when
        # when the checkpoint was written that was last read, and what it told
        self._read: dict[tuple[Any, ...], tuple[int, Standing | None]] = {}

    def start(self, job: Job) -> None:
        """A job begins."""
        self.active[_key(job)] = job, time.monotonic()

    def end(self, job: Job, seconds: float | None = None) -> None:
        """A job has ended; of one that was done, after how many seconds."""
        self.active.pop(_key(job), None)
        self._read.pop(_key(job), None)
        if seconds is not None and seconds > 1e-6:
            self.took[job.where].append(seconds)

    def left(self, waiting: Iterable[Job]) -> float | None:
        """Seconds until these and the jobs under way are done; None while nothing tells.

        All of them share the processes, and none ends before the longest training has and what
        follows it. A training under way tells by its checkpoint; another counts as the mean of
        those that are done or tell. A job of whose kind none is done counts as the mean of all.
        """
        now = time.monotonic()
        standings = {key: self.standing(job) for key, (job, _) in self.active.items()}
        took = {where: list(each) for where, each in self.took.items()}
        for known in filter(None, standings.values()):
            took.setdefault("training", []).append(known.epochs * known.seconds)
        if not took:
            return None
        typical = {where: statistics.mean(each) for where, each in took.items()}
        other = statistics.mean(itertools.chain(*took.values()))
        own = [(job, typical.get(job.where, other)) for job in waiting]
        for key, (job, since) in self.active.items():
            standing = standings[key]
            usual = typical.get(job.where, other) - (now - since)
            own.append((job, standing.left if standing else max(usual, 0.0)))
        if not own:
            return None
        whole = longest = 0.0
        for job, seconds in own:
            following = 0.0
            if job.estimation is None:
                following = sum(typical.get(one.where, other) for one in scores(job.cell))
            whole += seconds + following
            longest = max(longest, seconds + following / self.size)
        return max(whole / self.size, longest)

    def standing(self, job: Job) -> Standing | None:
        """Where a training stands; None of an estimate, and before the first epoch's end."""
        if job.estimation is not None:
            return None
        try:
            run = open_run(self.folder.training(job.cell))
            written = run.checkpoint.stat().st_mtime_ns
            last, standing = self._read.get(_key(job), (None, None))
            if last != written:
                standing = _standing(run)
                self._read[_key(job)] = written, standing
        except (OSError, ValueError, KeyError):  # it has only begun, or is just being written
            return None
        return standing

    def under_way(self) -> str:
        """The jobs that are being done, for people who wait."""
        now = time.monotonic()
        told = []
        for job, since in list(self.active.values())[:SHOWN]:
            if standing := self.standing(job):
                words = (
                    f"epoch {standing.epoch} of at most {standing.epochs}, validation bound "
                    f"{standing.elbo:.2f}, {standing.seconds:.1f} s an epoch"
                )
            else:
                words = f"{job.where}, for {in_words(now - since)}"
            told.append(f"{job.cell.label}: {words}")
        if (more := len(self.active) - SHOWN) > 0:
            told.append(f"and {more} more")
        return "; ".join(told)


def _standing(run: Run) -> Standing | None:
    """By its checkpoint, which is read whole."""
    columns = load_checkpoint(run.checkpoint)["history"]["columns"]
    if not (done := len(columns["seconds"])):
        return None
    recent = statistics.median(columns["seconds"][-20:])
    return Standing(done, run.settings.epochs, columns["validation_elbo"][-1], recent)


def _key(job: Job) -> tuple[Any, ...]:
    return job.cell.id, job.estimation, job.part


def in_words(seconds: float) -> str:
    """A length of time for people.

    >>> in_words(42), in_words(150), in_words(7300)
    ('42 s', '2 min', '2.0 h')
    """
    if seconds < 100:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 6000 else f"{seconds / 3600:.1f} h"
