"""The command line: what it prints and writes, how it stops, goes on, and refuses."""

from __future__ import annotations

import contextlib
import gzip
import importlib.metadata
import json
import os
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import matplotlib.image
import pytest
import torch
import xarray as xr
from safetensors.torch import load_file
from typer.testing import CliRunner

from pyrovae.benchmarks import cli, demo, scoring, training
from pyrovae.benchmarks.runs import open_run

TESTS = Path(__file__).parent
BITS = ["--data", "cli_toys:bits", "--model", "cli_toys:ours", "--epochs", "2"]


@pytest.fixture(autouse=True, scope="module")
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("PYROVAE_TRACEBACK", raising=False)


@pytest.fixture
def no_pictures(monkeypatch: pytest.MonkeyPatch) -> None:
    """Drawing takes longer than training."""
    monkeypatch.setattr(training, "learning_curve", lambda histories, path: path.write_bytes(b""))


def invoke(*words: str, code: int = 0):
    result = CliRunner().invoke(cli.app, list(words))
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    assert result.exit_code == code, result.output
    return result


def process(*words: str) -> subprocess.Popen:
    environment = {
        **os.environ,
        "PYTHONPATH": str(TESTS),
        "OMP_NUM_THREADS": "1",
        "PYTHONUNBUFFERED": "1",
    }
    return subprocess.Popen(
        [sys.executable, "-m", "pyrovae.benchmarks", *words],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=environment,
    )


def snapshot(folder: Path) -> dict[str, bytes]:
    return {
        str(file.relative_to(folder)): file.read_bytes()
        for file in sorted(folder.rglob("*"))
        if file.is_file()
    }


def same_model(one: Path, other: Path) -> bool:
    """Bit for bit, that is in its tensors: safetensors writes its header in any order."""
    first, second = (load_file(run / "model.safetensors") for run in (one, other))
    return first.keys() == second.keys() and all(torch.equal(first[k], second[k]) for k in first)


def test_train_then_evidence(tmp_path: Path) -> None:
    out = invoke(
        *("train", "--epochs", "2", "--option", "latent_dim=3", "--option", "hidden=[20]"),
        *("--learning-rate", "0.01", "--warm-up", "1", "--patience", "5", "--clip", "10"),
    ).stdout
    run = tmp_path / "runs" / "digits-vae"
    assert "validation ELBO: -" in out
    assert "nats per datum" in out
    (wrote,) = (line for line in out.splitlines() if line.startswith("wrote "))
    named = wrote.partition(": ")[2].split(", ")
    assert set(named) == {file.name for file in run.iterdir()}
    assert len(named) == 5
    assert matplotlib.image.imread(run / "learning-curve.png").std() > 0.01
    assert "next: pyrovae evidence runs/digits-vae" in out
    settings = open_run(run).settings
    assert (settings.learning_rate, settings.warm_up, settings.clip) == (0.01, 1, 10.0)
    assert settings.options == {"latent_dim": 3, "hidden": [20]}

    out = invoke("evidence", "runs/digits-vae", "--num-samples", "100").stdout
    file = run / "evidence-importance-sampling-test-K100-seed0.nc"
    assert out.splitlines()[-1] == f"wrote {file.relative_to(tmp_path)}"
    found = xr.load_dataset(file)
    headers, _, row = (line.split("  ") for line in out.splitlines()[1:4])
    cells = dict(
        zip(
            [h.strip() for h in headers if h.strip()],
            [c.strip() for c in row if c.strip()],
            strict=True,
        )
    )
    assert cells["log p(x)"] == f"{float(found.log_evidence.mean()):.3f}"
    assert cells["ELBO"] == f"{float(found.elbo.mean()):.3f}"
    assert cells["k̂ median"] == f"{sorted(found.khat.values)[150]:.2f}"
    assert cells["k̂ max"] == f"{float(found.khat.max()):.2f}"
    unreliable = float((found.khat >= found.attrs["khat_threshold"]).mean())
    assert cells["k̂ ≥ 0.50"] == f"{unreliable:.1%}"
    assert cells["side"] == "lower"
    assert "mean over 300 of 300 test data" in out
    assert found.attrs["dataset"] == "digits"


def test_evidence_of_a_subset_of_another_split(no_pictures: None) -> None:
    invoke("train", *BITS, "--output", "run")
    words = ("--split", "validation", "--subset", "4", "--subset-seed", "2", "--num-samples", "9")
    out = invoke("evidence", "run", *words, "--output", "e.nc").stdout
    assert "mean over 4 of 10 validation data" in out
    assert len(xr.load_dataset("e.nc").datum) == 4
    prior = ("--estimator", "prior-monte-carlo", "--option", "particles=loop")
    out = invoke("evidence", "run", *words, *prior).stdout
    assert "prior-monte-carlo" in out


def test_a_model_in_the_working_directory(tmp_path: Path, no_pictures: None) -> None:
    shutil.copy(TESTS / "cli_toys.py", tmp_path / "my_toys.py")
    words = ["train", "--data", "my_toys:bits", "--model", "my_toys:functions", "--epochs", "2"]
    run = process(*words, "--output", "run")
    out, err = run.communicate()
    assert run.returncode == 0, err
    assert "no model.safetensors: its programs are not the methods of one module" in out
    scored = process("evidence", "run", "--num-samples", "20")
    out, err = scored.communicate()
    assert scored.returncode == 0, err
    assert (tmp_path / "run" / "evidence-importance-sampling-test-K20-seed0.nc").exists()


def test_datasets(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    out = invoke("datasets", "--data-folder", str(tmp_path)).stdout
    lines = out.splitlines()
    assert [line.split()[0] for line in lines[2:]] == list(cli.NAMES)
    assert lines[2].split()[1:7] == ["1,197", "300", "300", "1x8x8", "dynamic", "bundled"]
    assert f"not in {tmp_path / 'mnist'}" in lines[3]


def test_the_demo(tmp_path: Path) -> None:
    said: list[str] = []
    scored = demo.demo(epochs=2, num_samples=20, say=said.append)
    out = "\n".join(said)
    folder = tmp_path / "runs" / "demo"
    header = next(line for line in out.splitlines() if line.startswith("prior"))
    for word in ("ELBO", "log p(x)", "± Monte Carlo", "± test set", "k̂ ≥", "active", "seconds"):
        assert word in header
    rows = [
        line for line in out.splitlines() if line.startswith(("standard normal ", "VampPrior "))
    ]
    first, second = (one.estimate for one in scored)
    assert f"{first.mean().value:.2f}" in rows[0]
    assert f"{second.mean().value:.2f}" in rows[1]
    difference = second.log_evidence - first.log_evidence
    error = float(difference.std()) / len(difference) ** 0.5
    assert f"{float(difference.mean()):+.2f} ± {error:.2f} nats" in out
    assert (folder / "table.txt").read_text().strip() in out
    for name in ("reconstructions", "samples", "latent-space", "learning-curve"):
        file = folder / f"{name}.png"
        assert str(file.relative_to(tmp_path)) in out
        assert matplotlib.image.imread(file).std() > 0.01
    for name in ("vae", "vamp-vae"):
        assert open_run(folder / name).result["epochs"] == 2
    assert invoke("evidence", "runs/demo/vamp-vae", "--num-samples", "5").exit_code == 0


def test_a_second_demo_takes_the_next_folder(monkeypatch: pytest.MonkeyPatch) -> None:
    Path("runs/demo").mkdir(parents=True)
    Path("runs/demo-2").mkdir()
    assert demo.free_folder(Path("runs/demo")) == Path("runs/demo-3")
    Path("runs/demo/notes").write_text("mine")
    told(invoke("demo", "--output", "runs/demo", code=1), "never written over")
    given: dict = {}
    monkeypatch.setattr(cli, "demo", lambda output, **rest: given.update(output=output, **rest))
    invoke("demo", "--seed", "3", "--epochs", "2")
    assert given == {"output": None, "seed": 3, "device": "auto", "epochs": 2}


# stopping and going on


def wait_for_epochs(run: Path, running: subprocess.Popen, epochs: int) -> None:
    for _ in range(3000):
        assert running.poll() is None, running.communicate()
        if (run / "checkpoint.safetensors").exists() and open_run(run).epochs_done() >= epochs:
            return
        time.sleep(0.02)
    raise AssertionError(f"no {epochs} epochs within a minute")


LONG = ["train", "--option", "latent_dim=4", "--option", "hidden=[16]", "--batch-size", "50"]


@pytest.mark.parametrize("sign", [signal.SIGKILL, signal.SIGINT])
def test_stopped_and_gone_on_is_as_if_never_stopped(
    sign: signal.Signals, tmp_path: Path, no_pictures: None
) -> None:
    words = [*LONG, "--epochs", "100000", "--output", "my run"]
    running = process(*words)
    wait_for_epochs(tmp_path / "my run", running, 3)
    running.send_signal(sign)
    _, err = running.communicate(timeout=60)
    run = open_run(tmp_path / "my run")
    done = run.epochs_done()
    assert run.result is None
    if sign == signal.SIGINT:
        assert running.returncode == 130
        assert "Traceback" not in err
        last = err.strip().splitlines()[-1]
        assert last == "go on with: pyrovae train --output 'my run' --resume"
        assert "training stopped after batch" in err
        again = shlex.split(last.partition(": ")[2])[1:]
    else:
        assert running.returncode == -signal.SIGKILL
        again = [*words, "--resume"]  # the same command, with one word more
        again = [word for word in again if word not in ("--epochs", "100000")]
    epochs = str(done + 2)
    invoke(*again, "--epochs", epochs)
    invoke(*LONG, "--epochs", epochs, "--output", "never stopped")
    assert same_model(tmp_path / "my run", tmp_path / "never stopped")
    assert open_run(tmp_path / "my run").result["epochs"] == done + 2


def test_control_c_while_data_are_read(monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(settings):
        raise KeyboardInterrupt

    monkeypatch.setattr(training, "load_data", interrupted)
    result = invoke("train", *BITS, "--output", "run", code=130)
    assert result.stderr == "pyrovae: interrupted\n"
    assert not Path("run").exists()


# errors: one or two lines, no traceback, nothing written over

TRAIN_ERRORS = {
    "nan": (["--data", "cli_toys:with_nan"], "train should be finite, found NaN"),
    "dtype": (["--data", "cli_toys:whole_numbers"], "should be float32 or float64, found torch.i"),
    "other dtype": (["--data", "cli_toys:double"], "torch.float32 like the parameters"),
    "empty": (["--data", "cli_toys:nothing"], "should not be empty, found shape (0, 8)"),
    "labels": (["--data", "cli_toys:wrong_labels"], "test_labels should be int64 of shape (15,)"),
    "other N": (["--model", "cli_toys:not_amortised"], "x must hold all 40 data"),
    "grey": (["--data", "cli_toys:grey"], "site 'x' takes values in Boolean"),
    "grey later": (["--data", "cli_toys:grey_once", "--model", "vae"], "holds 0.5: binarise"),
    "grey digits": (
        ["--data", "digits", "--no-binarise", "--model", "vae"],
        "has a Bernoulli likelihood, which takes 0 and 1, but data set 'digits' holds",
    ),
    "real": (["--data", "cli_toys:real", "--model", "vae"], "has a Bernoulli likelihood"),
    "data name": (["--data", "cifar"], "unknown data set 'cifar'; there are digits, mnist"),
    "model name": (["--model", "vea"], "unknown model 'vea'; there are vae, mixture-vae"),
    "objective name": (["--objective", "elbo"], "unknown objective 'elbo'; there are Jit"),
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


def told(result, message: str) -> None:
    lines = result.stderr.strip().splitlines()
    assert 1 <= len(lines) <= 2, result.stderr
    assert lines[0].startswith("pyrovae: ")
    assert message in result.stderr
    assert "Traceback" not in result.output


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
    "no estimator": (["--estimator", "cli_toys:raises"], "has no option 'num_samples'"),
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
