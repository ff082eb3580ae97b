"""The sandwich around log p(x), and the reason why kernels are frozen before chains are scored."""

from __future__ import annotations

import functools
import itertools
import math

import evidence_toys as toys
import numpy as np
import oracles
import pyro
import pyro.distributions as dist
import pytest
import torch

from pyrovae.inference import (
    HMC,
    AnnealedImportanceSampling,
    BidirectionalMonteCarlo,
    EqualLength,
    Langevin,
    Linear,
    SequentialMonteCarlo,
)
from pyrovae.inference.evidence.annealing import settings

pytestmark = pytest.mark.usefixtures("one_thread")

DIM, NOISE = 3, 1.0
WALK = {"num_chains": 64, "num_temperatures": 40, "kernel": HMC(3)}
WAYS = {
    "guide": {},
    "prior": {"start": "prior"},
    "langevin": {"kernel": Langevin(), "num_temperatures": 80},
    "equal length": {"start": "prior", "schedule": EqualLength()},
}


def real_data(num_data=300):
    """Given data, and the program that draws their exact posterior."""
    toy = toys.linear_gaussian(DIM, num_data=num_data, noise=NOISE)
    return toy, toys.exact_posterior_of(DIM, num_data=num_data, noise=NOISE)


def exact_of(x, num_data=300):
    weight, bias, _ = toys.linear_numbers(DIM, num_data, NOISE)
    return oracles.linear_gaussian_evidence(weight, bias, NOISE, x.numpy())


@functools.cache
def sandwich(way, simulated):
    toy, posterior = real_data()
    bdmc = BidirectionalMonteCarlo(**WALK | WAYS[way], posterior=None if simulated else posterior)
    if simulated:  # the guide's moments would belong to other data
        model, guide = toy.model, None if way in ("prior", "equal length") else toy_guide
        return bdmc(model, guide, toy.args[0])
    return bdmc(toy.model, toy.guide, *toy.args)


def toy_guide(x):
    """An encoder: whatever data it is given, it is near their posterior."""
    weight, bias, _ = toys.linear_numbers(DIM, 1, NOISE)
    gain = weight / NOISE**2
    cov = np.linalg.inv(np.eye(DIM) + weight.T @ gain)
    mean = (x - torch.as_tensor(bias)) @ torch.as_tensor(gain @ cov)
    with pyro.plate("data", len(x), dim=-1):
        std = torch.as_tensor(1.2 * np.sqrt(np.diag(cov)))
        pyro.sample("z", dist.Normal(mean + 0.05, std).to_event(1))


@pytest.mark.parametrize("simulated", [False, True], ids=["real", "simulated"])
@pytest.mark.parametrize("way", WAYS)
def test_the_exact_answer_lies_between(way, simulated):
    """In expectation, so by the mean over data; and for each datum but for its error.

    The errors over data are used, since simulated data have one exact draw for all their chains.
    """
    found = sandwich(way, simulated)
    exact = exact_of(found.data)
    low = found.lower.log_evidence.numpy() - exact
    high = found.upper.log_evidence.numpy() - exact
    root = math.sqrt(len(exact))
    assert low.mean() < 5 * low.std() / root
    assert high.mean() > -5 * high.std() / root
    # leading biases: down for the one, up for the other
    assert abs((low - found.lower.bias.numpy()).mean()) < 5 * low.std() / root
    spread = np.maximum(found.upper.stderr.numpy(), high.std())
    inside = (low < 3 * found.lower.stderr.numpy()) & (high > -3 * spread)
    assert inside.mean() >= 0.99
    gap, error = found.mean_gap()
    assert -5 * error < gap < 0.1
    assert gap == pytest.approx(float(found.gap.mean()))


def test_real_data_are_scored_as_they_are_and_simulated_ones_are_not():
    toy, _ = real_data()
    assert torch.equal(sandwich("guide", False).data, toy.args[0])
    other = sandwich("prior", True).data
    assert other.shape == toy.args[0].shape
    assert not torch.equal(other, toy.args[0])


def test_sides_are_stated():
    found = sandwich("guide", False)
    assert (found.lower.direction, found.upper.direction) == ("lower", "upper")


def test_backward_weights_have_the_mean_one_over_p():
    """One chain each, so that a datum's number is its weight: E w p(x) = 1 on the way back."""
    toy, posterior = real_data(2000)
    bdmc = BidirectionalMonteCarlo(
        num_chains=1, num_temperatures=10, kernel=HMC(2), start="prior", posterior=posterior
    )
    found = bdmc(toy.model, None, *toy.args)
    assert abs(z_of_mean_one(toy.exact - found.upper.log_evidence.numpy())) < 5
    assert abs(z_of_mean_one(found.lower.log_evidence.numpy() - toy.exact)) < 5


def test_a_shorter_way_leaves_a_wider_gap():
    toy, posterior = real_data()
    gaps = []
    for num_temperatures in (4, 40):
        bdmc = BidirectionalMonteCarlo(
            num_chains=4,
            num_temperatures=num_temperatures,
            kernel=HMC(2),
            start="prior",
            posterior=posterior,
        )
        gaps.append(bdmc(toy.model, None, *toy.args).mean_gap())
    (wide, error_1), (narrow, error_2) = gaps
    assert wide - narrow > 5 * math.hypot(error_1, error_2)


# --- kernels that adapt inside the scored chain --------------------------------------------------
#
# z ~ N(0, 1), x | z ~ N(z, 0.5²), x = 2 for all data: a mean over chains tests E w = p(x).

X, SCALE = 2.0, 0.5
LOG_P = float(oracles.normal_logpdf(X, 0.0, math.hypot(1.0, SCALE)))


def frozen_step(z, accepted):
    return np.full_like(z, 0.7)


def step_by_own_acceptance(z, accepted):
    """Timid after a move that was accepted, bold after one that was not."""
    return np.where(accepted, 0.1, 3.0)


def step_by_position(z, accepted):
    """Timid where the joint is large: chains stay there for too long."""
    return np.where(z > 1.0, 0.05, 2.0)


def naive_annealing(choose, num_chains=200_000, num_temperatures=30):
    """log w / p(x) of chains of random-walk Metropolis whose step is chosen as they go."""
    rng = np.random.default_rng(0)
    betas = np.linspace(0.0, 1.0, num_temperatures + 1)

    def likelihood(z):
        return oracles.normal_logpdf(X, z, SCALE)

    z = rng.standard_normal(num_chains)
    accepted = np.ones(num_chains, bool)
    log_weight = np.zeros(num_chains)
    for before, beta in itertools.pairwise(betas):
        log_weight += (beta - before) * likelihood(z)
        proposal = z + choose(z, accepted) * rng.standard_normal(num_chains)
        gain = oracles.normal_logpdf(proposal) - oracles.normal_logpdf(z)
        gain += beta * (likelihood(proposal) - likelihood(z))
        accepted = np.log(rng.random(num_chains)) < gain
        z = np.where(accepted, proposal, z)
    return log_weight - LOG_P


def z_of_mean_one(log_ratio):
    """How many standard errors the mean of w / p(x) is from 1."""
    ratio = np.exp(log_ratio)
    return (ratio.mean() - 1) / (ratio.std() / math.sqrt(len(ratio)))


def test_a_chain_with_steps_fixed_beforehand_is_unbiased():
    """The yardstick: the very same naive chain, and nothing chosen on the way."""
    assert abs(z_of_mean_one(naive_annealing(frozen_step))) < 5


@pytest.mark.parametrize("choose", [step_by_own_acceptance, step_by_position])
def test_a_chain_that_adapts_as_it_goes_is_biased(choose):
    """So the z-test below could fail."""
    assert abs(z_of_mean_one(naive_annealing(choose))) > 5


def conjugate(x):
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", dist.Normal(x.new_zeros(()), 1.0))
        pyro.sample("x", dist.Normal(z, SCALE), obs=x)


def off_centre(x):
    with pyro.plate("data", len(x)):
        pyro.sample("z", dist.Normal(0.5 * x, 0.8))


SCORED = {
    "prior": AnnealedImportanceSampling(1, 30, start="prior", schedule=Linear(), kernel=HMC(2)),
    "guide": AnnealedImportanceSampling(1, 10, kernel=HMC(2)),
    "langevin": AnnealedImportanceSampling(1, 15, start="prior", kernel=Langevin()),
    "equal length": AnnealedImportanceSampling(
        1, 10, start="prior", schedule=EqualLength(), kernel=HMC(2)
    ),
    "few temperatures": AnnealedImportanceSampling(1, 4, start="prior", kernel=HMC(2)),
    "smc": SequentialMonteCarlo(8, 10, start="prior", kernel=HMC(2), threshold=0.9),
}


@functools.cache
def scored(name):
    x = torch.full((6000,), X, dtype=torch.float64)
    return SCORED[name](conjugate, off_centre, x)


@pytest.mark.parametrize("name", SCORED)
def test_the_mean_weight_is_p(name):
    """The same z-test, with the kernels of the library: frozen before anything is scored."""
    assert abs(z_of_mean_one(scored(name).log_evidence.numpy() - LOG_P)) < 5


def test_resampling_took_place_where_it_is_tested():
    assert scored("smc").diagnostics["resampled"].mean() > 1


# --- what the scored chains are given ------------------------------------------------------------


def record_moves(monkeypatch, noise):
    """Step sizes and scales of all moves after the pilot run, whose end reseeds the generator."""
    moves, pilots = [], []
    run_pilot, move = settings.run_pilot, HMC.move

    def pilot(*args):
        frozen = run_pilot(*args)
        pilots.append(frozen)
        torch.manual_seed(noise)
        return frozen

    def recorded(self, path, point, beta, step_size, scale):
        if pilots:
            moves.append((beta.clone(), step_size.clone(), scale.clone()))
        return move(self, path, point, beta, step_size, scale)

    with monkeypatch.context() as patch:
        patch.setattr(settings, "run_pilot", pilot)
        patch.setattr(HMC, "move", recorded)
        toy = toys.linear_gaussian(2)
        ais = AnnealedImportanceSampling(8, 12, schedule=EqualLength(), kernel=HMC(2))
        estimate = ais(toy.model, toy.guide, *toy.args)
    (frozen,) = pilots
    return estimate, frozen, moves


def test_scored_steps_do_not_depend_on_the_scored_chains(monkeypatch):
    """The same pilot and other scored noise: other weights from the very same kernels."""
    one, frozen, moves = record_moves(monkeypatch, noise=1)
    two, _, others = record_moves(monkeypatch, noise=2)
    assert not torch.equal(one.log_evidence, two.log_evidence)
    assert len(moves) == len(others) == 11
    for number, (ours, theirs) in enumerate(zip(moves, others, strict=True), 1):
        assert all(torch.equal(a, b) for a, b in zip(ours, theirs, strict=True))
        assert torch.equal(ours[0], frozen.betas[number])
        assert torch.equal(ours[1], frozen.step_size[number])
        assert torch.equal(ours[2], frozen.scale)


def test_the_pilot_runs_other_chains_than_those_that_are_scored(monkeypatch):
    """The scored chains begin at fresh draws, not where the pilot's ended."""
    one, _, _ = record_moves(monkeypatch, noise=1)
    two, _, _ = record_moves(monkeypatch, noise=2)
    assert not torch.equal(one.elbo, two.elbo)
