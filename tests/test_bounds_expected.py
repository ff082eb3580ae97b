"""Expectations of bounds on a model whose log p(x) is known: their order, their biases."""

from __future__ import annotations

import itertools
import math

import oracles
import pyro
import pyro.distributions as dist
import pytest
import torch

from pyrovae.inference import log_weights
from pyrovae.inference.objectives.bounds import (
    CIWAE,
    CUBO,
    ELBO,
    IWAE,
    MIWAE,
    TVO,
    Jackknife,
    Renyi,
)
from pyrovae.models import LinearGaussianVAE

# --- expectations ---------------------------------------------------------------------------------

LATENT, WIDE, SHIFT = 2, 1.5, 0.5  # in units of the exact posterior


class Linear:
    """A linear-Gaussian model, and a guide wider than its posterior and off by a little."""

    def __init__(self):
        torch.manual_seed(0)
        self.vae = LinearGaussianVAE(data_dim=5, latent_dim=LATENT).double()
        self.vae.requires_grad_(False).eval()
        self.x = self.vae.sample(4)
        weight, bias = (p.numpy() for p in self.vae.decoder.parameters())
        self.exact = oracles.linear_gaussian_evidence(weight, bias, 1.0, self.x.numpy())

    def guide(self, x):
        posterior = self.vae.posterior(x)
        factor = torch.linalg.cholesky(posterior.covariance_matrix)
        loc = posterior.mean + (factor @ torch.full((LATENT,), SHIFT, dtype=x.dtype))
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.MultivariateNormal(loc, scale_tril=WIDE * factor))

    def groups(self, num_groups, size, seed):
        """Independent log-weights, ``(size, num_groups * N)``, with log p(x) beside them."""
        pyro.set_rng_seed(seed)
        count = num_groups * size
        drawn = log_weights(self.vae.model, self.guide, self.x, num_particles=count).log_weight
        # [particle of the group, group, datum]
        return drawn.reshape(size, num_groups, 4)


@pytest.fixture(scope="module")
def linear():
    return Linear()


def moments(values):
    """Mean and standard error over groups of the mean over data."""
    of_group = values.mean(-1)
    return float(of_group.mean()), float(of_group.std()) / math.sqrt(len(of_group))


def above(high, low, errors=5.0):
    """Whether the gap of two independent means is larger than five of its standard errors."""
    return high[0] - low[0] > errors * math.hypot(high[1], low[1])


def of_groups(bound, log_weight):
    """A bound of each group and datum, ``(groups, N)``."""
    flat = bound(log_weight.flatten(1))
    return flat.reshape(log_weight.shape[1:])


def guide_power(power):
    """log E_q[(p(z|x) / q(z))^power] of the two normals, in the posterior's own units."""
    precision = power + (1 - power) / WIDE**2
    shift = LATENT * SHIFT**2
    pull = (1 - power) / WIDE**2
    return (
        -LATENT * (1 - power) * math.log(WIDE)
        - 0.5 * LATENT * math.log(precision)
        + 0.5 * shift * (pull**2 / precision - pull)
    )


def gap_at(beta):
    """E over π_β of log w, less log p(x): the thermodynamic integrand, from the two normals."""
    precision = beta + (1 - beta) / WIDE**2
    loc = (1 - beta) * SHIFT / WIDE**2 / precision
    from_posterior = LATENT * (loc**2 + 1 / precision)
    from_guide = LATENT * ((loc - SHIFT) ** 2 + 1 / precision)
    return LATENT * math.log(WIDE) - 0.5 * from_posterior + 0.5 * from_guide / WIDE**2


def test_bounds_lie_in_their_order(linear):
    log_p = (linear.exact.mean(), 0.0)
    elbo = moments(of_groups(ELBO(), linear.groups(8000, 1, seed=1)))
    five = moments(of_groups(IWAE(), linear.groups(8000, 5, seed=2)))
    fifty = moments(of_groups(IWAE(), linear.groups(8000, 50, seed=3)))
    assert above(five, elbo)
    assert above(fifty, five)
    assert above(log_p, fifty)
    # and the ELBO is where it should be
    assert elbo[0] - log_p[0] == pytest.approx(gap_at(0.0), abs=5 * elbo[1])


def test_more_groups_are_looser_and_ciwae_lies_between(linear):
    means = [
        moments(of_groups(bound, linear.groups(4000, 12, seed=seed)))
        for seed, bound in enumerate([ELBO(), MIWAE(4), MIWAE(2), IWAE()])
    ]
    for low, high in itertools.pairwise(means):
        assert above(high, low)
    between = moments(of_groups(CIWAE(0.5), linear.groups(4000, 12, seed=9)))
    assert above(between, means[0])
    assert above(means[-1], between)


@pytest.mark.parametrize("n", [2.0, 3.0])
def test_the_chi_bound_lies_above_with_many_particles(linear, n):
    many = moments(of_groups(CUBO(n), linear.groups(20, 20_000, seed=4)))
    assert above(many, (linear.exact.mean(), 0.0))
    exact = linear.exact.mean() + guide_power(n) / n
    assert many[0] == pytest.approx(exact, abs=5 * many[1])


def test_the_chi_bound_is_biased_down_and_rises_with_particles(linear):
    means = [
        moments(of_groups(CUBO(2), linear.groups(8000, size, seed=size))) for size in (1, 4, 16)
    ]
    for low, high in itertools.pairwise(means):
        assert above(high, low)
    assert above((linear.exact.mean() + guide_power(2.0) / 2, 0.0), means[-1])
    assert above((linear.exact.mean(), 0.0), means[0])  # one particle makes an ELBO of it


def test_a_left_sum_lies_between_and_rises_with_its_intervals(linear):
    log_weight = linear.groups(20, 20_000, seed=6)
    log_p = (linear.exact.mean(), 0.0)
    means = [moments(of_groups(TVO(s), log_weight)) for s in (1, 2, 5, 20)]
    for mean, intervals in zip(means, (1, 2, 5, 20), strict=True):
        grid = TVO(intervals).grid
        exact = sum((b - a) * gap_at(a) for a, b in itertools.pairwise(grid))
        assert mean[0] - log_p[0] == pytest.approx(exact, abs=5 * mean[1])
        assert above(log_p, mean)
    for coarse, fine in itertools.pairwise(means):
        assert above(fine, coarse)


def test_a_negative_order_of_renyi_can_exceed_log_p(linear):
    """As its documentation says: above with many particles, below with few."""
    log_p = (linear.exact.mean(), 0.0)
    assert above(moments(of_groups(Renyi(-1.0), linear.groups(20, 20_000, seed=7))), log_p)
    assert above(log_p, moments(of_groups(Renyi(-1.0), linear.groups(8000, 1, seed=8))))


def test_the_jackknife_takes_bias_away(linear):
    log_weight = linear.groups(40_000, 5, seed=10)
    log_p = linear.exact.mean()
    biases = [
        (abs(mean - log_p), error)
        for mean, error in (
            moments(of_groups(bound, log_weight)) for bound in (Jackknife(1), IWAE())
        )
    ]
    assert biases[0][0] + 5 * biases[0][1] < biases[1][0] - 5 * biases[1][1]
