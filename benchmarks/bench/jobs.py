"""The work of a study, cut into jobs: a training, an estimate or a part of one, a record.

A job that is done leaves a file, and one that is lost leaves nothing but what it goes on from: the
checkpoint of a training, the journal of an estimate. Each is done under a lock, so that any number
of runners can work in one folder, on one machine or on many that share it.
"""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
import socket
import time
import traceback
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
import xarray as xr
from filelock import Timeout

from ...inference.files import write_atomically
from ..gallery import draw_samples
from ..machine import describe_machine
from ..runs import Run, open_run
from ..scoring import evidence
from ..training import Stopped, resume, train
from .folder import CELL, Folder, now, readable, set_aside, sha256, write_json
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
        return readable(folder.evidence(self.cell, one)) or (
            self.part is not None and readable(folder.evidence(self.cell, one, self.part))
        )


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
    told = dict.fromkeys(f"{job.where}: {one.message}" for one in heard if _concerns(one))
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


def _concerns(warning: warnings.WarningMessage) -> bool:
    """Whether a warning is about the numbers, and not about some library's own future."""
    return issubclass(warning.category, UserWarning | RuntimeWarning)


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
        except ValueError:
            # a damaged checkpoint, or settings that this version reads otherwise: begin again
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


def join_parts(cell: Cell, index: int, folder: Folder) -> None:
    """Put the parts of an estimate together in one file, in the order of the data."""
    one = cell.estimations[index]
    whole = folder.evidence(cell, one)
    if one.parts == 1 or readable(whole):
        return
    files = [folder.evidence(cell, one, part) for part in range(one.parts)]
    parts = [xr.load_dataset(file, engine="scipy") for file in files]
    joined = xr.concat(parts, "datum", data_vars="minimal", combine_attrs="override")
    joined.attrs["parts"] = one.parts
    write_atomically(whole, bytes(joined.to_netcdf(engine="scipy")))
    for file in files:
        file.unlink()


def write_record(
    cell: Cell,
    folder: Folder,
    seconds: Mapping[str, float],
    warned: Sequence[str] = (),
    error: dict[str, str] | None = None,
) -> dict[str, Any]:
    """Write down a cell that is finished or has failed: what it found is in the files it names."""
    try:
        run: Run | None = folder.trained(cell)
    except ValueError:
        run = None
    record = {
        "format": CELL,
        "id": cell.id,
        "data": cell.data,
        "model": cell.model,
        "objective": cell.objective,
        "seed": cell.seed,
        "spec": cell.spec(),
        "status": "done" if error is None else "failed",
        "error": error,
        "training": None if run is None else _training(cell, run, folder),
        "estimates": [
            {
                "estimator": one.label,
                "file": file.relative_to(folder.path).as_posix(),
                "sha256": sha256(file),
                "spec": one.spec(),
                "seconds": seconds.get(one.label),
            }
            for one in cell.estimations
            if (file := folder.evidence(cell, one)).exists()
        ],
        "warnings": list(warned),
        "machine": describe_machine(),
        "finished": now(),
        "pid": os.getpid(),
        "host": socket.gethostname(),
    }
    write_json(folder.record(cell), record)
    return record


def _training(cell: Cell, run: Run, folder: Folder) -> dict[str, Any]:
    assert run.result is not None
    return {
        "id": cell.training_id,
        "folder": run.path.relative_to(folder.path).as_posix(),
        "seconds": run.result["seconds"],
        "epochs": run.result["epochs"],
        "best_epoch": run.result["parameters_of_epoch"],
        "validation_elbo": run.result["validation_elbo"],
        "stopped_early": run.result["stopped_early"],
    }
