"""How far a study is, and how long it will take: from what its jobs have taken, and from
checkpoints."""

from __future__ import annotations

import statistics
import time
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from ...inference.training.checkpoint import load as load_checkpoint
from ..runs import open_run
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

    def start(self, job: Job) -> None:
        """A job begins."""
        self.active[_key(job)] = job, time.monotonic()

    def end(self, job: Job, seconds: float | None = None) -> None:
        """A job has ended; of one that was done, after how many seconds."""
        self.active.pop(_key(job), None)
        if seconds is not None and seconds > 1e-6:
            self.took[job.where].append(seconds)

    def left(self, waiting: Iterable[Job]) -> float | None:
        """Seconds until these and the jobs under way are done; None while nothing tells.

        A job of whose kind none is done yet counts as a training does that is under way, or as the
        mean of all that are done.
        """
        typical = {where: statistics.mean(took) for where, took in self.took.items()}
        seen = [took for all_of in self.took.values() for took in all_of]
        seconds, told = 0.0, bool(seen)
        other = statistics.mean(seen) if seen else 0.0
        jobs: list[tuple[Job, float]] = [(job, 0.0) for job in waiting]
        for job, since in self.active.values():
            standing = None if "training" in self.took else self.standing(job)
            if standing is None:
                jobs.append((job, time.monotonic() - since))
                continue
            seconds, told = seconds + standing.left, True
            typical["training"] = standing.epochs * standing.seconds
            jobs += [(following, 0.0) for following in scores(job.cell)]
        for job, elapsed in jobs:
            seconds += max(typical.get(job.where, other) - elapsed, 0.0)
            if job.estimation is None:
                seconds += sum(typical.get(one.where, other) for one in scores(job.cell))
        return seconds / self.size if told and (jobs or seconds) else None

    def standing(self, job: Job) -> Standing | None:
        """Where a training stands; None of an estimate, and before the first epoch's end."""
        if job.estimation is not None:
            return None
        try:
            run = open_run(self.folder.training(job.cell))
            columns = load_checkpoint(run.checkpoint)["history"]["columns"]
        except (OSError, ValueError, KeyError):  # it has only begun, or is just being written
            return None
        if not (done := len(columns["seconds"])):
            return None
        recent = statistics.median(columns["seconds"][-20:])
        return Standing(done, run.settings.epochs, columns["validation_elbo"][-1], recent)

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
