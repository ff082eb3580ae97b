"""A run that was killed, interrupted or starved of disk goes on as if nothing had happened."""

from __future__ import annotations

import errno
import json
import os
import signal
import subprocess
import sys
import textwrap
import threading
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer import RenyiELBO, Trace_ELBO, TraceMeanField_ELBO
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.distributions import constraints
from torch.optim import lr_scheduler
from torch.utils.data import DataLoader, Dataset, TensorDataset
from training_toys import Net, Toy, fresh_net, function_pair, net_data, toy_data

from pyrovae.inference.training import History, NonFiniteLoss, TrainingInterrupted, fit
from pyrovae.inference.training import checkpoint as files

QUIET: dict[str, Any] = {"progress": False, "seed": 0}


pytestmark = pytest.mark.usefixtures("one_thread")


EXACT = ("loss", "validation_elbo", "beta", "learning_rate", "gradient_norm")


def assert_same(a: History, b: History) -> None:
    for column in EXACT:
        np.testing.assert_array_equal(getattr(a, column), getattr(b, column), err_msg=column)
    assert (a.best_epoch, a.stopped_early) == (b.best_epoch, b.stopped_early)
    assert np.isfinite(a.seconds).all()


def assert_same_values(a: dict[str, Tensor], b: dict[str, Tensor]) -> None:
    assert a.keys() == b.keys()
    for name, value in a.items():
        assert torch.equal(value, b[name]), name


# --- kill -9 --------------------------------------------------------------------------------------

# Runs in a process of its own that has computed nothing yet, so that it may fork its trials.
DRIVER = """
    import json, os, random, signal, sys, time
    import pyro, torch
    import torch._dynamo  # which the first optimizer imports: once here, not in each trial
    from pathlib import Path
    from pyrovae.inference.training import fit
    from safetensors.torch import save_file
    from torch.distributions import constraints
    from torch.optim import lr_scheduler
    from training_toys import Net, fresh_net, net_data

    folder = Path(sys.argv[1])


    def train(name, step=None, write=None):
        # Batch norm, dropout, a parameter in the store, a transform, warm-up, a schedule that
        # watches validation, clipping, early stopping: everything that has a state.
        torch.set_num_threads(1)
        torch.manual_seed(random.SystemRandom().randrange(10**6))  # nothing may come from here
        net, grey, steps, writes = fresh_net(binary=True), net_data().sigmoid(), [0], [0]

        def guide(x):
            if torch.is_grad_enabled():
                steps[0] += 1
                if steps[0] == step:
                    os.kill(os.getpid(), signal.SIGKILL)
            temperature = pyro.param("t", torch.tensor(1.0), constraint=constraints.positive)
            return net.guide(x * temperature)

        replace = os.replace

        def dying_replace(*args):
            writes[0] += 1
            if writes[0] == write:
                os.kill(os.getpid(), signal.SIGKILL)
            replace(*args)

        os.replace = dying_replace
        history = fit(
            net.model, lambda x: guide(x), grey, validation=(grey[:50] > 0.5).float(), epochs=14,
            batch_size=30, learning_rate=0.05, warm_up=3, patience=3, clip=2.0, seed=7,
            schedule=lambda o: lr_scheduler.ReduceLROnPlateau(o, patience=1, factor=0.5),
            transform=lambda x, generator: torch.bernoulli(x, generator=generator),
            checkpoint=folder / f"{name}.safetensors", resume=True, progress=False,
        )
        values = {**net.state_dict(), "t": pyro.param("t").detach()}
        save_file({k: v.contiguous() for k, v in values.items()}, folder / f"{name}.values")
        (folder / f"{name}.json").write_text(json.dumps(history.state()))


    def trial(name, delay=None, **kill):
        child = os.fork()
        if not child:
            try:
                train(name, **kill)
            except BaseException:
                import traceback
                traceback.print_exc()
                os._exit(1)
            os._exit(0)
        if delay is not None:
            time.sleep(delay)
            os.kill(child, signal.SIGKILL)
        _, status = os.waitpid(child, 0)
        if os.WIFSIGNALED(status):
            return "killed"
        assert os.WEXITSTATUS(status) == 0, "a trial failed"
        return "done"


    draw = random.Random(int(sys.argv[2]))
    start = time.perf_counter()
    assert trial("reference") == "done"
    whole = time.perf_counter() - start
    for step in (2, 9, 23, 31):  # in the first epoch, in a later one, twice more after resuming
        assert trial("steps", step=step) == "killed"
    assert trial("steps") == "done"
    for write in (1, 3, 2):  # with the new file written but not yet in its place
        assert trial("writes", write=write) == "killed"
    assert trial("writes") == "done"
    kills = 0
    delays = [0.01]  # surely too soon
    while trial("random", delay=delays[-1]) == "killed":
        kills += 1
        delays.append(0.01 + whole * draw.random())
        assert kills < 100
    print(kills)
"""


def test_a_run_killed_anywhere_resumes_bit_for_bit(tmp_path: Path) -> None:
    path = os.pathsep.join([str(Path(__file__).parent), os.environ.get("PYTHONPATH", "")])
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(DRIVER), str(tmp_path), "11"],
        env={**os.environ, "PYTHONPATH": path},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) >= 1  # the random kills did hit

    def read(name: str) -> tuple[dict[str, Tensor], History]:
        state = json.loads((tmp_path / f"{name}.json").read_text())
        return load_file(tmp_path / f"{name}.values"), History.from_state(state)

    values, history = read("reference")
    assert history.stopped_early  # so that this, too, was resumed
    assert len(set(history.learning_rate)) > 1
    for name in ("steps", "writes", "random"):
        other_values, other_history = read(name)
        assert_same_values(values, other_values)
        assert_same(history, other_history)
    assert not list(tmp_path.glob(".*")), "a temporary file was left"


# --- Ctrl-C ---------------------------------------------------------------------------------------


def interrupting(guide: Callable[..., Any], at: int, grad: bool = True) -> Callable[..., Any]:
    """The guide, pressing Ctrl-C in its call number ``at`` with (or without) gradients."""
    calls = [0]

    def run(*args: Any) -> Any:
        if torch.is_grad_enabled() == grad:
            calls[0] += 1
            if calls[0] == at:
                signal.raise_signal(signal.SIGINT)
        return guide(*args)

    return run


INSPECTIONS = 1  # runs with gradients before the first step


def as_functions(net: Net) -> tuple[Callable[..., Any], Callable[..., Any]]:
    """The network in plain functions, which name it by ``pyro.module``."""

    def model(x: Tensor) -> None:
        pyro.module("net", net)
        net.model(x)

    def guide(x: Tensor) -> None:
        net.guide(x)

    return model, guide


def as_methods(net: Net) -> tuple[Callable[..., Any], Callable[..., Any]]:
    return net.model, net.guide


@pytest.mark.parametrize("style", [as_methods, as_functions])
@pytest.mark.parametrize("step", [1, 4, 5, 8, 15])
def test_ctrl_c_saves_in_mid_epoch_and_resumes_exactly(
    tmp_path: Path, step: int, style: Callable[[Net], tuple[Callable[..., Any], Callable[..., Any]]]
) -> None:
    x, path = net_data(), tmp_path / "run.safetensors"
    settings = {"epochs": 3, "batch_size": 30, "validation": x[:40], "warm_up": 2, **QUIET}
    whole, net, again = fresh_net(), fresh_net(), fresh_net()
    expected = fit(*style(whole), x, **settings)

    model, guide = style(net)
    guide = interrupting(guide, step + INSPECTIONS)
    with pytest.raises(TrainingInterrupted, match="resume=True") as stopped:
        fit(model, guide, x, checkpoint=path, **settings)
    epoch, batch = divmod(step - 1, 5)
    assert f"after batch {batch + 1} of epoch {epoch + 1}" in str(stopped.value)
    assert str(path) in str(stopped.value)
    assert isinstance(stopped.value, KeyboardInterrupt)
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler

    torch.manual_seed(99)
    history = fit(*style(again), x, checkpoint=path, resume=True, **settings)
    assert_same(history, expected)
    assert_same_values(again.state_dict(), whole.state_dict())


def test_ctrl_c_in_validation_resumes_exactly(tmp_path: Path) -> None:
    x, path = net_data(), tmp_path / "run.safetensors"
    settings = {"epochs": 2, "batch_size": 30, "validation": x[:100], **QUIET}
    whole, net, again = fresh_net(), fresh_net(), fresh_net()
    expected = fit(whole.model, whole.guide, x, **settings)
    # without gradients: two inspections, one for the smaller last batch, then validation
    guide = interrupting(net.guide, 5, grad=False)
    with pytest.raises(TrainingInterrupted, match="after batch 5 of epoch 1"):
        fit(net.model, guide, x, checkpoint=path, **settings)
    history = fit(again.model, again.guide, x, checkpoint=path, resume=True, **settings)
    assert_same(history, expected)
    assert_same_values(again.state_dict(), whole.state_dict())


def test_ctrl_c_without_a_checkpoint_keeps_the_last_step() -> None:
    x, toy, one_epoch = toy_data(), Toy(), Toy()
    with pytest.raises(TrainingInterrupted, match="nothing was saved"):
        fit(toy.model, interrupting(toy.guide, 2 + INSPECTIONS), x, epochs=5, **QUIET)
    fit(one_epoch.model, one_epoch.guide, x, epochs=1, **QUIET)  # two steps of 100
    assert toy.values() == one_epoch.values()


def test_a_second_ctrl_c_does_not_wait() -> None:
    x, toy = toy_data(), Toy()

    def guide(x: Tensor) -> None:
        if torch.is_grad_enabled() and toy.mu.item() != 0:
            signal.raise_signal(signal.SIGINT)
            signal.raise_signal(signal.SIGINT)
        toy.guide(x)

    with pytest.raises(KeyboardInterrupt) as stopped:
        fit(toy.model, guide, x, epochs=5, **QUIET)
    assert not isinstance(stopped.value, TrainingInterrupted)
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_handlers_of_others_are_put_back_and_other_threads_left_alone() -> None:
    x, toy = toy_data(), Toy()
    theirs = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        fit(toy.model, interrupting(toy.guide, 2), x, epochs=2, **QUIET)  # ignored stays ignored
        assert signal.getsignal(signal.SIGINT) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGINT, theirs)
    done: list[History] = []
    thread = threading.Thread(
        target=lambda: done.append(fit(toy.model, toy.guide, x, epochs=2, **QUIET))
    )
    thread.start()
    thread.join()
    assert len(done[0]) == 2


# --- going on -------------------------------------------------------------------------------------


def stopped_after(
    tmp_path: Path, epochs: int, make: Callable[[], tuple[Any, Any]], x: Any, **settings: Any
) -> tuple[History, History]:
    """Histories of a run of 4 epochs, and of one that was stopped and taken up."""
    expected = fit(*make(), x, epochs=4, **settings)
    path = tmp_path / "run.safetensors"
    pyro.clear_param_store()
    fit(*make(), x, epochs=epochs, checkpoint=path, **settings)
    pyro.clear_param_store()
    torch.manual_seed(99)
    return expected, fit(*make(), x, epochs=4, checkpoint=path, resume=True, **settings)


OPTIMIZERS: dict[str, Callable[[list[Tensor]], torch.optim.Optimizer]] = {
    "momentum": lambda p: torch.optim.SGD(p, lr=0.01, momentum=0.9),
    "two groups": lambda p: torch.optim.AdamW(
        [{"params": p[:2], "lr": 0.1}, {"params": p[2:], "weight_decay": 0.1}], lr=0.02
    ),
    "adagrad": lambda p: torch.optim.Adagrad(p, lr=0.1),
}


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_more_epochs_go_on_exactly(tmp_path: Path, optimizer: str) -> None:
    pairs = [fresh_net() for _ in range(3)]
    nets = iter(pairs)

    def make() -> tuple[Any, Any]:
        net = next(nets)
        return net.model, net.guide

    expected, history = stopped_after(
        tmp_path,
        2,
        make,
        net_data(),
        optimizer=OPTIMIZERS[optimizer],
        schedule=lambda o: lr_scheduler.CosineAnnealingLR(o, 4),
        **QUIET,
    )
    assert_same(history, expected)
    assert_same_values(pairs[0].state_dict(), pairs[2].state_dict())


@pytest.mark.parametrize("objective", [TraceMeanField_ELBO(), RenyiELBO()], ids=["mf", "renyi"])
def test_the_store_goes_on_exactly_with_its_constraints(tmp_path: Path, objective: Any) -> None:
    expected, history = stopped_after(
        tmp_path, 2, function_pair, toy_data(), objective=objective, learning_rate=0.1, **QUIET
    )
    assert_same(history, expected)
    scale = pyro.param("scale")
    assert 0 < scale.item() != 1
    assert scale.unconstrained().item() == pytest.approx(scale.log().item(), abs=1e-6)


def test_without_a_seed_the_checkpoint_has_it(tmp_path: Path) -> None:
    x, path = net_data(), tmp_path / "run.safetensors"
    whole, parts = fresh_net(), [fresh_net(), fresh_net()]
    torch.manual_seed(5)
    expected = fit(whole.model, whole.guide, x, epochs=3, progress=False)
    torch.manual_seed(5)
    settings = {"checkpoint": path, "progress": False}
    fit(parts[0].model, parts[0].guide, x, epochs=1, **settings)
    history = fit(parts[1].model, parts[1].guide, x, epochs=3, resume=True, **settings)
    assert_same(history, expected)
    assert_same_values(parts[1].state_dict(), whole.state_dict())


def test_a_finished_run_is_returned_at_once(tmp_path: Path) -> None:
    x, path = toy_data(), tmp_path / "run.safetensors"
    worse = lambda o: lr_scheduler.LambdaLR(o, lambda e: 1.0 if e < 2 else -1.0)  # noqa: E731
    settings = {
        "validation": x, "patience": 2, "checkpoint": path, "schedule": worse,
        "optimizer": lambda p: torch.optim.SGD(p, lr=0.05), **QUIET,
    }  # fmt: skip
    toy, again = Toy(), Toy()
    first = fit(toy.model, toy.guide, x, epochs=9, **settings)
    assert first.stopped_early
    content = path.read_bytes()
    second = fit(again.model, again.guide, x, epochs=20, resume=True, **settings)
    assert_same(first, second)
    np.testing.assert_array_equal(first.seconds, second.seconds)
    assert toy.values() == again.values()  # the best ones
    assert path.read_bytes() == content


class Noisy(Dataset[Tensor]):
    """Data that draw from the ambient generator when they are read."""

    def __init__(self, x: Tensor) -> None:
        self.x = x

    def __len__(self) -> int:
        return len(self.x)

    def __getitem__(self, index: int) -> Tensor:
        return self.x[index] + 0.1 * torch.randn(())


@pytest.mark.parametrize("kind", ["shuffled", "own generator", "noisy", "in order"])
def test_a_data_loader_is_entered_in_mid_epoch(tmp_path: Path, kind: str) -> None:
    x, path = toy_data(), tmp_path / "run.safetensors"

    def loader() -> DataLoader[Any]:
        generator = torch.Generator().manual_seed(4) if kind == "own generator" else None
        data: Dataset[Any] = Noisy(x) if kind == "noisy" else TensorDataset(x)
        return DataLoader(data, batch_size=30, shuffle=kind != "in order", generator=generator)

    whole, toy, again = Toy(), Toy(), Toy()
    expected = fit(whole.model, whole.guide, loader(), epochs=3, **QUIET)
    guide = interrupting(toy.guide, 7 + 3 + INSPECTIONS)
    with pytest.raises(TrainingInterrupted, match="batch 3 of epoch 2"):
        fit(toy.model, guide, loader(), epochs=3, checkpoint=path, **QUIET)
    history = fit(
        again.model, again.guide, loader(), epochs=3, checkpoint=path, resume=True, **QUIET
    )
    assert_same(history, expected)
    assert again.values() == whole.values()


def late_pair() -> tuple[Callable[..., None], Callable[..., None]]:
    """A guide that makes another parameter from its second epoch's data on."""
    calls = [0]

    def model(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(pyro.param("mu", torch.tensor(0.0)), 1.0))
            pyro.sample("x", dist.Normal(z, 1.0), obs=x)

    def guide(x: Tensor) -> None:
        calls[0] += torch.is_grad_enabled()
        scale = torch.tensor(1.0)
        if len(x) == 20:  # the last batch of an epoch
            scale = pyro.param("late", torch.tensor(0.5), constraint=constraints.positive)
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(0.5 * x, scale))

    return model, guide


def test_parameters_created_late_go_on_exactly(tmp_path: Path) -> None:
    x = toy_data(110)
    expected, history = stopped_after(
        tmp_path, 2, late_pair, x, batch_size=30, learning_rate=0.1, schedule=None, **QUIET
    )
    assert_same(history, expected)
    assert pyro.param("late").item() not in (0.5, 1.0)


@pytest.mark.parametrize("every", [1, 2, 3])
def test_checkpoints_come_every_so_many_epochs_and_at_the_end(
    tmp_path: Path, every: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    saved: list[int] = []
    save = files.save

    def spy(path: Path, state: dict[str, Any]) -> None:
        saved.append(state["position"]["epoch"] - 1)
        save(path, state)

    monkeypatch.setattr(files, "save", spy)
    toy, path = Toy(), tmp_path / "run.safetensors"
    settings = {"checkpoint": path, "checkpoint_every": every, **QUIET}
    fit(toy.model, toy.guide, toy_data(), epochs=5, **settings)
    assert saved == {1: [0, 1, 2, 3, 4, 5], 2: [0, 2, 4, 5], 3: [0, 3, 5]}[every]


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
        ("another version", "must be pyrovae.training version 1, but is"),
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
    assert len(caught) == 2  # tried again at the end of each epoch
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
        make_checkpoint(tmp_path / "run", toy_data())
    assert b"pickle" not in (tmp_path / "run").read_bytes()
    tensors = load_file(tmp_path / "run")  # any reader of safetensors can open it
    assert "state.values.model.mu" in tensors
