"""A run that was killed or interrupted goes on exactly as if it had never stopped."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import textwrap
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer import RenyiELBO, TraceMeanField_ELBO
from safetensors.torch import load_file
from torch import Tensor
from torch.distributions import constraints
from torch.optim import lr_scheduler
from torch.utils.data import DataLoader, Dataset, TensorDataset
from training_toys import (
    INSPECTIONS,
    QUIET,
    Net,
    Toy,
    as_functions,
    assert_same,
    assert_same_values,
    fresh_net,
    function_pair,
    interrupting,
    net_data,
    toy_data,
)

from pyrovae.inference.training import History, TrainingInterrupted, fit
from pyrovae.inference.training import checkpoint as files

pytestmark = pytest.mark.usefixtures("one_thread")


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


def test_sigterm_is_an_interrupt_too_where_nobody_else_handles_it(tmp_path: Path) -> None:
    x, path = toy_data(), tmp_path / "run.safetensors"

    toy = Toy()
    guide = interrupting(toy.guide, 1 + INSPECTIONS, number=signal.SIGTERM)
    with pytest.raises(TrainingInterrupted, match="resume=True") as stopped:
        fit(toy.model, guide, x, checkpoint=path, epochs=2, **QUIET)
    assert stopped.value.signal == signal.SIGTERM
    assert path.exists()
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL

    calls: list[int] = []
    signal.signal(signal.SIGTERM, lambda number, frame: calls.append(number))
    try:
        fit(toy.model, interrupting(toy.guide, 2, number=signal.SIGTERM), x, epochs=1, **QUIET)
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
    assert calls == [signal.SIGTERM]


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
