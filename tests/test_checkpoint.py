"""Checkpoints that are refused, damaged, or cannot be written; the last good state."""

from __future__ import annotations

import errno
import json
import os
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from pyro.infer import RenyiELBO, Trace_ELBO
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.optim import lr_scheduler
from training_toys import (
    INSPECTIONS,
    QUIET,
    Net,
    Toy,
    as_functions,
    assert_same,
    assert_same_values,
    fresh_net,
    interrupting,
    net_data,
    toy_data,
)

from pyrovae.inference.training import NonFiniteLoss, TrainingInterrupted, fit
from pyrovae.inference.training import checkpoint as files

pytestmark = pytest.mark.usefixtures("one_thread")


# --- refusals -------------------------------------------------------------------------------------


def make_checkpoint(path: Path, x: Tensor, **settings: Any) -> None:
    toy = Toy()
    fit(toy.model, toy.guide, x, checkpoint=path, **{"epochs": 2, **QUIET, **settings})


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"batch_size": 64}, "batch_size is 64, but 100"),
        ({"seed": 1}, "seed is 1, but 0"),
        ({"learning_rate": 0.5}, "learning_rate is 0.5, but 0.001"),
        ({"warm_up": 3}, "warm_up is 3, but 0"),
        ({"clip": 1.0}, "clip is 1.0, but None"),
        ({"patience": 4}, "patience is 4, but 3"),
        ({"objective": RenyiELBO()}, "objective is 'RenyiELBO.*', but 'Trace_ELBO"),
        ({"objective": Trace_ELBO(num_particles=2)}, "num_particles=2.*num_particles=1"),
        ({"optimizer": lambda p: torch.optim.SGD(p, lr=0.1)}, "optimizer is 'SGD.*but 'Adam"),
        (
            {"schedule": lambda o: lr_scheduler.ExponentialLR(o, 0.9)},
            "schedule is 'ExponentialLR', but None",
        ),
        ({"x": toy_data(150)}, r"data_shape is '\(150,\) float32', but '\(200,\) float32'"),
        ({"x": toy_data() + 1}, "data_crc32 is"),
        ({"validation": toy_data() + 1}, "validation_crc32 is"),
        ({"transform": lambda x, generator: x}, "transform is '.*lambda.*', but None"),
        ({"epochs": 1}, "epochs: must be at least 2"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_other_settings_are_refused_by_name_with_both_values(
    tmp_path: Path, changed: dict[str, Any], message: str
) -> None:
    path, x = tmp_path / "run.safetensors", toy_data()
    make_checkpoint(path, x, validation=x, patience=3)
    content = path.read_bytes()
    toy = Toy()
    settings = {"epochs": 5, "validation": x, "patience": 3, **QUIET, **changed}
    with pytest.raises(ValueError, match=message):
        fit(
            toy.model,
            toy.guide,
            settings.pop("x", x),
            checkpoint=path,
            resume=True,
            **settings,
        )
    assert path.read_bytes() == content
    assert toy.values() == Toy().values()


@pytest.mark.parametrize(
    ("other", "message"),
    [
        ({"latent_dim": 3}, r"model.head.weight must have shape \(6, 8\).*has \(4, 8\)"),
        ({"named": True}, r"lacks module.net.encoder.0.weight, which model and guide have"),
        ({"more": True}, r"lacks model.more, which"),
        ({"fewer": True}, r"holds model.decoder.bias, which model and guide lack"),
    ],
)
def test_another_model_is_refused(tmp_path: Path, other: dict[str, Any], message: str) -> None:
    path, x, net = tmp_path / "run.safetensors", net_data(), fresh_net()
    fit(net.model, net.guide, x, epochs=1, checkpoint=path, **QUIET)
    unlike = Net(latent_dim=other.get("latent_dim", 2))
    model, guide = unlike.model, unlike.guide
    if "more" in other:
        unlike.more = torch.nn.Parameter(torch.zeros(2))
    if "fewer" in other:
        unlike.decoder.bias = None
    if "named" in other:
        model, guide = as_functions(unlike)
    before = {name: value.clone() for name, value in unlike.state_dict().items()}
    with pytest.raises(ValueError, match=message):
        fit(model, guide, x, epochs=1, checkpoint=path, resume=True, **QUIET)
    assert_same_values(before, unlike.state_dict())


def test_an_existing_checkpoint_is_not_written_over(tmp_path: Path) -> None:
    path, toy, calls = tmp_path / "run.safetensors", Toy(), [0]
    path.write_bytes(b"precious")

    def model(x: Tensor) -> None:
        calls[0] += 1

    with pytest.raises(FileExistsError, match=r"exists; pass resume=True to go on"):
        fit(model, toy.guide, toy_data(), epochs=1, checkpoint=path, **QUIET)
    assert path.read_bytes() == b"precious"
    assert not calls[0]


def test_resume_without_a_file_starts_afresh(tmp_path: Path) -> None:
    path, toy, plain = tmp_path / "run.safetensors", Toy(), Toy()
    fit(toy.model, toy.guide, toy_data(), epochs=2, checkpoint=path, resume=True, **QUIET)
    fit(plain.model, plain.guide, toy_data(), epochs=2, **QUIET)
    assert toy.values() == plain.values()
    assert path.exists()


def damage(kind: str, path: Path) -> None:
    content = path.read_bytes()
    middle = len(content) - 40
    damaged = {
        "empty": b"",
        "truncated": content[:-10],
        "half": content[: len(content) // 2],
        "text": b"not a checkpoint at all, but a letter",
        "one bit": content[:middle] + bytes([content[middle] ^ 1]) + content[middle + 1 :],
    }
    if kind in damaged:
        path.write_bytes(damaged[kind])
    elif kind == "weights of another program":
        save_file({"weight": torch.ones(2)}, path)
    elif kind == "header":
        save_file({"weight": torch.ones(2)}, path, metadata={files.KEY: "[1"})
    elif kind == "another version":
        header = {"format": files.FORMAT, "version": 99, "state": "{}", "crc32": 0}
        save_file({}, path, metadata={files.KEY: json.dumps(header)})


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("empty", "truncated, corrupt, or not a safetensors file"),
        ("truncated", "truncated, corrupt, or not a safetensors file"),
        ("half", "truncated, corrupt, or not a safetensors file"),
        ("text", "truncated, corrupt, or not a safetensors file"),
        ("one bit", "does not match its checksum"),
        ("weights of another program", "was not written by fit"),
        ("header", "its header is unreadable"),
        ("another version", "must be pyrovae.training version 2, but is"),
    ],
)
def test_a_damaged_file_is_named_and_left_alone(tmp_path: Path, kind: str, message: str) -> None:
    path, x = tmp_path / "run.safetensors", toy_data()
    make_checkpoint(path, x)
    damage(kind, path)
    content = path.read_bytes()
    toy = Toy()
    with pytest.raises(ValueError, match=message) as refused:
        fit(toy.model, toy.guide, x, epochs=5, checkpoint=path, resume=True, **QUIET)
    assert str(path) in str(refused.value)
    assert "\n" not in str(refused.value)
    assert path.read_bytes() == content


def test_a_folder_that_is_missing_is_told_before_any_work(tmp_path: Path) -> None:
    toy, x = Toy(), toy_data()
    (tmp_path / "file").write_text("")
    for path, error, message in (
        (tmp_path / "nowhere" / "run", FileNotFoundError, "nowhere of run does not exist"),
        (tmp_path / "file" / "run", FileNotFoundError, "does not exist"),
        (tmp_path, IsADirectoryError, "must be a file's path"),
    ):
        with pytest.raises(error, match=message):
            fit(toy.model, toy.guide, x, epochs=1, checkpoint=path, **QUIET)
    assert toy.values() == Toy().values()


def refuse_writes(monkeypatch: pytest.MonkeyPatch, code: int, after: int = 0) -> None:
    """Let ``os.fsync`` on files fail, as a full disk or a read-only folder would."""
    count, fsync = [0], os.fsync

    def failing(descriptor: int) -> None:
        count[0] += 1
        if count[0] > after:
            raise OSError(code, os.strerror(code))
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", failing)


def test_a_read_only_folder_is_told_before_any_work(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    refuse_writes(monkeypatch, errno.EROFS)
    toy = Toy()
    with pytest.raises(OSError, match=r"checkpoint: cannot write into .*Read-only file system"):
        fit(toy.model, toy.guide, toy_data(), epochs=1, checkpoint=tmp_path / "run", **QUIET)
    assert toy.values() == Toy().values()
    assert not list(tmp_path.iterdir())


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root may write")
def test_a_folder_without_permission_is_told_before_any_work(tmp_path: Path) -> None:
    folder, toy = tmp_path / "locked", Toy()
    folder.mkdir(mode=0o500)
    with pytest.raises(PermissionError, match="checkpoint: cannot write into"):
        fit(toy.model, toy.guide, toy_data(), epochs=1, checkpoint=folder / "run", **QUIET)


def test_a_full_disk_does_not_stop_training(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, toy, x = tmp_path / "run.safetensors", Toy(), toy_data()
    make_checkpoint(path, x)
    content = path.read_bytes()
    refuse_writes(monkeypatch, errno.ENOSPC, after=2)  # the test of the folder still passes
    with pytest.warns(RuntimeWarning, match=r"could not be written .*No space left") as caught:
        history = fit(toy.model, toy.guide, x, epochs=4, checkpoint=path, resume=True, **QUIET)
    failures = [one for one in caught if one.category is RuntimeWarning]
    assert len(failures) == 2  # tried again at the end of each epoch
    assert len(history) == 4
    assert path.read_bytes() == content
    assert not list(tmp_path.glob(".*"))
    monkeypatch.undo()
    again = Toy()
    assert_same(
        fit(again.model, again.guide, x, epochs=4, checkpoint=path, resume=True, **QUIET), history
    )
    assert again.values() == toy.values()


def test_ctrl_c_on_a_full_disk_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    toy, x = Toy(), toy_data()
    refuse_writes(monkeypatch, errno.ENOSPC, after=4)  # the folder's test and the first state pass
    guide = interrupting(toy.guide, 1 + INSPECTIONS)
    with (
        pytest.warns(RuntimeWarning, match="could not be written"),
        pytest.raises(TrainingInterrupted, match=r"could not be saved: .*No space left"),
    ):
        fit(toy.model, guide, x, epochs=4, checkpoint=tmp_path / "run", **QUIET)
    assert files.load(tmp_path / "run")["position"]["batch"] == 0


def test_what_cannot_be_kept_is_told_before_training(tmp_path: Path) -> None:
    toy = Toy()

    class Odd(lr_scheduler.LambdaLR):
        def state_dict(self) -> dict[str, Any]:
            return {"callback": print}

    with pytest.raises(ValueError, match=r"cannot keep state.optimization.schedule.callback"):
        fit(
            toy.model,
            toy.guide,
            toy_data(),
            epochs=1,
            checkpoint=tmp_path / "run",
            schedule=lambda o: Odd(o, lambda e: 1.0),
            **QUIET,
        )
    assert toy.values() == Toy().values()
    assert not list(tmp_path.iterdir())


# --- the last good state --------------------------------------------------------------------------


class Bursting(Net):
    """A network whose output overflows in a given step, batch norm and all."""

    def __init__(self, at: int) -> None:
        super().__init__()
        self.at, self.steps = at, 0

    def guide(self, x: Tensor) -> None:
        self.steps += torch.is_grad_enabled()
        super().guide(x * (float("nan") if self.steps == self.at + INSPECTIONS else 1.0))


def test_the_last_good_state_is_saved_and_kept(tmp_path: Path) -> None:
    x, path = net_data(), tmp_path / "run.safetensors"
    settings = {"epochs": 3, "batch_size": 30, **QUIET}
    torch.manual_seed(3)
    bursting = Bursting(at=8)
    start = {name: value.clone() for name, value in bursting.state_dict().items()}
    with pytest.raises(NonFiniteLoss, match=r"epoch 2, batch 3: .*'z' in the guide"):
        fit(bursting.model, bursting.guide, x, checkpoint=path, **settings)
    assert all(value.isfinite().all() for value in bursting.state_dict().values())

    bursting.at = -1  # mended
    history = fit(bursting.model, bursting.guide, x, checkpoint=path, resume=True, **settings)
    whole = Net()
    whole.load_state_dict(start)
    assert_same(history, fit(whole.model, whole.guide, x, **settings))
    assert_same_values(bursting.state_dict(), whole.state_dict())


def test_states_of_every_kind_come_back(tmp_path: Path) -> None:
    state = {
        "tensors": {0: torch.arange(3), "bf16": torch.ones(2, dtype=torch.bfloat16)},
        "shared": [torch.ones(3).expand(2, 3), torch.eye(2).t(), torch.tensor(True)],
        "numbers": (1, 2.5, float("inf"), -float("inf"), True, None, np.float64(0.1), 10**18),
        "empty": [{}, [], (), torch.zeros(0), ""],
        "π": {"nested": {"deeply": ({"x": torch.tensor(1.5)},)}},
    }
    files.save(tmp_path / "file", state)
    back = files.load(tmp_path / "file")
    assert_equal(state, back)
    assert back["numbers"][3] == -np.inf
    assert np.isnan(files.unpack(files.pack(float("nan"), "", {}), {}))


def assert_equal(a: Any, b: Any) -> None:
    if isinstance(a, Tensor):
        assert a.dtype == b.dtype
        assert torch.equal(a, b)
    elif isinstance(a, dict):
        assert a.keys() == b.keys()
        for key in a:
            assert_equal(a[key], b[key])
    elif isinstance(a, list | tuple):
        assert type(a) is type(b)
        assert len(a) == len(b)
        for one, other in zip(a, b, strict=True):
            assert_equal(one, other)
    else:
        assert a == b
        assert type(b) is type(a) or isinstance(a, np.generic)


def test_nothing_in_a_checkpoint_is_executed(tmp_path: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        warnings.filterwarnings("ignore", "posterior collapse")
        make_checkpoint(tmp_path / "run", toy_data())
    assert b"pickle" not in (tmp_path / "run").read_bytes()
    tensors = load_file(tmp_path / "run")  # any reader of safetensors can open it
    assert "state.values.model.mu" in tensors
