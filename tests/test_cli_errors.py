"""The command line refuses: what a user can have got wrong is told in a line, and loses nothing."""

from __future__ import annotations

import contextlib
import gzip
import importlib.metadata
import json
import os
import shlex
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
import xarray as xr
from command_line import BITS, invoke, same_model, snapshot, told

from pyrovae.benchmarks import scoring, training
from pyrovae.benchmarks.runs import open_run

pytestmark = pytest.mark.usefixtures("here", "one_thread")


TRAIN_ERRORS = {
    "nan": (["--data", "cli_toys:with_nan"], "train should be finite, found NaN"),
    "dtype": (["--data", "cli_toys:whole_numbers"], "should be float32 or float64, found torch.i"),
    "other dtype": (["--data", "cli_toys:double"], "torch.float32 like the parameters"),
    "empty": (["--data", "cli_toys:nothing"], "should not be empty, found shape (0, 8)"),
    "labels": (["--data", "cli_toys:wrong_labels"], "test_labels should be int64 of shape (15,)"),
    "other N": (
        ["--model", "cli_toys:not_amortised"],
        "in training the last context must be the index",
    ),
    "grey": (["--data", "cli_toys:grey"], "site 'x' takes values in Boolean"),
    "grey later": (["--data", "cli_toys:grey_once", "--model", "vae"], "holds 0.5: binarise"),
    "grey digits": (
        ["--data", "digits", "--no-binarise", "--model", "vae"],
        "has a Bernoulli likelihood, which takes 0 and 1, but data set 'digits' holds",
    ),
    "real": (["--data", "cli_toys:real", "--model", "vae"], "has a Bernoulli likelihood"),
    "data name": (["--data", "cifar"], "unknown data set 'cifar'; there are digits, mnist"),
    "model name": (["--model", "vea"], "unknown model 'vea' (did you mean 'vae'?); there are vae"),
    "objective name": (["--objective", "elbo"], "unknown objective 'elbo'; there are ELBO, STL"),
    "attribute": (["--model", "cli_toys:nope"], "module 'cli_toys' has no attribute 'nope'"),
    "module": (["--data", "nowhere:x"], "no module named 'nowhere'"),
    "option": (["--option", "size=3"], "'cli_toys:ours' has no option 'size'; its options: lat"),
    "option form": (["--option", "size"], "should have the form key=value; found 'size'"),
    "option value": (["--model", "vae", "--option", "latent_dim=x"], "latent_dim should be"),
    "objective option": (["--objective-option", "beta=3"], "'Trace_ELBO' has no option 'beta'"),
    "objective value": (
        ["--objective", "RenyiELBO", "--objective-option", "alpha=1"],
        "alpha should not be equal to 1",
    ),
    "data raise": (["--data", "cli_toys:breaks"], "'cli_toys:breaks' raised KeyError"),
    "model raises": (["--model", "cli_toys:raises"], "raised ZeroDivisionError: by design"),
    "no pair": (["--model", "cli_toys:number"], "or a tuple of the two programs; found int"),
    "epochs": (["--epochs", "0"], "epochs: must be at least 1, but is 0"),
    "batch": (["--batch-size", "0"], "batch_size: must be at least 1, but is 0"),
    "rate": (["--learning-rate", "-1"], "learning_rate: must be positive and finite"),
    "patience": (["--patience", "0"], "patience: must be at least 1"),
    "clip": (["--clip", "0"], "clip: must be positive"),
    "seed": (["--seed", "-1"], "seed"),
    "device": (["--device", "gpu"], "device should be auto, cpu or cuda; found 'gpu'"),
    "data folder": (["--data", "mnist", "--data-folder", "nowhere"], "folder that exists"),
}


@pytest.mark.parametrize("name", TRAIN_ERRORS)
def test_an_error_of_training_is_told(name: str, tmp_path: Path) -> None:
    words, message = TRAIN_ERRORS[name]
    told(invoke("train", *BITS, "--output", "run", *words, code=1), message)
    assert list(tmp_path.iterdir()) == []


def test_a_loss_that_explodes_is_told_and_the_last_good_state_kept(tmp_path: Path) -> None:
    words = ("--model", "cli_toys:exploding", "--epochs", "50", "--output", "run")
    told(invoke("train", *BITS, *words, code=1), "epoch 30, batch 1: the loss is")
    assert open_run(tmp_path / "run").epochs_done() == 29


@pytest.mark.parametrize("damage", ["cut", "corrupt", "text"])
def test_a_corrupt_idx_file_is_told_and_left_alone(damage: str, tmp_path: Path) -> None:
    folder = tmp_path / "data" / "mnist"
    folder.mkdir(parents=True)
    for name in ("train-images-idx3", "t10k-images-idx3", "train-labels-idx1", "t10k-labels-idx1"):
        whole = gzip.compress(bytes([0, 0, 8, 3]) + bytes(200))
        file = folder / f"{name}-ubyte.gz"
        file.write_bytes({"cut": whole[:-9], "corrupt": whole, "text": b"<html>"}[damage])
    before = snapshot(tmp_path)
    words = ("--data", "mnist", "--data-folder", str(tmp_path / "data"), "--output", "run")
    told(invoke("train", *words, code=1), "train-images-idx3-ubyte.gz: expected")
    assert snapshot(tmp_path) == before


@contextlib.contextmanager
def read_only_folder(holding: Path | None = None) -> Iterator[Path]:
    """A folder this process cannot write into: root gives up its power for as long."""
    folder = Path(tempfile.mkdtemp())  # not tmp_path, which only its owner can reach
    if holding is not None:
        shutil.copytree(holding, folder, dirs_exist_ok=True)
        for file in folder.iterdir():
            file.chmod(0o644)
    folder.chmod(0o555)
    root = hasattr(os, "geteuid") and os.geteuid() == 0
    if root:
        os.seteuid(65534)
    try:
        yield folder
    finally:
        if root:
            os.seteuid(0)
        folder.chmod(0o755)
        shutil.rmtree(folder)


@pytest.mark.parametrize("name", ["run", "."])
@pytest.mark.parametrize("command", ["train", "demo"])
def test_a_read_only_output_folder_is_told(command: str, name: str) -> None:
    words = ["train", *BITS] if command == "train" else ["demo"]
    with read_only_folder() as folder:
        told(invoke(*words, "--output", str(folder / name), code=1), "Permission denied")
        assert list(folder.iterdir()) == []


def test_a_result_that_cannot_be_written_is_told_before_scoring(
    trained: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(scoring, "load_data", lambda settings: pytest.fail("too late"))
    told(invoke("evidence", str(trained), "--output", "nowhere/e.nc", code=1), "into nowhere: No ")
    with read_only_folder(holding=trained) as run:
        told(invoke("evidence", str(run), code=1), "Permission denied")


def test_a_run_that_cannot_be_written_to_can_be_scored(trained: Path) -> None:
    words = ("--num-samples", "9", "--output")
    invoke("evidence", str(trained), *words, "e.nc")  # as root, what is imported late can be read
    with (
        read_only_folder(holding=trained) as run,
        tempfile.TemporaryDirectory() as place,
    ):
        invoke("evidence", str(run), *words, f"{place}/e.nc")
        again = xr.load_dataset(f"{place}/e.nc")
    assert again.log_evidence.equals(xr.load_dataset("e.nc").log_evidence)


def test_a_file_in_the_way_is_told(tmp_path: Path) -> None:
    Path("file").write_text("mine")
    told(invoke("train", *BITS, "--output", "file", code=1), "never written over")
    told(invoke("train", *BITS, "--output", "file/run", code=1), "cannot write into file/run")
    assert snapshot(tmp_path) == {"file": b"mine"}


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("trained") / "run"
    invoke("train", *BITS, "--output", str(folder))
    return folder


EVIDENCE_ERRORS = {
    "K = 0": (["--num-samples", "0"], "num_samples must be a whole number of at least 1"),
    "estimator name": (["--estimator", "ais"], "unknown estimator 'ais'; there are importance"),
    "no samples": (
        ["--estimator", "cli_toys:raises", "--num-samples", "5"],
        "has no option 'num_samples'",
    ),
    "no estimator": (["--estimator", "cli_toys:raises"], "raised TypeError"),
    "no estimate": (["--estimator", "cli_toys:no_estimate"], "should return an Estimate"),
    "option": (["--option", "warm=1"], "'importance-sampling' has no option 'warm'"),
    "particles": (["--option", "particles=flock"], "particles"),
    "split": (["--split", "tests"], "split should be one of train, validation, test"),
    "train": (["--split", "train"], "training data are not held out"),
    "subset": (["--subset", "16"], "size should be from 1 to 15"),
    "subset seed": (["--subset", "3", "--subset-seed", "-1"], "seed should be from 0"),
    "device": (["--device", "gpu"], "device should be auto, cpu or cuda"),
    "output": (["--output", "run.json"], "run.json exists and is never written over"),
}


@pytest.mark.parametrize("name", EVIDENCE_ERRORS)
def test_an_error_of_scoring_is_told(
    name: str, trained: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(trained)
    before = snapshot(trained)
    words, message = EVIDENCE_ERRORS[name]
    told(invoke("evidence", ".", *words, code=1), message)
    assert snapshot(trained) == before


def test_a_program_without_a_likelihood_per_datum_is_told(no_pictures: None) -> None:
    invoke("train", *BITS, "--model", "cli_toys:global_latent", "--output", "run")
    told(invoke("evidence", "run", code=1), "'rate'")


@pytest.mark.parametrize("file", ["model.safetensors", "checkpoint.safetensors", "run.json"])
def test_a_truncated_file_is_told_and_left_alone(file: str, trained: Path, tmp_path: Path) -> None:
    run = shutil.copytree(trained, tmp_path / "run")
    if file == "checkpoint.safetensors":
        (run / "model.safetensors").unlink()
    content = (run / file).read_bytes()
    (run / file).write_bytes(content[: len(content) // 2])
    before = snapshot(run)
    told(invoke("evidence", "run", code=1), file)
    if file != "model.safetensors":
        told(invoke("train", "--output", "run", "--resume", "--epochs", "9", code=1), file)
    assert snapshot(run) == before


def test_there_is_no_run() -> None:
    told(invoke("evidence", "nowhere", code=1), "there is no run in nowhere")
    told(invoke("train", "--output", "nowhere", "--resume", code=1), "there is no run in nowhere")


def test_existing_runs_are_never_written_over(trained: Path, tmp_path: Path) -> None:
    run = shutil.copytree(trained, tmp_path / "run")
    before = snapshot(run)
    told(invoke("train", *BITS, "--output", "run", code=1), "--resume")
    words = ("train", *BITS, "--output", "run", "--resume", "--seed", "4")
    told(invoke(*words, code=1), "begun with seed 0, not 4")
    assert snapshot(run) == before
    invoke("evidence", "run", "--num-samples", "9")
    before = snapshot(run)
    told(invoke("evidence", "run", "--num-samples", "9", code=1), "never written over")
    assert snapshot(run) == before


@pytest.mark.parametrize(
    "words",
    [
        ["train", "--epochs", "many"],
        ["train", "--epoch", "3"],
        ["tran"],
        ["evidence"],
        ["demo", "3"],
    ],
)
def test_a_command_that_cannot_be_parsed(words: list[str], tmp_path: Path) -> None:
    result = invoke(*words, code=2)
    assert "Traceback" not in result.output
    assert "Usage" in result.stderr
    assert list(tmp_path.iterdir()) == []


def test_a_bug_shows_its_traceback(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(RuntimeError, match="a bug in the user's model"):
        invoke("train", *BITS, "--model", "cli_toys:buggy", "--output", "run")
    assert not Path("run").exists()

    # the types of our own messages, but raised by code that we called
    monkeypatch.setattr(training, "load_data", lambda settings: json.loads("{"))
    with pytest.raises(json.JSONDecodeError):
        invoke("train", *BITS, "--output", "run")


def test_the_environment_asks_for_a_traceback(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYROVAE_TRACEBACK", "1")
    result = invoke("train", *BITS, "--model", "cli_toys:raises", "--output", "run", code=1)
    assert "in raises" in result.stderr
    assert result.stderr.splitlines()[-1].startswith("pyrovae: 'cli_toys:raises' raised")


def test_what_is_missing_is_named_in_one_line(tmp_path: Path) -> None:
    hide = (
        "import importlib.util, sys; real = importlib.util.find_spec\n"
        "importlib.util.find_spec = lambda name, *a: None if name == 'typer' else real(name, *a)\n"
        "from pyrovae.benchmarks.__main__ import main; main()"
    )
    done = subprocess.run([sys.executable, "-c", hide], capture_output=True, text=True)
    assert done.returncode == 1
    assert done.stderr == ("pyrovae: the command line needs typer: pip install 'pyrovae[bench]'\n")


def test_help_and_version() -> None:
    out = invoke("--help").stdout
    assert [word for word in ("demo", "train", "evidence", "datasets") if word not in out] == []
    assert invoke("--version").stdout == f"pyrovae {importlib.metadata.version('pyrovae')}\n"
    out = invoke("train", "--help").stdout
    for default in ("digits", "vae", "Trace_ELBO", "0.001"):
        assert f"[default: {default}]" in " ".join(out.split())


def test_the_record_holds_a_command_that_can_be_typed(no_pictures: None) -> None:
    invoke("train", *BITS, "--option", "latent_dim=3", "--output", "run")
    command = shlex.split(json.loads(Path("run/run.json").read_text())["command"])
    command[-1] = "again"
    invoke(*command[1:])
    assert same_model(Path("run"), Path("again"))
