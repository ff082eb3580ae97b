"""Training reaches the optimum in every style of program that Pyro knows."""

from __future__ import annotations

from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from pyro.infer import (
    RenyiELBO,
    Trace_ELBO,
)
from pyro.infer.autoguide import AutoNormal
from torch import Tensor
from torch.distributions import constraints
from training_toys import (
    QUIET,
    TO_OPTIMUM,
    NamedToy,
    PyroGuide,
    PyroModel,
    Toy,
    assert_optimal,
    best_elbo,
    best_parameters,
    decay,
    function_pair,
    guide_sites,
    model_sites,
    toy_data,
)

from pyrovae.inference.training import fit

pytestmark = pytest.mark.usefixtures("one_thread")


# --- every style of program -----------------------------------------------------------------------


def test_function_style_reaches_the_optimum() -> None:
    x = toy_data()
    history = fit(*function_pair(), x, validation=x, **TO_OPTIMUM)
    assert_optimal({name: value.item() for name, value in pyro.get_param_store().items()}, x)
    assert history.loss[-1] == pytest.approx(-best_elbo(x), abs=0.05)
    assert history.validation_elbo[-1] == pytest.approx(best_elbo(x), abs=0.05)
    assert history.validation_elbo[-1] <= best_elbo(x) + 0.05


@pytest.mark.parametrize("toy", [Toy, NamedToy])
def test_bound_methods_reach_the_optimum(toy: type[Toy]) -> None:
    x, pair = toy_data(), toy()
    fit(pair.model, pair.guide, x, **TO_OPTIMUM)
    assert_optimal(pair.values(), x)


def test_pyro_modules_reach_the_optimum() -> None:
    x, model, guide = toy_data(), PyroModel(), PyroGuide()
    fit(model, guide, x, **TO_OPTIMUM)
    found = {"mu": model.mu, "slope": guide.slope, "shift": guide.shift, "scale": guide.scale}
    assert_optimal({name: value.item() for name, value in found.items()}, x)


def test_pyro_modules_made_and_run_under_local_parameters() -> None:
    x = toy_data()
    with pyro.settings.context(module_local_params=True):
        model, guide = PyroModel(), PyroGuide()
        fit(model, guide, x, **TO_OPTIMUM)
        assert model.mu.item() == pytest.approx(best_parameters(x)["mu"], abs=0.03)
        assert pyro.settings.get("module_local_params") is True


def test_autoguides_train() -> None:
    x = toy_data()

    def model(x: Tensor) -> None:
        mu = pyro.sample("mu", dist.Normal(0.0, 10.0))
        with pyro.plate("data", len(x)):
            pyro.sample("x", dist.Normal(mu, 1.5), obs=x)

    guide = AutoNormal(model)
    fit(model, guide, x, epochs=40, batch_size=len(x), learning_rate=0.1, schedule=decay, **QUIET)
    # the posterior of a normal mean, in closed form
    precision = len(x) / 1.5**2 + 1 / 10.0**2
    assert guide.median()["mu"].item() == pytest.approx(
        x.sum().item() / 1.5**2 / precision, abs=0.1
    )


def test_modules_and_the_store_train_together() -> None:
    x, net = toy_data(), Toy()

    def guide(x: Tensor) -> None:
        scale = pyro.param("scale", torch.tensor(1.0), constraint=constraints.positive)
        slope, shift = (pyro.param(name, torch.tensor(0.0)) for name in ("slope", "shift"))
        guide_sites(x, slope, shift, scale)

    fit(net.model, guide, x, **TO_OPTIMUM)
    found = {name: value.item() for name, value in pyro.get_param_store().items()}
    assert_optimal({**found, "mu": net.mu.item()}, x)


@pytest.mark.parametrize("objective", [Trace_ELBO(), RenyiELBO()], ids=["trace", "renyi"])
def test_two_models_of_one_name_both_train(objective: Any) -> None:
    """In SVI the second one never moves: the store holds the first one's parameters."""
    x, pairs = toy_data(), [NamedToy(), NamedToy()]
    for pair in pairs:
        pair_before = pairs[0].values()
        fit(pair.model, pair.guide, x, objective=objective, epochs=3, learning_rate=0.1, **QUIET)
        if pair is pairs[1]:
            assert pairs[0].values() == pair_before  # and the first one rests
    assert pairs[0].values() == pairs[1].values() != NamedToy().values()


def test_two_functions_with_modules_of_one_name_both_train() -> None:
    x = toy_data()
    for _ in range(2):
        net = Toy()

        def model(x: Tensor, net: Toy = net) -> None:
            pyro.module("shared", net)
            model_sites(x, net.mu)

        def guide(x: Tensor, net: Toy = net) -> None:
            guide_sites(x, net.slope, net.shift, net.log_scale.exp())

        fit(model, guide, x, epochs=5, learning_rate=0.1, **QUIET)
        assert abs(net.mu.item()) > 0.3


def test_what_a_function_does_not_register_stays() -> None:
    x, net = toy_data(), Toy()

    def guide(x: Tensor) -> None:
        guide_sites(x, net.slope, net.shift, net.log_scale.exp())

    def model(x: Tensor) -> None:
        model_sites(x, pyro.param("mu", torch.tensor(0.0)))

    fit(model, guide, x, epochs=2, **QUIET)
    assert net.values() == Toy().values()
    assert pyro.param("mu").item() != 0


def test_wrapped_programs_are_seen_through() -> None:
    x, toy = toy_data(), Toy()
    history = fit(
        poutine.scale(toy.model, scale=0.01), poutine.scale(toy.guide, scale=0.01), x, **TO_OPTIMUM
    )
    assert_optimal(toy.values(), x)
    assert history.loss[-1] == pytest.approx(-best_elbo(x), abs=0.05)  # in nats all the same


def test_frozen_parameters_stay() -> None:
    x, toy = toy_data(), Toy()
    toy.slope.requires_grad_(False)
    fit(toy.model, toy.guide, x, epochs=3, **QUIET)
    assert toy.slope.item() == 0
    assert toy.mu.item() != 0


def test_parameters_created_late_train(tmp_path: Any) -> None:
    """A schedule with its groups counted, and a checkpoint, go along with them."""
    x, calls = toy_data(), [0]

    def guide(x: Tensor) -> None:
        calls[0] += 1
        late = calls[0] > 12
        slope = pyro.param("slope", torch.tensor(0.0)) if late else torch.tensor(0.5)
        guide_sites(x, slope, pyro.param("shift", torch.tensor(0.0)), torch.tensor(1.0))

    model = function_pair()[0]
    fit(
        model,
        guide,
        x,
        epochs=10,
        batch_size=50,
        learning_rate=0.05,
        schedule=decay,
        checkpoint=tmp_path / "run.safetensors",
        **QUIET,
    )
    assert pyro.param("slope").item() > 0.1
