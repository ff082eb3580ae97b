"""A study and its cells, and the names that their contents give them.

A *cell* is one training, of one model under one objective on one data set from one seed, and all
the estimates of its held-out log p(x). Cells, trainings and estimates are named by a hash of all
that decides their numbers: settings, the fingerprint of the data, the source of the user's own
factories. What would come out the same has the same name, and is not done twice.
"""

from __future__ import annotations

import hashlib
import itertools
import json
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from ..runs import Settings
from ..scoring import Question

WHERE = ("device", "data_folder")  # decide where a number is made, not what it is


class StudyError(ValueError):
    """What is wrong with a study file: all of it, a line each."""

    def __init__(self, path: Path | str, faults: list[tuple[int, str]]) -> None:
        self.faults = sorted(faults)
        super().__init__("\n".join(f"{path}:{line}: {what}" for line, what in self.faults))


@dataclass(frozen=True)
class Entry:
    """One value of an axis of the grid: a factory by name, and what else its table says.

    ``settings`` are those of `Settings` (of data, models and objectives) or of `Question` (of
    estimators) that hold where this entry stands.
    """

    label: str
    name: str
    options: dict[str, Any] = field(default_factory=dict)
    settings: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Estimation:
    """One estimate of a cell: the question, and the parts in which the data are scored."""

    label: str
    question: Question
    parts: int = 1
    identity: Mapping[str, str] = field(default_factory=dict)

    def spec(self) -> dict[str, Any]:
        """All that decides its numbers, next to the training."""
        asked = {k: v for k, v in asdict(self.question).items() if k not in WHERE}
        samples = self.question.samples()
        identity = dict(self.identity)
        return {**asked, "parts": self.parts, "num_samples": samples, "identity": identity}


@dataclass(frozen=True)
class Cell:
    """One training and its estimates. ``identity`` is what settings alone do not tell."""

    data: str
    model: str
    objective: str
    seed: int
    settings: Settings
    estimations: tuple[Estimation, ...]
    identity: Mapping[str, str] = field(default_factory=dict)

    @property
    def label(self) -> str:
        return f"{self.data}, {self.model}, {self.objective}, seed {self.seed}"

    def training_spec(self) -> dict[str, Any]:
        """All that decides the training."""
        settings = {k: v for k, v in asdict(self.settings).items() if k not in WHERE}
        return {"settings": settings, "identity": dict(self.identity)}

    def spec(self) -> dict[str, Any]:
        """All that decides the cell's numbers."""
        return {
            "training": self.training_spec(),
            "estimates": {one.label: one.spec() for one in self.estimations},
        }

    @property
    def training_id(self) -> str:
        return address(self.training_spec())

    @property
    def id(self) -> str:
        return address(self.spec())


def address(spec: Any) -> str:
    """The name that a specification gives to what it describes: 16 hexadecimal digits.

    >>> address({"a": 1, "b": 2}) == address({"b": 2, "a": 1})
    True
    """
    text = json.dumps(spec, sort_keys=True, ensure_ascii=False)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


@dataclass(frozen=True)
class Study:
    """What a study file says."""

    name: str
    title: str
    question: str
    seeds: tuple[int, ...]
    training: dict[str, Any]
    data: tuple[Entry, ...]
    models: tuple[Entry, ...]
    objectives: tuple[Entry, ...]
    estimators: tuple[Entry, ...]
    exclude: tuple[dict[str, str], ...] = ()
    compare: tuple[dict[str, dict[str, str]], ...] = ()
    published: tuple[dict[str, Any], ...] = ()
    text: str = ""
    file: str = ""

    def points(self) -> Iterator[tuple[Entry, Entry, Entry]]:
        """The grid's (data, model, objective), without what is excluded."""
        for data, model, objective in itertools.product(self.data, self.models, self.objectives):
            here = {"data": data.label, "model": model.label, "objective": objective.label}
            if not any(here.items() >= one.items() for one in self.exclude):
                yield data, model, objective

    def settings(
        self, data: Entry, model: Entry, objective: Entry, seed: int, **where: Any
    ) -> Settings:
        """Of a training; an entry's own win over the study's, the objective's over the model's."""
        given = {**self.training, **data.settings, **model.settings, **objective.settings}
        return Settings(
            data=data.name,
            model=model.name,
            options=model.options,
            objective=objective.name,
            objective_options=objective.options,
            seed=seed,
            **{**given, **where},
        )

    def cells(
        self, identities: Mapping[tuple[str, str], Mapping[str, str]], **where: Any
    ) -> list[Cell]:
        """All of them, seed by seed, so that a study cut short has something of every row.

        Args:
            identities: by axis and data's label or factory's name, what settings do not tell.
            where: device and data folder.
        """
        found = []
        for seed in self.seeds:
            for point in self.points():
                data, model, objective = point
                estimations = tuple(
                    self._estimation(one, seed, where, identities.get(("estimator", one.name), {}))
                    for one in self.estimators
                )
                settings = self.settings(*point, seed, **where)
                named = {
                    "data": data.label,
                    "model": model.name,
                    "objective": objective.name,
                    "schedule": settings.schedule or "",
                }
                parts = [identities.get(one, {}) for one in named.items()]
                identity = {key: value for part in parts for key, value in part.items()}
                found.append(
                    Cell(
                        data.label,
                        model.label,
                        objective.label,
                        seed,
                        settings,
                        estimations,
                        identity,
                    )
                )
        return found

    @staticmethod
    def _estimation(
        one: Entry, seed: int, where: Mapping[str, Any], identity: Mapping[str, str]
    ) -> Estimation:
        settings = {"seed": seed, **one.settings}
        parts = settings.pop("parts", 1)
        options = dict(one.options)
        samples = options.pop("num_samples", None)
        question = Question(
            estimator=one.name, num_samples=samples, options=options, **{**settings, **where}
        )
        return Estimation(one.label, question, parts, identity)
