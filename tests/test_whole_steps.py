"""Whole steps of a device that is not waited for, on a CPU that plays one."""

from __future__ import annotations

import copy

import contract_members as members
import numpy as np
import pytest
import torch
from pyro.infer import Trace_ELBO
from torch.optim import lr_scheduler
from training_toys import Toy, toy_data

from pyrovae.inference import ELBO, NonFiniteLoss, fit
from pyrovae.inference.compilation import backends, gradients
from pyrovae.inference.training import loop, whole

pytestmark = pytest.mark.usefixtures("one_thread")

DATA = {"epochs": 4, "batch_size": 8, "seed": 3, "progress": False, "compile": True}


class Played:
    """What a captured graph does, operation by operation."""

    launched = 0

    def __init__(self, run, inputs, then=None):
        self.run, self.then = run, then

    def __call__(self, given):
        type(self).launched += 1
        found = self.run(given)
        if self.then is not None:
            self.then(found)
        return found


@pytest.fixture(autouse=True)
def device(monkeypatch):

    for module in (gradients, whole, loop):
        monkeypatch.setattr(module, "CAPTURING", {"cpu"})
    monkeypatch.setattr(backends, "BACKENDS", (backends.as_traced,))
    monkeypatch.setattr(gradients, "Captured", Played)
    monkeypatch.setattr(gradients, "_OFTEN", 2)
    monkeypatch.setattr(Played, "launched", 0)


def vae():
    torch.manual_seed(0)
    model = members.FAMILIES["prior StandardNormal"][0]().double()
    return model, members.data().double().repeat(6, 1)


def trained(model, x, **settings):
    history = fit(model.model, model.guide, x, **DATA | settings)
    return [p.detach() for p in model.parameters()], history


@pytest.mark.parametrize("objective", [Trace_ELBO, ELBO])
@pytest.mark.parametrize("more", [{}, {"warm_up": 3}, {"batch_size": 7}], ids=str)
def test_they_lead_where_single_steps_lead(objective, more):
    model, x = vae()
    one = trained(copy.deepcopy(model), x, objective=objective(), compile=False, **more)
    assert Played.launched == 0
    other = trained(model, x, objective=objective(), **more)
    assert Played.launched > 5
    for a, b in zip(one[0], other[0], strict=True):
        torch.testing.assert_close(b, a, rtol=1e-6, atol=1e-6)  # a rate in single precision
    for name in ("loss", "gradient_norm", "learning_rate"):
        np.testing.assert_allclose(getattr(other[1], name), getattr(one[1], name), rtol=1e-6)


def test_a_schedule_is_followed():
    model, x = vae()
    more = {"schedule": lambda optimizer: lr_scheduler.ExponentialLR(optimizer, 0.5)}
    one = trained(copy.deepcopy(model), x, compile=False, **more)
    other = trained(model, x, **more)
    for a, b in zip(one[0], other[0], strict=True):
        torch.testing.assert_close(b, a, rtol=1e-6, atol=1e-6)  # a rate in single precision


@pytest.mark.parametrize(
    "more", [{"clip": 0.1}, {"optimizer": torch.optim.SGD}], ids=["clip", "own"]
)
def test_what_a_device_cannot_do_alone_is_done_step_by_step(more):
    if "optimizer" in more:
        more = {"optimizer": lambda tensors: torch.optim.SGD(tensors, lr=0.01)}
    model, x = vae()
    one = trained(copy.deepcopy(model), x, compile=False, **more)
    other = trained(model, x, **more)
    for a, b in zip(one[0], other[0], strict=True):
        torch.testing.assert_close(b, a, rtol=1e-9, atol=1e-9)


def test_a_run_goes_on_as_if_never_stopped(tmp_path):
    model, x = vae()
    parts, path = copy.deepcopy(model), tmp_path / "run.safetensors"
    expected, history = trained(model, x)
    for epochs in (2, 4):
        found, again = trained(parts, x, epochs=epochs, checkpoint=path, resume=True)
    for a, b in zip(expected, found, strict=True):
        torch.testing.assert_close(b, a, rtol=1e-12, atol=1e-12)
    np.testing.assert_allclose(again.loss, history.loss)


class Breaking(Toy):
    """Not finite where a datum of the batch is above 4."""

    def model(self, x):
        return super().model(torch.where(x > 4, torch.inf, x))


def test_what_is_not_finite_moves_nothing_and_is_found_by_its_batch():
    x = toy_data(200).clamp(max=3)
    toy = Toy()
    fit(toy.model, toy.guide, x, epochs=2, seed=5, batch_size=20, progress=False)  # the order
    order = torch.randperm(200, generator=torch.Generator().manual_seed(0))
    bad = x.clone()
    bad[order[7]] = 5.0
    errors, left = [], []
    for compiled in (False, True):
        toy = Breaking()
        with pytest.raises(NonFiniteLoss) as caught:
            fit(
                toy.model,
                toy.guide,
                bad,
                epochs=2,
                seed=5,
                batch_size=20,
                progress=False,
                compile=compiled,
            )
        errors.append((caught.value.epoch, caught.value.batch, caught.value.rows.tolist()))
        left.append(toy.values())
    assert errors[0] == errors[1]
    assert left[1] == pytest.approx(left[0], rel=1e-5)
