"""From a study's folder to rows. What cannot be read is listed, and the rest is read without it."""

from __future__ import annotations

import csv
import io
import json
import math
from functools import reduce
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr
from PIL import Image

from ...inference.evidence.estimate import khat_threshold
from ..bench.folder import CELL, STUDY, read_json, sha256
from .rows import Array, Curve, Estimated, Point, Record, Results, Row, same_data

NONE = np.array([], np.int64)  # no data
BUDGETS = ("num_samples", "num_temperatures", "num_steps", "num_draws", "num_chains")


def read_results(folder: Path) -> Results:
    """Everything that is there.

    Raises:
        FileNotFoundError: there is no study in the folder.
    """
    return _Reader(folder).read()


class _Reader:
    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.results = Results(_study(folder))
        self.found: dict[tuple[Point, str], list[Estimated]] = {}
        self.kinds: dict[tuple[Point, str], str] = {}

    def read(self) -> Results:
        for cell in self.results.study["cells"]:
            file = f"cells/{cell['id']}.json"
            if not (self.folder / file).exists():
                continue
            try:
                self._cell(cell, file)
            except Exception as error:  # whatever a damaged file makes the reader raise
                self._damaged(file, error)
        points = list(map(cell_point, self.results.study["cells"]))
        for key in sorted(self.found, key=lambda key: points.index(key[0])):
            runs = self._aligned(key, self.found[key])
            self.results.rows.append(Row(*key, self.kinds[key], runs))
        return self.results

    def _damaged(self, file: str, error: Exception) -> None:
        why = f"lacks {error}" if isinstance(error, KeyError) else f"{error or type(error)}"
        self.results.damaged.append(f"{file}: {why}")

    def _cell(self, cell: dict[str, Any], file: str) -> None:
        content = read_json(self.folder / file)
        if content is None or content.get("format") != CELL:
            raise ValueError("it does not read as the record of a cell")
        record = _record(cell, content)
        self.results.records.append(record)
        if record.training:
            self._training(record)
        for one in content["estimates"]:
            self._estimate(record, one)
        named = [one.get("estimator") for one in content["estimates"]]
        for label in content.get("spec", {}).get("estimates", {}):
            if not record.failed and label not in named:
                self.results.damaged.append(f"{file}: it lacks the estimate {label}")

    def _estimate(self, record: Record, one: dict[str, Any]) -> None:
        try:
            key = record.point, one["estimator"]
            estimated = _read_estimate(self.folder, record.seed, one)
            kind = _kind(one["spec"])
        except Exception as error:  # whatever a damaged file makes the readers raise
            self._damaged(str(one.get("file", one.get("estimator", "an estimate"))), error)
            return
        self.found.setdefault(key, []).append(estimated)
        self.kinds[key] = kind

    def _training(self, record: Record) -> None:
        name = str(record.training["folder"])
        path = self.folder / name
        dataset = (read_json(path / "run.json") or {}).get("dataset")
        if isinstance(dataset, dict) and "dynamic" in dataset:
            self.results.dynamic[record.point[0]] = bool(dataset["dynamic"])
            self.results.fingerprints[record.point[0]] = str(dataset.get("fingerprint", ""))
        else:
            self.results.damaged.append(f"{name}/run.json: it does not say what the data were")
        try:
            self.results.curves.append(_curve(record, path / "history.csv"))
        except (OSError, ValueError, KeyError, TypeError, csv.Error) as error:
            self._damaged(f"{name}/history.csv", error)
        picture = path / "samples.png"
        if picture.exists() and record.point not in self.results.samples:
            try:
                self.results.samples[record.point] = _picture(picture)
            except Exception as error:  # Pillow raises SyntaxError, among others
                self._damaged(f"{name}/samples.png", error)

    def _aligned(self, key: tuple[Point, str], runs: list[Estimated]) -> list[Estimated]:
        """Runs of the same data: those of other data go, and of more data in part."""
        first = runs[0]
        alike = [
            run for run in runs
            if same_data(run.of(NONE), first.of(NONE)) and np.isin(run.datum, first.datum).any()
        ]  # fmt: skip
        shared = reduce(np.intersect1d, [run.datum for run in alike])
        if not len(shared):
            alike, shared = [first], first.datum
        name = ", ".join((*key[0], key[1]))
        if gone := [run.seed for run in runs if run not in alike]:
            self.results.notes.append(
                f"{name}: seeds {_listed(gone)} are of other data than seed {first.seed}, and are "
                "left out"
            )
        if any(len(run.datum) != len(shared) for run in alike):
            self.results.notes.append(
                f"{name}: seeds have scored different data; of each, the {len(shared)} that all "
                "have are counted"
            )
        return [run.of(shared) for run in alike]


def _study(folder: Path) -> dict[str, Any]:
    study = read_json(folder / "study.json")
    if study is None or study.get("format") != STUDY or "cells" not in study:
        raise FileNotFoundError(
            f"FOLDER should hold a study that pyrovae bench has begun; there is no readable "
            f"{folder / 'study.json'}"
        )
    name = study.get("name", folder.resolve().name)
    return {"name": name, "title": name, "question": "", "toml": "", "commands": [], **study}


def cell_point(cell: dict[str, Any]) -> Point:
    return cell["data"], cell["model"], cell["objective"]


def _listed(seeds: list[int]) -> str:
    return ", ".join(map(str, seeds))


def _record(cell: dict[str, Any], content: dict[str, Any]) -> Record:
    machine = content.get("machine") or {}
    return Record(
        # labels are those of the study as it is now: a cell may have been made under others
        point=cell_point(cell),
        seed=int(cell["seed"]),
        failed=content["status"] == "failed",
        errors=tuple({k: str(v) for k, v in one.items()} for one in content.get("errors") or ()),
        training=dict(content["training"] or {}),
        warnings=tuple(map(str, content.get("warnings") or ())),
        machine=str(machine.get("summary", "")),
        versions=", ".join(f"{k} {v}" for k, v in machine.get("versions", {}).items()),
        finished=str(content.get("finished", "")),
    )


def _kind(spec: dict[str, Any]) -> str:
    rest = {k: v for k, v in spec.get("options", {}).items() if k not in BUDGETS}
    return f"{spec['estimator']}{json.dumps(rest, sort_keys=True) if rest else ''}"


def _read_estimate(folder: Path, seed: int, one: dict[str, Any]) -> Estimated:
    file = folder / one["file"]
    if sha256(file) != one["sha256"]:
        raise ValueError("its contents are not those that the cell has recorded")
    with xr.open_dataset(file, engine="scipy") as data:
        data.load()
    provenance = json.loads(data.attrs.get("provenance", "{}"))
    samples = int(data.attrs.get("num_samples", 0))
    log_evidence = np.asarray(data["log_evidence"].values, dtype=float)
    unknown = np.full_like(log_evidence, np.nan)

    def column(name: str) -> Array | None:
        return np.asarray(data[name].values, dtype=float) if name in data else None

    upper = column("upper_log_evidence")
    seconds = one.get("seconds")
    return Estimated(
        seed=seed,
        datum=data["datum"].values.astype(np.int64),
        log_evidence=log_evidence,
        stderr=_or(column("stderr"), unknown),
        khat=_or(column("khat"), unknown),
        elbo=_or(column("elbo"), unknown),
        num_samples=samples,
        khat_threshold=float(data.attrs.get("khat_threshold", khat_threshold(samples))),
        direction=str(data.attrs.get("direction", "unknown")),
        evaluations=float(provenance.get("evaluations", np.nan)),
        gradients=float(provenance.get("gradients", np.nan)),
        seconds=math.nan if seconds is None else float(seconds),
        upper=upper,
        upper_stderr=column("upper_stderr"),
        # bidirectional Monte Carlo draws its data from the model, unless it is told how to start
        simulated=upper is not None and not one["spec"].get("options", {}).get("posterior"),
        rhat=column("rhat"),
        guide_elbo=column("guide_elbo"),
        split=str(data.attrs.get("split", "")),
        fingerprint=str(data.attrs.get("fingerprint", "")),
        whole=int(data.attrs.get("subset", -1)) < 0,
    )


def _or(column: Array | None, unknown: Array) -> Array:
    return unknown if column is None else column


def _curve(record: Record, file: Path) -> Curve:
    lines = list(csv.DictReader(io.StringIO(file.read_text(encoding="utf-8"))))
    if not lines:
        raise ValueError("there is no epoch in it")

    def column(name: str) -> Array:
        return np.array([float(line[name] or "nan") for line in lines])

    return Curve(
        record.point, record.seed, column("epoch"), column("seconds"), column("validation_elbo")
    )


def _picture(file: Path) -> bytes:
    content = file.read_bytes()
    with Image.open(io.BytesIO(content), formats=["PNG"]) as picture:
        picture.verify()  # that it is whole, which loading does not
    return content
