"""Smaller schedules of studies, schedules of learning rates, and the studies that are shipped."""

from __future__ import annotations

import gzip
import itertools
import os
from pathlib import Path

import numpy as np
import pytest
import torch

from pyrovae.benchmarks import training
from pyrovae.benchmarks.bench import read_study, shipped
from pyrovae.benchmarks.bench.checks import check
from pyrovae.benchmarks.bench.study import Study, StudyError
from pyrovae.benchmarks.runs import Settings
from pyrovae.benchmarks.studies import threshold

STUDY = """\
title = "Prior"
seeds = [0, 1]
[training]
epochs = 50
warm_up = 5
[data.points]
name = "study_toys:data"
[model.normal]
name = "study_toys:normal"
[model.long]
name = "study_toys:normal"
training = {epochs = 70}
[objective.ELBO]
[estimator.L_20]
name = "importance-sampling"
subset = 18
parts = 3
[small]
seeds = [3]
training = {epochs = 2}
scoring = {subset = 5, parts = 1}
exclude = [{model = "long"}]
"""


def read(folder: Path, text: str = STUDY, small: bool = True) -> Study:
    (folder / "study.toml").write_text(text)
    return read_study(folder / "study.toml", small)


def test_the_smaller_schedule(tmp_path: Path) -> None:
    study = read(tmp_path)
    assert (study.name, study.title) == ("study-small", "Prior (smaller schedule)")
    (cell,) = study.cells({})
    assert (cell.model, cell.seed) == ("normal", 3)
    assert (cell.settings.epochs, cell.settings.warm_up) == (2, 5)
    (estimation,) = cell.estimations
    assert (estimation.question.subset, estimation.parts) == (5, 1)
    both = read(tmp_path, STUDY.replace('exclude = [{model = "long"}]', ""))
    assert [cell.settings.epochs for cell in both.cells({})] == [2, 2]  # an entry's own, too


def test_what_is_compared_may_be_left_out(tmp_path: Path) -> None:
    named = '[[compare]]\nrow = {model = "long"}\nwith = {model = "normal"}\n'
    assert [cell.model for cell in read(tmp_path, STUDY + named).cells({})] == ["normal"]


def test_it_is_not_there_unasked(tmp_path: Path) -> None:
    study = read(tmp_path, small=False)
    assert study.name == "study"
    assert {(c.model, c.settings.epochs) for c in study.cells({})} == {("normal", 50), ("long", 70)}
    assert study.cells({})[0].estimations[0].parts == 3


def test_faults_are_told_with_their_lines_asked_or_not(tmp_path: Path) -> None:
    bad = STUDY.partition("[small]")[0] + (
        '[small]\nseeds = [1, 1]\nepochs = 3\ntraining = {epochs = 0, rate = 1}\n'
        'exclude = [{model = "nobody"}]\n'
    )  # fmt: skip
    for small in (True, False):
        with pytest.raises(StudyError) as caught:
            read(tmp_path, bad, small)
        first = len(STUDY.partition("[small]")[0].splitlines()) + 1
        told = [(line - first, what.split(";")[0]) for line, what in caught.value.faults]
        assert told == [
            (1, "seeds should be a list of different whole numbers from 0 to 2**32 - 1"),
            (2, "unknown key 'epochs'"),
            (3, "epochs should be more than 0"),
            (3, "unknown key 'rate'"),
            (4, "model should be one of normal, long"),
        ]


def test_a_study_without_one(tmp_path: Path) -> None:
    with pytest.raises(StudyError, match=r"--small needs a table \[small\]"):
        read(tmp_path, STUDY.partition("[small]")[0])


@pytest.mark.parametrize("name", shipped())
def test_shipped_studies_read_and_state_a_smaller_schedule_where_they_are_long(name: str) -> None:
    study = read_study(name)
    assert study.question
    if study.published:
        assert read_study(name, small=True).name == f"{name}-small"
        assert all(one["source"] and one["value"] < 0 for one in study.published)


def test_burda_and_others_take_eight_learning_rates() -> None:
    schedule = training.make_schedule(Settings(schedule="burda"))
    assert schedule is not None
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=1e-3)
    rates = schedule(optimizer)
    seen = []
    for _ in range(3280):
        seen.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        rates.step()
    groups = [(rate, len(list(same))) for rate, same in itertools.groupby(seen)]
    assert [count for _, count in groups] == [3**i for i in range(8)]
    assert [rate for rate, _ in groups] == pytest.approx([1e-3 * 10 ** (-i / 7) for i in range(8)])


def test_a_run_with_a_schedule(tmp_path: Path) -> None:
    settings = Settings(
        options={"latent_dim": 2, "hidden": [8]}, epochs=5, learning_rate=1e-2, schedule="burda"
    )
    trained = training.train(settings, tmp_path / "run", progress=False)
    expected = [1e-2 * 10 ** (-i / 7) for i in (0, 1, 1, 1, 2)]
    assert trained.history.learning_rate == pytest.approx(expected)
    assert "--schedule burda" in settings.command("run")


def test_a_schedule_that_there_is_not_is_told_before_anything_runs(tmp_path: Path) -> None:
    text = STUDY.replace("epochs = 50", 'schedule = "nope"').replace(
        "{epochs = 70}", '{schedule = "study_toys:nothing"}'
    )
    with pytest.raises(StudyError) as caught:
        check(read(tmp_path, text, small=False))
    lines = [line for line, _ in caught.value.faults]
    assert lines == [4, 12]
    assert "unknown schedule 'nope'; there are burda" in str(caught.value)


def test_a_schedule_of_ones_own_is_a_part_of_the_cell(tmp_path: Path) -> None:
    text = STUDY.replace("epochs = 50", 'schedule = "study_toys:halving"')
    cells = check(read(tmp_path, text, small=False))
    assert any("halving" in key for key in cells[0].training_spec()["identity"])


@pytest.mark.skipif("PYROVAE_DATA" not in os.environ, reason="needs the images")
def test_fashion_cut_at_half() -> None:
    data = threshold.fashion()
    assert (data.name, data.dynamic) == ("fashion-threshold", False)
    for x in (data.train, data.validation, data.test):
        assert ((x == 0) | (x == 1)).all()
    folder = Path(os.environ["PYROVAE_DATA"]) / "fashion-mnist"
    content = gzip.decompress((folder / "t10k-images-idx3-ubyte.gz").read_bytes())
    pixels = np.frombuffer(content, np.uint8, offset=16)
    assert float(data.test.double().mean()) == pytest.approx((pixels >= 128).mean(), abs=1e-12)
