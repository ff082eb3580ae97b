"""MonteCarloObjective in the places where a pyro.infer.ELBO goes, at mini-batches, in every way."""

from __future__ import annotations

import copy
from functools import partial
from pathlib import Path
from typing import Any

import gradient_oracles as oracles
import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from gradient_toys import Chain, Code, assert_is_expected
from pyro.infer import SVI, RenyiELBO, Trace_ELBO
from torch import nn
from training_toys import QUIET, assert_same, assert_same_values, fresh_net, net_data

from pyrovae.inference import (
    ELBO,
    IWAE,
    KL,
    NVIL,
    RWS,
    STL,
    VIMCO,
    DReG,
    MonteCarloObjective,
    WarmUp,
    bounds,
    fit,
    gradients,
)

pytestmark = pytest.mark.usefixtures("one_thread")

NOISE = 0.7
THETA, PHI = np.array([0.9, 0.3]), np.array([0.4, 0.2, -0.3])
IWAE_FORMULA = partial(oracles.bound_of, "iwae")


# --- mini-batches --------------------------------------------------------------------------------


class Subsampled(Chain):
    """The chain whose data plate draws a part of x for itself, in model and guide alike."""

    def __init__(self, batch: int) -> None:
        super().__init__(THETA, PHI, NOISE)
        self.batch = batch

    def model(self, x):
        with pyro.plate("data", len(x), subsample_size=self.batch) as rows:
            z = pyro.sample("z", dist.Normal(torch.zeros((), dtype=x.dtype), 1.0))
            loc = self.theta[0] * z + self.theta[1]
            pyro.sample("x", dist.Normal(loc, self.noise), obs=x[rows])

    def guide(self, x):
        with pyro.plate("data", len(x), subsample_size=self.batch) as rows:
            loc = self.phi[0] * x[rows] + self.phi[1]
            pyro.sample("z", dist.Normal(loc, self.phi[2].exp()))


DATA = np.linspace(-1.5, 2.0, 12)


def losses_and_gradients(objective: Any, pair: Chain, repeats: int) -> tuple[np.ndarray, ...]:
    x, rows = torch.tensor(DATA), []

    def model(x):
        pyro.module("pair", pair)  # without a statement, some of Pyro's give no gradient
        pair.model(x)

    for _ in range(repeats):
        pair.zero_grad()
        loss = objective.loss_and_grads(model, pair.guide, x)
        rows.append([loss, *pair.theta.grad.tolist(), *pair.phi.grad.tolist()])
    rows = np.array(rows)
    return rows.mean(0), rows.std(0, ddof=1) / np.sqrt(repeats)


def expected_loss_and_gradient(count: int) -> np.ndarray:
    chain = oracles.GaussianChain(1, NOISE)

    def value(theta, phi):
        return -chain.expected_bound(IWAE_FORMULA, theta, phi, phi, DATA, count, nodes=20)

    return np.concatenate(
        [
            [value(THETA, PHI)],
            oracles.derivative(lambda t: value(t, PHI), THETA),
            oracles.derivative(lambda p: value(THETA, p), PHI),
        ]
    )


@pytest.mark.parametrize("rule", [gradients.Pathwise(), gradients.DoublyReparameterized()])
def test_a_subsampled_plate_is_unbiased_for_all_data(rule: gradients.Gradient) -> None:
    torch.manual_seed(0)
    objective = MonteCarloObjective(bounds.IWAE(), rule, 3)
    found = losses_and_gradients(objective, Subsampled(4), repeats=1500)
    assert_is_expected(found, expected_loss_and_gradient(3))


def test_pyros_renyi_elbo_is_not() -> None:
    """The contrast: at alpha = 0 it should be the IWAE of all data, and exceeds log p(x)."""
    torch.manual_seed(1)
    pair = Subsampled(4)
    objective = RenyiELBO(alpha=0.0, num_particles=3, vectorize_particles=True)
    mean, stderr = losses_and_gradients(objective, pair, repeats=1500)
    expected = expected_loss_and_gradient(3)
    assert abs(mean[0] - expected[0]) > 20 * stderr[0]
    variance = THETA[0] ** 2 + NOISE**2
    evidence = -0.5 * ((DATA - THETA[1]) ** 2 / variance + np.log(2 * np.pi * variance)).sum()
    assert -mean[0] > evidence + 5 * stderr[0]


def test_a_plate_that_claims_more_data_than_its_batch_scales_the_loss() -> None:
    torch.manual_seed(2)
    pair, batch = Chain(THETA, PHI, NOISE), torch.tensor(DATA[:4])

    def claim(program):
        def claiming(x):
            with pyro.plate("data", 12, subsample=torch.arange(4)):
                program(x)

        return claiming

    def model(x):
        z = pyro.sample("z", dist.Normal(torch.zeros((), dtype=x.dtype), 1.0))
        loc = pair.theta[0] * z + pair.theta[1]
        pyro.sample("x", dist.Normal(loc, NOISE), obs=x)

    def guide(x):
        pyro.sample("z", dist.Normal(pair.phi[0] * x + pair.phi[1], pair.phi[2].exp()))

    objective = MonteCarloObjective(bounds.IWAE(), num_particles=3)
    torch.manual_seed(3)
    claimed = objective.differentiable_loss(claim(model), claim(guide), batch)
    torch.manual_seed(3)
    plain = MonteCarloObjective(bounds.IWAE(), num_particles=3).differentiable_loss(
        pair.model, pair.guide, batch
    )
    torch.testing.assert_close(claimed, 3 * plain)


# --- where an ELBO goes --------------------------------------------------------------------------


def test_the_elbo_is_pyros_draw_for_draw() -> None:
    pair, x = Chain(THETA, PHI, NOISE), torch.tensor(DATA)
    values = []
    for objective in (ELBO(), Trace_ELBO()):
        torch.manual_seed(4)
        pair.zero_grad()
        loss = objective.differentiable_loss(pair.model, pair.guide, x)
        loss.backward()
        values.append((loss.detach(), pair.theta.grad.clone(), pair.phi.grad.clone()))
    torch.testing.assert_close(values[0], values[1], rtol=1e-12, atol=1e-12)


def test_the_elbo_fits_as_pyros_does() -> None:
    x, first, second = net_data(), fresh_net(), fresh_net()
    settings = {"epochs": 3, "warm_up": 2, "validation": x[:40], "batch_size": 30, **QUIET}
    ours = fit(first.model, first.guide, x, objective=ELBO(), **settings)
    theirs = fit(second.model, second.guide, x, objective=Trace_ELBO(), **settings)
    np.testing.assert_allclose(ours.loss, theirs.loss, rtol=1e-5)
    np.testing.assert_allclose(ours.validation_elbo, theirs.validation_elbo, rtol=1e-5)


def test_as_a_module_with_a_torch_optimizer() -> None:
    torch.manual_seed(5)
    net = nn.Linear(1, 1).double()

    class Baseline(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = net

        def forward(self, x):
            return self.net(x[:, None])

    pair = Code([0.3, 1.2, 0.1], [0.8, -0.2], NOISE)
    objective = NVIL(Baseline(), num_particles=4)
    module = objective(pair.model, pair.guide)
    assert any(p is net.weight for p in module.parameters())
    optimizer = torch.optim.Adam([*pair.parameters(), *net.parameters()], lr=0.05)
    x = torch.tensor(DATA)
    before = objective.loss(pair.model, pair.guide, x)
    for _ in range(150):
        optimizer.zero_grad()
        module(x).backward()
        optimizer.step()
    assert objective.loss(pair.model, pair.guide, x) < before - 3
    assert net.bias.item() < -0.5  # it has learned how low the ELBO is


@pytest.mark.parametrize("make", [VIMCO, RWS, NVIL])
def test_svi_trains_discrete_latents(make: Any, fresh_pyro: None) -> None:
    torch.manual_seed(6)
    pair = Code([0.0, 0.5, 0.0], [0.1, 0.0], NOISE)
    objective = make(num_particles=8)

    def model(x):
        pyro.module("pair", pair)
        pair.model(x)

    svi = SVI(model, pair.guide, pyro.optim.Adam({"lr": 0.03}), loss=objective)
    x = torch.tensor(np.concatenate([np.full(20, -1.0), np.full(20, 2.0)]))
    first = svi.evaluate_loss(x)
    for _ in range(300):
        svi.step(x)
    assert svi.evaluate_loss(x) < first - 20


@pytest.mark.parametrize(
    "objective",
    [
        lambda: NVIL(),
        lambda: MonteCarloObjective(bounds.ELBO(), kl=KL(weight=WarmUp(steps=11))),
        lambda: DReG(4),
    ],
)
def test_a_run_with_a_memory_goes_on_exactly(objective: Any, tmp_path: Path) -> None:
    """A moving average and a warm-up's steps stand in the checkpoint."""
    x = torch.tensor(np.tile(DATA, 5), dtype=torch.float64)
    is_discrete = isinstance(objective().gradient, gradients.ScoreFunction)
    pair = Code([0.3, 1.2, 0.1], [0.8, -0.2], NOISE) if is_discrete else Chain(THETA, PHI, NOISE)
    whole, parts, again = (copy.deepcopy(pair) for _ in range(3))
    settings = {"batch_size": 20, "validation": x[:10], **QUIET}
    expected = fit(whole.model, whole.guide, x, objective=objective(), epochs=6, **settings)
    settings |= {"checkpoint": tmp_path / "run.safetensors"}
    fit(parts.model, parts.guide, x, objective=objective(), epochs=3, **settings)
    found = fit(
        again.model, again.guide, x, objective=objective(), epochs=6, resume=True, **settings
    )
    assert_same(found, expected)
    assert_same_values(again.state_dict(), whole.state_dict())


def test_no_epoch_is_the_best_while_the_objective_warms_up() -> None:
    pair, x = Chain(THETA, PHI, NOISE), torch.tensor(DATA)
    objective = MonteCarloObjective(bounds.ELBO(), kl=KL(weight=WarmUp(steps=4)))
    settings = {"objective": objective, "validation": x, "patience": 2, **QUIET}
    history = fit(pair.model, pair.guide, x, epochs=3, **settings)
    assert history.best_epoch is None
    assert objective.steps == 3  # of one batch an epoch
    assert fit(pair.model, pair.guide, x, epochs=6, **settings).best_epoch >= 4  # it began anew


def test_an_upper_bound_is_validated_by_the_elbo() -> None:
    pair, x = Chain(THETA, PHI, NOISE), torch.tensor(DATA)
    objective = MonteCarloObjective(bounds.CUBO(2), gradients.SelfNormalized(), 8)
    theta = pair.theta.detach().clone()
    history = fit(pair.model, pair.guide, x, objective=objective, epochs=3, validation=x, **QUIET)
    assert torch.equal(pair.theta, theta)  # the guide alone moves
    assert (history.validation_elbo < 0).all()  # CUBO's own loss, turned round, is positive here


# --- every way, every program --------------------------------------------------------------------

RULES = {
    "pathwise": (bounds.IWAE(), gradients.Pathwise()),
    "stl": (bounds.IWAE(), gradients.StickingTheLanding()),
    "dreg": (bounds.IWAE(), gradients.DoublyReparameterized()),
    "split": (bounds.IWAE(), gradients.Split(bounds.MIWAE(2))),
    "wake": (bounds.IWAE(), gradients.WakeSleep()),
    "score": (bounds.IWAE(), gradients.ScoreFunction(gradients.LeaveOneOut(), everywhere=True)),
}


class FixedNoise(nn.Module):
    """A convolution-like net that takes one batch dimension only, around given noise."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(7)
        self.encoder = nn.Conv1d(1, 2, 5).double()
        self.decoder = nn.ConvTranspose1d(1, 1, 5).double()

    def model(self, x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(x.new_zeros(1), 1.0).to_event(1))
            mean = self.decoder(z.reshape(-1, 1, 1))[:, 0].reshape(*z.shape[:-1], 5)
            pyro.sample("x", dist.Normal(mean, 0.5).to_event(1), obs=x)

    def guide(self, x):
        loc, log_scale = self.encoder(x[:, None])[..., 0].chunk(2, -1)
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(loc, log_scale.exp()).to_event(1))


@pytest.mark.parametrize("rule", RULES)
def test_every_way_has_the_same_mean_gradient(rule: str) -> None:
    pair, x = FixedNoise(), torch.randn(3, 5, dtype=torch.float64)
    bound, gradient = RULES[rule]
    found = {}
    for way in ("plate", "tile", "loop"):
        torch.manual_seed(8)
        objective, rows = MonteCarloObjective(bound, gradient, 4, particles=way), []
        for _ in range(150):
            pair.zero_grad()
            objective.differentiable_loss(pair.model, pair.guide, x).backward()
            rows.append(torch.cat([p.grad.flatten() for p in pair.parameters()]).numpy().copy())
        rows = np.array(rows)
        found[way] = rows.mean(0), rows.std(0, ddof=1) / np.sqrt(len(rows))
    for way in ("tile", "loop"):
        (a, error_a), (b, error_b) = found["plate"], found[way]
        assert (np.abs(a - b) < 5 * np.hypot(error_a, error_b) + 1e-9).all()


def test_enumerated_latents_are_summed_out_of_the_gradient() -> None:
    """A code that is summed out in the model leaves the exact log p(x), whatever the bound."""
    pair, x = Code([0.3, 1.2, 0.1], [0.8, -0.2], NOISE), torch.tensor(DATA)

    def model(x):
        with pyro.plate("data", len(x)):
            fn = dist.Bernoulli(logits=pair.theta[0])
            c = pyro.sample("c", fn, infer={"enumerate": "parallel"})
            pyro.sample("x", dist.Normal(pair.theta[1] * c + pair.theta[2], NOISE), obs=x)

    def guide(x):
        pass

    system = oracles.BinaryCode(1, NOISE)
    exact = system.log_evidence(pair.theta.detach().numpy(), DATA).sum()
    slope = oracles.derivative(
        lambda t: system.log_evidence(t, DATA).sum(), pair.theta.detach().numpy()
    )
    for objective in (ELBO(), IWAE(3), STL(2)):
        pair.zero_grad()
        loss = objective.differentiable_loss(model, guide, x)
        loss.backward()
        assert -loss.item() == pytest.approx(exact, abs=1e-9)
        np.testing.assert_allclose(-pair.theta.grad, slope, atol=1e-5)


@pytest.mark.gpu
@pytest.mark.parametrize("rule", RULES)
def test_gradients_on_a_gpu(rule: str) -> None:
    pair, x = FixedNoise().cuda(), torch.randn(3, 5, dtype=torch.float64, device="cuda")
    objective = MonteCarloObjective(*RULES[rule], 4)
    loss = objective.differentiable_loss(pair.model, pair.guide, x)
    loss.backward()
    assert loss.device.type == "cuda"
    assert all(torch.isfinite(p.grad).all() for p in pair.parameters())
