"""The study of objectives: a small one, start to end, and its errors against plain arithmetic."""

from __future__ import annotations

import importlib.metadata
import json
import math
from pathlib import Path

import matplotlib.image
import numpy as np
import pytest

from pyrovae.benchmarks.studies import objectives
from pyrovae.benchmarks.studies.objectives_table import draw, summarise, table
from pyrovae.inference import NonFiniteLoss

NAMES = ["ELBO", "DReG"]


def start(folder: Path, *more: str) -> None:
    """A study of two variants, in this process."""
    small = ["--variants", *NAMES, "--seeds", "0", "--epochs", "2", "--rounds", "1"]
    folders = ["--checkpoints", str(folder / "runs"), "--output", str(folder / "out")]
    objectives.main([*small, "--workers", "1", *folders, *more])


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch, one_thread: None) -> None:
    monkeypatch.setattr(objectives, "NUM_SAMPLES", 50)
    monkeypatch.setattr(objectives, "TIMED_EPOCHS", 2)


@pytest.mark.usefixtures("quick")
def test_a_small_study(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys) -> None:
    start(tmp_path)
    text = (tmp_path / "out" / "objectives.md").read_text()
    record = json.loads((tmp_path / "out" / "objectives.json").read_text())
    lines = text.splitlines()
    assert {line.count("|") for line in lines[:4]} == {9}
    assert [line.split(" | ")[0] for line in lines[2:4]] == [
        f"| {row['variant']}" for row in record["rows"]
    ]
    assert record["command"] in text
    assert record["machine"]["summary"] in text
    assert record["machine"]["date"]
    assert record["machine"]["versions"]["torch"] == importlib.metadata.version("torch")
    assert record["seeds"] == [0]
    assert sorted(run["variant"] for run in record["runs"]) == sorted(NAMES)
    for run in record["runs"]:
        assert len(run["log_p_by_image"]) == 300
        assert len(run["own_bound_by_epoch"]) == run["epochs"] == 2
        assert run["test_log_p"] == pytest.approx(np.mean(run["log_p_by_image"]), abs=1e-3)
        assert run["gap"] == pytest.approx(run["test_log_p"] - run["test_elbo"])
        assert run["gap"] > 0
        assert 0 <= run["active_units"] <= 16
    assert all(row["milliseconds"] > 0 for row in record["rows"])
    assert matplotlib.image.imread(tmp_path / "out" / "objectives.png").std() > 0.01

    kept = {file: file.read_bytes() for file in (tmp_path / "runs").iterdir()}
    printed = capsys.readouterr().out
    assert printed.count("log p(x)") == len(NAMES) + 1  # a line a run, and the table's head
    monkeypatch.setattr(objectives, "train", None)  # to run anything again would fail
    start(tmp_path)
    assert capsys.readouterr().out.count("log p(x)") == 1
    assert (tmp_path / "out" / "objectives.md").read_text() == text
    assert {file: file.read_bytes() for file in (tmp_path / "runs").iterdir()} == kept

    with pytest.raises(SystemExit, match="has epochs 2, not 3"):
        start(tmp_path, "--epochs", "3")


def test_every_variant_takes_as_many_particles() -> None:
    made = {name: make() for name, make in objectives.VARIANTS.items()}
    assert {one.num_particles for one in made.values()} == {objectives.PARTICLES}
    assert len({repr(one) for one in made.values()}) == len(made) == 12
    assert len({objectives.run_path(Path(), name, 0) for name in made}) == len(made)


def test_a_study_needs_what_it_compares_to(capsys) -> None:
    with pytest.raises(SystemExit):
        objectives.main(["--variants", "DReG"])
    assert "ELBO must be among them" in capsys.readouterr().err


def test_a_run_that_fails_says_which_it_was(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*args: object) -> None:
        raise NonFiniteLoss("the loss is nan", 3, 1, (), None)

    monkeypatch.setattr(objectives, "train", fail)
    with pytest.raises(RuntimeError, match=r"TVO\(5\), seed 7: the loss is nan"):
        objectives.run("TVO(5)", 7, 2)


def made_up(name: str, scores: np.ndarray) -> list[dict]:
    """Runs with given log p(x), ``(S, N)``."""
    return [
        {
            "variant": name,
            "seed": seed,
            "log_p_by_image": row.tolist(),
            "monte_carlo_stderr": 0.03,
            **dict.fromkeys(("test_elbo", "gap", "khat_too_high", "active_units"), 0.5),
        }
        for seed, row in enumerate(scores)
    ]


def test_errors_are_what_they_are_called(tmp_path: Path) -> None:
    # an image is as hard for every variant, a seed lifts all images: each error sees its own part
    image, luck = np.array([-30.0, -20.0, -28.0, -22.0]), np.array([[0.0], [0.3], [0.6]])
    better = np.array([0.1, 0.3, 0.1, 0.3])
    runs = made_up("ELBO", image + luck) + made_up("IWAE", image + better + 2 * luck)
    best, reference = summarise(runs, {"ELBO": [1.0, 2.0, 9.0], "IWAE": [3.0]})
    assert (best["variant"], reference["variant"]) == ("IWAE", "ELBO")
    assert reference["log_p"] == pytest.approx(-24.7)
    assert reference["seed_stderr"] == pytest.approx(0.3 / math.sqrt(3))
    assert reference["monte_carlo_stderr"] == pytest.approx(0.03 / math.sqrt(3))
    assert reference["data_stderr"] == pytest.approx(math.sqrt(68 / 3 / 4 - 0.0003))
    assert reference["difference"] is None
    assert reference["milliseconds"] == 2.0
    assert best["difference"] == pytest.approx(0.5)
    assert best["difference_by_seed"] == pytest.approx([0.2, 0.5, 0.8])
    assert best["difference_seed_stderr"] == pytest.approx(0.3 / math.sqrt(3))
    assert best["difference_image_stderr"] == pytest.approx(better.std(ddof=1) / 2)
    assert "+0.500 ± 0.058 ± 0.173" in table([best, reference])
    far = {**reference, "variant": "BetaVAE(4)", "log_p": -90.0}
    draw([best, reference, far], tmp_path / "far.png")
    assert matplotlib.image.imread(tmp_path / "far.png").std() > 0.01
