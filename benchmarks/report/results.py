"""What a study's folder holds, as rows: one for each data set, model, objective and estimator.

A row has a run for each seed. What cannot be read is listed, and the rest is reported without it.
"""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import xarray as xr

from ..bench.folder import CELL, STUDY, read_json, sha256

Array = npt.NDArray[np.float64]
Point = tuple[str, str, str]  # data, model, objective


@dataclass(frozen=True)
class Estimated:
    """One estimate of one trained model: arrays over the data, ``(N,)``, in nats."""

    seed: int
    datum: npt.NDArray[np.int64]
    log_evidence: Array
    stderr: Array
    khat: Array
    elbo: Array
    num_samples: int
    khat_threshold: float
    direction: str
    evaluations: float
    gradients: float
    seconds: float
    upper: Array | None = None
    upper_stderr: Array | None = None
    simulated: bool = False
    rhat: Array | None = None

    @property
    def unreliable(self) -> npt.NDArray[np.bool_]:
        """Where k̂ is too high or unknown; of chains, where R̂ is."""
        bad = ~(self.khat < self.khat_threshold)
        if self.rhat is not None:
            return (bad & ~np.isnan(self.khat)) | ~(self.rhat < 1.05)
        return bad


@dataclass(frozen=True)
class Row:
    """All seeds of one (data, model, objective) under one estimator."""

    point: Point
    estimator: str
    kind: str  # the estimator's name and its options, but for the number of samples
    runs: Sequence[Estimated]

    @property
    def direction(self) -> str:
        return self.runs[0].direction


@dataclass(frozen=True)
class Curve:
    """The history of one training."""

    point: Point
    seed: int
    columns: dict[str, Array]


@dataclass
class Results:
    """All that a report is made of."""

    study: dict[str, Any]
    records: list[dict[str, Any]] = field(default_factory=list)
    rows: list[Row] = field(default_factory=list)
    curves: list[Curve] = field(default_factory=list)
    samples: dict[Point, Path] = field(default_factory=dict)
    damaged: list[str] = field(default_factory=list)

    @property
    def unfinished(self) -> int:
        there = {record["id"] for record in self.records}
        return sum(cell["id"] not in there for cell in self.study["cells"])

    @property
    def failed(self) -> list[dict[str, Any]]:
        return [record for record in self.records if record["status"] == "failed"]

    @property
    def points(self) -> list[Point]:
        return list(dict.fromkeys(row.point for row in self.rows))


def read_results(folder: Path) -> Results:
    """Everything that is there.

    Raises:
        FileNotFoundError: there is no study in the folder.
    """
    study = read_json(folder / "study.json")
    if study is None or study.get("format") != STUDY:
        raise FileNotFoundError(
            f"FOLDER should hold a study that pyrovae bench has begun; there is no readable "
            f"{folder / 'study.json'}"
        )
    results = Results(study)
    found: dict[tuple[Point, str], list[Estimated]] = {}
    kinds: dict[tuple[Point, str], str] = {}
    for cell in study["cells"]:
        file = folder / "cells" / f"{cell['id']}.json"
        if not file.exists():
            continue
        record = read_json(file)
        if record is None or record.get("format") != CELL:
            results.damaged.append(str(file.relative_to(folder)))
            continue
        results.records.append(record)
        # labels are those of the study as it is now: a cell may have been made under others
        point = (cell["data"], cell["model"], cell["objective"])
        _read_training(folder, point, cell["seed"], record, results)
        for one in record["estimates"]:
            key = point, one["estimator"]
            try:
                estimated = _read_estimate(folder, cell["seed"], one)
            except Exception as error:  # whatever a damaged file makes the readers raise
                results.damaged.append(f"{one.get('file')}: {error}")
                continue
            found.setdefault(key, []).append(estimated)
            kinds[key] = _kind(one["spec"])
    order = {cell_point(cell): i for i, cell in reversed(list(enumerate(study["cells"])))}
    for key in sorted(found, key=lambda key: order[key[0]]):
        results.rows.append(Row(*key, kinds[key], found[key]))
    return results


def cell_point(cell: dict[str, Any]) -> Point:
    return cell["data"], cell["model"], cell["objective"]


def _kind(spec: dict[str, Any]) -> str:
    rest = {k: v for k, v in spec["options"].items() if k not in BUDGETS}
    return f"{spec['estimator']}{json.dumps(rest, sort_keys=True) if rest else ''}"


BUDGETS = ("num_samples", "num_temperatures", "num_steps", "num_draws", "num_chains")


def _read_estimate(folder: Path, seed: int, one: dict[str, Any]) -> Estimated:
    file = folder / one["file"]
    if sha256(file) != one["sha256"]:
        raise ValueError("its contents are not those that the cell has recorded")
    with xr.open_dataset(file, engine="scipy") as data:
        data.load()
    provenance = json.loads(data.attrs.get("provenance", "{}"))

    def column(name: str) -> Array | None:
        return np.asarray(data[name].values, dtype=float) if name in data else None

    log_evidence = column("log_evidence")
    assert log_evidence is not None
    unknown = np.full_like(log_evidence, np.nan)
    upper = column("upper_log_evidence")
    return Estimated(
        seed=seed,
        datum=data["datum"].values.astype(np.int64),
        log_evidence=log_evidence,
        stderr=_or(column("stderr"), unknown),
        khat=_or(column("khat"), unknown),
        elbo=_or(column("elbo"), unknown),
        num_samples=int(data.attrs.get("num_samples", 0)),
        khat_threshold=float(data.attrs.get("khat_threshold", 0.7)),
        direction=str(data.attrs.get("direction", "unknown")),
        evaluations=float(provenance.get("evaluations", np.nan)),
        gradients=float(provenance.get("gradients", np.nan)),
        seconds=float(one["seconds"] if one.get("seconds") is not None else np.nan),
        upper=upper,
        upper_stderr=column("upper_stderr"),
        simulated=upper is not None and not one["spec"]["options"].get("posterior"),
        rhat=column("rhat"),
    )


def _or(column: Array | None, unknown: Array) -> Array:
    return unknown if column is None else column


def _read_training(
    folder: Path, point: Point, seed: int, record: dict[str, Any], results: Results
) -> None:
    training = record.get("training")
    if training is None:
        return
    path = folder / training["folder"]
    try:
        text = (path / "history.csv").read_text(encoding="utf-8")
        lines = list(csv.DictReader(io.StringIO(text)))
        columns = {
            name: np.array([float(line[name] or "nan") for line in lines]) for name in lines[0]
        }
    except (OSError, ValueError, KeyError, IndexError, TypeError) as error:
        results.damaged.append(f"{training['folder']}/history.csv: {error}")
    else:
        results.curves.append(Curve(point, seed, columns))
    picture = path / "samples.png"
    if picture.exists():
        results.samples.setdefault(point, picture)
