"""The score of a run: log p(x) of its held-out data, with its errors, kept in a file.

    settings -> data and model -> estimator -> Estimate -> evidence-*.nc

The file is an `xarray.Dataset` over ``datum`` (rows of the split) in the classic netCDF format,
which SciPy alone can write and read, with everything that the numbers depend on in its attributes.
"""

from __future__ import annotations

import hashlib
import json
import math
import re
import sys
from collections.abc import Callable
from dataclasses import asdict, dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch

from ..inference import Estimate, ImportanceSampling, PriorMonteCarlo
from ..inference.evidence.estimate import khat_threshold
from ..inference.files import write_new
from ..inference.tables import table
from ..models import load
from .datasets import Dataset
from .factories import FactoryError
from .options import accepts, call, look_up
from .pairs import Pair, as_pair, find_device
from .runs import Run, check_writable
from .training import check_data, load_data, restore

ESTIMATORS: dict[str, Callable[..., Any]] = {
    "importance-sampling": ImportanceSampling,
    "prior-monte-carlo": PriorMonteCarlo,
}
SIDES = {
    "lower": "its expectation lies below the true log p(x)",
    "upper": "its expectation lies above the true log p(x)",
    "consistent": "its expectation lies on no known side of the true log p(x)",
}


@dataclass(frozen=True)
class Question:
    """What is asked of a run."""

    estimator: str = "importance-sampling"
    num_samples: int = 5000
    options: dict[str, Any] = field(default_factory=dict)
    split: str = "test"
    subset: int | None = None
    subset_seed: int = 0
    seed: int = 0
    device: str = "auto"
    data_folder: str | None = None

    def file(self, run: Run) -> Path:
        """Where the answer goes, unless it is told otherwise."""
        parts = [self.estimator, self.split, f"K{self.num_samples}"]
        if self.subset is not None:
            parts.append(f"subset{self.subset}-{self.subset_seed}")
        parts += [f"{name}={value}" for name, value in sorted(self.options.items())]
        # a run that goes on has other parameters, and its older answers stay true of the older
        parts += [f"seed{self.seed}", run.position()]
        parts = [re.sub(r"[^\w.=-]+", "-", part) for part in parts]
        return run.path / f"evidence-{'-'.join(parts)}.nc"


@dataclass(frozen=True)
class Answer:
    """The estimate, of which rows of which split, and the file it is in."""

    estimate: Estimate
    rows: torch.Tensor
    total: int
    file: Path


def evidence(run: Run, question: Question, output: Path | None = None) -> Answer:
    """Score the held-out data of a run and write the answer.

    Raises:
        FileExistsError: the answer's file exists.
        DatasetError, FactoryError, ValueError, OSError: something asked for is not there, or not
            as it must be; raised before any scoring.
        ProgramError: the program pair has no log p(x) per datum.
    """
    file = question.file(run) if output is None else output
    if file.exists():
        raise FileExistsError(
            f"output: {file} exists and is never written over; choose another --output"
        )
    check_writable(file.parent)
    device = find_device(question.device)
    estimator = _estimator(question)
    dataset = _dataset(run, question)
    rows = _rows(dataset, question)
    pair = load_pair(run, dataset, device)
    x = dataset.split(question.split)[rows]
    with pair.evaluating():
        estimate = estimator(pair.model, pair.guide, x)
    if not isinstance(estimate, Estimate):
        raise FactoryError(
            f"the estimator of '{question.estimator}' should return an Estimate, "
            f"found {type(estimate).__name__}."
        )
    found = estimate.to_dataset().assign_coords(datum=rows.numpy())
    found.attrs |= _provenance(run, question, dataset)
    file = write_new(file, bytes(found.to_netcdf(engine="scipy")))
    return Answer(estimate, rows, len(dataset.split(question.split)), file)


def load_pair(run: Run, dataset: Dataset, device: torch.device | None = None) -> Pair:
    """The trained pair of a run: from its model file, or else built and filled anew.

    Raises:
        ValueError: model file or checkpoint are damaged, or no epoch is finished.
    """
    if run.result is not None and run.model.exists():
        pair = as_pair(load(run.model), str(run.model))
    else:
        pair = restore(run, dataset)
    return pair.to(device)


def summary(answer: Answer, question: Question) -> str:
    """The answer as a table of one row, and what its words mean."""
    estimate = answer.estimate
    mean, elbo = estimate.mean(), estimate.mean_elbo()
    limit = khat_threshold(estimate.num_samples)
    cells = {
        "estimator": question.estimator,
        "K": f"{estimate.num_samples:,}",
        "log p(x)": f"{mean.value:.3f}",
        "± Monte Carlo": number(mean.monte_carlo_stderr),
        "± data": number(mean.data_stderr),
        "ELBO": f"{elbo.value:.3f}",
        "k̂ median": khat_quantile(estimate, 0.5),
        "k̂ 95%": khat_quantile(estimate, 0.95),
        "k̂ max": khat_quantile(estimate, 1.0),
        f"k̂ ≥ {limit:.2f}": f"{mean.unreliable:.1%}",
        "side": estimate.direction,
    }
    lines = [
        table(list(cells), [list(cells.values())], left=(0,)),
        "",
        f"nats per datum, mean over {len(estimate):,} of {answer.total:,} {question.split} data; "
        f"{estimate.direction}: {SIDES[estimate.direction]}",
    ]
    if mean.unreliable > 0:
        lines.append(
            f"k̂ is too high (or unknown) for {mean.unreliable:.1%} of the data: their numbers, and "
            "the Monte Carlo error of all, may be worse than they look"
        )
    return "\n".join(lines)


def number(value: float) -> str:
    """An error to three decimals; a dash where there is none.

    >>> number(0.01234), number(float("nan"))
    ('0.012', '-')
    """
    return "-" if math.isnan(value) else f"{value:.3f}"


def khat_quantile(estimate: Estimate, q: float) -> str:
    """A quantile of k̂ over the data for which it is known; a dash where it is for none."""
    known = estimate.khat[~estimate.khat.isnan()]
    return f"{known.quantile(q, interpolation='higher'):.2f}" if len(known) else "-"


def _estimator(question: Question) -> Callable[..., Any]:
    factory = look_up("estimator", question.estimator, ESTIMATORS)
    options = {"num_samples": question.num_samples, "seed": question.seed, **question.options}
    if accepts(factory, "progress"):
        options.setdefault("progress", sys.stderr.isatty())
    estimator = call(question.estimator, factory, options=options)
    if not callable(estimator):
        raise FactoryError(
            f"'{question.estimator}' should return an estimator, called as (model, guide, x); "
            f"found {type(estimator).__name__}."
        )
    return estimator


def _dataset(run: Run, question: Question) -> Dataset:
    settings = run.settings
    if question.data_folder is not None:
        settings = replace(settings, data_folder=question.data_folder)
    dataset = load_data(settings)
    check_data(run, dataset)
    return dataset


def _rows(dataset: Dataset, question: Question) -> torch.Tensor:
    if question.split == "train":
        raise ValueError("split should be test or validation: training data are not held out")
    if question.subset is None:
        return torch.arange(len(dataset.split(question.split)))
    return dataset.subset_indices(question.split, question.subset, question.subset_seed)


def _provenance(run: Run, question: Question, dataset: Dataset) -> dict[str, Any]:
    source = run.model if run.result is not None and run.model.exists() else run.checkpoint
    return {
        "run": str(run.path),
        "run_settings": json.dumps(asdict(run.settings)),
        "source": source.name,
        "source_sha256": hashlib.sha256(source.read_bytes()).hexdigest(),
        "dataset": dataset.name,
        "fingerprint": dataset.fingerprint,
        "split": question.split,
        "subset": -1 if question.subset is None else question.subset,
        "subset_seed": question.subset_seed,
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
    }
