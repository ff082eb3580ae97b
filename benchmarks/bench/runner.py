"""Run a study: every cell once, whatever ends the runner, and however many of them there are."""

from __future__ import annotations

import time
from collections import defaultdict, deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import xarray as xr

from ...inference.training.interrupt import Interrupt
from ..training import Stopped
from .folder import Folder, set_aside
from .jobs import Job, Outcome
from .progress import Clock, in_words, scores
from .records import join_parts, write_record
from .study import Cell
from .workers import Workers

WAIT, AGAIN = 0.5, 2.0  # seconds: to look around, and until a job that another runner has is tried
SILENCE = 10.0  # seconds after which a job is told of whose cell is not finished
LONG = 60.0  # and after which those are told of that are under way


@dataclass
class Summary:
    """How a study ended."""

    done: int = 0
    failed: list[tuple[Cell, str]] = field(default_factory=list)


def run_study(
    cells: Sequence[Cell],
    folder: Folder,
    workers: Workers,
    retry: bool = False,
    say: Callable[[str], None] = print,
) -> Summary:
    """Do what is left to do of these cells.

    Args:
        cells: of the study, begun in the folder.
        folder: where its results are.
        workers: who does the jobs, entered.
        retry: whether cells that have failed are tried again.
        say: is told of every cell that is finished.

    Raises:
        OSError: the machine refuses to go on (its disk is full); what is finished is kept.
        Stopped: Ctrl-C or SIGTERM, or a signal to a worker.
    """
    return _Runner(cells, folder, workers, retry, say).run()


class _Runner:
    def __init__(
        self,
        cells: Sequence[Cell],
        folder: Folder,
        workers: Workers,
        retry: bool,
        say: Callable[[str], None],
    ) -> None:
        self.cells = {cell.id: cell for cell in cells}
        self.folder, self.workers, self.retry, self.say = folder, workers, retry, say
        self.summary = Summary()
        self.queue: deque[Job] = deque()
        self.later: list[tuple[float, Job]] = []
        self.running = 0
        self.open: dict[str, int] = {}  # jobs of a cell that are queued or under way
        self.warned: dict[str, list[str]] = defaultdict(list)  # of what has failed
        self.errors: dict[str, list[dict[str, str]]] = defaultdict(list)
        self.clock = Clock(folder, workers.size)
        self.stop: BaseException | None = None
        self.said = time.monotonic()

    def run(self) -> Summary:
        for cell in self.cells.values():
            self._begin(cell)
        if self.summary.done or self.summary.failed:
            self.say(f"{self._share()} there already")
        with Interrupt() as asked:
            while self.running or (self.stop is None and (self.queue or self.later)):
                if asked.requested:
                    raise self._stopped("stopped", 128 + asked.requested)
                self._start()
                for job, outcome in self._ended():
                    self.running -= 1
                    self._take(job, outcome)
                if time.monotonic() - self.said > LONG:
                    held = f"{len(self.later)} jobs are another runner's, which is waited for"
                    self._tell(self.clock.under_way() if self.running else held)
        if self.stop is not None:
            raise self.stop
        return self.summary

    def _stopped(self, what: str, code: int) -> Stopped:
        return Stopped(self._kept(what), code)

    def _kept(self, what: str) -> str:
        return (
            f"{what}; {self._share()} are finished; all that is done is kept, and the same "
            "command goes on"
        )

    def _ended(self) -> list[tuple[Job, Outcome]]:
        if self.running:
            try:
                return self.workers.wait(WAIT)
            except ConnectionError as error:
                raise OSError(self._kept(str(error))) from error
        time.sleep(WAIT)  # until another runner is done with what is left
        return []

    def _start(self) -> None:
        now = time.monotonic()
        self.queue.extend(job for due, job in self.later if due <= now)
        self.later = [(due, job) for due, job in self.later if due > now]
        while self.stop is None and self.queue and self.running < self.workers.size:
            job = self.queue.popleft()
            if job.cell.id not in self.open:  # it has failed meanwhile
                continue
            if self.folder.record(job.cell).exists() and self._finished(job.cell):
                continue
            if job.done(self.folder):
                self._take(job, Outcome("done"))
                continue
            self.workers.start(job)
            self.clock.start(job)
            self.running += 1

    def _begin(self, cell: Cell) -> None:
        record = self.folder.finished(cell)
        if record is not None and record["status"] == "failed" and self.retry:
            set_aside(self.folder.record(cell), "failed")
            record = None
        if record is None:
            self.open[cell.id] = 1
            self.queue.append(Job(cell))
        else:
            self._count(cell, record)

    def _finished(self, cell: Cell) -> bool:
        """Whether another runner has finished a cell that is open here."""
        record = self.folder.finished(cell)
        if record is None:
            return False
        del self.open[cell.id]
        self._count(cell, record)
        return True

    def _count(self, cell: Cell, record: dict[str, Any]) -> None:
        if record["status"] == "done":
            self.summary.done += 1
        else:
            told = "; ".join(f"{one['where']}: {one['message']}" for one in record["errors"])
            self.summary.failed.append((cell, told))

    def _take(self, job: Job, outcome: Outcome) -> None:
        cell = job.cell
        self.clock.end(job, outcome.seconds if outcome.status == "done" else None)
        if outcome.status == "busy":
            self.later.append((time.monotonic() + AGAIN, job))
        elif outcome.status == "refused":
            assert outcome.error is not None
            self.stop = OSError(self._kept(f"{cell.label}: {outcome.error['message']}"))
        elif outcome.status == "stopped":
            self.stop = self._stopped("a worker was stopped", 143)
        elif cell.id in self.open:
            if outcome.status == "failed":
                assert outcome.error is not None
                if not any(_alike(outcome.error, one) for one in self.errors[cell.id]):
                    self.errors[cell.id].append(outcome.error)
                self.warned[cell.id] += outcome.warnings
            self._go_on(job)
            words = f"{job.where} {outcome.status}; {outcome.seconds:.0f} s"
            if cell.id in self.open and time.monotonic() - self.said > SILENCE:
                self._tell(f"{cell.label}: {words}")

    def _go_on(self, job: Job) -> None:
        """What follows a job: the estimates of a training, the record of a cell.

        An estimate that has failed leaves the cell's others their turn.
        """
        cell = job.cell
        self.open[cell.id] -= 1
        if job.estimation is None and not self.errors[cell.id]:
            following = list(scores(cell))
            self.open[cell.id] = len(following)
            self.queue.extendleft(reversed(following))
        if not self.open[cell.id]:
            self._close(cell)

    def _close(self, cell: Cell) -> None:
        del self.open[cell.id]
        errors = self.errors[cell.id]
        failed = {one["where"] for one in errors}
        for index, one in enumerate(cell.estimations):
            if not failed & {"training", one.label}:
                join_parts(cell, index, self.folder)
        record = write_record(cell, self.folder, self.warned[cell.id], errors)
        self._count(cell, record)
        if not errors:
            words = f"{_log_p(record, self.folder)}; {_seconds(record):.0f} s"
        else:
            words = f"failed ({errors[0]['where']}): {_in_line(errors[0])}"
            if more := errors[1:]:
                words += f", and so have {', '.join(dict.fromkeys(one['where'] for one in more))}"
        self._tell(f"{cell.label}: {words}")

    def _tell(self, what: str) -> None:
        self.say(f"{self._share()}: {what}{self._time_left()}")
        self.said = time.monotonic()

    def _share(self) -> str:
        return f"{self.summary.done + len(self.summary.failed)} of {len(self.cells)} cells"

    def _time_left(self) -> str:
        """From what jobs of their kind have taken so far."""
        waiting = (*self.queue, *(job for _, job in self.later))
        seconds = self.clock.left(job for job in waiting if job.cell.id in self.open)
        return "" if seconds is None else f"; about {in_words(seconds)} left"


def _alike(error: dict[str, str], other: dict[str, str]) -> bool:
    """Whether two parts of an estimate have failed of the same."""
    return all(error[name] == other[name] for name in ("where", "type", "message"))


def _in_line(error: dict[str, str]) -> str:
    return f"{error['type']}: {' '.join(error['message'].split())[:200]}"


def _seconds(record: dict[str, Any]) -> float:
    """What a cell took, as far as it is known."""
    known = [record["training"]["seconds"], *(one["seconds"] for one in record["estimates"])]
    return sum(one for one in known if one is not None)


def _log_p(record: dict[str, Any], folder: Folder) -> str:
    """The first estimate, for people who watch."""
    if not record["estimates"]:
        return "nothing scored"
    first = record["estimates"][0]
    with xr.open_dataset(folder.path / first["file"], engine="scipy") as found:
        value = float(found["log_evidence"].mean())
    return f"{first['estimator']} {value:.2f}"
