"""`fit` finds the known best parameters, under every objective, and leaves nothing else behind."""

from __future__ import annotations

import io
import math
import signal
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
from pyro.infer.autoguide import AutoNormal
from torch import Tensor, nn
from torch.distributions import constraints
from torch.optim import lr_scheduler
from torch.utils.data import DataLoader, TensorDataset
from training_toys import (
    NamedToy,
    PyroGuide,
    PyroModel,
    Toy,
    best_elbo,
    best_parameters,
    fresh_net,
    function_pair,
    guide_sites,
    model_sites,
    net_data,
    toy_data,
)

from pyrovae.inference.training import fit
from pyrovae.inference.training.warmup import weighted

QUIET: dict[str, Any] = {"progress": False, "seed": 0}


pytestmark = pytest.mark.usefixtures("one_thread")


def decay(optimizer: torch.optim.Optimizer) -> lr_scheduler.LRScheduler:
    return lr_scheduler.ExponentialLR(optimizer, 0.9)


TO_OPTIMUM: dict[str, Any] = {
    "epochs": 50,
    "batch_size": 50,
    "learning_rate": 0.1,
    "schedule": decay,
    **QUIET,
}


def assert_optimal(found: dict[str, float], x: Tensor) -> None:
    for name, value in best_parameters(x).items():
        assert found[name] == pytest.approx(value, abs=0.03), name


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
