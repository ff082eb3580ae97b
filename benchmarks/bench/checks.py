"""What can be known of a study before anything runs: its factories, their options, its data, and
whether each model can be trained under each objective on each data set.

A trial evaluates every objective once on two data: pairs that cannot be (an objective that needs
reparameterised latents on a model of discrete ones, grey images under a Bernoulli) are told here,
all at once, and not after hours.
"""

from __future__ import annotations

import hashlib
import inspect
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import pyro
import torch

from ...inference import log_weights
from .. import datasets
from ..datasets import Dataset, DatasetError
from ..factories import FactoryError
from ..options import call, look_up, resolved
from ..pairs import build, model_options
from ..schedules import SCHEDULES
from ..scoring import ESTIMATORS, Question
from ..training import OBJECTIVES, check_bits, make_objective
from ..zoo import MODELS
from .lines import Lines
from .study import Cell, Entry, Study, StudyError

AXES = ("data", "model", "objective")
TOLD = (DatasetError, FactoryError, ValueError, TypeError, NotImplementedError, OSError)


def check(study: Study, data_folder: str | None = None, device: str = "auto") -> list[Cell]:
    """The cells of a study that can run.

    Raises:
        StudyError: it cannot, for all of the reasons told.
    """
    checker = _Checker(study, data_folder)
    checker.check()
    cells = study.cells(checker.identities, data_folder=data_folder, device=device)
    checker.check_different(cells)
    return cells


class _Checker:
    def __init__(self, study: Study, data_folder: str | None) -> None:
        self.study, self.data_folder = study, data_folder
        self.lines = Lines(study.text)
        self.faults: list[tuple[int, str]] = []
        self.identities: dict[tuple[str, str], dict[str, str]] = {}
        self.data: dict[str, Dataset] = {}

    def check(self) -> None:
        for one in self.study.data:
            with self._telling("data", one.label):
                self._load(one)
        there: set[tuple[str, str]] = set()
        for axis, entries, built_in in (
            ("model", self.study.models, MODELS),
            ("objective", self.study.objectives, OBJECTIVES),
            ("estimator", self.study.estimators, ESTIMATORS),
        ):
            for one in entries:
                with self._telling(axis, one.label, "name"):
                    found = look_up(axis, one.name, built_in)
                    self.identities[axis, one.name] = _source(found, one.name)
                    there.add((axis, one.label))
        for path, schedule in self._schedules():
            with self._telling(*path, "schedule"):
                self.identities["schedule", schedule] = _source(
                    look_up("schedule", schedule, SCHEDULES), schedule
                )
        for one in self.study.objectives:
            if ("objective", one.label) in there:
                with self._telling("objective", one.label), _undisturbed():
                    call(one.name, look_up("objective", one.name, OBJECTIVES), options=one.options)
        for one in self.study.estimators:
            if ("estimator", one.label) in there:
                with self._telling("estimator", one.label):
                    self._estimator(one)
        if not self.faults:  # of what is there
            self._pairs()
        if self.faults:
            raise StudyError(self.study.file, self.faults)

    def _schedules(self) -> Iterator[tuple[tuple[str, ...], str]]:
        """Every schedule that is named, and where."""
        study = self.study
        if schedule := study.training.get("schedule"):
            yield ("training",), schedule
        axes = {"data": study.data, "model": study.models, "objective": study.objectives}
        for axis, entries in axes.items():
            for one in entries:
                if schedule := one.settings.get("schedule"):
                    yield (axis, one.label, "training"), schedule

    @contextmanager
    def _telling(self, *path: str, before: str = "") -> Iterator[None]:
        try:
            yield
        except TOLD as error:
            text = str(error).partition("\nTrace Shapes:")[0].strip()
            self.faults.append((self.lines.find(*path), f"{before}{text or type(error).__name__}"))

    def _load(self, one: Entry) -> None:
        if ":" not in one.name and one.name not in datasets.NAMES:
            raise FactoryError(
                f"unknown data set '{one.name}'; there are {', '.join(datasets.NAMES)}, and your "
                "own as package.module:factory"
            )
        binarise = one.settings.get("binarise", True) or ":" in one.name
        data = datasets.load(one.name, folder=self.data_folder, binarise=binarise)
        self.data[one.label] = data
        digest = hashlib.sha256(data.train.detach().cpu().numpy().tobytes()).hexdigest()
        self.identities["data", one.label] = {
            f"data '{one.label}', held out": data.fingerprint,
            f"data '{one.label}', for training": digest,
        }

    def _estimator(self, one: Entry) -> None:
        options = dict(one.options)
        samples = options.pop("num_samples", None)
        factory, options = Question(one.name, samples, options).asked()
        call(one.name, factory, options=options)
        split = one.settings.get("split", "test")
        if split not in ("test", "validation"):
            raise ValueError(f"split should be test or validation; found '{split}'")
        for data in self.data.values():
            size = one.settings.get("subset", len(data.split(split)))
            if size > len(data.split(split)):
                raise ValueError(
                    f"subset should be at most {len(data.split(split))}, the {split} data of "
                    f"'{data.name}'; found {size}"
                )
            if one.settings.get("parts", 1) > size:
                raise ValueError(
                    f"parts should be at most {size}, the data; found {one.settings['parts']}"
                )

    def _pairs(self) -> None:
        tried: set[str] = set()
        for data, model, objective in self.study.points():
            settings = self.study.settings(data, model, objective, self.study.seeds[0])
            words = f"'{model.label}' with data '{data.label}', objective '{objective.label}': "
            key = repr((data.label, model, objective))
            if key in tried:
                continue
            tried.add(key)
            with self._telling("model", model.label, before=words):
                if ":" not in model.name:
                    check_bits(model.name, self.data[data.label])
                x = self.data[data.label].train
                options = model_options(model.name, model.options, self.data[data.label].shape)
                with _undisturbed():
                    made = make_objective(settings)
                    pair = build(model.name, options, x, settings.seed)
                    transform = self.data[data.label].transform
                    few = x[:2] if transform is None else transform(x[:2], torch.Generator())
                    loss = getattr(made, "loss", None)
                    if loss is None:
                        raise FactoryError(
                            f"'{objective.name}' should return a pyro.infer.ELBO; found "
                            f"{type(made).__name__}"
                        )
                    with pair.evaluating():
                        loss(pair.model, pair.guide, few)
                        if self._weighs():
                            log_weights(pair.model, pair.guide, few)

    def check_different(self, cells: Sequence[Cell]) -> None:
        """Raise a StudyError where two cells are one under two names."""
        known: dict[str, Cell] = {}
        for cell in cells:
            other = known.setdefault(cell.id, cell)
            if other is not cell:
                axis = next(a for a in AXES if getattr(cell, a) != getattr(other, a))
                label = getattr(cell, axis)
                raise StudyError(
                    self.study.file,
                    [
                        (
                            self.lines.find(axis, label),
                            f"{axis} '{label}' and '{getattr(other, axis)}' are the same but for "
                            "their names; leave one out",
                        )
                    ],
                )

    def _weighs(self) -> bool:
        """Whether an estimator of ours will ask for the weights of the guide."""
        names = [one.name for one in self.study.estimators]
        return any(":" not in name and name != "prior-monte-carlo" for name in names)


@contextmanager
def _undisturbed() -> Iterator[None]:
    """The generators and the parameter store stay as they were."""
    store = pyro.get_param_store().get_state()
    state = torch.get_rng_state()
    try:
        yield
    finally:
        torch.set_rng_state(state)
        pyro.get_param_store().set_state(store)


def _source(factory: Callable[..., Any], name: str) -> dict[str, str]:
    """The hash of the file that a factory of the user's own stands in; of ours, its defaults.

    A changed file gives other cells. What it imports is not looked at: a change there needs another
    folder.
    """
    if ":" not in name:
        return {f"'{name}'": repr(sorted(resolved(factory, {}).items()))}
    try:
        file = inspect.getsourcefile(inspect.unwrap(factory))
    except TypeError:
        file = None
    if file is None:
        return {}
    with open(file, "rb") as content:
        return {f"source of '{name}'": hashlib.sha256(content.read()).hexdigest()}
