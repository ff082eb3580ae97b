"""The score of a run: log p(x) of its held-out data, with its errors, kept in a file.

    settings -> data and model -> estimator -> Estimate -> evidence-*.nc

The file is an `xarray.Dataset` over ``datum`` (rows of the split) in the classic netCDF format,
which SciPy alone can write and read, with everything that the numbers depend on in its attributes,
and what they took (``seconds``) and were warned of (``warnings``).
"""

from __future__ import annotations

import hashlib
import json
import math
import re
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch

from ..inference import (
    AnnealedImportanceSampling,
    BidirectionalMonteCarlo,
    BridgeSampling,
    ChiUpperBound,
    Estimate,
    EvidenceUpperBound,
    HarmonicMean,
    ImportanceSampling,
    JackknifeImportanceSampling,
    PriorMonteCarlo,
    RefinedImportanceSampling,
    Sandwich,
    SequentialMonteCarlo,
    ThermodynamicIntegration,
)
from ..inference.evidence.estimate import khat_threshold
from ..inference.files import write_new
from ..inference.rng import derive, forked
from ..inference.tables import table
from ..models import load
from .datasets import Dataset
from .factories import FactoryError
from .hearing import heard
from .options import accepts, call, look_up
from .pairs import Pair, as_pair, find_device
from .runs import Run, check_writable
from .training import check_data, load_data, restore

ESTIMATORS: dict[str, Callable[..., Any]] = {
    "importance-sampling": ImportanceSampling,
    "prior-monte-carlo": PriorMonteCarlo,
    "refined-importance-sampling": RefinedImportanceSampling,
    "jackknife-importance-sampling": JackknifeImportanceSampling,
    "annealed-importance-sampling": AnnealedImportanceSampling,
    "bidirectional-monte-carlo": BidirectionalMonteCarlo,
    "sequential-monte-carlo": SequentialMonteCarlo,
    "bridge-sampling": BridgeSampling,
    "thermodynamic-integration": ThermodynamicIntegration,
    "chi-upper-bound": ChiUpperBound,
    "evidence-upper-bound": EvidenceUpperBound,
    "harmonic-mean": HarmonicMean,
}
NUM_SAMPLES = 5000  # of an estimator that takes a number of samples and is told none
SIDES = {
    "lower": "its expectation lies below the true log p(x)",
    "upper": "its expectation lies above the true log p(x)",
    "consistent": "its expectation lies on no known side of the true log p(x)",
}


@dataclass(frozen=True)
class Question:
    """What is asked of a run."""

    estimator: str = "importance-sampling"
    num_samples: int | None = None
    options: dict[str, Any] = field(default_factory=dict)
    split: str = "test"
    subset: int | None = None
    subset_seed: int = 0
    seed: int = 0
    device: str = "auto"
    data_folder: str | None = None

    def samples(self) -> int | None:
        """K, where the estimator takes one or was given one."""
        factory = look_up("estimator", self.estimator, ESTIMATORS)
        if self.num_samples is None and accepts(factory, "num_samples"):
            return NUM_SAMPLES
        return self.num_samples

    def asked(self) -> tuple[Callable[..., Any], dict[str, Any]]:
        """The factory of the estimator, and the options that it is called with."""
        factory = look_up("estimator", self.estimator, ESTIMATORS)
        options: dict[str, Any] = {"seed": self.seed} if accepts(factory, "seed") else {}
        if (samples := self.samples()) is not None:
            options = {"num_samples": samples, **options}
        return factory, options | self.options

    def file(self, run: Run) -> Path:
        """Where the answer goes, unless it is told otherwise."""
        parts = [self.estimator, self.split]
        if (samples := self.samples()) is not None:
            parts.append(f"K{samples}")
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

    estimate: Estimate | Sandwich
    rows: torch.Tensor
    total: int
    file: Path


def evidence(
    run: Run, question: Question, output: Path | None = None, part: tuple[int, int] = (0, 1)
) -> Answer:
    """Score the held-out data of a run and write the answer.

    Args:
        run: the trained model.
        question: what is asked of it.
        output: the answer's file.
        part: ``(i, n)`` scores the i-th of n parts of the data, with random numbers of its own.

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
    journal = file.with_name(f".{file.name}.unfinished")
    index, parts = part
    # parts that shared their draws would share their errors, which a mean takes for independent
    seed = question.seed if parts == 1 else derive(question.seed, "part", index)
    estimator = _estimator(replace(question, seed=seed), journal)
    dataset = _dataset(run, question)
    rows = _rows(dataset, question).tensor_split(parts)[index]
    pair = load_pair(run, dataset, device)
    x = dataset.split(question.split)[rows]
    start = time.perf_counter()
    ambient = forked(device or torch.device("cpu"), seed)  # for estimators without a seed
    told: list[str] = []
    with heard(told), pair.evaluating(), ambient:
        estimate = estimator(pair.model, pair.guide, x)
    seconds = time.perf_counter() - start
    if not isinstance(estimate, Estimate | Sandwich):
        raise FactoryError(
            f"the estimator of '{question.estimator}' should return an Estimate, "
            f"found {type(estimate).__name__}."
        )
    found = estimate.to_dataset().assign_coords(datum=rows.numpy())
    found.attrs |= _provenance(run, question, dataset)
    found.attrs |= {"seconds": seconds, "warnings": json.dumps(told, ensure_ascii=False)}
    file = write_new(file, bytes(found.to_netcdf(engine="scipy")))
    journal.unlink(missing_ok=True)
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
    found = answer.estimate
    both = [found] if isinstance(found, Estimate) else [found.lower, found.upper]
    rows = [_cells(question.estimator, estimate) for estimate in both]
    of = f"{len(both[0]):,} of {answer.total:,} {question.split} data"
    lines = [table(list(rows[0]), [list(cells.values()) for cells in rows], left=(0,)), ""]
    lines.append(f"nats per datum, mean over {of}")
    lines += [f"{one.direction}: {SIDES[one.direction]}" for one in both]
    if isinstance(found, Sandwich):
        gap, error = found.mean_gap()
        where = "x" if question.options.get("posterior") else "data simulated from the model"
        lines.append(f"gap {gap:.3f} ± {error:.3f}, on {where}: how far off either side can be")
    warnings = [warning for one in both for warning in one.warnings()]
    if warnings:
        lines.append(
            f"{'; '.join(dict.fromkeys(warnings))}: these numbers, and the Monte Carlo error of "
            "all, may be worse than they look"
        )
    return "\n".join(dict.fromkeys(lines))


def _cells(name: str, estimate: Estimate) -> dict[str, str]:
    """A row of the table, by header."""
    mean, elbo = estimate.mean(), estimate.mean_elbo()
    limit = khat_threshold(estimate.num_samples)
    return {
        "estimator": name,
        "K": f"{estimate.num_samples:,}",
        "log p(x)": f"{mean.value:.3f}",
        "± Monte Carlo": number(mean.monte_carlo_stderr),
        "± data": number(mean.data_stderr),
        "ELBO": number(elbo.value),
        "k̂ median": khat_quantile(estimate, 0.5),
        "k̂ 95%": khat_quantile(estimate, 0.95),
        "k̂ max": khat_quantile(estimate, 1.0),
        f"k̂ ≥ {limit:.2f}": _share(estimate.khat >= limit, estimate.khat),
        "side": estimate.direction,
    }


def _share(chosen: torch.Tensor, khat: torch.Tensor) -> str:
    """A share of the data in percent; a dash where k̂ is known for none."""
    return "-" if bool(khat.isnan().all()) else f"{float(chosen.double().mean()):.1%}"


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


def _estimator(question: Question, journal: Path) -> Callable[..., Any]:
    factory, options = question.asked()
    if accepts(factory, "checkpoint"):  # an interrupted score goes on when it is asked for again
        options.setdefault("checkpoint", str(journal))
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
