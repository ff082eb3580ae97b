"""A study file, in TOML, as a `Study`; every fault of its form is told at once, with its line.

    title = "Which prior?"
    seeds = [0, 1, 2]

    [training]
    epochs = 100

    [data.digits]

    [model."VampPrior"]
    name = "vamp-vae"
    options = {num_pseudo_inputs = 100}

    [objective.ELBO]

    [estimator.L_5000]
    name = "importance-sampling"
    options = {num_samples = 5000}

    [small]                  # what --small runs instead: of 2 cores, say
    training = {epochs = 20}
    scoring = {subset = 100}

An entry is called by its label and found by its name, which is the label where it is not given: a
built-in one, or a factory as ``package.module:attribute``.
"""

from __future__ import annotations

import tomllib
from dataclasses import replace
from importlib import resources
from pathlib import Path
from typing import Any

from .fields import Fields, fits, line_of
from .study import Entry, Study, StudyError

TRAINING = (
    "epochs",
    "batch_size",
    "learning_rate",
    "warm_up",
    "patience",
    "clip",
    "schedule",
    "compile",
)
SCORING = ("split", "subset", "subset_seed", "seed")
AXES: dict[str, tuple[str, ...]] = {  # and what an entry's table may hold
    "data": ("name", "training", "binarise"),
    "model": ("name", "options", "training"),
    "objective": ("name", "options", "training"),
    "estimator": ("name", "options", *SCORING, "parts"),
}
TOP = ("title", "question", "seeds", "training", *AXES, "exclude", "compare", "published", "small")
SMALL = ("seeds", "training", "scoring", "exclude")
PUBLISHED = {"value": float, "spread": float, "source": str, **dict.fromkeys(AXES, str)}
TRAINS = "training"  # what jobs that train are called
SIDES = ("row", "with")  # of a comparison


def shipped() -> dict[str, Path]:
    """The study files that come with pyrovae, by name."""
    folder = Path(str(resources.files("pyrovae.benchmarks.studies")))
    return {file.stem: file for file in sorted(folder.glob("*.toml"))}


def read_study(path: str | Path, small: bool = False) -> Study:
    """The study in a file, or the shipped one of that name; by its smaller schedule, if wanted.

    Raises:
        FileNotFoundError: there is no such file, and none of that name is shipped.
        StudyError: the file is not a study, for all of the reasons told.
    """
    file = Path(path)
    if not file.is_file() and str(path) in shipped():  # its results' folder may be called so too
        file = shipped()[str(path)]
    if not file.is_file():
        raise FileNotFoundError(
            f"STUDY should be a study file, or one of {', '.join(shipped())}; there is no {path}"
        )
    try:
        text = file.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise StudyError(file, [(1, f"should be a text in UTF-8: {error}")]) from error
    try:
        content = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise StudyError(file, [(line_of(error, text), f"no TOML: {error}")]) from error
    return _Reader(file, text, content).study(small)


class _Reader(Fields):
    """The content of a file turned into a study."""

    def study(self, small: bool) -> Study:
        self.known(self.content, TOP)
        axes = {axis: self._axis(axis) for axis in AXES}
        title = self.value(self.content, "title", str, (), self.file.stem)
        question = self.value(self.content, "question", str, (), "")
        found = Study(
            name=self.file.stem,
            title=title,
            question=question,
            seeds=self._seeds(),
            training=self.settings(self.table("training"), TRAINING, ("training",)),
            data=axes["data"],
            models=axes["model"],
            objectives=axes["objective"],
            estimators=axes["estimator"],
            exclude=self._tables("exclude", dict.fromkeys(list(AXES)[:3], str), axes),
            compare=self._comparisons(axes),
            published=self._tables("published", PUBLISHED, axes),
            text=self.text,
            file=str(self.file),
        )
        if not self.faults:
            self._compare(found)
        found = self._smaller(found, small)
        if not self.faults and not list(found.points()):
            self.fault("exclude should leave something of the grid; found nothing left", "exclude")
        if self.faults:
            raise StudyError(self.file, self.faults)
        return found

    def _compare(self, study: Study) -> None:
        """Whether the grid has both rows of every comparison."""
        grid = [
            {axis: one.label for axis, one in zip(AXES, (*point, estimator), strict=True)}
            for point in study.points()
            for estimator in study.estimators
        ]
        for i, one in enumerate(study.compare):
            mine = [row for row in grid if row.items() >= one["row"].items()]
            if not any({**row, **one["with"]} in grid for row in mine):
                self.fault(
                    "a comparison should name two rows of the grid; found none", "compare", i
                )

    def _smaller(self, study: Study, wanted: bool) -> Study:
        """The study with what [small] says instead."""
        table, path = self.table("small"), ("small",)
        self.known(table, SMALL, *path)
        training = self.value(table, "training", dict, path, {})
        scoring = self.value(table, "scoring", dict, path, {})
        axes = {"data": study.data, "model": study.models, "objective": study.objectives}
        settings = self.settings(training, TRAINING, ("small", "training"))

        def trained(entries: tuple[Entry, ...]) -> tuple[Entry, ...]:
            own = ({k: v for k, v in settings.items() if k in one.settings} for one in entries)
            return tuple(
                replace(one, settings={**one.settings, **less})
                for one, less in zip(entries, own, strict=True)
            )

        smaller = replace(
            study,
            name=f"{study.name}-small",
            title=f"{study.title} (smaller schedule)",
            seeds=self._seeds(*path) if "seeds" in table else study.seeds,
            training={**study.training, **settings},
            data=trained(study.data),
            models=trained(study.models),
            objectives=trained(study.objectives),
            estimators=self._scored(study.estimators, scoring),
            exclude=(
                *study.exclude,
                *self._tables("exclude", dict.fromkeys(axes, str), axes, *path),
            ),
        )
        if not wanted:
            return study
        if not table:
            self.fault("--small needs a table [small]; there is none", "small")
        return smaller

    def _scored(self, estimators: tuple[Entry, ...], scoring: dict[str, Any]) -> tuple[Entry, ...]:
        settings = self.settings(scoring, (*SCORING, "parts"), ("small", "scoring"))
        return tuple(replace(one, settings={**one.settings, **settings}) for one in estimators)

    def _seeds(self, *path: str) -> tuple[int, ...]:
        seeds = self.table(*path).get("seeds", [0])
        if (
            not isinstance(seeds, list)
            or not seeds
            or not all(fits(seed, int) and 0 <= seed < 2**32 for seed in seeds)
            or len(set(seeds)) < len(seeds)
        ):
            self.fault(
                "seeds should be a list of different whole numbers from 0 to 2**32 - 1; "
                f"found {seeds!r:.60}",
                *path,
                "seeds",
            )
            return (0,)
        return tuple(seeds)

    def _axis(self, axis: str) -> tuple[Entry, ...]:
        tables = self.table(axis)
        if not tables:
            self.fault(f"a study needs at least one [{axis}.LABEL]", axis)
        if axis == "estimator" and TRAINS in tables:
            self.fault(f"an estimator cannot be called '{TRAINS}', as trainings are", axis, TRAINS)
        return tuple(self._entry(axis, label) for label in tables)

    def _entry(self, axis: str, label: str) -> Entry:
        path, table = (axis, label), dict(self.table(axis, label))
        name = self.value(table, "name", str, path, label)
        options = self.value(table, "options", dict, path, {})
        names = tuple(key for key in AXES[axis] if key not in ("name", "options", "training"))
        own = self.settings(table, names, path, AXES[axis])
        training = self.value(table, "training", dict, path, {})
        trained = self.settings(training, TRAINING, (*path, "training"))
        return Entry(label, name, options, {**own, **trained})

    def _tables(
        self, key: str, kinds: dict[str, Any], axes: dict[str, tuple[Entry, ...]], *path: str
    ) -> tuple[dict[str, Any], ...]:
        """The tables of an array, whose entries name labels of the axes."""
        tables = self.table(*path).get(key, [])
        if not isinstance(tables, list) or not all(isinstance(one, dict) for one in tables):
            self.fault(f"'{key}' should be an array of tables, [[{key}]]", *path, key)
            return ()
        for i, table in enumerate(tables):
            self.known(table, kinds, *path, key, i)
            for name in table.keys() & kinds.keys():
                value = self.value(table, name, kinds[name], (*path, key, i), None)
                if name in axes and value is not None:
                    self._labelled(value, name, axes, *path, key, i, name)
            if key == "published" and "value" not in table:
                self.fault("a published number should have a value", key, i)
        return tuple(tables)

    def _labelled(
        self, value: Any, axis: str, axes: dict[str, tuple[Entry, ...]], *path: Any
    ) -> None:
        labels = [one.label for one in axes[axis]]
        if value not in labels:
            self.fault(f"{axis} should be one of {', '.join(labels)}; found '{value}'", *path)

    def _comparisons(self, axes: dict[str, tuple[Entry, ...]]) -> tuple[dict[str, Any], ...]:
        """Which rows are to be compared with which, by labels."""
        tables = self._tables("compare", dict.fromkeys(SIDES, dict), axes)
        for i, table in enumerate(tables):
            for side in SIDES:
                labels = table.get(side)
                if not labels:
                    self.fault(f"a comparison should have labels as '{side}'", "compare", i)
                elif isinstance(labels, dict):
                    self.known(labels, AXES, "compare", i, side)
                    if side == "with" and "data" in labels:
                        self.fault("rows of two data sets are not compared", "compare", i, side)
                    for axis in labels.keys() & AXES.keys():
                        self._labelled(labels[axis], axis, axes, "compare", i, side)
        return tables
