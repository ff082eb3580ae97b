"""What a study will cost, before it is run: a few steps and a few data of everything are timed.

Trainings are timed by steps at their own batch size, estimates by their own settings on a few data.
An estimate that streams is dearer per datum on few data than on many, and a training that stops
early is cheaper than one that does not: what is found is about the most that it can be.
"""

from __future__ import annotations

import contextlib
import math
import time
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch

from ...inference import fit
from ..datasets import Dataset
from ..options import call, look_up
from ..pairs import build, find_device, model_options
from ..scoring import ESTIMATORS
from ..training import load_data, make_objective
from .jobs import limited
from .study import Cell, Estimation, address

STEPS, DATA = 5, 4


@dataclass(frozen=True)
class Forecast:
    """Seconds that a cell takes alone, at most about."""

    cell: Cell
    training: float
    estimates: float

    @property
    def seconds(self) -> float:
        return self.training + self.estimates


def forecast(cells: Sequence[Cell]) -> list[Forecast]:
    """Time what is to be done. Cells that differ by their seed alone are taken for alike."""
    known: dict[str, tuple[float, float]] = {}
    data: dict[str, Dataset] = {}
    found = []
    for cell in cells:
        settings = cell.settings
        key = address({**asdict(settings), "seed": 0, "rows": [e.label for e in cell.estimations]})
        if key not in known:
            source = repr((settings.data, settings.binarise, settings.data_folder))
            if source not in data:
                data[source] = load_data(settings)
            with limited(1):
                known[key] = _timed(cell, data[source])
        found.append(Forecast(cell, *known[key]))
    return found


def _timed(cell: Cell, data: Dataset) -> tuple[float, float]:
    settings = cell.settings
    options = model_options(settings.model, settings.options, data.shape)
    pair = build(settings.model, options, data.train, settings.seed)
    device = find_device(settings.device)
    pair.to(device)
    few = data.train[: settings.batch_size * STEPS]
    arguments: dict[str, Any] = {
        "objective": make_objective(settings),
        "batch_size": settings.batch_size,
        "transform": data.transform,
        "seed": settings.seed,
        "device": device,
        "progress": False,
    }
    with _quiet():
        history = fit(pair.model, pair.guide, few, epochs=2, **arguments)
        step = float(history.seconds[-1]) / math.ceil(len(few) / settings.batch_size)
        start = time.perf_counter()
        fit(pair.model, pair.guide, few, epochs=1, validation=data.validation, **arguments)
        validation = max(0.0, time.perf_counter() - start - float(history.seconds[0]))
        steps = math.ceil(len(data.train) / settings.batch_size)
        training = settings.epochs * (steps * step + validation)
        with pair.evaluating():
            estimates = sum(_estimate(one, pair, data) for one in cell.estimations)
    return training, estimates


def _estimate(one: Estimation, pair: Any, data: Dataset) -> float:
    question = one.question
    x = data.split(question.split)
    size = len(x) if question.subset is None else question.subset
    few = x[: min(DATA, size)]
    options = {"seed": question.seed, **question.options}
    if (samples := question.samples()) is not None:
        options = {"num_samples": samples, **options}
    options.pop("compile", None)
    estimator = call(
        question.estimator,
        look_up("estimator", question.estimator, ESTIMATORS),
        options=options,
    )
    start = time.perf_counter()
    estimator(pair.model, pair.guide, few)
    return (time.perf_counter() - start) * size / len(few)


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    with warnings.catch_warnings(), torch.random.fork_rng():
        warnings.simplefilter("ignore")
        yield
