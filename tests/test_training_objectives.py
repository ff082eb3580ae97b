"""Training under every objective of Pyro: nats per datum, and the warm-up of the KL."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from pyro.contrib.gp.kernels import RBF
from pyro.infer import (
    JitTrace_ELBO,
    RenyiELBO,
    ReweightedWakeSleep,
    Trace_ELBO,
    Trace_MMD,
    TraceEnum_ELBO,
    TraceGraph_ELBO,
    TraceMeanField_ELBO,
    TraceTailAdaptive_ELBO,
    TraceTMC_ELBO,
)
from torch import Tensor
from training_toys import (
    QUIET,
    NamedToy,
    Toy,
    best_elbo,
    function_pair,
    toy_data,
)

from pyrovae.inference.training import fit
from pyrovae.inference.training.warmup import weighted

pytestmark = pytest.mark.usefixtures("one_thread")


# --- every objective ------------------------------------------------------------------------------

OBJECTIVES: dict[str, Callable[[], Any]] = {
    "trace": Trace_ELBO,
    "trace vectorised": lambda: Trace_ELBO(num_particles=3, vectorize_particles=True),
    "mean field": TraceMeanField_ELBO,
    "graph": TraceGraph_ELBO,
    "enum": lambda: TraceEnum_ELBO(strict_enumeration_warning=False),
    "tmc": lambda: TraceTMC_ELBO(strict_enumeration_warning=False),
    "renyi": lambda: RenyiELBO(alpha=0.5, num_particles=2),
    "tail adaptive": lambda: TraceTailAdaptive_ELBO(num_particles=4, vectorize_particles=True),
    "wake-sleep": lambda: ReweightedWakeSleep(num_particles=5),
    "mmd": lambda: Trace_MMD(RBF(1, lengthscale=torch.ones(1)), num_particles=20),
}


@pytest.mark.parametrize("style", ["methods", "named", "function"])
@pytest.mark.parametrize("name", OBJECTIVES)
def test_every_objective_moves_every_parameter(name: str, style: str) -> None:
    """The module that names no parameter is the hard one: loss_and_grads sees none and stops."""
    if name == "mmd" and style != "methods":
        pytest.skip("its kernel draws the same whatever the style")
    x, toy = toy_data(100), Toy() if style == "methods" else NamedToy()
    model, guide = function_pair() if style == "function" else (toy.model, toy.guide)
    history = fit(
        model, guide, x, objective=OBJECTIVES[name](), epochs=8, learning_rate=0.05, **QUIET
    )
    store = {k: v.item() for k, v in pyro.get_param_store().items()}
    found = store if style == "function" else toy.values()
    before = {"mu": 0.0, "slope": 0.0, "shift": 0.0, "scale": 1.0}
    for key, value in before.items():
        if name != "mmd" or key != "mu":  # the likelihood term does not know the prior
            assert found[key] != value, key
    assert np.isfinite(history.gradient_norm).all()
    assert (history.gradient_norm > 0).all()
    if name != "tail adaptive":  # which has gradients only
        assert history.loss[-1] < history.loss[0]


def test_the_objective_without_a_value_is_validated_by_the_elbo() -> None:
    x, toy = toy_data(), Toy()
    objective = TraceTailAdaptive_ELBO(num_particles=4, vectorize_particles=True)
    history = fit(
        toy.model, toy.guide, x, objective=objective, validation=x, epochs=10, batch_size=50,
        learning_rate=0.1, **QUIET,
    )  # fmt: skip
    assert np.isnan(history.loss).all()
    assert history.validation_elbo[-1] == pytest.approx(best_elbo(x), abs=0.3)


def test_a_compiled_objective_trains_and_refuses_a_ragged_batch() -> None:
    x = toy_data(100)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        fit(*function_pair(), x, objective=JitTrace_ELBO(), epochs=5, batch_size=50, **QUIET)
    assert pyro.param("mu").item() != 0
    with pytest.raises(ValueError, match="batch_size: must divide the number of data, 100"):
        fit(*function_pair(), x, objective=JitTrace_ELBO(), epochs=5, batch_size=30, **QUIET)


def test_enumerated_mixture_reaches_its_exact_likelihood() -> None:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(200, generator=generator) + 4.0 * (torch.arange(200) % 2)

    def model(x: Tensor) -> None:
        locs = pyro.param("locs", torch.tensor([-1.0, 1.0]))
        with pyro.plate("data", len(x)):
            k = pyro.sample("k", dist.Categorical(torch.ones(2)), infer={"enumerate": "parallel"})
            pyro.sample("x", dist.Normal(locs[k], 1.0), obs=x)

    def guide(x: Tensor) -> None:
        pass

    objective = TraceEnum_ELBO(max_plate_nesting=1)
    history = fit(
        model, guide, x, objective=objective, epochs=30, batch_size=50, learning_rate=0.1,
        validation=x, **QUIET,
    )  # fmt: skip
    locs = pyro.param("locs").detach()
    exact = dist.MixtureSameFamily(dist.Categorical(torch.ones(2)), dist.Normal(locs, 1.0))
    assert history.validation_elbo[-1] == pytest.approx(exact.log_prob(x).mean().item(), abs=1e-4)
    assert sorted(locs.tolist()) == pytest.approx([0.0, 4.0], abs=0.3)


# --- nats per datum -------------------------------------------------------------------------------


def plated(total: int | None, plate: str) -> tuple[Callable[..., None], Callable[..., None]]:
    """The toy in a plate that claims ``total`` data, or just those it is given."""

    def frame(x: Tensor) -> Any:
        rows = None if total is None else torch.arange(len(x))
        return pyro.plate(plate, total or len(x), subsample=rows)

    def model(x: Tensor) -> None:
        with frame(x):
            z = pyro.sample("z", dist.Normal(pyro.param("mu", torch.tensor(0.0)), 1.0))
            pyro.sample("x", dist.Normal(z, 1.0), obs=x)

    def guide(x: Tensor) -> None:
        with frame(x):
            slope = pyro.param("slope", torch.tensor(0.0))
            pyro.sample("z", dist.Normal(slope * x, 0.7))

    return model, guide


@pytest.mark.parametrize("name", ["trace", "mean field", "graph"])
@pytest.mark.parametrize("plate", ["data", "rows"])
def test_a_subsampled_plate_trains_and_reports_alike(plate: str, name: str) -> None:
    x = toy_data(130)  # the last batch is smaller
    runs = []
    for total in (None, 130, 60_000):
        pyro.clear_param_store()
        history = fit(
            *plated(total, plate), x, objective=OBJECTIVES[name](), epochs=2, batch_size=50,
            validation=x[:70], clip=0.5, optimizer=lambda p: torch.optim.SGD(p, lr=0.1), **QUIET,
        )  # fmt: skip
        runs.append((history, pyro.param("mu").item(), pyro.param("slope").item()))
    for history, mu, slope in runs[1:]:
        for column in ("loss", "gradient_norm", "validation_elbo"):
            expected = getattr(runs[0][0], column)
            np.testing.assert_allclose(getattr(history, column), expected, rtol=1e-4)
        assert (mu, slope) == pytest.approx(runs[0][1:], rel=1e-4)


def exact_guide_pair(frame: Callable[[Tensor], Any], event: int = 0) -> tuple[Any, Any]:
    """Every draw gives log p(x) exactly: ELBOs have no noise. One parameter without effect."""

    def model(x: Tensor) -> None:
        with frame(x):
            prior = dist.Normal(0.0, 1.0).expand(x.shape[:1])
            z = pyro.sample("z", prior.to_event(event))
            pyro.sample("x", dist.Normal(z, 1.0).to_event(event), obs=x)

    def guide(x: Tensor) -> None:
        unit = pyro.param("unit", torch.tensor(1.0)) ** 0
        with frame(x):
            pyro.sample("z", dist.Normal(unit * x / 2, math.sqrt(0.5)).to_event(event))

    return model, guide


@pytest.mark.parametrize(
    ("frame", "event"),
    [
        (lambda x: pyro.plate("data", len(x)), 0),
        (lambda x: pyro.plate("data"), 0),
        (lambda x: pyro.plate("data", 9_999, subsample_size=len(x)), 0),
        (lambda x: poutine.scale(scale=1 / 784), 1),
        (lambda x: poutine.scale(scale=60_000 / 50), 1),
        (lambda x: poutine.mask(mask=torch.tensor(True)), 1),
    ],
    ids=["plate", "sizeless", "subsampled", "scale down", "scale up", "neither"],
)
def test_nats_per_datum_are_exact(frame: Callable[[Tensor], Any], event: int) -> None:
    x = toy_data(130)
    exact = dist.Normal(0.0, math.sqrt(2)).log_prob(x).mean().item()
    history = fit(
        *exact_guide_pair(frame, event), x, epochs=1, batch_size=50, validation=x[:33],
        learning_rate=1e-9, **QUIET,
    )  # fmt: skip
    assert history.loss[0] == pytest.approx(-exact, rel=1e-5)
    held_out = dist.Normal(0.0, math.sqrt(2)).log_prob(x[:33]).mean().item()
    assert history.validation_elbo[0] == pytest.approx(held_out, rel=1e-5)


def test_internal_subsampling_is_not_divided_out_twice() -> None:
    x = toy_data(100)

    def model(x: Tensor) -> None:
        with pyro.plate("data", len(x), subsample_size=10) as rows:
            z = pyro.sample("z", dist.Normal(pyro.param("mu", torch.tensor(0.7)), 1.0))
            pyro.sample("x", dist.Normal(z, 1.0), obs=x[rows])

    def guide(x: Tensor) -> None:
        with pyro.plate("data", len(x), subsample_size=10) as rows:
            pyro.sample("z", dist.Normal((x[rows] + 0.7) / 2, math.sqrt(0.5)))

    history = fit(
        model, guide, x, epochs=40, batch_size=50, learning_rate=1e-9, **QUIET
    )  # 80 estimates from 10 data each
    exact = dist.Normal(0.7, math.sqrt(2)).log_prob(x)
    error = exact.std().item() / math.sqrt(80 * 10)
    assert history.loss.mean() == pytest.approx(-exact.mean().item(), abs=5 * error)


def test_the_loss_is_the_mean_over_data_not_over_batches() -> None:
    x = torch.cat([torch.zeros(100), torch.full((1,), 30.0)])  # 101 data, the last batch is one
    exact = dist.Normal(0.0, math.sqrt(2)).log_prob(x).mean().item()
    pair = exact_guide_pair(lambda x: pyro.plate("data", len(x)))
    history = fit(*pair, x, epochs=1, batch_size=100, learning_rate=1e-9, **QUIET)
    assert history.loss[0] == pytest.approx(-exact, rel=1e-5)


# --- KL warm-up -----------------------------------------------------------------------------------


class Recorded(Toy):
    """The toy, remembering its data and draws, so that the loss can be computed by hand."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[tuple[Tensor, Tensor]] = []

    def posterior(self, x: Tensor) -> dist.Normal:
        return dist.Normal(self.slope * x + self.shift, self.log_scale.exp())

    def guide(self, x: Tensor) -> None:
        with pyro.plate("data", x.shape[0]):
            z = pyro.sample("z", self.posterior(x))
            if torch.is_grad_enabled():
                self.seen.append((x, z.detach()))

    def by_hand(self, x: Tensor, drawn: Tensor, beta: float, analytic: bool) -> Tensor:
        q, prior = self.posterior(x), dist.Normal(self.mu, 1.0)
        z = q.loc + q.scale * ((drawn - q.loc) / q.scale).detach()
        if analytic:
            kl = torch.distributions.kl_divergence(q, prior)
        else:
            kl = q.log_prob(z) - prior.log_prob(z)
        return -(dist.Normal(z, 1.0).log_prob(x) - beta * kl).mean()


@pytest.mark.parametrize("name", ["trace", "mean field", "graph", "enum"])
def test_warm_up_is_the_beta_weighted_loss(name: str) -> None:
    """Loss and gradient, in each epoch, against the formula on the same draws."""
    x, toy = toy_data(60), Recorded()
    with torch.no_grad():
        toy.slope.fill_(0.3)
        toy.mu.fill_(-0.4)
    history = fit(
        toy.model, toy.guide, x, objective=OBJECTIVES[name](), epochs=5, batch_size=60, warm_up=4,
        optimizer=lambda p: torch.optim.SGD(p, lr=1e-9), validation=x, **QUIET,
    )  # fmt: skip
    np.testing.assert_array_equal(history.beta, [0.25, 0.5, 0.75, 1.0, 1.0])
    for epoch, (batch, drawn) in enumerate(toy.seen[-5:]):
        loss = toy.by_hand(batch, drawn, history.beta[epoch], name == "mean field")
        assert history.loss[epoch] == pytest.approx(loss.item(), rel=1e-5)
        gradients = torch.autograd.grad(loss, list(toy.parameters()))
        norm = torch.stack(gradients).norm().item()
        assert history.gradient_norm[epoch] == pytest.approx(norm, rel=1e-4)
    assert np.ptp(history.validation_elbo) < 1e-5  # always at beta = 1


@pytest.mark.parametrize("name", ["trace", "mean field", "graph", "enum", "renyi"])
def test_weights_touch_latents_only_and_do_not_stay(name: str) -> None:
    """With no data in it, the loss is the weighted KL; with only data, it is unweighted."""
    x, toy = toy_data(20), Toy()
    objective = OBJECTIVES[name]()

    def loss(weight: float, programs: tuple[Any, Any]) -> float:
        pyro.set_rng_seed(5)
        return objective.loss(*weighted(*programs, weight), x)

    full = (toy.model, toy.guide)
    blind = (poutine.mask(toy.model, mask=torch.tensor(True)), toy.guide)
    latent_only = (poutine.block(toy.model, hide=["x"]), toy.guide)
    if name != "renyi":  # whose logarithm is not linear in the weight
        assert loss(0.25, latent_only) == pytest.approx(0.25 * loss(1.0, latent_only), rel=1e-5)
        data_only = loss(1.0, full) - loss(1.0, latent_only)
        assert loss(0.25, full) - loss(0.25, latent_only) == pytest.approx(data_only, rel=1e-4)
    assert loss(1.0, blind) == pytest.approx(loss(1.0, full))
    before = loss(1.0, full)
    fit(*full, x, objective=objective, epochs=1, warm_up=5, learning_rate=1e-9, **QUIET)
    assert loss(1.0, full) == pytest.approx(before, rel=1e-5)


def enumerated_pair(data_depend: bool) -> tuple[Callable[..., Any], Callable[..., Any]]:
    """A latent class that the model sums out: in the prior of z alone, or in that of x too."""

    def model(x: Tensor) -> None:
        locs = pyro.param("locs", torch.tensor([-1.0, 1.5]))
        with pyro.plate("data", len(x)):
            k = pyro.sample("k", dist.Categorical(torch.ones(2)), infer={"enumerate": "parallel"})
            z = pyro.sample("z", dist.Normal(locs[k], 1.0))
            pyro.sample("x", dist.Normal(z + (locs[k] if data_depend else 0), 1.0), obs=x)

    def guide(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(0.5 * x, pyro.param("scale", torch.tensor(0.7))))

    return model, guide


def test_warm_up_weighs_a_prior_that_is_summed_out() -> None:
    x, beta = toy_data(50), 0.25
    objective = TraceEnum_ELBO(max_plate_nesting=1)
    pyro.set_rng_seed(5)
    loss = objective.loss(*weighted(*enumerated_pair(False), beta), x)
    pyro.set_rng_seed(5)
    q = dist.Normal(0.5 * x, 0.7)
    z = q.sample()
    locs = torch.tensor([-1.0, 1.5])
    prior = dist.MixtureSameFamily(dist.Categorical(torch.ones(2)), dist.Normal(locs, 1.0))
    by_hand = dist.Normal(z, 1.0).log_prob(x) + beta * (prior.log_prob(z) - q.log_prob(z))
    assert loss == pytest.approx(-by_hand.sum().item(), rel=1e-5)


def test_warm_up_is_refused_where_the_sum_mixes_prior_and_likelihood() -> None:
    pair, objective = enumerated_pair(True), TraceEnum_ELBO(max_plate_nesting=1)
    fit(*pair, toy_data(), objective=objective, epochs=1, **QUIET)
    with pytest.raises(ValueError, match="warm_up: must be 0 where data depend on a latent"):
        fit(*pair, toy_data(), objective=objective, epochs=2, warm_up=2, **QUIET)


def test_a_factor_in_the_guide_is_part_of_log_q() -> None:
    def model(x: Tensor) -> None:
        pyro.sample("z", dist.Normal(0.0, 1.0))

    def guide(x: Tensor) -> None:
        pyro.sample("z", dist.Delta(torch.tensor(0.0)))
        pyro.factor("jacobian", torch.tensor(2.0), has_rsample=True)

    full = Trace_ELBO().loss(model, guide, None)
    assert Trace_ELBO().loss(*weighted(model, guide, 0.5), None) == pytest.approx(0.5 * full)
