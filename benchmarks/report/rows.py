"""What a report is made of: rows, one for each data set, model, objective and estimator.

A row has a run for each seed, all of the same data. Whatever could not be read is listed next to
them, so that a report says what it lacks.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from ...inference.evidence.estimate import RELIABLE_RHAT

Array = npt.NDArray[np.float64]
Indices = npt.NDArray[np.int64]
Point = tuple[str, str, str]  # data, model, objective


@dataclass(frozen=True, eq=False)  # arrays have no one truth value
class Estimated:
    """One estimate of one trained model: arrays over the data, ``(N,)``, in nats.

    ``split`` and ``fingerprint`` say of which data set ``datum`` are the rows; ``simulated`` ones
    were drawn from the model, and are nobody else's.
    """

    seed: int
    datum: Indices
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
    guide_elbo: Array | None = None
    split: str = ""
    fingerprint: str = ""
    whole: bool = True  # whether all data of the split are asked for

    @property
    def unreliable(self) -> npt.NDArray[np.bool_]:
        """Where k̂ is too high or unknown; of chains, where R̂ is."""
        bad = ~(self.khat < self.khat_threshold)
        if self.rhat is not None:
            return (bad & ~np.isnan(self.khat)) | ~(self.rhat < RELIABLE_RHAT)
        return bad

    @property
    def undiagnosed(self) -> npt.NDArray[np.bool_]:
        """Where neither k̂ nor R̂ is known."""
        unknown: npt.NDArray[np.bool_] = np.isnan(self.khat)
        return unknown if self.rhat is None else unknown & np.isnan(self.rhat)

    def of(self, datum: Indices) -> Estimated:
        """Its part that is of these data."""
        at = np.flatnonzero(np.isin(self.datum, datum))
        at = at[np.argsort(self.datum[at])]
        names = ["datum", "log_evidence", "stderr", "khat", "elbo", "upper", "upper_stderr"]
        names += ["rhat", "guide_elbo"]
        columns = {name: getattr(self, name) for name in names}
        return replace(self, **{k: v[at] for k, v in columns.items() if v is not None})


@dataclass(frozen=True, eq=False)
class Row:
    """All seeds of one (data, model, objective) under one estimator.

    Raises:
        ValueError: its runs are not of the same data.
    """

    point: Point
    estimator: str
    kind: str  # the estimator's name and its options, but for the number of samples
    runs: Sequence[Estimated]

    def __post_init__(self) -> None:
        first = self.runs[0]
        if not all(same_data(first, run) for run in self.runs):
            raise ValueError(f"the runs of {self.point} should be of the same data, but are not")

    @property
    def direction(self) -> str:
        return self.runs[0].direction

    @property
    def simulated(self) -> bool:
        """Whether its data were drawn from the model."""
        return self.runs[0].simulated

    @property
    def refined(self) -> bool:
        """Whether a proposal of its own was fitted to each datum, beside the guide's."""
        return self.runs[0].guide_elbo is not None

    @property
    def sandwich(self) -> Array | None:
        """The upper estimate less the lower, of every run and datum; None where there is none."""
        uppers = [run.upper for run in self.runs if run.upper is not None]
        if len(uppers) < len(self.runs):
            return None
        return np.stack(uppers) - np.stack([run.log_evidence for run in self.runs])


def same_data(one: Estimated, other: Estimated) -> bool:
    """Whether two runs are of the same rows of the same split of the same data."""
    return (
        (one.split, one.fingerprint, one.simulated)
        == (other.split, other.fingerprint, other.simulated)
    ) and np.array_equal(one.datum, other.datum)


@dataclass(frozen=True, eq=False)
class Curve:
    """The history of one training: its epochs, what they took, and the bound at their ends."""

    point: Point
    seed: int
    epoch: Array
    seconds: Array
    bound: Array


@dataclass(frozen=True)
class Record:
    """A cell that is finished or has failed."""

    point: Point
    seed: int
    failed: bool
    errors: tuple[dict[str, str], ...] = ()
    training: dict[str, Any] = field(default_factory=dict)
    warnings: tuple[str, ...] = ()
    machine: str = ""
    versions: str = ""
    finished: str = ""

    @property
    def label(self) -> str:
        return f"{', '.join(self.point)}, seed {self.seed}"

    @property
    def fault(self) -> str:
        """What went wrong, in a line."""
        told = []
        for error in self.errors:
            parts = [error.get(name) for name in ("where", "type", "message")]
            told.append(": ".join(part for part in parts if part))
        return "; ".join(filter(None, told)) or "nothing is known of why"


@dataclass
class Results:
    """All that a report is made of.

    Attributes:
        study: as ``study.json`` has it.
        dynamic: by data set, whether bits were drawn; one that is not there is not known.
        fingerprints: by data set, what its held-out data are known by.
        samples: pictures, PNG.
        damaged: what could not be read, and why.
        notes: what was read otherwise than it stands there, and why.
    """

    study: dict[str, Any]
    records: list[Record] = field(default_factory=list)
    rows: list[Row] = field(default_factory=list)
    curves: list[Curve] = field(default_factory=list)
    samples: dict[Point, bytes] = field(default_factory=dict)
    dynamic: dict[str, bool] = field(default_factory=dict)
    fingerprints: dict[str, str] = field(default_factory=dict)
    damaged: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    @property
    def total(self) -> int:
        return len(self.study["cells"])

    @property
    def failed(self) -> list[Record]:
        return [record for record in self.records if record.failed]

    @property
    def points(self) -> list[Point]:
        return list(dict.fromkeys(row.point for row in self.rows))

    @property
    def data(self) -> list[str]:
        """The data sets, in the study's order."""
        return list(dict.fromkeys(str(cell["data"]) for cell in self.study["cells"]))

    def of(self, data: str) -> Results:
        """What is of one data set: numbers of two are not comparable."""
        return replace(
            self,
            records=[record for record in self.records if record.point[0] == data],
            rows=[row for row in self.rows if row.point[0] == data],
            curves=[curve for curve in self.curves if curve.point[0] == data],
            samples={p: picture for p, picture in self.samples.items() if p[0] == data},
        )
