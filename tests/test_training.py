"""`fit` around its steps: validation, early stopping, schedules, data, and the world around."""

from __future__ import annotations

import io
import math
import signal
from collections.abc import Callable
from typing import Any

import numpy as np
import pyro
import pytest
import torch
from torch import Tensor, nn
from torch.optim import lr_scheduler
from torch.utils.data import DataLoader, TensorDataset
from training_toys import (
    QUIET,
    TO_OPTIMUM,
    Toy,
    assert_optimal,
    decay,
    fresh_net,
    function_pair,
    guide_sites,
    model_sites,
    net_data,
    toy_data,
)

from pyrovae.inference.training import fit

pytestmark = pytest.mark.usefixtures("one_thread")


# --- validation, early stopping, schedules, clipping ----------------------------------------------


def test_validation_uses_evaluation_mode_and_the_same_draws() -> None:
    x, net = net_data(), fresh_net()
    net.encoder[3].eval()  # a submodule of its own mind
    seen: list[tuple[bool, bool]] = []
    net.decoder.register_forward_hook(
        lambda *_: seen.append((net.training, net.encoder[1].training))
    )
    history = fit(
        net.model, net.guide, x, epochs=3, batch_size=65, validation=x[:40], learning_rate=1e-12,
        **QUIET,
    )  # fmt: skip
    assert set(seen) == {(True, True), (False, False)}
    assert not net.encoder[3].training
    assert net.encoder[1].training
    assert net.training
    # batch norm's running mean moves, the draws do not
    assert 0 < np.ptp(history.validation_elbo[1:]) < 0.2


def test_validation_does_not_change_training() -> None:
    x, losses = net_data(), []
    for validation in (None, x[:40], x[:70]):
        net = fresh_net()
        losses.append(fit(net.model, net.guide, x, epochs=3, validation=validation, **QUIET).loss)
    np.testing.assert_array_equal(losses[0], losses[1])
    np.testing.assert_array_equal(losses[0], losses[2])


def test_early_stopping_returns_to_the_best() -> None:
    x = toy_data()
    kept: list[dict[str, float]] = []
    toy = Toy()

    def worse_from_epoch_six(optimizer: torch.optim.Optimizer) -> lr_scheduler.LRScheduler:
        kept.append(toy.values())
        ascend = lambda epoch: 1.0 if epoch < 5 else -3.0  # noqa: E731
        return lr_scheduler.LambdaLR(optimizer, ascend)

    history = fit(
        toy.model, toy.guide, x, epochs=50, batch_size=50, validation=x, patience=3,
        optimizer=lambda p: torch.optim.SGD(p, lr=0.05), schedule=worse_from_epoch_six, **QUIET,
    )  # fmt: skip
    assert history.best_epoch == 5
    assert history.stopped_early
    assert len(history) == 8
    again = Toy()
    fit(
        again.model, again.guide, x, epochs=5, batch_size=50,
        optimizer=lambda p: torch.optim.SGD(p, lr=0.05), **QUIET,
    )  # fmt: skip
    assert toy.values() == again.values()


def test_the_best_is_restored_when_the_epochs_run_out_too() -> None:
    x, toy = toy_data(), Toy()
    descend_then_ascend = lambda o: lr_scheduler.LambdaLR(o, lambda e: 1.0 if e < 3 else -1.0)  # noqa: E731
    history = fit(
        toy.model, toy.guide, x, epochs=5, batch_size=50, validation=x, patience=10,
        optimizer=lambda p: torch.optim.SGD(p, lr=0.05), schedule=descend_then_ascend, **QUIET,
    )  # fmt: skip
    assert (history.best_epoch, history.stopped_early, len(history)) == (3, False, 5)
    again = Toy()
    fit(
        again.model, again.guide, x, epochs=3, batch_size=50,
        optimizer=lambda p: torch.optim.SGD(p, lr=0.05), **QUIET,
    )  # fmt: skip
    assert toy.values() == again.values()


def test_patience_waits_for_the_warm_up() -> None:
    x, toy = toy_data(), Toy()
    history = fit(
        toy.model, toy.guide, x, epochs=20, validation=x, patience=2, warm_up=6,
        optimizer=lambda p: torch.optim.SGD(p, lr=0.01, maximize=True), **QUIET,
    )  # fmt: skip  # every epoch is worse than the one before
    assert (np.diff(history.validation_elbo) < 0).all()
    assert history.best_epoch == 6  # the first with beta = 1
    assert len(history) == 8


def test_schedules_step_once_an_epoch() -> None:
    x, toy = toy_data(), Toy()
    history = fit(
        toy.model, toy.guide, x, epochs=4, batch_size=50, learning_rate=0.1, schedule=decay, **QUIET
    )
    np.testing.assert_allclose(history.learning_rate, [0.1, 0.09, 0.081, 0.0729])


def test_a_plateau_watches_the_validation_loss() -> None:
    x, toy = toy_data(), Toy()
    history = fit(
        toy.model, toy.guide, x, epochs=6, validation=x,
        optimizer=lambda p: torch.optim.SGD(p, lr=0.05, maximize=True),
        schedule=lambda o: lr_scheduler.ReduceLROnPlateau(o, factor=0.1, patience=1), **QUIET,
    )  # fmt: skip
    np.testing.assert_allclose(history.learning_rate, [0.05, 0.05, 0.05, 0.005, 0.005, 5e-4])


def test_clipping_bounds_the_step() -> None:
    x, lr = toy_data(), 0.1
    toys = [Toy(), Toy()]
    for toy, clip in zip(toys, (None, 0.01), strict=True):
        history = fit(
            toy.model, toy.guide, x, epochs=1, batch_size=len(x), clip=clip,
            optimizer=lambda p: torch.optim.SGD(p, lr=lr), **QUIET,
        )  # fmt: skip
        assert history.gradient_norm[0] > 0.5  # what is recorded is the norm before
    moves = [torch.stack([p.detach() for p in toy.parameters()]).norm().item() / lr for toy in toys]
    assert moves[0] == pytest.approx(history.gradient_norm[0], rel=1e-4)
    assert moves[1] == pytest.approx(0.01, rel=1e-3)


def test_one_optimizer_moves_all_parameters_like_torch() -> None:
    """One full-batch Adam step is sign(gradient) times the learning rate."""
    x, toy = toy_data(), Toy()
    fit(toy.model, toy.guide, x, epochs=1, batch_size=len(x), learning_rate=0.1, **QUIET)
    for name, parameter in toy.named_parameters():
        assert abs(parameter.item()) == pytest.approx(0.1, rel=1e-3), name


# --- data -----------------------------------------------------------------------------------------


def test_the_transform_is_drawn_anew_each_epoch_and_again_with_the_seed() -> None:
    grey, runs = net_data().sigmoid(), []

    def binarise(x: Tensor, generator: torch.Generator) -> Tensor:
        drawn = torch.bernoulli(x, generator=generator)
        runs[-1].append(drawn)
        return drawn

    for _ in range(2):
        net = fresh_net(binary=True)
        runs.append([])
        fit(net.model, net.guide, grey, epochs=3, transform=binarise, **QUIET)
    first, second = (run[-3:] for run in runs)  # before them, one to look at the programs
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))
    assert not torch.equal(first[0], first[1])
    assert not torch.equal(first[1], first[2])


def test_every_datum_is_seen_once_an_epoch_with_its_context() -> None:
    x = torch.arange(23.0)
    label = x * 10
    seen: list[list[float]] = []

    def model(x: Tensor, label: Tensor, constant: Tensor, word: str) -> None:
        assert word == "word"
        assert constant.shape == (3,)
        torch.testing.assert_close(label, 10 * x)
        if torch.is_grad_enabled():
            seen.append(x.tolist())
        model_sites(x, pyro.param("mu", torch.tensor(0.0)))

    def guide(x: Tensor, label: Tensor, constant: Tensor, word: str) -> None:
        guide_sites(x, torch.tensor(0.5), torch.tensor(0.0), torch.tensor(0.7))

    context = (label, torch.zeros(3), "word")
    valid = (x[:5], label[:5], torch.zeros(3), "word")
    fit(model, guide, x, *context, epochs=2, batch_size=10, validation=valid, **QUIET)
    batches = seen[-6:]
    assert [len(batch) for batch in batches] == [10, 10, 3, 10, 10, 3]
    epochs = [sum(batches[:3], []), sum(batches[3:], [])]  # noqa: RUF017
    assert all(sorted(epoch) == x.tolist() for epoch in epochs)
    assert epochs[0] != epochs[1]


def test_a_tuple_is_one_argument() -> None:
    x = (toy_data(), torch.arange(200))

    def model(x: tuple[Tensor, Tensor]) -> None:
        values, rows = x
        torch.testing.assert_close(values, toy_data()[rows])
        model_sites(values, pyro.param("mu", torch.tensor(0.0)))

    def guide(x: tuple[Tensor, Tensor]) -> None:
        guide_sites(x[0], torch.tensor(0.5), torch.tensor(0.0), torch.tensor(0.7))

    history = fit(model, guide, x, epochs=2, validation=(x[0][:9], x[1][:9]), **QUIET)
    assert len(history) == 2


def test_a_data_loader_trains_like_tensors() -> None:
    x = toy_data()
    found = []
    for data in (x, DataLoader(TensorDataset(x), batch_size=50, shuffle=True)):
        toy = Toy()
        fit(toy.model, toy.guide, data, **TO_OPTIMUM)
        assert_optimal(toy.values(), x)
        found.append(toy.values())
    assert found[0] != found[1]  # another order


def test_a_data_loader_may_give_context_and_validate() -> None:
    x = toy_data()
    model, guide = function_pair()
    loader = DataLoader(TensorDataset(x, x), batch_size=64)

    def with_label(program: Callable[..., Any]) -> Callable[..., Any]:
        def run(x: Tensor, label: Tensor) -> None:
            torch.testing.assert_close(x, label)
            program(x)

        return run

    history = fit(
        with_label(model), with_label(guide), loader, epochs=2, validation=loader, **QUIET
    )
    assert np.isfinite(history.validation_elbo).all()


# --- the world around -----------------------------------------------------------------------------


def world() -> dict[str, Any]:
    return {
        "pyro": {k: pyro.settings.get(k) for k in pyro.settings.get()},
        "torch validation": torch.distributions.Distribution._validate_args,
        "dtype": torch.get_default_dtype(),
        "rng": torch.get_rng_state().tolist(),
        "sigint": signal.getsignal(signal.SIGINT),
        "stack": list(pyro.poutine.runtime._PYRO_STACK),
        "grad": torch.is_grad_enabled(),
        "threads": torch.get_num_threads(),
    }


@pytest.mark.parametrize("fails", [False, True])
@pytest.mark.parametrize("validate", [False, True])
def test_the_world_is_left_as_it_was(validate: bool, fails: bool) -> None:
    net, x = fresh_net(), net_data()
    net.eval()
    net.encoder[1].train()
    modes = [module.training for module in net.modules()]
    pyro.param("someone_elses", torch.tensor(1.0))
    with pyro.validation_enabled(validate):
        before = world()
        calls = [0]

        def model(x: Tensor) -> None:
            calls[0] += 1
            if fails and calls[0] > 12:
                raise KeyError("a fault in the program")
            net.model(x)

        pair = (model, net.guide)
        if fails:
            with pytest.raises(KeyError, match="a fault in the program"):
                fit(*pair, x, epochs=9, validation=x, warm_up=3, **QUIET)
        else:
            fit(*pair, x, epochs=3, validation=x, warm_up=3, clip=1.0, **QUIET)
        assert world() == before
    assert [module.training for module in net.modules()] == modes
    assert list(pyro.get_param_store()) == ["someone_elses"]
    assert all(p.grad is None for p in net.parameters())


def test_the_seed_decides_everything_and_the_ambient_state_nothing() -> None:
    x, losses = net_data(), []
    for ambient in (1, 2):
        net = fresh_net()
        torch.manual_seed(ambient)
        losses.append(fit(net.model, net.guide, x, epochs=2, **QUIET).loss)
    np.testing.assert_array_equal(*losses)


def test_without_a_seed_the_ambient_state_decides() -> None:
    x, losses = net_data(), []
    for ambient in (1, 1, 2):
        net = fresh_net()
        torch.manual_seed(ambient)
        losses.append(fit(net.model, net.guide, x, epochs=2, progress=False).loss.tolist())
        ambient_next = torch.rand(())
        torch.manual_seed(ambient)
        assert ambient_next != torch.rand(())  # a seed was drawn: the next run is another
    assert losses[0] == losses[1] != losses[2]


def test_the_bar_is_silent_unless_on_a_terminal(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    x, toy = toy_data(), Toy()
    fit(toy.model, toy.guide, x, epochs=1, seed=0)
    assert capsys.readouterr() == ("", "")

    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    terminal = Terminal()
    monkeypatch.setattr("sys.stderr", terminal)
    fit(toy.model, toy.guide, x, epochs=2, validation=x, seed=0)
    shown = terminal.getvalue()
    assert "epoch 2/2" in shown
    assert "validation ELBO -" in shown
    assert "nats per datum" in shown
    terminal.truncate(0)
    fit(toy.model, toy.guide, x, epochs=2, seed=0, progress=False)
    assert "epoch" not in terminal.getvalue()


def test_checks_run_in_the_first_epoch_only() -> None:
    x, seen = toy_data(), []

    def model(x: Tensor) -> None:
        if torch.is_grad_enabled():
            seen.append(torch.distributions.Distribution._validate_args)
        model_sites(x, pyro.param("mu", torch.tensor(0.0)))

    fit(model, function_pair()[1], x, epochs=2, batch_size=100, **QUIET)
    assert seen[-4:] == [True, True, False, False]


@pytest.mark.gpu
def test_training_on_a_gpu() -> None:
    x, toy = toy_data(), Toy().cuda()
    history = fit(toy.model, toy.guide, x, validation=x, device="cuda", **TO_OPTIMUM)
    assert_optimal(toy.values(), x)
    again = Toy().cuda()
    fit(again.model, again.guide, x, validation=x, **TO_OPTIMUM)
    assert again.values() == toy.values()
    assert np.isfinite(history.validation_elbo).all()


@pytest.mark.gpu
def test_parameters_on_a_gpu_are_not_moved() -> None:
    toy = Toy().cuda()
    with pytest.raises(ValueError, match="device: must be where the parameters are, cuda:0"):
        fit(toy.model, toy.guide, toy_data(), epochs=1, device="cpu", **QUIET)


def test_plain_modules_as_programs() -> None:
    class Program(nn.Module):
        def __init__(self, run: Callable[..., None], **values: float) -> None:
            super().__init__()
            self.run = run
            for name, value in values.items():
                setattr(self, name, nn.Parameter(torch.tensor(value)))

        def forward(self, x: Tensor) -> None:
            self.run(x, *self.parameters())

    x = toy_data()
    model = Program(model_sites, mu=0.0)
    guide = Program(
        lambda x, slope, shift, log_scale: guide_sites(x, slope, shift, log_scale.exp()),
        slope=0.0,
        shift=0.0,
        log_scale=0.0,
    )
    fit(model, guide, x, **TO_OPTIMUM)
    slope, shift, log_scale = (p.item() for p in guide.parameters())
    (mu,) = (p.item() for p in model.parameters())
    assert_optimal({"mu": mu, "slope": slope, "shift": shift, "scale": math.exp(log_scale)}, x)
