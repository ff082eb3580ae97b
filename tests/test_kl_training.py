"""The KL term as training goes on: steps, state, `fit`, and what it does not go with."""

from __future__ import annotations

import numpy as np
import pyro
import pytest
import torch
from kl_toys import Normals, gradients_of, loss_of, objective
from pyro.infer import Trace_ELBO, TraceMeanField_ELBO
from torch import nn
from training_toys import QUIET, Toy, toy_data

from pyrovae.inference import ELBO as elbo
from pyrovae.inference import (
    KL,
    FreeBits,
    MonteCarloObjective,
    WarmUp,
    bounds,
    fit,
    gradients,
)

pytestmark = pytest.mark.usefixtures("one_thread")


# --- scoring, steps and state ---------------------------------------------------------------------


@pytest.mark.parametrize(
    "settings",
    [
        {"weight": 0.2},
        {"weight": WarmUp(10)},
        {"free_bits": FreeBits(5.0)},
        {"form": "analytic", "weight": 3.0},
    ],
    ids=repr,
)
def test_the_loss_that_is_reported_is_the_bound(settings):
    pair = Normals()
    ours = objective(2, "plate", **settings)
    plain = elbo(2, particles="plate")
    ours.kl_factor = 0.5  # as fit's own warm-up would
    found = []
    for one in (ours, plain):
        pyro.set_rng_seed(4)
        found.append(one.loss(pair.model, pair.guide, pair.x))
    assert found[0] == found[1]
    assert isinstance(found[0], float)


def test_a_warm_up_counts_steps_that_take_a_gradient():
    pair, ours = Normals(), objective(weight=WarmUp(4))
    assert ours.is_warming_up
    for step in range(6):
        assert ours.steps == step
        assert ours.is_warming_up == (step < 4)
        loss = loss_of(pair, ours)
        beta = min(step / 4, 1.0)
        by_hand = beta * pair.sampled_kl().sum() - pair.log_likelihood().sum()
        assert loss.item() == pytest.approx(by_hand, rel=1e-10)
        ours.loss(pair.model, pair.guide, pair.x)
        with torch.no_grad():
            ours.differentiable_loss(pair.model, pair.guide, pair.x)
    ours.loss_and_grads(pair.model, pair.guide, pair.x)
    assert ours.steps == 7


def test_state_goes_from_one_objective_to_another():
    pair, first = Normals(), objective(weight=WarmUp(10))
    for _ in range(3):
        loss_of(pair, first)
    second = objective(weight=WarmUp(10))
    second.load_state_dict(first.state_dict())
    assert second.steps == 3
    assert second.is_warming_up
    assert loss_of(pair, second).item() == loss_of(pair, first).item()
    assert second.state_dict() == first.state_dict()


def test_the_state_holds_the_moving_average():
    def fresh():
        rule = gradients.ScoreFunction(gradients.MovingAverage(0.5), everywhere=True)
        return MonteCarloObjective(bounds.ELBO(), rule, 2, kl=KL(weight=WarmUp(10)))

    pair, first, second = Normals(), fresh(), fresh()
    for seed in range(3):
        loss_of(pair, first, seed)
    second.load_state_dict(first.state_dict())
    results = [gradients_of(pair, loss_of(pair, one, 5)) for one in (first, second)]
    for a, b in zip(*results, strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=0)
    other = gradients_of(pair, loss_of(pair, fresh(), 5))
    assert not torch.allclose(other[-1], results[0][-1])


def test_fits_warm_up_multiplies_the_weight():
    pair, ours = Normals(), objective(weight=0.5)
    ours.kl_factor = 0.5
    loss = loss_of(pair, ours)
    by_hand = 0.25 * pair.sampled_kl().sum() - pair.log_likelihood().sum()
    assert loss.item() == pytest.approx(by_hand, rel=1e-10)


@pytest.mark.parametrize("form", ["monte-carlo", "analytic"])
def test_fit_warms_up_as_it_does_with_pyros_objective(form):
    x, histories = toy_data(60), []
    theirs = Trace_ELBO() if form == "monte-carlo" else TraceMeanField_ELBO()
    for one in (theirs, objective(form=form)):
        toy = Toy()
        histories.append(
            fit(
                toy.model, toy.guide, x, objective=one, epochs=6, batch_size=20, warm_up=4,
                validation=x[:20], learning_rate=0.01, **QUIET,
            )
        )  # fmt: skip
    theirs, ours = histories
    np.testing.assert_allclose(ours.loss, theirs.loss, rtol=1e-4)
    np.testing.assert_array_equal(ours.beta, theirs.beta)
    np.testing.assert_allclose(ours.gradient_norm, theirs.gradient_norm, rtol=1e-3)


def test_fits_warm_up_does_not_stay():
    x, toy, ours = toy_data(20), Toy(), elbo()
    nn.init.constant_(toy.slope, 0.5)  # a KL that is not zero
    fit(toy.model, toy.guide, x, objective=ours, epochs=1, warm_up=5, learning_rate=1e-9, **QUIET)
    losses = []
    for one in (ours, elbo()):
        pyro.set_rng_seed(1)
        losses.append(one.differentiable_loss(toy.model, toy.guide, x).item())
    assert losses[0] == pytest.approx(losses[1], rel=1e-6)


def test_the_objectives_own_warm_up_runs_through_fit():
    x, toy = toy_data(60), Toy()
    ours = objective(weight=WarmUp(5))
    fit(toy.model, toy.guide, x, objective=ours, epochs=2, batch_size=20, validation=x, **QUIET)
    assert ours.steps == 6
    assert not ours.is_warming_up


# --- what does not go together --------------------------------------------------------------------


@pytest.mark.parametrize(
    "bound",
    [bounds.IWAE(), bounds.MIWAE(1), bounds.CIWAE(0.5), bounds.Renyi(0.5), bounds.Jackknife()],
    ids=repr,
)
@pytest.mark.parametrize(
    "kl", [KL(weight=0.5), KL(form="analytic"), KL(free_bits=FreeBits(0.1))], ids=repr
)
def test_only_the_elbo_has_a_kl(bound, kl):
    message = f"kl: {type(bound).__name__} has no KL term to be changed; only the ELBO has"
    with pytest.raises(ValueError, match=message):
        MonteCarloObjective(bound, num_particles=4, kl=kl)
    MonteCarloObjective(bound, num_particles=4, kl=KL())


@pytest.mark.parametrize(
    "rule",
    [
        gradients.StickingTheLanding(),
        gradients.DoublyReparameterized(),
        gradients.ScoreFunction(everywhere=True),
        gradients.Split(bounds.ELBO()),
        gradients.StraightThrough(),
    ],
    ids=repr,
)
def test_closed_forms_and_free_bits_need_the_pathwise_rule(rule):
    for kl in (KL(form="analytic"), KL(form="auto"), KL(free_bits=FreeBits(0.1))):
        with pytest.raises(ValueError, match=f"but gradient is {type(rule).__name__}"):
            MonteCarloObjective(bounds.ELBO(), rule, num_particles=4, kl=kl)
    MonteCarloObjective(bounds.ELBO(), rule, num_particles=4, kl=KL(weight=0.5))


def test_fits_warm_up_is_refused_without_a_kl():
    toy, iwae = Toy(), MonteCarloObjective(bounds.IWAE(), num_particles=3)
    with pytest.raises(ValueError, match="warm_up: IWAE has no KL term to be changed"):
        fit(toy.model, toy.guide, toy_data(20), objective=iwae, epochs=2, warm_up=2, **QUIET)
