"""Two processes that train together are one process with the same batches."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import together_script as script
import torch
import torch.distributed as processes
from pyro.infer import JitTrace_ELBO
from safetensors.torch import load_file
from torch.utils.data import DataLoader, TensorDataset

from pyrovae.inference import fit

pytestmark = pytest.mark.skipif(
    not (processes.is_available() and processes.is_gloo_available()), reason="torch without Gloo"
)
TORCHRUN = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1"}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("together")
    words = [*TORCHRUN, script.__file__, str(path)]
    done = subprocess.run(words, capture_output=True, text=True, timeout=300, env=ENVIRONMENT)
    assert done.returncode == 0, done.stderr[-4000:]
    return path


@pytest.fixture(scope="module")
def said(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "said.json").read_text())


@pytest.mark.parametrize("name", script.CASES)
@pytest.mark.filterwarnings("ignore")
def test_parameters_are_those_of_one_process(name: str, folder: Path, said: dict[str, Any]) -> None:
    assert said[name]["same"]
    found = torch.load(folder / f"{name}.pt")
    alone, losses = script.run(script.CASES[name], None)
    assert found.keys() == alone.keys()
    for key, value in alone.items():
        torch.testing.assert_close(found[key], value, rtol=0, atol=1e-5)
    assert said[name]["losses"] == pytest.approx(losses, rel=1e-5)


@pytest.mark.parametrize(
    ("name", "why"),
    [
        ("batch norm", "running_mean is moved by every forward pass"),
        ("free bits", "a batch must be the sum of its parts"),
        ("centred", "a batch must be the sum of its parts, but it is not under this objective: "),
        ("rejection", "how many random numbers the programs draw depends on the data"),
        ("compiled", "group: must be None for compiled steps"),
        ("unequal", "the parameters of process 1 are not those of 0"),
        ("exists", "pass resume=True"),
    ],
)
def test_what_cannot_be_shared_is_refused_by_all(name: str, why: str, said: dict[str, Any]) -> None:
    assert why in said[name]
    assert said["all alike"]


@pytest.mark.filterwarnings("ignore")
def test_a_run_of_two_goes_on_as_one(folder: Path) -> None:
    case = script.CASES["DReG"]
    gone_on, losses = script.run(
        case, None, epochs=3, checkpoint=folder / "half.safetensors", resume=True
    )
    alone, expected = script.run(case, None, epochs=3)
    for key, value in alone.items():
        torch.testing.assert_close(gone_on[key], value, rtol=0, atol=1e-5)
    assert losses == pytest.approx(expected, rel=1e-5)


def test_what_is_no_group() -> None:
    pair, x = script.Pair(), script.data()
    with pytest.raises(TypeError, match="group: must be a process group"):
        fit(pair.model, pair.guide, x, epochs=1, group=2)  # type: ignore[arg-type]
    loader = DataLoader(TensorDataset(x))
    with pytest.raises(ValueError, match="group: must be None for a DataLoader"):
        fit(pair.model, pair.guide, loader, epochs=1, group=2)  # type: ignore[arg-type]
    objective = JitTrace_ELBO()
    with pytest.raises(ValueError, match="group: must be None for compiled steps"):
        fit(pair.model, pair.guide, x, objective=objective, epochs=1, group=2)  # type: ignore[arg-type]


def _train(output: Path, *more: str, several: bool = True) -> list[str]:
    start = TORCHRUN if several else [sys.executable]
    small = ["--option", "latent_dim=4", "--option", "hidden=[16]", "--output", str(output)]
    return [*start, "-m", "pyrovae", "train", *(more or ("--epochs", "2")), *small]


def test_on_the_command_line(tmp_path: Path) -> None:
    outputs = [tmp_path / "one", tmp_path / "two"]
    for output, several in zip(outputs, (False, True), strict=True):
        done = subprocess.run(
            _train(output, several=several), capture_output=True, text=True, env=ENVIRONMENT
        )
        assert done.returncode == 0, done.stderr
        assert done.stdout.count("next: pyrovae evidence") == 1
    one, two = (load_file(output / "model.safetensors") for output in outputs)
    for key, value in one.items():
        torch.testing.assert_close(two[key], value, rtol=0, atol=1e-5)
    names = [sorted(file.name for file in output.iterdir()) for output in outputs]
    assert names[0] == names[1]


@pytest.mark.skipif(os.name != "posix", reason="process groups")
def test_an_interrupt_saves_once_and_is_gone_on_from(tmp_path: Path) -> None:
    output = tmp_path / "long"
    words = _train(output, "--epochs", "100000")
    # of its own session, so that all get the signal, as from a terminal
    with subprocess.Popen(
        words, stderr=subprocess.PIPE, text=True, env=ENVIRONMENT, start_new_session=True
    ) as run:
        end = time.monotonic() + 120
        while not (output / "checkpoint.safetensors").exists() and time.monotonic() < end:
            time.sleep(0.1)
        time.sleep(2)
        os.killpg(run.pid, signal.SIGINT)
        assert run.stderr is not None
        shown = run.stderr.read()
    assert shown.count("Its state is in") == 1, shown
    record = json.loads((output / "run.json").read_text())
    assert record.get("result") is None
    done = int(shown.partition(" of epoch ")[2].partition(".")[0])
    words = [sys.executable, "-m", "pyrovae", "train", "--output", str(output), "--resume"]
    words += ["--epochs", str(done + 1)]
    gone_on = subprocess.run(words, capture_output=True, text=True, env=ENVIRONMENT)
    assert gone_on.returncode == 0, gone_on.stderr
    assert f"{done + 1} epochs" in gone_on.stdout
