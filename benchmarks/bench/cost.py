"""What a study will cost, before it is run: a few steps and a few data of everything are timed.

Trainings are timed by steps at their own batch size. An estimate is timed on one datum and on a
few, and what it takes besides its data is told apart from what each of them adds; a budget that is
spent step after step is timed in part. Each job loads its data. A training may stop early, and many
data at once are cheaper than a few at a time: what is found is about the most that it can be.
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
from ..options import call
from ..pairs import Pair, build, find_device, model_options
from ..training import load_data, make_objective
from .jobs import limited
from .study import Cell, Estimation, address

STEPS, DATA = 5, 8
STEPWISE = ("num_temperatures", "num_steps", "num_draws")  # options that multiply what is done
TRIED = 40  # of them, at most, to see what they cost
START = 0.2  # seconds until a process has begun


@dataclass(frozen=True)
class Forecast:
    """Seconds that a cell takes alone, at most about, and what of it ``fails``, and why."""

    cell: Cell
    training: float
    estimates: float
    fails: tuple[str, ...] = ()

    @property
    def seconds(self) -> float:
        return self.training + self.estimates


def forecast(cells: Sequence[Cell]) -> list[Forecast]:
    """Time what is to be done. Cells that differ by their seed alone are taken for alike."""
    known: dict[str, tuple[float, float, tuple[str, ...]]] = {}
    data: dict[str, tuple[Dataset, float]] = {}
    found = []
    for cell in cells:
        settings = cell.settings
        key = address({**asdict(settings), "seed": 0, "rows": [e.label for e in cell.estimations]})
        if key not in known:
            source = repr((settings.data, settings.binarise, settings.data_folder))
            if source not in data:
                begun = time.perf_counter()
                data[source] = load_data(settings), START + time.perf_counter() - begun
            with limited(1):
                known[key] = _timed(cell, *data[source])
        found.append(Forecast(cell, *known[key]))
    return found


def _timed(cell: Cell, data: Dataset, start: float) -> tuple[float, float, tuple[str, ...]]:
    fails: list[str] = []
    training = estimates = 0.0
    with _quiet(), _noting(fails, "training"):
        pair, training = _training(cell, data)
        rates: dict[str, tuple[float, float]] = {}
        for one in cell.estimations:
            estimates += start * one.parts
            with _noting(fails, one.label), pair.evaluating():
                estimates += _estimate(one, pair, data, rates)
    return start + training, estimates, tuple(fails)


@contextlib.contextmanager
def _noting(fails: list[str], what: str) -> Iterator[None]:
    """What fails here fails in the study too, which goes on with the rest."""
    try:
        yield
    except Exception as error:  # a user's code runs here
        fails.append(f"{what}: {type(error).__name__}: {' '.join(str(error).split())[:300]}")


def _training(cell: Cell, data: Dataset) -> tuple[Pair, float]:
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
    history = fit(pair.model, pair.guide, few, epochs=2, **arguments)
    step = float(history.seconds[-1]) / math.ceil(len(few) / settings.batch_size)
    begun = time.perf_counter()
    fit(pair.model, pair.guide, few, epochs=1, validation=data.validation, **arguments)
    validation = max(0.0, time.perf_counter() - begun - float(history.seconds[0]))
    steps = math.ceil(len(data.train) / settings.batch_size)
    return pair, settings.epochs * (steps * step + validation)


def _estimate(
    one: Estimation, pair: Any, data: Dataset, rates: dict[str, tuple[float, float]]
) -> float:
    """Seconds of an estimate; ``rates`` are those of its like, and of what was timed before."""
    question = one.question
    x = data.split(question.split)
    size = len(x) if question.subset is None else question.subset
    factory, options = question.asked()
    options.pop("compile", None)
    many = {k: v for k in STEPWISE if isinstance(v := options.get(k), int) and v > TRIED}
    part = {**options, **dict.fromkeys(many, TRIED)}
    try:
        estimator = call(question.estimator, factory, options=part)
    except ValueError:  # it needs as many as it is given
        many, part = {}, options
        estimator = call(question.estimator, factory, options=part)
    key = repr((question.estimator, question.split, sorted(part.items())))
    if key not in rates:
        rates[key] = _rate(estimator, pair, x[: min(DATA, size)])
    once, each = rates[key]
    return math.prod(v / TRIED for v in many.values()) * (once * one.parts + each * size)


def _rate(estimator: Any, pair: Any, few: torch.Tensor) -> tuple[float, float]:
    """Seconds that an estimator takes besides its data, and for each of them."""
    took = []
    for x in (few[:1], few[:1], few):  # the first time, it also finds its way
        start = time.perf_counter()
        estimator(pair.model, pair.guide, x)
        took.append(time.perf_counter() - start)
    each = max(0.0, took[2] - took[1]) / max(1, len(few) - 1)
    return max(0.0, took[1] - each), each


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    with warnings.catch_warnings(), torch.random.fork_rng():
        warnings.simplefilter("ignore")
        yield
