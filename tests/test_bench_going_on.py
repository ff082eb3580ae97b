"""A study that goes on: what was done is kept, by whomever, with all that was known of it."""

from __future__ import annotations

import itertools
import json
import shutil
from pathlib import Path

import pytest
import xarray as xr
from filelock import Timeout
from test_bench_faults import EPOCHS, ESTIMATOR, HEAD, NORMAL, STEPS, Study, model, read, status

from pyrovae.benchmarks.bench import Bench, jobs, records, runner
from pyrovae.benchmarks.bench.command import preview
from pyrovae.benchmarks.bench.folder import Folder, readable, set_aside
from pyrovae.benchmarks.bench.runner import run_study
from pyrovae.benchmarks.bench.workers import Processes
from pyrovae.benchmarks.runs import Settings, open_run
from pyrovae.benchmarks.training import Stopped, resume, train


@pytest.fixture
def study(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    head = HEAD.replace("[0, 1]", "[0]")
    return lambda *parts: Study(tmp_path, "".join((head, ESTIMATOR, *parts)))


def estimator(name: str, *more: str) -> str:
    return "\n".join((f'\n[estimator.{name}]\nname = "study_toys:{name}"', *more, ""))


def test_an_error_of_the_users_own_does_not_cost_the_training(study) -> None:
    one = study(model("stubborn", '{told = "broken"}'))
    (one.path / "broken").touch()
    assert one.run()
    assert one.records()["stubborn 0"]["errors"][0]["type"] == "ValueError"
    taken = one.count("steps.txt")
    assert one.run(retry=True), "it is still out of order"
    assert not list(one.path.glob("out/trainings/*.damaged-*"))
    (one.path / "broken").unlink()
    assert not one.run(retry=True)
    # one step is tried anew each time, and those since the last checkpoint, of the epoch's start
    again = one.count("steps.txt") - taken - 1
    assert again <= EPOCHS * STEPS - taken + 2 * STEPS
    assert again < EPOCHS * STEPS, "it went on"


def test_a_failing_estimate_leaves_the_others_their_turn(study) -> None:
    text = (estimator("broken"), estimator("warning"))
    one = study(NORMAL, *text, estimator("broken").replace(".broken", ".parts"), "parts = 2\n")
    one.file.write_text(one.file.read_text().replace(ESTIMATOR, "") + ESTIMATOR)
    assert one.run()
    record = one.records()["normal 0"]
    assert [error["where"] for error in record["errors"]] == ["broken", "parts"]
    assert [each["estimator"] for each in record["estimates"]] == ["warning", "L_20"]
    said = "\n".join(one.said)
    assert "broken: this estimator is out of order; parts: this" in said
    assert "failed (broken): ArithmeticError: this estimator is out of order, and so have" in said


def test_an_earlier_runs_seconds_and_warnings_are_kept(study) -> None:
    parts = estimator("warning", "parts = 2")
    one = study(NORMAL, parts)
    assert not one.run()
    first = one.records()["normal 0"]
    # 20 data in two parts that are alike, which is said once
    assert first["warnings"] == ["warning: found it odd of 10"]
    seconds = {each["estimator"]: each["seconds"] for each in first["estimates"]}
    assert 0.2 < seconds["warning"] < 5.0, "a tenth in each part"
    assert 0.0 < seconds["L_20"] < 5.0
    for file in one.path.glob("out/cells/*.json"):
        file.unlink()  # as if killed just before
    assert not one.run()
    again = one.records()["normal 0"]
    assert again["estimates"] == first["estimates"]
    assert again["warnings"] == first["warnings"]


def test_an_estimate_that_does_not_tell_its_seconds_has_none(study) -> None:
    one = study(NORMAL)
    assert not one.run()
    (file,) = one.path.glob("out/trainings/*/evidence-*.nc")
    with xr.open_dataset(file, engine="scipy") as found:
        found.load()
    del found.attrs["seconds"], found.attrs["warnings"]
    file.write_bytes(bytes(found.to_netcdf(engine="scipy")))
    for record in one.path.glob("out/cells/*.json"):
        record.unlink()
    assert not one.run()
    assert one.records()["normal 0"]["estimates"][0]["seconds"] is None


def test_parts_are_joined_once_by_two_runners(study, monkeypatch: pytest.MonkeyPatch) -> None:
    one = study(NORMAL, estimator("warning", "parts = 3"))
    joined: list[int] = []
    concat = records.xr.concat
    monkeypatch.setattr(records.xr, "concat", lambda *a, **k: joined.append(1) or concat(*a, **k))

    def twice(cell, index: int, folder: Folder, join=records.join_parts) -> None:
        """Another runner comes between looking and joining."""
        look = records.readable
        counted = itertools.count()

        def looked(file: Path) -> bool:
            there = look(file)
            if not next(counted):
                monkeypatch.setattr(records, "readable", look)
                with pytest.raises(Timeout):
                    folder.lock(f"{cell.training_id}-{file.stem}").acquire(blocking=False)
            return there

        monkeypatch.setattr(records, "readable", looked)
        join(cell, index, folder)
        join(cell, index, folder)

    monkeypatch.setattr("pyrovae.benchmarks.bench.runner.join_parts", twice)
    assert not one.run(), one.said
    assert sum(joined) == 1


def test_a_part_that_is_joined_meanwhile_is_not_scored_again(
    study, monkeypatch: pytest.MonkeyPatch
) -> None:
    one = study(NORMAL, estimator("warning", "parts = 2"))
    assert not one.run()
    _, (cell,) = Bench(str(one.file)).read()
    folder = Folder(one.path / "out")
    whole, part = (folder.evidence(cell, cell.estimations[1], which) for which in (None, 0))
    aside = one.path / "whole.nc"
    whole.rename(aside)
    shutil.copy(aside, part)
    look = jobs.readable

    def looked(file: Path) -> bool:
        there = look(file)
        if aside.exists():  # another runner joins right after the first look
            aside.rename(whole)
            part.unlink()
        return there

    monkeypatch.setattr(jobs, "readable", looked)
    assert jobs.Job(cell, 1, 0).done(folder)


def test_what_another_runner_has_set_aside_is_set_aside(tmp_path: Path) -> None:
    file = tmp_path / "evidence.nc"
    file.touch()
    set_aside(file)
    set_aside(file)
    assert len(list(tmp_path.iterdir())) == 1
    file.write_bytes(b"damaged")
    assert not readable(file)
    assert not readable(file)


def test_a_process_that_is_asked_to_end_has_not_failed(study) -> None:
    one = study(NORMAL, estimator("stopping_once", 'options = {told = "stopped"}'))
    with pytest.raises(Stopped, match="a worker was stopped; 0 of 1 cells are finished; all that"):
        one.run(processes=1)
    assert one.records() == {}
    assert not one.run()
    assert status(one.records()) == {"normal 0": "done"}
    assert one.count("scored.txt") == 1


def test_a_failed_record_that_is_retried_is_not_called_damaged(study) -> None:
    one = study(model("raising"))
    assert one.run()
    assert one.run(retry=True)
    assert len(list(one.path.glob("out/cells/*.failed-*"))) == 1
    assert not list(one.path.glob("out/**/*.damaged-*"))


def test_the_same_numbers_whoever_does_them(study) -> None:
    one = study(NORMAL)
    assert not one.run(processes=1)
    before = read(one.records()["normal 0"], one)
    for file in one.path.glob("out/trainings/*/evidence-*"):
        file.write_bytes(b"")
    assert not one.run()
    assert read(one.records()["normal 0"], one) == before


def again(one: Study, what: str) -> None:
    """As if killed before ``what`` (a pattern) was there."""
    for file in one.path.glob(what):
        file.unlink()


def test_a_damaged_checkpoint_is_set_aside_and_training_begins_again(study) -> None:
    one = study(model("slow", '{told = "steps.txt"}'))
    assert not one.run()
    before = read(one.records()["slow 0"], one)
    again(one, "out/cells/*.json")
    again(one, "out/trainings/*/evidence-*")
    (file,) = one.path.glob("out/trainings/*/run.json")
    content = json.loads(file.read_text())
    content["result"] = None
    file.write_text(json.dumps(content))
    file.with_name("checkpoint.safetensors").write_bytes(b"\0" * 100)
    assert not one.run()
    assert read(one.records()["slow 0"], one) == before
    assert one.count("steps.txt") == 2 * EPOCHS * STEPS
    assert len(list(one.path.glob("out/trainings/*.damaged-*"))) == 1


def test_a_record_that_lacks_an_estimate_is_made_again(study) -> None:
    one = study(NORMAL, estimator("warning"))
    assert not one.run()
    (file,) = one.path.glob("out/cells/*.json")
    content = json.loads(file.read_text())
    gone = content["estimates"].pop()
    file.write_text(json.dumps(content))
    (one.path / "out" / gone["file"]).unlink()
    assert not one.run()
    assert len(one.records()["normal 0"]["estimates"]) == 2


def test_a_cell_whose_estimate_is_gone_at_the_end_is_not_done(
    study, monkeypatch: pytest.MonkeyPatch
) -> None:
    one = study(NORMAL)
    join = records.join_parts

    def lose(cell, index: int, folder: Folder) -> None:
        folder.evidence(cell, cell.estimations[index]).unlink()
        join(cell, index, folder)

    with monkeypatch.context() as patch:
        patch.setattr("pyrovae.benchmarks.bench.runner.join_parts", lose)
        assert one.run()
    (error,) = one.records()["normal 0"]["errors"]
    assert (error["where"], error["type"]) == ("L_20", "FileNotFoundError")
    assert not one.run(retry=True)
    assert status(one.records()) == {"normal 0": "done"}


def test_parts_that_a_killed_runner_left_beside_the_whole_go(study) -> None:
    one = study(NORMAL, estimator("warning", "parts = 2"))
    assert not one.run()
    _, (cell,) = Bench(str(one.file)).read()
    folder = Folder(one.path / "out")
    whole, part = (folder.evidence(cell, cell.estimations[1], which) for which in (None, 1))
    shutil.copy(whole, part)
    again(one, "out/cells/*.json")
    assert not one.run()
    assert whole.exists()
    assert not part.exists()


def test_parts_have_random_numbers_of_their_own(study) -> None:
    one = study(NORMAL, estimator("seeding", 'options = {told = "seeds.txt"}', "parts = 3"))
    assert not one.run()
    seeds = (one.path / "seeds.txt").read_text().split()
    assert len(set(seeds)) >= 3  # one more by the check beforehand


def test_an_estimator_without_a_seed_is_repeatable(study) -> None:
    one = study(NORMAL, estimator("unseeded", 'options = {told = "drawn.txt"}'))
    assert not one.run()
    again(one, "out/cells/*.json")
    again(one, "out/trainings/*/evidence-*")
    assert not one.run()
    first, second = (one.path / "drawn.txt").read_text().split()
    assert first == second


def test_a_runner_that_waits_for_another_says_so(study, monkeypatch: pytest.MonkeyPatch) -> None:
    one = study(NORMAL)
    assert not one.run()
    again(one, "out/cells/*.json")
    again(one, "out/trainings/*/evidence-*")
    _, (cell,) = Bench(str(one.file)).read()
    folder = Folder(one.path / "out")
    file = folder.evidence(cell, cell.estimations[0])
    held = folder.lock(f"{cell.training_id}-{file.stem}")
    held.acquire()
    said = one.said

    def say(text: str) -> None:
        said.append(text)
        if "another" in text:
            held.release()

    monkeypatch.setattr(runner, "LONG", 0.5)
    monkeypatch.setattr(runner, "AGAIN", 3.0)
    with Processes(folder, 1) as workers:
        run_study([cell], folder, workers, say=say)
    assert "0 of 1 cells: 1 jobs are another runner's, which is waited for" in "\n".join(said)
    assert said[-1].startswith("1 of 1 cells: points, normal")


def test_what_another_runner_has_finished_meanwhile_is_not_looked_for(study) -> None:
    one = study(NORMAL)
    assert not one.run()
    _, cells = Bench(str(one.file), one.path / "out").read()
    folder = Folder(one.path / "out")

    class Nobody(Processes):
        def start(self, job: jobs.Job) -> None:
            raise AssertionError(f"{job.where} is done already")

    found = runner._Runner(cells, folder, Nobody(folder, 1), False, print)
    found.open[cells[0].id] = 1
    found.queue.append(jobs.Job(cells[0], 0))  # queued before the other had finished
    assert found.run().done == 2  # counted where the run began, and here


def test_a_forecast_of_a_retry_counts_what_has_failed(study) -> None:
    one = study(model("raising"))
    assert one.run()
    for retry, words in ((False, "there"), (True, "to do")):
        said: list[str] = []
        preview(Bench(str(one.file), one.path / "out", retry=retry, processes=1), said.append)
        assert said[1].count(words) == 1
    assert "will fail: points, raising, ELBO: training: RuntimeError: this model is out" in said[2]


def test_warnings_before_a_stop_stay_with_the_training(tmp_path: Path) -> None:
    settings = Settings(
        data="study_toys:data",
        model="study_toys:warned_and_stopped",
        options={"told": str(tmp_path / "told")},
        epochs=2,
    )
    with pytest.warns(RuntimeWarning, match="seen before"), pytest.raises(Stopped):
        train(settings, tmp_path / "run", progress=False)
    resume(open_run(tmp_path / "run"), progress=False)
    assert open_run(tmp_path / "run").record["warnings"] == ["seen before the stop"]
