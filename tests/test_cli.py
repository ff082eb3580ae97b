"""The command line: what it prints and writes, how it stops and goes on."""

from __future__ import annotations

import json
import shlex
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import matplotlib.image
import pytest
import xarray as xr
from command_line import BITS, TESTS, invoke, process, same_model, told

from pyrovae.benchmarks import cli, demo, training
from pyrovae.benchmarks.runs import open_run

pytestmark = pytest.mark.usefixtures("here", "one_thread")


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
    file = run / "evidence-importance-sampling-test-K100-seed0-epoch2.nc"
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


def test_compiled(no_pictures: None) -> None:
    options = ("--epochs", "2", "--option", "latent_dim=3", "--option", "hidden=[20]")
    found = {}
    for name in ("--no-compile", "--compile"):
        invoke("train", *options, name, "--output", f"run{name}")
        assert open_run(Path(f"run{name}")).settings.compile == (name == "--compile")
        scored = f"{name}.nc"
        words = ("--num-samples", "50", "--option", "memory=20000")  # many small tiles
        invoke("evidence", f"run{name}", *words, name, "--output", scored)
        found[name] = xr.load_dataset(scored)
    plain, compiled = found["--no-compile"], found["--compile"]
    took = [json.loads(one.attrs["provenance"])["compile_seconds"] for one in (compiled, plain)]
    assert took[0] > 0 == took[1]
    assert abs(compiled.log_evidence - plain.log_evidence).max() < 1e-2


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
    assert (tmp_path / "run" / "evidence-importance-sampling-test-K20-seed0-epoch2.nc").exists()


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


def test_sigterm_saves_and_says_how_to_go_on() -> None:
    running = process(*LONG, "--epochs", "100000", "--output", "run")
    wait_for_epochs(Path("run"), running, 1)
    running.send_signal(signal.SIGTERM)
    _, err = running.communicate(timeout=60)
    assert running.returncode == 128 + signal.SIGTERM
    assert err.splitlines()[-1] == "go on with: pyrovae train --output run --resume"


def test_control_c_while_python_imports_is_told() -> None:
    code = """
import sys
class Impatient:
    def find_spec(self, name, *rest):
        if name == "pyrovae.benchmarks.cli":
            raise KeyboardInterrupt
sys.meta_path.insert(0, Impatient())
from pyrovae.benchmarks.__main__ import main
main()
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (130, "pyrovae: interrupted\n")


def test_control_c_while_data_are_read(monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(settings):
        raise KeyboardInterrupt

    monkeypatch.setattr(training, "load_data", interrupted)
    result = invoke("train", *BITS, "--output", "run", code=130)
    assert result.stderr == "pyrovae: interrupted\n"
    assert not Path("run").exists()


# errors: one or two lines, no traceback, nothing written over
