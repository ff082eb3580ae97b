"""Folders of studies written by hand, for tests of the report: no model is trained for them."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr

# one grey pixel, written out so that nothing here depends on what reads it
PNG = bytes.fromhex(
    "89504e470d0a1a0a0000000d49484452000000010000000108000000003a7e9b55"
    "0000000a49444154789c636000000002000148afa4710000000049454e44ae426082"
)


class Folder:
    """A study's folder as `pyrovae bench` leaves it; cells are added one by one, then written."""

    def __init__(self, path: Path, **study: Any) -> None:
        self.path = path
        self.study: dict[str, Any] = {
            "format": "pyrovae-study-1",
            "name": "toy",
            "title": "A toy",
            "question": "What is it?",
            "toml": 'title = "A toy"\n',
            "commands": ["pyrovae bench toy.toml"],
            "published": [],
            **study,
        }
        self.cells: dict[tuple[str, str, str, int], dict[str, Any]] = {}
        self.dynamic = True

    def cell(self, data="d", model="m", objective="o", seed=0) -> dict[str, Any]:
        """The record of a cell, begun where there is none."""
        key = data, model, objective, seed
        if key in self.cells:
            return self.cells[key]
        name = hashlib.sha256(repr(key).encode()).hexdigest()[:16]
        names = {"data": data, "model": model, "objective": objective, "seed": seed}
        training = self.path / "trainings" / name
        training.mkdir(parents=True)
        rows = [f"{epoch},{1.0},{-9.0 - seed + epoch / 10},{0.5}" for epoch in range(1, 6)]
        head = "epoch,loss,validation_elbo,seconds"
        (training / "history.csv").write_text("\n".join([head, *rows]) + "\n")
        (training / "samples.png").write_bytes(PNG)
        dataset = {"dynamic": self.dynamic, "fingerprint": f"fingerprint of {data}"}
        (training / "run.json").write_text(json.dumps({"dataset": dataset}))
        self.cells[key] = {
            "format": "pyrovae-cell-1",
            "id": name,
            **names,
            "spec": {"estimates": {}},
            "status": "done",
            "errors": [],
            "training": {
                "folder": f"trainings/{name}",
                "seconds": 2.5,
                "epochs": 5,
                "best_epoch": 4,
                "validation_elbo": -8.5,
            },
            "estimates": [],
            "warnings": [],
            "machine": {"summary": "a machine", "versions": {"torch": "9.9"}},
            "finished": "2026-01-01T00:00:00+00:00",
        }
        return self.cells[key]

    def estimate(
        self,
        values: Any,
        estimator: str = "L",
        stderr: Any = 0.1,
        khat: Any = 0.1,
        datum: Any = None,
        options: dict[str, Any] | None = None,
        columns: dict[str, Any] | None = None,
        attrs: dict[str, Any] | None = None,
        **where: Any,
    ) -> dict[str, Any]:
        """Add an estimate to a cell; returns its entry in the record."""
        cell = self.cell(**where)
        values = np.asarray(values, float)
        given = {"log_evidence": values, "stderr": stderr, "khat": khat, "elbo": values - 0.5}
        given |= columns or {}
        full = {name: ("datum", np.broadcast_to(v, values.shape)) for name, v in given.items()}
        told = {
            "direction": "lower",
            "num_samples": 1000,
            "khat_threshold": 2 / 3,
            "split": "test",
            "fingerprint": f"fingerprint of {cell['data']}",
            "provenance": json.dumps({"evaluations": 1000, "gradients": 0.0}),
        } | (attrs or {})
        made = xr.Dataset(full, {"datum": range(len(values)) if datum is None else datum}, told)
        name = f"evidence-{len(cell['estimates'])}.nc"
        file = self.path / "trainings" / cell["id"] / name
        file.write_bytes(bytes(made.to_netcdf(engine="scipy")))
        one = {
            "estimator": estimator,
            "file": f"trainings/{cell['id']}/{name}",
            "sha256": hashlib.sha256(file.read_bytes()).hexdigest(),
            "spec": {"estimator": "importance-sampling", "options": options or {}},
            "seconds": 1.5,
        }
        cell["estimates"].append(one)
        cell["spec"]["estimates"][estimator] = one["spec"]
        return one

    def fail(self, message: str, **where: Any) -> None:
        """Let a cell fail in training."""
        self.cell(**where).update(
            status="failed",
            training=None,
            errors=[{"where": "training", "type": "Boom", "message": message, "traceback": "a\nb"}],
        )

    def write(self) -> Path:
        """All of it."""
        (self.path / "cells").mkdir(parents=True, exist_ok=True)
        names = ("id", "data", "model", "objective", "seed")
        cells = [{name: cell[name] for name in names} for cell in self.cells.values()]
        study = {"cells": cells, **self.study}
        (self.path / "study.json").write_text(json.dumps(study))
        for cell in self.cells.values():
            (self.path / "cells" / f"{cell['id']}.json").write_text(json.dumps(cell))
        return self.path


def nothing_finished(path: Path) -> Path:
    """A study that has only begun."""
    cell = {"id": "0" * 16, "data": "d", "model": "m", "objective": "o", "seed": 0}
    return Folder(path, cells=[cell]).write()
