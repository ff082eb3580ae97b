"""A study under fire: nothing that is finished is lost, or done twice."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import xarray as xr

from pyrovae.benchmarks.bench import Bench, run

EPOCHS, STEPS = 4, 3  # sixty data in batches of twenty

HEAD = f"""\
seeds = [0, 1]

[training]
epochs = {EPOCHS}
batch_size = 20

[data.points]
name = "study_toys:data"

[objective.ELBO]
"""
ESTIMATOR = """
[estimator.L_20]
name = "study_toys:Noting"
options = {told = "scored.txt"}
"""
NORMAL = '\n[model.normal]\nname = "study_toys:normal"\n'


def model(name: str, options: str = "") -> str:
    return f'\n[model.{name}]\nname = "study_toys:{name}"\n{options and f"options = {options}"}\n'


class Study:
    """A study file in a working directory of its own, and what has come of it."""

    def __init__(self, folder: Path, text: str) -> None:
        self.path = folder
        self.file = folder / "fire.toml"
        self.file.write_text(text)
        self.said: list[str] = []

    def run(self, **asked) -> bool:
        """Run it here; whether a cell has failed."""
        self.said = []
        bench = Bench(str(self.file), self.path / "out", **{"processes": 2, **asked})
        return run(bench, self.said.append)

    def start(self, *options: str, processes: bool = True) -> subprocess.Popen:
        """Run it in a process of its own."""
        words = ["bench", str(self.file), "--output", "out", *options]
        words += ["--processes", "2"] if processes else []
        path = os.pathsep.join([str(Path(__file__).parent), os.environ.get("PYTHONPATH", "")])
        return subprocess.Popen(
            [sys.executable, "-m", "pyrovae.benchmarks", *words],
            cwd=self.path,
            env={**os.environ, "PYTHONPATH": path},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def records(self) -> dict[str, dict]:
        """By model and seed."""
        found = [json.loads(file.read_text()) for file in self.path.glob("out/cells/*.json")]
        return {f"{one['model']} {one['seed']}": one for one in found}

    def files(self) -> dict[str, int]:
        """Everything that is finished, and when it was written."""
        patterns = ("out/cells/*.json", "out/trainings/*/*.nc", "out/trainings/*/model*")
        files = [file for pattern in patterns for file in self.path.glob(pattern)]
        return {str(file): file.stat().st_mtime_ns for file in files}

    def count(self, file: str) -> int:
        path = self.path / file
        return len(path.read_bytes().splitlines()) if path.exists() else 0

    def until(self, happens, seconds: float = 120.0) -> None:
        end = time.monotonic() + seconds
        while not happens():
            assert time.monotonic() < end, "it did not happen"
            time.sleep(0.02)


@pytest.fixture
def study(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    return lambda *parts: Study(tmp_path, "".join((HEAD, ESTIMATOR, *parts)))


def status(found: dict[str, dict]) -> dict[str, str]:
    return {name: record["status"] for name, record in found.items()}


def test_a_finished_study_is_not_run_again(study) -> None:
    one = study(NORMAL)
    assert not one.run()
    assert status(one.records()) == {"normal 0": "done", "normal 1": "done"}
    before = one.files()
    assert one.count("scored.txt") == 2
    assert not one.run()
    assert one.files() == before
    assert one.count("scored.txt") == 2
    assert "2 of 2 cells there already" in one.said[1]


def test_a_longer_study_keeps_what_it_shares_with_the_shorter(study, tmp_path: Path) -> None:
    one = study(NORMAL)
    one.run()
    before = one.files()
    more = '\n[estimator.more]\nname = "importance-sampling"\noptions = {num_samples = 10}\n'
    longer = study(NORMAL, more, model("slow", '{told = "steps.txt"}'))
    assert not longer.run()
    assert longer.count("scored.txt") == 4, "two of the new model, none of the old"
    assert all(longer.files()[name] == when for name, when in before.items())
    assert len(longer.records()["normal 0"]["estimates"]) in (1, 2)


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("raising", "this model is out of order"),
        ("hungry", "alloc"),
        ("dying", "signal 9"),
    ],
)
def test_a_failed_cell_stops_no_other(name: str, words: str, study) -> None:
    one = study(model(name), NORMAL)
    assert one.run()
    found = one.records()
    assert status(found) == {
        f"{name} 0": "failed",
        f"{name} 1": "failed",
        "normal 0": "done",
        "normal 1": "done",
    }
    assert words in found[f"{name} 0"]["errors"][0]["message"]
    assert found[f"{name} 0"]["errors"][0]["where"] == "training"
    before = one.files()
    assert one.run(), "it is still failed"
    assert one.files() == before, "and not tried again unless that is asked for"
    assert one.run(retry=True)
    assert {name for name, when in one.files().items() if before.get(name) != when}


def test_a_failed_estimate_keeps_the_training_and_the_other_estimates(study) -> None:
    one = study(NORMAL, '\n[estimator.broken]\nname = "study_toys:broken"\n')
    assert one.run()
    found = one.records()["normal 0"]
    (error,) = found["errors"]
    assert (found["status"], error["where"]) == ("failed", "broken")
    assert (error["type"], error["message"]) == (
        "ArithmeticError",
        "this estimator is out of order",
    )
    assert [one["estimator"] for one in found["estimates"]] == ["L_20"]
    assert found["training"]["epochs"] == EPOCHS


def test_a_killed_runner_loses_nothing_that_is_finished(study) -> None:
    one = study(model("slow", '{told = "steps.txt", seconds = 0.3}'))
    one.file.write_text(one.file.read_text().replace("[0, 1]", "[0, 1, 2, 3]"))
    process = one.start()
    try:
        one.until(lambda: len(one.records()) >= 1)
    finally:
        process.send_signal(signal.SIGKILL)
        _, err = process.communicate()
    assert "Traceback" not in err, "its workers end quietly"
    before = one.files()

    def still() -> bool:  # the workers save their state and end when their parent is gone
        steps = one.count("steps.txt")
        time.sleep(1.0)
        return one.count("steps.txt") == steps

    one.until(still)
    assert one.count("steps.txt") < 3 * EPOCHS * STEPS, "what was under way has not been finished"
    assert not one.run()
    assert status(one.records()) == {f"slow {seed}": "done" for seed in range(4)}
    after = one.files()
    assert all(after[name] == when for name, when in before.items() if name in after)
    # what was under way goes on from its last step
    assert one.count("steps.txt") <= 4 * EPOCHS * STEPS + 2 * STEPS


def test_two_runners_share_the_work(study) -> None:
    one = study(model("slow", '{told = "steps.txt", seconds = 0.05}'))
    one.file.write_text(one.file.read_text().replace("[0, 1]", "[0, 1, 2, 3, 4]"))
    runners = [one.start(), one.start()]
    said = [runner.communicate(timeout=120) for runner in runners]
    assert [runner.returncode for runner in runners] == [0, 0], said
    assert len(one.records()) == 5
    assert one.count("steps.txt") == 5 * EPOCHS * STEPS, "every step once"
    assert one.count("scored.txt") == 5


def test_a_full_disk_fails_no_cell(study) -> None:
    one = study(NORMAL, model("full_disk", '{told = "full"}'))
    (one.path / "full").touch()
    with pytest.raises(OSError, match="No space left"):
        one.run(processes=1)
    assert set(status(one.records()).values()) <= {"done"}
    before = one.files()
    (one.path / "full").unlink()
    assert not one.run()
    assert set(status(one.records()).values()) == {"done"}
    assert len(one.records()) == 4
    assert all(one.files()[name] == when for name, when in before.items())


DAMAGED = ("out/cells/*.json", "out/trainings/*/evidence-*.nc", "out/trainings/*/run.json")


@pytest.mark.parametrize("content", [b"", b"{", b"\x00" * 100], ids=["empty", "cut", "zeros"])
@pytest.mark.parametrize("what", DAMAGED)
def test_what_is_damaged_is_made_again_and_nothing_else(what, content: bytes, study) -> None:
    one = study(NORMAL)
    one.run()
    before = {name: read(record, one) for name, record in one.records().items()}
    victim = sorted(one.path.glob(what))[0]
    others = {name: when for name, when in one.files().items() if victim.parent.name not in name}
    victim.write_bytes(content)
    if what.endswith("run.json"):  # its cell is looked at only where it is not finished
        for file in one.path.glob("out/cells/*.json"):
            file.unlink()
        others = {name: when for name, when in others.items() if "cells" not in name}
    assert not one.run()
    assert {name: read(record, one) for name, record in one.records().items()} == before
    kept = {name for name, when in one.files().items() if others.get(name) == when}
    assert kept >= {name for name in others if "cells" not in name}
    assert list(one.path.glob("out/**/*.damaged-*"))


def read(record: dict, one: Study) -> list[float]:
    """The numbers of a cell."""
    (estimate,) = record["estimates"]
    with xr.open_dataset(one.path / "out" / estimate["file"], engine="scipy") as found:
        return found["log_evidence"].values.tolist()


def test_parts_of_an_estimate_are_put_together_in_order(study) -> None:
    one = study(NORMAL, '\n[estimator.parts]\nname = "study_toys:Noting"\nparts = 3\n')
    assert not one.run(), one.said
    record = one.records()["normal 0"]
    files = {e["estimator"]: one.path / "out" / e["file"] for e in record["estimates"]}
    with xr.open_dataset(files["parts"], engine="scipy") as found:
        assert found["datum"].values.tolist() == list(range(20))
        parts = found["log_evidence"].values
    with xr.open_dataset(files["L_20"], engine="scipy") as found:
        whole = found["log_evidence"].values
        assert abs(parts - whole).max() < 6 * found["stderr"].values.max() + 1e-6
    assert not list(one.path.glob("out/trainings/*/*-part*"))


def test_another_study_is_not_mixed_in(study, tmp_path: Path) -> None:
    one = study(NORMAL)
    one.run()
    one.file = one.file.rename(tmp_path / "other.toml")
    with pytest.raises(FileExistsError, match="holds the study 'fire'"):
        one.run()


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_keeps_what_is_finished_and_says_how_to_go_on(number, code, study) -> None:
    one = study(model("slow", '{told = "steps.txt", seconds = 0.2}'))
    process = one.start()
    one.until(lambda: one.count("steps.txt") >= 3)
    process.send_signal(number)
    _, err = process.communicate(timeout=60)
    assert process.returncode == code, err
    assert "stopped; 0 of 2 cells are finished; all that is done is kept, and the same" in err
    assert "Traceback" not in err
    taken = one.count("steps.txt")
    assert not one.run()
    assert one.count("steps.txt") == 2 * EPOCHS * STEPS, f"{taken} were taken before"


distributed = pytest.importorskip("distributed")


def test_a_dask_cluster_finds_the_same_numbers(study) -> None:
    one = study(NORMAL)
    one.run()
    here = {name: read(record, one) for name, record in one.records().items()}
    bench = Bench(str(one.file), one.path / "dask", workers=2)
    assert not run(bench, print)
    one.path.joinpath("out").rename(one.path / "here")
    one.path.joinpath("dask").rename(one.path / "out")
    assert {name: read(record, one) for name, record in one.records().items()} == here


def test_a_dask_worker_that_is_killed_is_replaced(study) -> None:
    one = study(model("dying_once", '{told = "died"}'), NORMAL)
    assert not one.run(processes=None, workers=2)
    assert (one.path / "died").exists()
    assert set(status(one.records()).values()) == {"done"}
    assert one.count("scored.txt") == 4


def test_runners_that_begin_at_once_share_a_folder(study) -> None:
    one = study(NORMAL)
    (one.path / "out" / "cells").mkdir(parents=True)  # another has come so far
    assert not one.run()
    assert len(one.records()) == 2


def test_a_folder_of_something_else_is_left_alone(study) -> None:
    one = study(NORMAL)
    (one.path / "out").mkdir()
    (one.path / "out" / "thesis.tex").touch()
    with pytest.raises(FileExistsError, match="exists and is no study's"):
        one.run()
    assert [file.name for file in (one.path / "out").iterdir()] == ["thesis.tex"]


def test_dask_workers_of_several_threads_are_refused(study) -> None:
    distributed = pytest.importorskip("distributed")
    one = study(NORMAL)
    with (
        distributed.LocalCluster(
            n_workers=1, threads_per_worker=2, processes=False, dashboard_address=":0"
        ) as cluster,
        pytest.raises(ValueError, match=r"one thread each .*; found 2"),
    ):
        one.run(processes=None, scheduler=cluster.scheduler_address)


def test_a_dask_scheduler_that_is_killed_stops_the_study_in_a_line(study) -> None:
    one = study(model("slow", '{told = "steps.txt", seconds = 0.2}'))
    path = os.pathsep.join([str(Path(__file__).parent), os.environ.get("PYTHONPATH", "")])

    def start(*words: str) -> subprocess.Popen:
        return subprocess.Popen(
            [sys.executable, "-m", "distributed.cli." + words[0], *words[1:]],
            cwd=one.path,
            env={**os.environ, "PYTHONPATH": path},
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )

    where = one.path / "scheduler.json"
    scheduler = start("dask_scheduler", "--port", "0", "--scheduler-file", str(where), "--no-show")
    one.until(where.exists)
    address = json.loads(where.read_text())["address"]
    worker = start("dask_worker", address, "--nthreads", "1", "--death-timeout", "5")
    try:
        process = one.start("--scheduler", address, processes=False)
        one.until(lambda: one.count("steps.txt") >= 2)
        scheduler.kill()
        _, err = process.communicate(timeout=120)
    finally:
        for each in (scheduler, worker):
            each.kill()
            each.wait()
    assert process.returncode == 1
    assert err.splitlines()[-1].startswith("pyrovae: the scheduler of the cluster is gone; 0 of 2")
    assert not one.run()
