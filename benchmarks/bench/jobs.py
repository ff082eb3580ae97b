"""The work of a study, cut into jobs: a training, an estimate or a part of one.

A job that is done leaves a file, and one that is lost leaves nothing but what it goes on from: the
checkpoint of a training, the journal of an estimate. Each is done under a lock, so that any number
of runners can work in one folder, on one machine or on many that share it.
"""

from __future__ import annotations

import contextlib
import errno
import shutil
import time
import traceback
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
from filelock import Timeout

from ...inference.training.checkpoint import CheckpointError
from ..gallery import draw_samples
from ..hearing import concerns
from ..runs import open_run
from ..scoring import evidence
from ..training import Stopped, resume, train
from .folder import Folder, readable, set_aside
from .study import Cell

# faults of the machine and not of the cell, which another try may find mended
TRANSIENT = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EIO, errno.EMFILE, errno.ENFILE)
Status = Literal["done", "busy", "failed", "stopped", "refused"]


@dataclass(frozen=True)
class Job:
    """Train a cell's model, or (``estimation``, ``part``) take one of its estimates."""

    cell: Cell
    estimation: int | None = None
    part: int | None = None

    @property
    def where(self) -> str:
        """What it does, for records and people."""
        if self.estimation is None:
            return "training"
        return self.cell.estimations[self.estimation].label

    def done(self, folder: Folder) -> bool:
        """Whether its file is there and whole."""
        if self.estimation is None:
            try:
                return folder.trained(self.cell) is not None
            except ValueError:
                set_aside(folder.training(self.cell))
                return False
        one = self.cell.estimations[self.estimation]
        # a part goes when the whole is there: looked at in this order, it is never missed
        files = [folder.evidence(self.cell, one)]
        if self.part is not None:
            files.insert(0, folder.evidence(self.cell, one, self.part))
        return any(map(readable, files))


@dataclass(frozen=True)
class Outcome:
    """How a job ended. Of ``failed`` and ``refused`` (by the machine) the error says why."""

    status: Status
    seconds: float = 0.0
    error: dict[str, str] | None = None
    warnings: tuple[str, ...] = ()


def do(job: Job, folder: Folder, threads: int | None = 1) -> Outcome:
    """Do a job, unless it is done, or under way elsewhere (``busy``)."""
    start = time.perf_counter()
    status: Status = "done"
    error = None
    name = job.cell.training_id
    if job.estimation is not None:
        name = f"{name}-{_evidence_file(job, folder).stem}"
    with contextlib.ExitStack() as stack, warnings.catch_warnings(record=True) as heard:
        warnings.simplefilter("default")
        try:
            stack.enter_context(folder.lock(name).acquire(blocking=False))
            if not job.done(folder):
                stack.enter_context(limited(threads))
                _train(job, folder) if job.estimation is None else _score(job, folder)
        except Timeout:
            status = "busy"
        except (Stopped, KeyboardInterrupt):
            status = "stopped"
        except Exception as raised:  # a user's code runs here, and other cells must not suffer
            status = "refused" if _of_machine(raised) else "failed"
            error = describe(raised, job.where)
    told = dict.fromkeys(f"{job.where}: {one.message}" for one in heard if concerns(one.category))
    return Outcome(status, time.perf_counter() - start, error, tuple(told))


@contextlib.contextmanager
def limited(threads: int | None) -> Iterator[None]:
    """Inside, torch computes on so many threads; afterwards on as many as before."""
    before = torch.get_num_threads()
    if threads is not None:
        torch.set_num_threads(threads)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def describe(error: BaseException, where: str) -> dict[str, str]:
    """An error for the record."""
    return {
        "type": type(error).__name__,
        "message": str(error).partition("\nTrace Shapes:")[0].strip(),
        "traceback": "".join(traceback.format_exception(error)),
        "where": where,
    }


def _of_machine(error: BaseException) -> bool:
    return isinstance(error, OSError) and error.errno in TRANSIENT


def _train(job: Job, folder: Folder) -> None:
    path, settings = folder.training(job.cell), job.cell.settings
    if (path / "run.json").exists():
        try:
            run = resume(open_run(path), progress=False).run
        except CheckpointError:
            # damaged, or of settings that this version reads otherwise: begin again
            set_aside(path)
            run = train(settings, path, progress=False).run
    else:
        if path.exists():  # killed before it had anything to go on from
            shutil.rmtree(path)
        run = train(settings, path, progress=False).run
    draw_samples(run, run.path / "samples.png")


def _score(job: Job, folder: Folder) -> None:
    assert job.estimation is not None
    one = job.cell.estimations[job.estimation]
    run = folder.trained(job.cell)
    if run is None:
        raise FileNotFoundError(f"{folder.training(job.cell)} is not trained")
    part = (0, 1) if job.part is None else (job.part, one.parts)
    evidence(run, one.question, _evidence_file(job, folder), part)


def _evidence_file(job: Job, folder: Folder) -> Path:
    assert job.estimation is not None
    return folder.evidence(job.cell, job.cell.estimations[job.estimation], job.part)
