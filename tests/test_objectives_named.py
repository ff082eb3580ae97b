"""Every objective by its name: its loss, its gradients, and the places where an ELBO goes."""

from __future__ import annotations

import math

import numpy as np
import pyro
import pytest
import torch
from objective_toys import DATA_DIM, EVERY, IDS, Discrete, binary_data
from pyro.infer import SVI
from torch import nn

from pyrovae.inference import (
    MIWAE,
    NVIL,
    PIWAE,
    VIMCO,
    BetaVAE,
    DReG,
    bounds,
    gradients,
)
from pyrovae.models import VAE

pytestmark = pytest.mark.usefixtures("one_thread")


# --- every objective by its name ------------------------------------------------------------------


@pytest.mark.parametrize(("make_pair", "name", "make"), EVERY, ids=IDS)
def test_every_objective_has_a_loss_and_gradients(make_pair, name, make):
    pair, x, objective = make_pair(), binary_data(), make()
    assert math.isfinite(objective.loss(pair.model, pair.guide, x))
    assert all(p.grad is None for p in pair.parameters())
    loss = objective.loss_and_grads(pair.model, pair.guide, x)
    assert isinstance(loss, float)
    assert math.isfinite(loss)
    for parameter, value in pair.named_parameters():
        assert value.grad is not None, parameter
        assert value.grad.isfinite().all(), parameter
    assert any(value.grad.abs().sum() > 0 for value in pair.parameters())


@pytest.mark.parametrize(("make_pair", "name", "make"), EVERY, ids=IDS)
def test_svi_steps_with_every_objective(make_pair, name, make):
    pair, x, objective = make_pair(), binary_data(), make()
    before = {key: value.detach().clone() for key, value in pair.named_parameters()}
    svi = SVI(pair.model, pair.guide, pyro.optim.Adam({"lr": 0.01}), loss=objective)
    losses = [svi.step(x) for _ in range(3)]
    assert np.isfinite(losses).all()
    assert math.isfinite(svi.evaluate_loss(x))
    still = {key for key, value in pair.named_parameters() if torch.equal(value, before[key])}
    assert not still


@pytest.mark.parametrize(("make_pair", "name", "make"), EVERY, ids=IDS)
def test_every_objective_is_a_module(make_pair, name, make):
    pair, x = make_pair(), binary_data()
    pyro.settings.set(module_local_params=True)
    try:
        loss = make()(pair.model, pair.guide)(x)
        loss.backward()
    finally:
        pyro.settings.set(module_local_params=False)
    assert loss.shape == ()
    assert loss.isfinite()


@pytest.mark.parametrize(("make_pair", "name", "make"), EVERY, ids=IDS)
def test_every_objective_takes_a_guide_that_is_not_trained(make_pair, name, make):
    pair, x, objective = make_pair(), binary_data(), make()
    encoder = pair.posterior if isinstance(pair, VAE) else pair.encoder
    encoder.requires_grad_(False)
    pair.eval()
    loss = objective.differentiable_loss(pair.model, pair.guide, x)
    assert loss.isfinite()
    loss.backward()
    assert all(value.grad is None for value in encoder.parameters())
    decoder = pair.likelihood if isinstance(pair, VAE) else pair.decoder
    assert all(value.grad.isfinite().all() for value in decoder.parameters())


@pytest.mark.parametrize(("make_pair", "name", "make"), EVERY, ids=IDS)
def test_every_objective_takes_a_model_that_is_not_trained(make_pair, name, make):
    pair, x, objective = make_pair(), binary_data(), make()
    decoder = pair.likelihood if isinstance(pair, VAE) else pair.decoder
    decoder.requires_grad_(False)
    pair.eval()
    objective.differentiable_loss(pair.model, pair.guide, x).backward()
    encoder = pair.posterior if isinstance(pair, VAE) else pair.encoder
    assert all(value.grad.isfinite().all() for value in encoder.parameters())


@pytest.mark.parametrize(("make_pair", "name", "make"), EVERY, ids=IDS)
def test_every_objective_has_a_differentiable_loss_without_gradients(make_pair, name, make):
    pair, x, objective = make_pair(), binary_data(), make()
    with torch.no_grad():
        loss = objective.differentiable_loss(pair.model, pair.guide, x)
    assert loss.isfinite()
    assert objective.steps == 0


@pytest.mark.parametrize(("make_pair", "name", "make"), EVERY, ids=IDS)
def test_nothing_is_drawn_or_left_behind_by_looking(make_pair, name, make):
    """The first call, which plans, gives what the second one does from the same seed."""
    pair, x, objective = make_pair(), binary_data(), make()
    losses = []
    for _ in range(2):
        pyro.set_rng_seed(3)
        losses.append(objective.loss(pair.model, pair.guide, x))
    assert losses[0] == losses[1]


def test_repr_tells_bound_rule_and_number():
    assert repr(DReG(7)) == (
        "MonteCarloObjective(IWAE(), DoublyReparameterized(), num_particles=7)"
    )
    assert "KL(weight=4.0" in repr(BetaVAE())
    assert repr(VIMCO(4)).startswith("MonteCarloObjective(IWAE(), VIMCO(")


def test_miwae_draws_its_groups_and_its_particles():
    assert MIWAE(num_groups=3, num_particles=4).num_particles == 12
    assert PIWAE(num_groups=3, num_particles=4).num_particles == 12
    assert MIWAE(3, 4).bound == bounds.MIWAE(3)
    assert PIWAE(3, 4).gradient == gradients.Split(bounds.MIWAE(3))


def test_a_network_baseline_is_a_part_of_the_module():
    pair, net = Discrete(), nn.Linear(DATA_DIM, 1)
    module = NVIL(net)(pair.model, pair.guide)
    assert {id(p) for p in net.parameters()} <= {id(p) for p in module.parameters()}
    module(binary_data()).backward()
    assert all(p.grad is not None for p in net.parameters())
