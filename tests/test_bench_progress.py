"""What a runner says of long jobs and of the time left."""

from __future__ import annotations

import os
import re
from pathlib import Path

import pytest

from pyrovae.benchmarks.bench import Bench, progress, read_study, run, runner
from pyrovae.benchmarks.bench.folder import Folder
from pyrovae.benchmarks.bench.jobs import Job
from pyrovae.benchmarks.bench.progress import Clock, Standing, scores

STUDY = """\
seeds = [0, 1]
[training]
epochs = 12
batch_size = 20
[data.points]
name = "study_toys:data"
[model.slow]
name = "study_toys:slow"
options = {told = "steps.txt", seconds = 0.05}
[objective.ELBO]
[estimator.L_20]
name = "importance-sampling"
options = {num_samples = 20}
parts = 3
"""


@pytest.fixture
def study(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "study.toml").write_text(STUDY)
    return tmp_path


def test_long_trainings_are_told_of(study: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runner, "LONG", 0.2)
    said: list[str] = []
    run(Bench("study.toml", study / "out", processes=1), said.append)
    line = r"0 of 2 cells: points, slow, ELBO, seed 0: epoch (\d+) of at most 12, "
    line += r"validation bound -\d+\.\d\d, 0\.\d s an epoch; about (\d+) s left"
    told = [found for text in said if (found := re.fullmatch(line, text))]
    assert len(told) > 2, said
    epochs = [int(found[1]) for found in told]
    assert epochs == sorted(epochs)


def test_the_time_left_is_that_of_what_was_done(study: Path) -> None:
    asked = read_study("study.toml")
    first, second = asked.cells({})
    clock = Clock(Folder(study / "nowhere"), size=2)
    jobs = list(scores(first))
    assert [job.part for job in jobs] == [0, 1, 2]
    assert clock.left([Job(first)]) is None, "nothing is known yet"
    clock.start(Job(first))
    assert clock.standing(Job(first)) is None
    assert clock.left([]) is None
    assert "training, for 0 s" in clock.under_way()
    clock.end(Job(first), 60.0)
    assert clock.left([]) is None
    # a training of 60 s, then three parts of unknown length, counted as that, two at a time
    assert clock.left([Job(second)]) == pytest.approx(60 + 3 * 60 / 2)
    clock.end(jobs[0], 10.0)
    assert clock.left([Job(second)]) == pytest.approx(60 + 3 * 10 / 2)
    assert clock.left([Job(second)] * 4) == pytest.approx(4 * (60 + 3 * 10) / 2)
    assert clock.left(jobs[1:]) == pytest.approx(2 * 10 / 2)
    clock.start(Job(second))
    assert clock.left([]) == pytest.approx(60 + 3 * 10 / 2, abs=0.1)
    clock.end(Job(second))
    assert clock.left([]) is None


def test_a_long_training_is_not_counted_as_the_short_one_before_it(
    study: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, second = read_study("study.toml").cells({})
    clock = Clock(Folder(study / "nowhere"), size=2)
    clock.start(Job(first))
    clock.end(Job(first), 60.0)
    for job in scores(first):
        clock.end(job, 10.0)
    clock.start(Job(second))
    slow = Standing(epoch=40, epochs=100, elbo=-90.0, seconds=10.0)
    monkeypatch.setattr(Clock, "standing", lambda self, job: slow)
    assert clock.left([]) == pytest.approx(60 * 10 + 3 * 10 / 2)


def test_a_checkpoint_is_read_once(study: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    bench = Bench("study.toml", study / "out", processes=2)
    run(bench)
    _, (first, _) = bench.read()
    read: list[Path] = []
    load = progress.load_checkpoint
    monkeypatch.setattr(progress, "load_checkpoint", lambda file: read.append(file) or load(file))
    clock = Clock(Folder(study / "out"), size=2)
    clock.start(Job(first))
    assert "epoch 12 of at most 12" in clock.under_way()
    assert clock.left([]) is not None
    assert len(read) == 1
    os.utime(read[0], ns=(1, 1))  # another one
    clock.under_way()
    assert len(read) == 2
