"""What a cell ends in: its estimates put together of their parts, and a record of all found."""

from __future__ import annotations

import itertools
import json
import math
import os
import socket
from collections.abc import Mapping, Sequence
from typing import Any

import xarray as xr

from ...inference.files import write_atomically
from ..machine import describe_machine
from ..runs import Run
from .folder import CELL, Folder, now, readable, sha256, write_json
from .study import Cell


def join_parts(cell: Cell, index: int, folder: Folder) -> None:
    """Put the parts of an estimate together in one file, in the order of the data.

    Raises:
        FileNotFoundError: a part is missing.
    """
    one = cell.estimations[index]
    if one.parts == 1:
        return
    whole = folder.evidence(cell, one)
    with folder.lock(f"{cell.training_id}-{whole.stem}"):
        files = [folder.evidence(cell, one, part) for part in range(one.parts)]
        if readable(whole):  # another runner's work, it may be
            for file in files:
                file.unlink(missing_ok=True)
            return
        parts = [xr.load_dataset(file, engine="scipy") for file in files]
        joined = xr.concat(parts, "datum", data_vars="minimal", combine_attrs="override")
        told = itertools.chain(*(_made(part.attrs)[1] for part in parts))
        joined.attrs |= {
            "parts": one.parts,
            "seconds": math.fsum(_made(part.attrs)[0] for part in parts),
            "warnings": json.dumps(list(dict.fromkeys(told)), ensure_ascii=False),
        }
        write_atomically(whole, bytes(joined.to_netcdf(engine="scipy")))
        for file in files:
            file.unlink()


def _made(attrs: Mapping[str, Any]) -> tuple[float, list[str]]:
    """What an estimate took and was warned of, as its file tells; NaN where it does not."""
    return float(attrs.get("seconds", math.nan)), json.loads(attrs.get("warnings", "[]"))


def write_record(
    cell: Cell,
    folder: Folder,
    warned: Sequence[str] = (),
    errors: Sequence[dict[str, str]] = (),
) -> dict[str, Any]:
    """Write down a cell that is finished or has failed: what it found is in the files it names.

    Args:
        cell: of whose jobs none is under way here.
        folder: of the study.
        warned: of what has failed; what is done tells by itself.
        errors: of the jobs that have failed.
    """
    try:
        run: Run | None = folder.trained(cell)
    except ValueError:
        run = None
    errors = [*errors, *([] if errors else _gone(cell, folder))]
    told = [] if run is None else [f"training: {one}" for one in run.record.get("warnings", ())]
    estimates = []
    for one in cell.estimations:
        file = folder.evidence(cell, one)
        if readable(file):
            with xr.open_dataset(file, engine="scipy") as found:
                seconds, heard = _made(found.attrs)
            told += [f"{one.label}: {each}" for each in heard]
            estimates.append(
                {
                    "estimator": one.label,
                    "file": file.relative_to(folder.path).as_posix(),
                    "sha256": sha256(file),
                    "spec": one.spec(),
                    "seconds": None if math.isnan(seconds) else seconds,
                }
            )
    record = {
        "format": CELL,
        "id": cell.id,
        "data": cell.data,
        "model": cell.model,
        "objective": cell.objective,
        "seed": cell.seed,
        "spec": cell.spec(),
        "status": "failed" if errors else "done",
        "errors": errors,
        "training": None if run is None else _training(cell, run, folder),
        "estimates": estimates,
        "warnings": list(dict.fromkeys((*told, *warned))),
        "machine": describe_machine(),
        "finished": now(),
        "pid": os.getpid(),
        "host": socket.gethostname(),
    }
    write_json(folder.record(cell), record)
    return record


def _gone(cell: Cell, folder: Folder) -> list[dict[str, str]]:
    """Estimates that were there, and are no more: without them a cell is not done."""
    return [
        {
            "type": "FileNotFoundError",
            "message": f"{file.name} was gone, or damaged, when the cell was finished",
            "traceback": "",
            "where": one.label,
        }
        for one in cell.estimations
        if not readable(file := folder.evidence(cell, one))
    ]


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
