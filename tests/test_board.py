"""What TensorBoard is told of a run, read back by its own reader."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import Tensor, nn
from typer.testing import CliRunner

from pyrovae.benchmarks.cli import app
from pyrovae.inference import fit
from pyrovae.inference.training import board
from pyrovae.inference.training.board import TAGS, Board

accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")


class Mean(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.loc = nn.Parameter(torch.zeros(()))

    def model(self, x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            pyro.sample("x", dist.Normal(self.loc, 1.0), obs=x)

    def guide(self, x: Tensor) -> None:
        pass


X = torch.linspace(-1, 3, 30)


def train(folder: Path | str | None, **more: Any) -> Any:
    mean = Mean()
    settings: dict[str, Any] = {"epochs": 3, "seed": 0, "progress": False, "validation": X} | more
    return fit(mean.model, mean.guide, X, tensorboard=folder, **settings)


def read(folder: Path) -> dict[str, list[tuple[int, float]]]:
    found = accumulator.EventAccumulator(str(folder))
    found.Reload()
    return {tag: [(e.step, e.value) for e in found.Scalars(tag)] for tag in found.Tags()["scalars"]}


def test_the_board_shows_the_history(tmp_path: Path) -> None:
    history = train(tmp_path / "board")
    shown = read(tmp_path / "board")
    assert set(shown) == set(TAGS.values())
    for name, tag in TAGS.items():
        assert [step for step, _ in shown[tag]] == [1, 2, 3]
        assert [v for _, v in shown[tag]] == pytest.approx(getattr(history, name), rel=1e-6)


def test_what_was_not_taken_is_not_shown(tmp_path: Path) -> None:
    train(tmp_path, validation=None)
    assert set(TAGS.values()) - set(read(tmp_path)) == {TAGS["validation_elbo"]}


def test_nothing_is_written_unasked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    train(None)
    assert list(tmp_path.iterdir()) == []


def test_a_run_that_goes_on_shows_each_epoch_once(tmp_path: Path) -> None:
    checkpoint = tmp_path / "run.safetensors"
    train(tmp_path / "board", checkpoint=checkpoint, epochs=2)
    # of an epoch that was shown, but whose checkpoint was lost
    lost = Board(tmp_path / "board", 0)
    lost.add(3, {"loss": 99.0})
    lost.close()
    history = train(tmp_path / "board", checkpoint=checkpoint, epochs=4, resume=True)
    shown = read(tmp_path / "board")[TAGS["loss"]]
    assert [step for step, _ in shown] == [1, 2, 3, 4]
    assert [value for _, value in shown] == pytest.approx(history.loss, rel=1e-6)


def test_without_the_package_nothing_begins(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(
        ModuleNotFoundError, match=r"tensorboard: needs .* 'pyrovae\[tensorboard\]'"
    ):
        train(tmp_path / "board")
    answer = CliRunner().invoke(
        app, ["train", "--epochs", "1", "--tensorboard", "--output", str(tmp_path / "run")]
    )
    assert answer.exit_code == 1
    assert "pip install 'pyrovae[tensorboard]'" in answer.output
    assert not (tmp_path / "run").exists()


def test_a_folder_that_is_none(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(NotADirectoryError, match="tensorboard: must be a folder"):
        train(tmp_path / "file")
    with pytest.raises(TypeError, match="tensorboard: must be a path, but is 3"):
        train(3)  # type: ignore[arg-type]


def test_a_full_disk_ends_the_board_and_not_the_training(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import torch.utils.tensorboard

    class Full(torch.utils.tensorboard.SummaryWriter):
        def flush(self) -> None:
            raise OSError(28, "No space left on device")

    monkeypatch.setattr(torch.utils.tensorboard, "SummaryWriter", Full)
    with pytest.warns(RuntimeWarning, match="tensorboard: .*No space left") as heard:
        assert len(train(tmp_path)) == 3
    assert len([one for one in heard if "tensorboard" in str(one.message)]) == 1


def test_on_the_command_line(tmp_path: Path) -> None:
    run = tmp_path / "run"
    words = ["train", "--epochs", "2", "--tensorboard", "--output", str(run)]
    assert CliRunner().invoke(app, words).exit_code == 0
    assert len(read(run / "tensorboard")[TAGS["loss"]]) == 2
    before = sorted((run / "tensorboard").iterdir())
    assert CliRunner().invoke(app, ["evidence", str(run), "--num-samples", "2"]).exit_code == 0
    assert sorted((run / "tensorboard").iterdir()) == before
    assert board.__doc__
