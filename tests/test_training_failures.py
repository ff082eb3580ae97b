"""Training that cannot go on: data outside a support, numbers that are not finite."""

from __future__ import annotations

import functools
import pickle
from collections.abc import Callable
from typing import Any

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer import RenyiELBO, TraceEnum_ELBO, TraceGraph_ELBO
from torch import Tensor
from torch.distributions import constraints
from training_toys import QUIET, Toy, fresh_net, function_pair, net_data, toy_data

from pyrovae.inference.training import NonFiniteLoss, fit

pytestmark = pytest.mark.usefixtures("one_thread")


X = toy_data()


# --- data outside a support -----------------------------------------------------------------------


def net_pair(fn: Callable[[Tensor], Any]) -> tuple[Any, Any]:
    """A fresh network whose likelihood is ``fn`` of its output."""
    net = fresh_net()

    def model(x: Tensor) -> None:
        pyro.module("net", net)
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))
            pyro.sample("pixels", fn(net.decoder(z)), obs=x)

    return model, net.guide


@pytest.mark.parametrize(
    ("fn", "bad", "message"),
    [
        (
            lambda out: dist.Bernoulli(logits=out).to_event(1),
            0.25,
            r"x: site 'pixels' takes values in Boolean\(\), but holds 0\.25",
        ),
        (
            lambda out: dist.ContinuousBernoulli(logits=out).to_event(1),
            1.5,
            r"takes values in Interval\(lower_bound=0(\.0)?, upper_bound=1(\.0)?\), but holds 1\.5",
        ),
        (
            lambda out: dist.Poisson(out.exp()).to_event(1),
            -1.0,
            r"takes values in IntegerGreaterThan\(lower_bound=0\), but holds -1",
        ),
        (
            lambda out: dist.Dirichlet(out.exp()),
            0.25,
            r"takes values in Simplex\(\), but holds \(0\.25, 1, 1, 1\)",
        ),
    ],
    ids=["bernoulli", "continuous bernoulli", "poisson", "dirichlet"],
)
def test_one_bad_datum_anywhere_is_found_and_named(
    fn: Callable[[Tensor], Any], bad: float, message: str
) -> None:
    x = torch.ones(300, 4)
    if "Simplex" in message:
        x = torch.full((300, 4), 0.25)
        x[123] = torch.tensor([0.25, 1.0, 1.0, 1.0])
    elif "Interval" in message:
        x = torch.full((300, 4), 0.5)
    if "Simplex" not in message:
        x[123, 2] = bad
    for seed in range(3):  # in whatever batch it falls
        with pytest.raises(ValueError, match=message) as refused:
            fit(*net_pair(fn), x, epochs=1, progress=False, batch_size=50, seed=seed)
        assert "\n" not in str(refused.value)
        assert not isinstance(refused.value, NonFiniteLoss)


def test_bad_validation_data_are_named_as_such() -> None:
    net = fresh_net(binary=True)
    x = net_data().gt(0).float()
    with pytest.raises(ValueError, match=r"validation: site 'x' takes values in Boolean"):
        fit(net.model, net.guide, x, validation=x * 0.3, epochs=1, **QUIET)


def test_draws_outside_the_prior_are_named() -> None:
    def model(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            rate = pyro.sample("rate", dist.Gamma(1.0, 1.0))
            pyro.sample("x", dist.Normal(rate, 1.0), obs=x)

    def guide(x: Tensor) -> None:
        loc = pyro.param("loc", torch.tensor(0.0))
        with pyro.plate("data", len(x)):
            pyro.sample("rate", dist.Normal(loc, 1.0))

    with pytest.raises(ValueError, match="guide: its draws at site 'rate' must be values in"):
        fit(model, guide, X, epochs=1, **QUIET)


def test_other_failures_of_a_program_are_its_own() -> None:
    toy = Toy()

    def model(x: Tensor) -> None:
        toy.model(x)
        raise ValueError("the program's own words")

    with pytest.raises(ValueError, match="the program's own words"):
        fit(model, toy.guide, X, epochs=1, **QUIET)


# --- numbers that are not finite ------------------------------------------------------------------


class Fragile(Toy):
    """The toy, with something that breaks in training step number ``at``."""

    def __init__(self, at: int, what: str) -> None:
        super().__init__()
        self.at, self.what, self.steps = at, what, 0
        self.good: dict[str, float] = {}

    def broken(self, what: str) -> bool:
        return self.what == what and self.steps == self.at + 1  # one inspection comes before

    def guide(self, x: Tensor) -> None:
        if torch.is_grad_enabled():
            self.steps += 1
            if self.steps == self.at + 1:
                self.good = self.values()
        loc = self.slope * x + self.shift
        if self.broken("latent"):
            loc = loc * float("nan")
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(loc, self.log_scale.exp()))

    def model(self, x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(self.mu, 1.0))
            scale = torch.where(x > 2, 1e-30, 1.0) if self.broken("likelihood") else 1.0
            if self.broken("gradient"):  # finite value, infinite slope
                z = z + (self.mu - self.mu.detach()).abs().sqrt()
            pyro.sample("x", dist.Normal(z, scale), obs=x)


@pytest.mark.parametrize("at", [1, 2, 7])
@pytest.mark.parametrize(
    ("what", "sites", "message"),
    [
        ("latent", {"z", "x"}, "not finite: 'z' in the guide"),
        ("likelihood", {"x"}, "not finite: 'x' in the model .log-probability -inf for"),
        ("gradient", set(), "every site is finite, but the gradient of model.mu is not"),
    ],
)
def test_training_stops_before_the_step_and_names_the_sites(
    at: int, what: str, sites: set[str], message: str
) -> None:
    """At step 1, Pyro's validation is on and sees it; at step 7, nobody looks but `fit`."""
    fragile = Fragile(at, what)
    with pytest.raises(NonFiniteLoss, match=message) as stopped:
        fit(fragile.model, fragile.guide, X, epochs=9, batch_size=50, **QUIET)
    epoch, batch = divmod(at - 1, 4)
    error = stopped.value
    assert f"epoch {epoch + 1}, batch {batch + 1}" in str(error)
    assert (error.epoch, error.batch) == (epoch + 1, batch + 1)
    assert sites <= set(error.sites)
    assert bool(sites) == bool(error.sites)
    assert error.rows is not None
    assert len(error.rows) == 50
    assert isinstance(error, FloatingPointError)
    assert isinstance(error, ValueError)
    assert fragile.values() == fragile.good  # the last good ones
    assert "\n" not in str(error)


@pytest.mark.parametrize(
    "objective",
    [RenyiELBO(), TraceGraph_ELBO(), TraceEnum_ELBO(strict_enumeration_warning=False)],
    ids=["renyi", "graph", "enum"],
)
def test_every_objective_stops_on_nan(objective: Any) -> None:
    fragile = Fragile(6, "latent")
    with pytest.raises(NonFiniteLoss, match="not finite: 'z' in the guide"):
        fit(
            fragile.model,
            fragile.guide,
            X,
            objective=objective,
            epochs=9,
            batch_size=50,
            **QUIET,
        )
    assert fragile.values() == fragile.good


def test_parameters_that_are_nan_from_the_start_are_named() -> None:
    net = fresh_net(binary=True)
    with torch.no_grad():
        net.decoder.bias.fill_(float("nan"))
    with pytest.raises(NonFiniteLoss, match="'x' in the model"):
        fit(net.model, net.guide, net_data().gt(0).float(), epochs=1, **QUIET)


def test_a_site_that_cannot_even_be_drawn_is_named() -> None:
    net = fresh_net()

    def model(x: Tensor) -> None:
        pyro.module("net", net)
        with pyro.plate("data", len(x)):
            k = pyro.sample("k", dist.Bernoulli(0.5))
            out = net.decoder(k[:, None].expand(-1, 2))
            pyro.sample("x", dist.Normal(out, 1.0).to_event(1), obs=x)

    steps = [0]

    def guide(x: Tensor) -> None:
        steps[0] += torch.is_grad_enabled()
        logits = net.head(net.encoder(x))[:, 0]
        with pyro.plate("data", len(x)):
            probs = logits.sigmoid() * (float("nan") if steps[0] == 6 else 1.0)
            pyro.sample("k", dist.Bernoulli(probs))

    with pytest.raises(NonFiniteLoss, match="'k' in the guide") as stopped:
        fit(model, guide, net_data(), epochs=5, **QUIET)
    assert stopped.value.epoch == 3
    assert all(p.isfinite().all() for p in net.parameters())


def test_a_learning_rate_that_is_too_high_ends_in_one_line() -> None:
    x = toy_data()
    with pytest.raises(NonFiniteLoss, match=r"epoch .*, batch .*: the ") as stopped:
        fit(
            *function_pair(), x, epochs=200,
            optimizer=functools.partial(torch.optim.SGD, lr=1e4), **QUIET,
        )  # fmt: skip
    assert "\n" not in str(stopped.value)
    assert all(np.isfinite(v.item()) for v in pyro.get_param_store().values())


def test_constraints_hold_for_the_store() -> None:
    scale = pyro.param("scale", torch.tensor(1.0), constraint=constraints.positive)
    fit(*function_pair(), X, epochs=3, learning_rate=1.0, **QUIET)
    assert pyro.param("scale").unconstrained() is scale.unconstrained()  # the user's own entry
    assert pyro.param("scale") > 0


def test_the_error_survives_the_way_back_from_a_worker() -> None:
    error = NonFiniteLoss("it is", 2, 3, ["z"], torch.arange(4))
    again = pickle.loads(pickle.dumps(error))
    assert str(again) == "it is"
    assert (again.epoch, again.batch, again.sites) == (2, 3, ("z",))
    assert torch.equal(again.rows, error.rows)
