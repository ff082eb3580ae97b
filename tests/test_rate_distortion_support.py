"""Rate and distortion where the likelihood is zero for some codes, against closed forms."""

from __future__ import annotations

import math

import numpy as np
import oracles
import pyro
import pyro.distributions as dist
import pytest
import torch

from pyrovae.inference import HMC, EqualLength, RateDistortion, Sigmoid
from pyrovae.inference.information.rate_distortion import _curve

pytestmark = pytest.mark.usefixtures("one_thread")

X = torch.tensor([-0.5, 0.3, 1.5], dtype=torch.float64)
WIDTH = 1.5
# of two codes, the second of which moves the data by 2; alike, as a density that jumps is refused
SHARES = [0.5, 0.5]

cdf = np.vectorize(lambda z: 0.5 * math.erfc(-z / math.sqrt(2)))


def within(x):
    """Codes at more than a width from x cannot have made it; all others are alike."""
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", dist.Normal(x.new_zeros(()), 1.0))
        pyro.sample("x", dist.Uniform(z - WIDTH, z + WIDTH), obs=x)


def beyond(x):
    """A Pareto's scale is the least that it gives: codes above x cannot have made exp x."""
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", dist.Normal(x.new_zeros(()), 1.0))
        pyro.sample("x", dist.Pareto(z.exp(), x.new_ones(len(x))), obs=x.exp())


def within_either(x):
    """The same with a code that is summed out: one share, the other, or nothing is left."""
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", dist.Normal(x.new_zeros(()), 1.0))
        code = pyro.sample(
            "code", dist.Categorical(x.new_tensor(SHARES)), infer={"enumerate": "parallel"}
        )
        centre = z + 2.0 * code
        pyro.sample("x", dist.Uniform(centre - 1.0, centre + 1.0), obs=x)


def of_within(x, beta):
    log_share = np.log(cdf(x + WIDTH) - cdf(x - WIDTH))
    return -log_share + 0 * beta, np.log(2 * WIDTH) + 0 * beta


def of_beyond(x, beta):
    """log p(x | z) = z - 2 x up to z = x: the best code is a normal about β, cut off there."""
    top = x - beta
    mean = beta - np.exp(oracles.normal_logpdf(top)) / cdf(top)
    log_z = -2 * beta * x + beta**2 / 2 + np.log(cdf(top))
    distortion = 2 * x - mean
    return -beta * distortion - log_z, distortion


def of_within_either(x, beta):
    """Two stretches of the line, each with a likelihood of its own, one by one."""
    edges = np.stack([x - 3, x - 1, x + 1])
    log_mass = np.log(np.diff(cdf(edges), axis=0))
    log_likelihood = np.log([SHARES[1], SHARES[0]])[:, None] - math.log(2)
    log_part = log_mass + beta * log_likelihood
    log_z = oracles.logsumexp(log_part, 0)
    distortion = -(np.exp(log_part - log_z) * log_likelihood).sum(0)
    return -beta * distortion - log_z, distortion


def curve_of(model, x=X, num_chains=256, num_temperatures=20, **more):
    kernel = HMC(4)
    return RateDistortion(num_chains, num_temperatures, kernel=kernel, **more)(model, x)


@pytest.mark.parametrize("schedule", [Sigmoid(), EqualLength()], ids=["sigmoid", "equal length"])
@pytest.mark.parametrize(
    ("model", "exact"),
    [(within, of_within), (beyond, of_beyond), (within_either, of_within_either)],
    ids=["within", "beyond", "within either"],
)
def test_codes_that_cannot_have_made_x_have_no_part_in_the_curve(model, exact, schedule):
    """They are among the draws of the prior, and gone as soon as the exchange rate is not 0."""
    curve = curve_of(model, schedule=schedule)
    for t in range(1, curve.betas.shape[1]):
        rate, distortion = exact(X.numpy(), curve.betas[:, t].numpy())
        for found, error, wanted in (
            (curve.rate, curve.rate_stderr, rate),
            (curve.distortion, curve.distortion_stderr, distortion),
        ):
            off = (found[:, t] - torch.as_tensor(wanted)).abs()
            assert (off < 5 * error[:, t] + 0.01).all()
            assert (error[:, t] < 0.15).all()


def test_of_a_flat_likelihood_the_distortion_is_exact_and_the_rate_has_a_binomials_error():
    """The rate is the log of the share of draws that are left: nothing else is random."""
    chains = 256
    curve = curve_of(within, num_chains=chains)
    assert (curve.distortion[:, 1:] - math.log(2 * WIDTH)).abs().max() < 1e-12
    assert curve.distortion_stderr[:, 1:].max() < 1e-12
    left = chains * (-curve.rate[:, 1:]).exp()
    torch.testing.assert_close(left, left[:, :1].round().expand_as(left))
    share = left / chains
    error = ((1 - share) / (share * chains)).sqrt()
    torch.testing.assert_close(curve.rate_stderr[:, 1:], error, rtol=0.02, atol=0)


def test_means_and_data_set_hold_what_the_curve_does():
    curve = curve_of(within, num_chains=16, num_temperatures=4)
    mean = curve.mean()
    for name in ("rate", "distortion", "rate_stderr", "distortion_stderr"):
        assert mean[name][1:].isfinite().all()
        stored = torch.as_tensor(curve.to_dataset()[name].values)
        torch.testing.assert_close(stored, getattr(curve, name), equal_nan=True)
    assert mean["distortion"][0] == math.inf


def test_a_datum_that_no_code_makes_leaves_the_others_alone():
    """What cannot be coded has no finite end; nor does it spoil its neighbours."""
    far = torch.cat([X, X.new_tensor([40.0])])
    curve = curve_of(within, far)
    assert not (curve.rate + curve.distortion)[-1].isfinite().any()
    rate, _ = of_within(X.numpy(), 0.0)
    off = (curve.rate[:-1, 1:] - torch.as_tensor(rate)[:, None]).abs()
    assert (off < 5 * curve.rate_stderr[:-1, 1:]).all()
    assert (curve.distortion[:-1, 1:] - math.log(2 * WIDTH)).abs().max() < 1e-12


# --- at the ends ---------------------------------------------------------------------------------


@pytest.mark.parametrize("model", [within, beyond])
def test_without_a_rate_the_distortion_is_infinite(model):
    """A code drawn at random that cannot have made x is an infinite loss, in expectation too."""
    assert (curve_of(model, num_temperatures=3).distortion[:, 0] == math.inf).all()


@pytest.mark.parametrize("model", [within, beyond])
def test_the_curve_begins_without_rate_whatever_the_distortion(model):
    curve = curve_of(model, num_temperatures=3)
    assert (curve.rate[:, 0] == 0).all()
    assert curve.mean()["rate"][0] == 0


def by_hand(ratio, log_weight, beta):
    """A single datum at a single exchange rate, from its chains."""
    column = torch.tensor([ratio, log_weight], dtype=torch.float64)[:, None, :, None]
    found = _curve(*column, torch.tensor([[beta]], dtype=torch.float64))
    return {name: float(value) for name, value in found.items()}


def test_chains_without_weight_are_left_out_by_hand():
    """Whatever the likelihood is where they stand; the rest count by their weights."""
    none = -math.inf
    weights = [math.log(0.3), math.log(0.9), none, none]
    found = by_hand([-1.0, -3.0, none, 50.0], weights, 0.5)
    assert found["distortion"] == pytest.approx(0.25 * 1 + 0.75 * 3)
    assert found["rate"] == pytest.approx(-0.5 * 2.5 - math.log(1.2 / 4))
    # leaving out one of four: 3, 1, 2.5 and 2.5
    parts = np.array([3.0, 1.0, 2.5, 2.5])
    assert found["distortion_stderr"] == pytest.approx(np.sqrt(3 * parts.var()))


def test_a_single_chain_that_cannot_have_made_x_is_infinitely_distorted():
    assert by_hand([-1.0, -1.0, -1.0, -math.inf], [0.0] * 4, 0.0)["distortion"] == math.inf


def test_where_no_chain_has_weight_no_distortion_is_claimed():
    """None was seen; 0 would say that every code makes x for certain."""
    none = [-math.inf] * 4
    assert not math.isfinite(by_hand(none, none, 0.5)["distortion"])


def test_of_a_single_chain_with_weight_the_errors_are_not_known():
    """Without it there is nothing to hold the others against."""
    none = -math.inf
    found = by_hand([-1.1, none, none, none], [-0.5, none, none, none], 0.5)
    assert found["distortion"] == pytest.approx(1.1)
    assert not math.isfinite(found["rate_stderr"])
    assert not math.isfinite(found["distortion_stderr"])
