"""Penalties of a guide, added to any objective: once per datum, however particles are drawn."""

from __future__ import annotations

import functools
import itertools

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from objective_toys import CONTINUOUS, DATA_DIM, Discrete, binary_data
from pyro import poutine
from pyro.infer import (
    SVI,
    RenyiELBO,
    Trace_ELBO,
    TraceEnum_ELBO,
    TraceGraph_ELBO,
    TraceMeanField_ELBO,
)
from torch import nn
from training_toys import QUIET, Toy, toy_data

from pyrovae.inference import ELBO, IWAE, NVIL, MonteCarloObjective, Penalised, bounds, fit
from pyrovae.inference.objectives.gradients import DoublyReparameterized

pytestmark = [
    pytest.mark.usefixtures("one_thread"),
    pytest.mark.filterwarnings("ignore:TraceEnum_ELBO found no sample sites"),
]

NUMBERS = itertools.count()
X = torch.tensor([1.0, -2.0, 0.5, 1.5, 0.3, -0.7], dtype=torch.float64)
PYROS = {
    "Trace_ELBO": Trace_ELBO,
    "Trace_ELBO of four": lambda: Trace_ELBO(4),
    "Trace_ELBO, a plate of four": lambda: Trace_ELBO(4, vectorize_particles=True),
    "TraceMeanField_ELBO": lambda: TraceMeanField_ELBO(3),
    "TraceEnum_ELBO": lambda: TraceEnum_ELBO(3, max_plate_nesting=1),
}
WAYS = {
    f"{name}, {way}": functools.partial(MonteCarloObjective, bounds.IWAE(), rule, 4, particles=way)
    for name, rule in (("IWAE", None), ("DReG", DoublyReparameterized()))
    for way in ("plate", "tile", "loop")
}
EVERY = CONTINUOUS | PYROS | WAYS


class Towards(dist.Normal):
    """Its penalty draws its mean towards 1."""

    def penalty(self):
        return (self.loc - 1) ** 2

    def expand(self, batch_shape, _instance=None):
        return super().expand(batch_shape, self._get_checked_instance(Towards, _instance))


class Pair(nn.Module):
    """z ~ N(shift, 1), x | z ~ N(z, 1); q(z | x) = N(slope x, 1): penalised, or not."""

    def __init__(self, family=Towards):
        super().__init__()
        self.name = f"pair {next(NUMBERS)}"  # not its id, which a later one may have again
        self.family = family
        self.slope = nn.Parameter(torch.tensor(0.3, dtype=torch.float64))
        self.shift = nn.Parameter(torch.tensor(0.1, dtype=torch.float64))

    def plate(self, x):
        return pyro.plate("data", len(x))

    def model(self, x):
        pyro.module(self.name, self)
        with self.plate(x):
            z = pyro.sample("z", dist.Normal(self.shift, 1.0))
            pyro.sample("x", dist.Normal(z, 1.0), obs=x)

    def guide(self, x):
        pyro.module(self.name, self)
        with self.plate(x):
            pyro.sample("z", self.family(self.slope * x, torch.ones_like(x)))


def step(objective, pair, x=X):
    """The loss, and its gradients of the guide's and of the model's parameter."""
    pyro.set_rng_seed(0)
    loss = objective.differentiable_loss(pair.model, pair.guide, x)
    return torch.stack([loss, *torch.autograd.grad(loss, [pair.slope, pair.shift])]).detach()


def by_hand(x=X, slope=0.3, factor=1.0):
    """The penalties of x, their gradient, and none for the model."""
    away = slope * x - 1
    total, gradient = (away**2 * factor).sum(), (2 * away * x * factor).sum()
    return torch.stack([total, gradient, torch.zeros_like(total)])


def added(make, pair, x=X):
    return step(Penalised(make()), pair, x) - step(make(), pair, x)


# --- what is added -------------------------------------------------------------------------------


@pytest.mark.parametrize("name", EVERY)
def test_penalties_of_each_datum_are_added_once(name):
    torch.testing.assert_close(added(EVERY[name], Pair()), by_hand(), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("name", EVERY)
def test_without_penalties_nothing_is_changed(name):
    """Bit for bit."""
    pair = Pair(dist.Normal)
    assert torch.equal(step(Penalised(EVERY[name]()), pair), step(EVERY[name](), pair))


def test_the_default_is_pyros_own():
    assert torch.equal(step(Penalised(), Pair()), step(Penalised(Trace_ELBO()), Pair()))


@pytest.mark.parametrize("name", EVERY)
def test_the_loss_of_validation_is_the_objectives_own(name):
    losses = []
    for objective in (EVERY[name](), Penalised(EVERY[name]())):
        pyro.set_rng_seed(0)
        losses.append(objective.loss(Pair().model, Pair().guide, X))
    assert losses[0] == losses[1]


# --- scales, masks and plates --------------------------------------------------------------------


class Batch(Pair):
    """Half of the data, by a plate that knows there are others."""

    def plate(self, x):
        return pyro.plate("data", 2 * len(x), subsample_size=len(x))


PARTS = {
    name: EVERY[name] for name in ("ELBO", "IWAE", "RWS asleep", "IWAE, tile", "IWAE, loop", *PYROS)
}


@pytest.mark.parametrize("name", sorted(PARTS.keys() - {"IWAE, tile"}))  # tiles are no half
def test_a_batch_stands_for_all_data(name):
    batch = added(PARTS[name], Batch(), X[:3])
    torch.testing.assert_close(batch, by_hand(X[:3], factor=2), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("name", PARTS)
def test_a_scale_of_the_whole_program_is_the_penalties_too(name):
    pair = Pair()
    pair.model, pair.guide = (poutine.scale(one, scale=0.25) for one in (pair.model, pair.guide))
    wanted = by_hand(factor=0.25)
    torch.testing.assert_close(added(PARTS[name], pair), wanted, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("name", PYROS)
def test_a_weight_of_the_latents_alone_leaves_penalties_alone(name):
    """As warm-ups of Pyro's objectives give them."""

    class Weighted(Pair):
        def model(self, x):
            with self.plate(x):
                with poutine.scale(scale=0.1):
                    z = pyro.sample("z", dist.Normal(self.shift, 1.0))
                pyro.sample("x", dist.Normal(z, 1.0), obs=x)

        def guide(self, x):
            with poutine.scale(scale=0.1):
                super().guide(x)

    torch.testing.assert_close(added(PYROS[name], Weighted()), by_hand(), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("name", ["ELBO", "IWAE, tile", "Trace_ELBO", "Trace_ELBO of four"])
def test_masked_data_have_none(name):
    keep = X > 0

    class Masked(Pair):
        def model(self, x):
            with poutine.mask(mask=x > 0):
                super().model(x)

        def guide(self, x):
            with poutine.mask(mask=x > 0):
                super().guide(x)

    torch.testing.assert_close(added(EVERY[name], Masked()), by_hand(X[keep]), rtol=1e-9, atol=1e-9)


class Nested(Pair):
    """Three latents of each datum, all or some of which are drawn."""

    drawn = (0, 2)

    def inner(self):
        return pyro.plate("latents", 3, subsample=torch.tensor(self.drawn), dim=-2)

    def model(self, x):
        with self.plate(x):
            with self.inner():
                pyro.sample("z", dist.Normal(self.shift, 1.0))
            pyro.sample("x", dist.Normal(self.shift, 1.0), obs=x)

    def guide(self, x):
        with self.plate(x), self.inner():
            pyro.sample("z", self.family((self.slope * x).expand(len(self.drawn), len(x)), 1.0))


class NestedWhole(Nested):
    drawn = (0, 1, 2)


@pytest.mark.parametrize(
    ("name", "pair"),
    [(name, Nested) for name in ("Trace_ELBO", "Trace_ELBO of four")]
    + [(name, NestedWhole) for name in ("Trace_ELBO", "ELBO", "IWAE", "IWAE, tile", "IWAE, loop")],
)
def test_plates_within_the_data_add_up(name, pair):
    wanted = by_hand(factor=3)
    torch.testing.assert_close(added(EVERY[name], pair()), wanted, rtol=1e-9, atol=1e-9)


class Two(Pair):
    """A penalty at one latent of two; and one of the model's, which nobody asked for."""

    def model(self, x):
        with self.plate(x):
            z = pyro.sample("z", Towards(self.shift.expand(len(x)), 1.0))
            y = pyro.sample("y", dist.Normal(z, 1.0))
            pyro.sample("x", dist.Normal(y, 1.0), obs=x)

    def guide(self, x):
        with self.plate(x):
            pyro.sample("z", Towards(self.slope * x, 1.0))
            pyro.sample("y", Towards(self.slope * x, 1.0))


@pytest.mark.parametrize("name", PARTS)
def test_penalties_are_the_guides_of_all_its_latents(name):
    wanted = by_hand(factor=2)
    torch.testing.assert_close(added(PARTS[name], Two()), wanted, rtol=1e-9, atol=1e-9)


# --- in use --------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["ELBO", "IWAE", "Trace_ELBO", "Trace_ELBO of four"])
def test_all_three_ways_of_calling_agree(name):
    wanted = step(Penalised(EVERY[name]()), Pair())
    pair, objective = Pair(), Penalised(EVERY[name]())
    pyro.set_rng_seed(0)
    value = objective.loss_and_grads(pair.model, pair.guide, X)
    assert value == pytest.approx(wanted[0].item())
    torch.testing.assert_close(torch.stack([pair.slope.grad, pair.shift.grad]), wanted[1:])
    pair = Pair()
    pyro.set_rng_seed(0)
    module = objective(pair.model, pair.guide)
    assert module(X).item() == pytest.approx(wanted[0].item())


@pytest.mark.parametrize("make", [Trace_ELBO, lambda: IWAE(4)])
def test_svi_takes_the_penalised_step(make):
    _, slope, shift = step(Penalised(make()), Pair()).tolist()
    pyro.set_rng_seed(0)
    pair, optimizer = Pair(), pyro.optim.SGD({"lr": 0.01})
    SVI(pair.model, pair.guide, optimizer, loss=Penalised(make())).step(X)
    assert pair.slope.item() == pytest.approx(0.3 - 0.01 * slope)
    assert pair.shift.item() == pytest.approx(0.1 - 0.01 * shift)


@pytest.mark.parametrize("num_data", [3, 6])
def test_fit_takes_the_penalised_step_per_datum(num_data):
    """A plain step of 0.1 on the whole batch; the history has the loss that was lowered."""
    plain = functools.partial(torch.optim.SGD, lr=0.1)
    settings = {"epochs": 1, "batch_size": num_data, "optimizer": plain, **QUIET}
    pair, bare, x = Pair(), Pair(), X[:num_data]
    objective = TraceMeanField_ELBO()
    history = fit(pair.model, pair.guide, x, objective=Penalised(objective), **settings)
    without = fit(bare.model, bare.guide, x, objective=objective, **settings)
    total, gradient, _ = by_hand(x) / num_data
    np.testing.assert_allclose(history.loss - without.loss, total, rtol=1e-6)
    assert (pair.slope - bare.slope).item() == pytest.approx(-0.1 * gradient.item())
    assert pair.shift == bare.shift


def test_fit_without_penalties_is_fit():
    toys = Toy(), Toy()
    losses = [
        fit(toy.model, toy.guide, toy_data(), objective=objective, epochs=2, **QUIET).loss
        for toy, objective in zip(toys, (ELBO(2), Penalised(ELBO(2))), strict=True)
    ]
    np.testing.assert_array_equal(*losses)
    assert toys[0].values() == toys[1].values()


@pytest.mark.parametrize("warm_up", [0, 3])
def test_fit_sees_through_to_an_objective_of_ours(warm_up):
    """Its warm-up is the run's, and a second run with it is the first one again."""
    objective = Penalised(ELBO(num_particles=3))
    losses = []
    for _ in range(2):
        toy = Toy()
        history = fit(
            toy.model,
            toy.guide,
            toy_data(),
            objective=objective,
            warm_up=warm_up,
            epochs=4,
            **QUIET,
        )
        losses.append(history.loss)
    np.testing.assert_array_equal(losses[0], losses[1])


def test_fit_trains_the_network_of_a_baseline():
    toy, network = Discrete(), nn.Linear(DATA_DIM, 1)
    before = network.weight.detach().clone()
    objective = Penalised(NVIL(network))
    fit(toy.model, toy.guide, binary_data(40), objective=objective, epochs=1, **QUIET)
    assert not torch.equal(before, network.weight)


def test_a_baseline_is_still_trained_by_svi():
    """Its network is known to the objective alone."""
    pair, x, ends = Discrete(), binary_data(), []
    start = {name: value.clone() for name, value in pair.state_dict().items()}
    for wrap in (lambda one: one, Penalised):
        pair.load_state_dict(start)
        pyro.set_rng_seed(0)
        net = nn.Linear(DATA_DIM, 1)
        svi = SVI(pair.model, pair.guide, pyro.optim.SGD({"lr": 0.1}), loss=wrap(NVIL(net)))
        before = net.weight.clone()
        svi.step(x)
        assert not torch.equal(net.weight, before)
        ends.append(net.weight.detach().clone())
    assert torch.equal(*ends)


# --- refusals ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("objective", "message"),
    [
        (5, "objective must be a pyro.infer.ELBO with a differentiable loss, but is 5"),
        (IWAE, "with a differentiable loss, but is <function IWAE"),
        (Trace_ELBO, "with a differentiable loss, but is <class .*Trace_ELBO"),
        (RenyiELBO(num_particles=2), "with a differentiable loss, but is <pyro.infer.renyi_elbo"),
        (TraceGraph_ELBO(), "with a differentiable loss, but is <pyro.infer.tracegraph_elbo"),
        (Penalised(), r"objective must be without penalties, .* twice, but is Penalised\("),
    ],
)
def test_objectives_that_cannot_be_penalised_are_refused(objective, message):
    with pytest.raises(TypeError, match=message):
        Penalised(objective)
