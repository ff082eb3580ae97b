"""Objectives of programs that run differently from one run, batch or process to the next."""

from __future__ import annotations

import math

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from gradient_toys import Chain, Code
from pyro.infer import SVI
from pyro.infer.autoguide import AutoNormal
from torch import nn
from training_toys import QUIET

from pyrovae.inference import (
    CHIVI,
    ELBO,
    IWAE,
    JVI,
    KL,
    NVIL,
    PIWAE,
    REINFORCE,
    RWS,
    STL,
    TVO,
    VIMCO,
    DReG,
    MonteCarloObjective,
    NonFiniteLoss,
    ProgramError,
    WarmUp,
    bounds,
    fit,
    gradient_statistics,
    gradients,
)

pytestmark = pytest.mark.usefixtures("one_thread")

NOISE = 0.7
X = torch.linspace(-1.5, 2.0, 12, dtype=torch.float64)
RESCORING = {
    "STL": lambda: STL(3),
    "DReG": lambda: DReG(3),
    "PIWAE": lambda: PIWAE(3, 2),
    "CHIVI": lambda: CHIVI(2.0, 3),
    "TVO": lambda: TVO(3, 4),
    "REINFORCE": lambda: REINFORCE(3),
    "RWS": lambda: RWS(3, sleep=0.5),
}


# --- runs that differ within a step --------------------------------------------------------------


class Deep(nn.Module):
    """Two latents, the second given the first through a net with dropout."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.net = nn.Sequential(nn.Linear(1, 8), nn.Dropout(0.5), nn.Linear(8, 1)).double()

    def model(self, x):
        with pyro.plate("data", len(x)):
            u = pyro.sample("u", dist.Normal(torch.zeros_like(x), 1.0))
            z = pyro.sample("z", dist.Normal(u, 1.0))
            pyro.sample("x", dist.Normal(z, NOISE), obs=x)

    def guide(self, x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(x / 2, NOISE))
            pyro.sample("u", dist.Normal(self.net(z.unsqueeze(-1)).squeeze(-1), NOISE))


@pytest.mark.parametrize("name", RESCORING)
def test_chance_in_a_guide_that_runs_twice_is_refused(name):
    deep = Deep()
    with pytest.raises(ProgramError, match="the guide gives equal draws different densities"):
        RESCORING[name]().differentiable_loss(deep.model, deep.guide, X)
    deep.eval()
    assert RESCORING[name]().differentiable_loss(deep.model, deep.guide, X).isfinite()
    deep.train()
    for objective in (ELBO(3), IWAE(3)):
        assert objective.differentiable_loss(deep.model, deep.guide, X).isfinite()


def nested(x):
    """Eight steps a datum, of which three are drawn."""

    def model(x):
        with (
            pyro.plate("data", len(x), dim=-2),
            pyro.plate("time", 8, subsample_size=3, dim=-1) as rows,
        ):
            z = pyro.sample("z", dist.Normal(torch.zeros((), dtype=x.dtype), 1.0))
            pyro.sample("x", dist.Normal(z, 1.0), obs=x[:, rows])

    def guide(x):
        with (
            pyro.plate("data", len(x), dim=-2),
            pyro.plate("time", 8, subsample_size=3, dim=-1) as rows,
        ):
            pyro.sample("z", dist.Normal(x[:, rows] / 2, 0.5**0.5))

    return model, guide


def test_a_part_that_is_drawn_inside_the_data_plate_is_the_same_in_every_run_of_a_step():
    x = torch.randn(4, 8, dtype=torch.float64)
    model, guide = nested(x)
    exact = dist.Normal(torch.zeros((), dtype=x.dtype), 2**0.5).log_prob(x).sum()
    for objective in (ELBO(), STL(3), REINFORCE(2)):
        torch.manual_seed(1)
        values = [-objective.differentiable_loss(model, guide, x).item() for _ in range(300)]
        stderr = np.std(values, ddof=1) / math.sqrt(len(values))
        assert abs(np.mean(values) - exact) < 5 * stderr
    with pytest.raises(ProgramError, match="plate 'time' inside the data plate draws a part"):
        DReG(3).differentiable_loss(model, guide, x)


def test_a_subsampled_data_plate_is_vectorised():
    def model(x):
        with pyro.plate("data", len(x), subsample_size=5) as rows:
            z = pyro.sample("z", dist.Normal(torch.zeros((), dtype=x.dtype), 1.0))
            pyro.sample("x", dist.Normal(z, 1.0), obs=x[rows])

    def guide(x):
        with pyro.plate("data", len(x), subsample_size=5) as rows:
            pyro.sample("z", dist.Normal(x[rows] / 2, 1.0))

    objective = IWAE(4)
    objective.differentiable_loss(model, guide, X)
    assert objective._plans.plain.model_way == "plate"
    net = nn.Linear(12, 1).double()
    rule = gradients.ScoreFunction(gradients.NetworkBaseline(net), everywhere=True)
    with pytest.raises(ProgramError, match="which a network baseline does not see"):
        MonteCarloObjective(bounds.ELBO(), rule).differentiable_loss(model, guide, X)


# --- batches that look like something else -------------------------------------------------------


class Normed(nn.Module):
    """A decoder with batch norm of as many features as there may be data in a batch."""

    def __init__(self, features: int) -> None:
        super().__init__()
        torch.manual_seed(0)
        layers = nn.Linear(1, features), nn.BatchNorm1d(features), nn.Linear(features, 1)
        self.net = nn.Sequential(*layers).double()

    def model(self, x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros(1, dtype=x.dtype), 1.0).to_event(1))
            pyro.sample("x", dist.Normal(self.net(z).squeeze(-1), 1.0), obs=x)

    def guide(self, x):
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(x[:, None], 1.0).to_event(1))


def test_a_batch_as_large_as_a_batch_norm_is_wide_is_not_taken_for_features():
    pair = Normed(len(X))
    objective = IWAE(3)
    objective.differentiable_loss(pair.model, pair.guide, X)
    assert objective._plans.plain.model_way == "tile"
    objective.differentiable_loss(pair.model, pair.guide, X[:7])


def test_a_shared_context_as_long_as_a_later_batch_is_not_tiled():
    torch.manual_seed(0)
    decoder = nn.ConvTranspose1d(1, 1, 3).double()

    def model(x, centres):
        with pyro.plate("data", len(x)):
            shift = centres.logsumexp(0)
            z = pyro.sample("z", dist.Normal(shift, 1.0).expand([1]).to_event(1))
            mean = decoder(z.reshape(-1, 1, 1)).reshape(*z.shape[:-1], 3)
            pyro.sample("x", dist.Normal(mean, 1.0).to_event(1), obs=x)

    def guide(x, centres):
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(x.mean(-1, keepdim=True), 1.0).to_event(1))

    x, centres = torch.randn(20, 3).double(), torch.randn(10).double()
    auto, loop = (MonteCarloObjective(bounds.IWAE(), num_particles=200, particles=way)
                  for way in ("auto", "loop"))  # fmt: skip
    for size in (20, 10):
        losses = [o.loss(model, guide, x[:size], centres) / size for o in (auto, loop)]
        assert losses[0] == pytest.approx(losses[1], abs=0.2)


def test_a_lone_datum_does_not_decide_for_more():
    def model(x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros((), dtype=x.dtype), 1.0))
            coupled = z.sum() if z.dim() == 1 else z.sum(dim=(0, 1))  # wrong under a plate
            pyro.sample("x", dist.Normal(coupled + 0 * z, 1.0), obs=x)

    def guide(x):
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(torch.zeros_like(x), 1.0))

    objective = IWAE(3)
    objective.loss(model, guide, X[:1])
    objective.loss(model, guide, X)
    assert objective._plans.plain.model_way == "loop"


# --- dreams --------------------------------------------------------------------------------------


def test_a_dream_puts_each_observation_where_it_was_seen():
    """Parts of equal size, which the model observes in another order than x holds them."""
    seen = []

    def model(x):
        a, b = x
        with pyro.plate("data", len(a)):
            z = pyro.sample("z", dist.Normal(torch.zeros_like(a), 1.0))
            pyro.sample("b", dist.Normal(z + 10, 0.1), obs=b)
            pyro.sample("a", dist.Normal(z, 0.1), obs=a)

    def guide(x):
        a, b = x
        seen.append((float(a.mean()), float(b.mean())))
        with pyro.plate("data", len(a)):
            pyro.sample("z", dist.Normal(a + 0 * b, 1.0))

    x = torch.randn(50).double(), 10 + torch.randn(50).double()
    RWS(2, wake=0.0, sleep=1.0).differentiable_loss(model, guide, x)
    of_a, of_b = seen[-1]  # the dream's
    assert abs(of_a) < 1
    assert abs(of_b - 10) < 1


def test_a_dream_of_what_is_not_x_is_refused():
    def model(x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros_like(x), 1.0))
            pyro.sample("x", dist.Normal(z, 1.0), obs=x.log())

    def guide(x):
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(x.log(), 1.0))

    with pytest.raises(ProgramError, match=r"no site observes x \(12,\) as it is"):
        RWS(2, sleep=1.0).differentiable_loss(model, guide, X.abs() + 1)


# --- what is kept, and what must not be ----------------------------------------------------------


class Bursting(Code):
    """A code whose model meets an infinity in one step."""

    def __init__(self, at):
        super().__init__([0.3, 1.2, 0.1], [0.8, -0.2], NOISE)
        self.at, self.steps = at, 0

    def model(self, x):
        if torch.is_grad_enabled():
            self.steps += 1
        with pyro.validation_enabled(False):
            super().model(x * (math.inf if self.steps == self.at else 1.0))


def test_a_step_that_is_not_taken_leaves_the_objective_as_it_was(tmp_path):
    pair, objective = Bursting(at=5), NVIL()
    settings = {"epochs": 4, "batch_size": 4, "checkpoint": tmp_path / "run", **QUIET}
    with pytest.raises(NonFiniteLoss):
        fit(pair.model, pair.guide, X, objective=objective, **settings)
    assert all(value.isfinite() for value in objective.state_dict()["memory"].values())
    taken, again = objective.steps, NVIL()
    assert 0 < taken < 5
    fit(pair.model, pair.guide, X, objective=again, resume=True, **settings)
    assert again.steps == 12


def test_two_fits_with_one_objective_are_two_runs():
    objective = MonteCarloObjective(bounds.ELBO(), kl=KL(weight=WarmUp(20)))
    losses = []
    for _ in range(2):
        pair = Chain(np.array([0.9, 0.3]), np.array([0.4, 0.2, -0.3]), NOISE)
        losses.append(fit(pair.model, pair.guide, X, objective=objective, epochs=3, **QUIET).loss)
    np.testing.assert_array_equal(*losses)


def test_rules_may_be_shared_by_objectives():
    rule = gradients.ScoreFunction(gradients.MovingAverage())
    first, second = (MonteCarloObjective(bounds.ELBO(), rule) for _ in range(2))
    pair = Code([0.3, 1.2, 0.1], [0.8, -0.2], NOISE)
    first.differentiable_loss(pair.model, pair.guide, X)
    assert first.state_dict()["memory"]
    assert not second.state_dict()["memory"]


class Guess(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Linear(1, 4), nn.BatchNorm1d(4), nn.Linear(4, 1)).double()

    def forward(self, x):
        return self.net(x[:, None])


def test_a_second_baseline_in_a_process_trains_too(fresh_pyro):
    for _ in range(2):
        pair, net = Code([0.3, 1.2, 0.1], [0.8, -0.2], NOISE), Guess()
        before = net.net[0].weight.detach().clone()
        svi = SVI(pair.model, pair.guide, pyro.optim.Adam({"lr": 0.1}), loss=NVIL(net))
        for _ in range(3):
            svi.step(X)
        assert not torch.equal(net.net[0].weight, before)


def test_a_baseline_goes_on_exactly_and_leaves_the_store_alone(tmp_path, fresh_pyro):
    def made():
        torch.manual_seed(3)
        return Code([0.3, 1.2, 0.1], [0.8, -0.2], NOISE), Guess()

    settings = {"batch_size": 4, **QUIET}
    (whole, net), (parts, first), (again, second) = made(), made(), made()
    fit(whole.model, whole.guide, X, objective=NVIL(net), epochs=4, **settings)
    settings["checkpoint"] = tmp_path / "run.safetensors"
    fit(parts.model, parts.guide, X, objective=NVIL(first), epochs=2, **settings)
    fit(again.model, again.guide, X, objective=NVIL(second), epochs=4, resume=True, **settings)
    for name, value in net.state_dict().items():
        assert torch.equal(value, second.state_dict()[name]), name
    assert net.net[1].num_batches_tracked == 12
    assert not pyro.get_param_store().keys()


@pytest.mark.parametrize("name", [name for name in RESCORING if name != "RWS"])
def test_autoguides_work_with_every_rule(name, fresh_pyro):
    def model(x):
        with pyro.plate("data", len(x)):
            scale = dist.LogNormal(torch.zeros((), dtype=x.dtype), 1.0)
            z = pyro.sample("z", scale)  # its guide draws in another space
            pyro.sample("x", dist.Normal(z, 1.0), obs=x)

    guide = AutoNormal(model)
    guide(X)
    loss = RESCORING[name]().differentiable_loss(model, guide, X)
    loss.backward()
    assert loss.isfinite()
    assert all(p.grad.isfinite().all() for p in guide.parameters())


@pytest.mark.parametrize(
    "objective",
    [
        IWAE(8),
        DReG(8),
        PIWAE(1, 8),
        RWS(8),
        VIMCO(8),
        JVI(1, 8),
        MonteCarloObjective(bounds.CUBO(2), gradients.SelfNormalized(), 8),
        MonteCarloObjective(bounds.IWAE(), gradients.WakeSleep(doubly_reparameterized=True), 8),
        MonteCarloObjective(
            bounds.IWAE(), gradients.ScoreFunction(gradients.LeaveOneOut(), everywhere=True), 8
        ),
    ],
    ids=repr,
)
def test_draws_of_no_weight_leave_value_and_gradient_finite(objective):
    if isinstance(objective.gradient, gradients.VIMCO):
        objective = MonteCarloObjective(bounds.IWAE(), gradients.VIMCO(everywhere=True), 8)
    phi = torch.tensor([0.1, 0.0], dtype=torch.float64, requires_grad=True)

    def model(x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Uniform(torch.tensor(-1.0).double(), 1.0))
            pyro.sample("x", dist.Normal(z, 1.0), obs=x)

    def guide(x):
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(phi[0] + 0 * x, phi[1].exp()))

    torch.manual_seed(0)
    loss = objective.differentiable_loss(model, guide, X)
    loss.backward()
    assert loss.isfinite()
    assert phi.grad.isfinite().all()


# --- statistics of what changes as it is measured ------------------------------------------------


def test_statistics_hold_a_warm_up_where_it_is():
    pair = Chain(np.array([0.9, 0.3]), np.array([0.4, 0.2, -0.3]), NOISE)
    rising = MonteCarloObjective(bounds.ELBO(), kl=KL(weight=WarmUp(20)))
    rising.steps = 5
    held = MonteCarloObjective(bounds.ELBO(), kl=KL(weight=0.25))
    found = [gradient_statistics(o, pair.model, pair.guide, X, repeats=30) for o in (rising, held)]
    np.testing.assert_allclose(found[0]["mean"], found[1]["mean"])
    np.testing.assert_allclose(found[0]["cosine"], found[1]["cosine"])
    with pytest.raises(ValueError, match=r"reference must be given for .*Jackknife"):
        gradient_statistics(JVI(3, 5), pair.model, pair.guide, X, repeats=20)
    with pytest.raises(TypeError, match=r"objective must be a pyro\.infer\.ELBO, but is 'ELBO'"):
        gradient_statistics("ELBO", pair.model, pair.guide, X)


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: bounds.CIWAE("a"), TypeError, "beta must be a number, but is 'a'"),
        (lambda: bounds.Renyi(True), TypeError, "alpha must be a number, but is True"),
        (lambda: NVIL(3), TypeError, r"net must be a torch\.nn\.Module, but is 3"),
        (lambda: gradients.WakeSleep(math.inf), ValueError, "wake must be finite"),
        (lambda: gradients.Relaxed(math.inf), ValueError, "temperature must be finite"),
        (lambda: ELBO(particles=3), ValueError, "particles must be 'auto' or one of"),
        (lambda: CHIVI(n=1), ValueError, "n must be larger than 1 to train a guide"),
        (lambda: CHIVI(kl=KL(weight=0.5)), ValueError, "kl: CUBO has no KL term to be changed"),
    ],
)
def test_settings_that_make_no_sense_are_refused(make, error, message):
    with pytest.raises(error, match=message):
        make()
