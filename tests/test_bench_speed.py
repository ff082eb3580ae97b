"""`pyrovae bench speed`, at sizes that measure nothing: who takes part, and what is written."""

from __future__ import annotations

import json
from pathlib import Path

import matplotlib.image
import pytest
from command_line import invoke, told

from pyrovae.benchmarks.speed import (
    PARTS,
    annealing,
    bench,
    compiling,
    importance_weights,
    own_models,
    peers,
    training_steps,
)
from pyrovae.benchmarks.speed.part import FLOOR, compared

pytestmark = pytest.mark.usefixtures("here", "one_thread")


@pytest.fixture
def tiny(monkeypatch):
    """Sizes at which everything runs, compiled where it would be, and quickly."""
    monkeypatch.setattr(training_steps, "SIZES", ((4, 1, 10, 1), (4, 2, 10, 1)))
    monkeypatch.setattr(training_steps, "EPOCHS", 1)
    monkeypatch.setattr(own_models, "STEPS", 10)
    monkeypatch.setattr(own_models, "EPOCHS", 1)
    monkeypatch.setattr(importance_weights, "NUM_SAMPLES", 1000)
    monkeypatch.setattr(importance_weights, "MANY", 20)
    monkeypatch.setattr(importance_weights, "FEW", 4)
    monkeypatch.setattr(importance_weights, "EPOCHS", 1)
    monkeypatch.setattr(annealing, "SIZES", ((2, 2, 3),))
    monkeypatch.setattr(annealing, "SCALING", ((2, 4, 3),))
    monkeypatch.setattr(annealing, "LOOPS", 2)
    monkeypatch.setattr(compiling, "SUBJECTS", ("scoring",))


@pytest.fixture
def no_peer(monkeypatch):
    monkeypatch.setattr(peers, "has_pythae", lambda: False)


@pytest.mark.usefixtures("tiny", "no_peer")
def test_everything_in_one_run(tmp_path: Path) -> None:
    shown = invoke("bench", "speed", "--rounds", "1", "--output", "found").stdout
    page = (tmp_path / "found" / "speed.md").read_text()
    record = json.loads((tmp_path / "found" / "speed.json").read_text())
    for title in ("A training step", "An importance weight", "A chain's gradient"):
        assert f"## {title}" in shown
        assert f"## {title}" in page
    assert page.startswith("# Speed\n\n`pyrovae bench speed --rounds 1 --device cpu`")
    assert {"torch", "pyro-ppl"} <= record["machine"]["versions"].keys()
    assert list(record["parts"]) == ["training", "models", "scoring", "annealing", "compiling"]
    assert record["parts"]["training"]["unit"] == "ms a step"
    step = record["parts"]["training"]["times"]["training, batch 4"]
    assert set(step) == {
        *("pyro.infer.SVI", "by hand, eager", "by hand, torch.compile"),
        *("fit", "fit, compile=True", FLOOR),
    }
    assert all(seconds > 0 for seconds in step["fit"])
    first, again = record["parts"]["compiling"]["more"]["scoring"].values()
    assert min(first + again) > 0
    assert "Pythae is not installed" in page
    assert "bfloat16 shifts it by" in page
    assert matplotlib.image.imread(tmp_path / "found" / "speed.png").std() > 0.01


@pytest.mark.usefixtures("tiny")
def test_against_pythae(tmp_path: Path) -> None:
    pytest.importorskip("pythae", reason="of the peers extra")
    invoke("bench", "speed", *("--part", "training", "--part", "scoring"), "--rounds", "1")
    assert "Pythae" in training_steps.contenders()
    assert {"Pythae get_nll, batch 100"} <= importance_weights.contenders("cpu").keys()


@pytest.mark.usefixtures("tiny", "no_peer")
def test_a_part_is_kept_when_the_next_one_fails(tmp_path: Path, monkeypatch) -> None:
    def fails(rounds: int, device: str) -> None:
        raise MemoryError("no more")

    monkeypatch.setitem(PARTS, "annealing", fails)
    with pytest.raises(MemoryError, match="no more"):
        bench(("models", "annealing"), 1, output=tmp_path, show=lambda text: None)
    record = json.loads((tmp_path / "speed.json").read_text())
    assert record["command"].startswith("pyrovae bench speed --part models --part annealing")
    assert list(record["parts"]) == ["models"]


def test_contenders_that_disagree_are_not_compared(monkeypatch) -> None:
    wrong = {"one": lambda: (-541.0, 1.0), "other": lambda: (-540.0, 1.0)}
    monkeypatch.setattr(importance_weights, "contenders", lambda device: wrong)
    with pytest.raises(RuntimeError, match="disagree about log p"):
        importance_weights.measure(1, "cpu")


def test_what_is_wrong_is_told() -> None:
    told(invoke("bench", "fast", code=1), "STUDY should be a study file, or one of ")
    told(invoke("bench", "speed", "--part", "slow", code=1), "parts should be of training,")


def test_ratios_are_of_the_same_round() -> None:
    """A machine that slows down by half in between changes no ratio."""
    rows = compared({"ours": [1.0, 2.0, 2.0], "theirs": [3.0, 6.0, 6.0]}, ("theirs", "absent"))
    (_, middle, low, high, (ratio, absent)), _ = rows
    assert (middle, low, high, ratio) == (2.0, 1.5, 2.0, 3.0)
    assert absent != absent
