"""The jackknife against all subsets written out, and the order of the bias that it leaves."""

from __future__ import annotations

import functools

import numpy as np
import oracles
import pyro
import pyro.distributions as dist
import pytest
import torch

from pyrovae.inference import ImportanceSampling, JackknifeImportanceSampling
from pyrovae.inference.evidence.jackknife import jackknife

pytestmark = pytest.mark.usefixtures("one_thread")

SCALES = [0.0, 1e-4, 1.0, 5.0]  # standard deviations of log-weights


def by_subsets(log_weight, order):
    with np.errstate(divide="ignore", invalid="ignore"):
        columns = log_weight.numpy().T
        return np.array([oracles.jackknife_by_subsets(column, order) for column in columns])


@pytest.mark.parametrize("order", [1, 2])
@pytest.mark.parametrize("size", [3, 4, 9, 40])
@pytest.mark.parametrize("scale", SCALES)
def test_it_is_the_formula_over_all_subsets(order, size, scale):
    """Sizes of which all shares, some, or none are above what is summed by series."""
    log_weight = scale * torch.randn(size, 3, dtype=torch.float64) - 700
    expected = by_subsets(log_weight, order)
    np.testing.assert_allclose(jackknife(log_weight, order), expected, rtol=1e-11, atol=1e-9)


@pytest.mark.parametrize("order", [1, 2])
@pytest.mark.parametrize("excess", [1.0, 3.0, 8.0, 14.0])
def test_one_dominating_weight_is_left_out_with_care(order, excess):
    """Without it next to nothing is left: log(1 - a) of a share a near 1."""
    log_weight = torch.randn(12, 3, dtype=torch.float64)
    log_weight[5] += excess
    error = np.abs(jackknife(log_weight, order).numpy() - by_subsets(log_weight, order))
    assert error.max() < 1e-8


@pytest.mark.parametrize("order", [1, 2])
@pytest.mark.parametrize("excess", [25.0, 40.0, 60.0])
def test_a_weight_that_leaves_the_rest_below_rounding_is_left_out_with_care(order, excess):
    """1 - a has no digits left in float64 where the others weigh less than 1e-16 of the whole."""
    log_weight = torch.randn(12, 3, dtype=torch.float64)
    log_weight[5] += excess
    expected = by_subsets(log_weight, order)
    np.testing.assert_allclose(jackknife(log_weight, order), expected, rtol=1e-6)


@pytest.mark.parametrize("order", [1, 2])
def test_two_dominating_weights_are_left_out_together(order):
    log_weight = torch.randn(12, 3, dtype=torch.float64)
    log_weight[2] += 9.0
    log_weight[7] += 9.5
    expected = by_subsets(log_weight, order)
    np.testing.assert_allclose(jackknife(log_weight, order), expected, rtol=1e-8)


@pytest.mark.parametrize("order", [1, 2])
def test_weights_of_zero_count_as_samples(order):
    log_weight = torch.randn(10, 3, dtype=torch.float64)
    log_weight[[1, 4, 6]] = -torch.inf
    expected = by_subsets(log_weight, order)
    np.testing.assert_allclose(jackknife(log_weight, order), expected, rtol=1e-10)


@pytest.mark.parametrize("order", [1, 2])
def test_no_weight_at_all_is_evidence_of_zero(order):
    log_weight = torch.full((6, 2), -torch.inf, dtype=torch.float64)
    assert (jackknife(log_weight, order) == -torch.inf).all()


@pytest.mark.parametrize("order", [1, 2])
def test_the_scale_of_weights_is_carried_through(order):
    log_weight = torch.randn(15, 3, dtype=torch.float64)
    moved = jackknife(log_weight - 1000, order) + 1000
    torch.testing.assert_close(moved, jackknife(log_weight, order), rtol=0, atol=1e-9)


def test_each_datum_is_worked_out_by_itself():
    """One datum's many large shares do not change what another, with few, is given."""
    log_weight = torch.randn(30, 4, dtype=torch.float64) * torch.tensor([0.1, 1.0, 4.0, 20.0])
    alone = torch.cat([jackknife(log_weight[:, n : n + 1], 2) for n in range(4)])
    torch.testing.assert_close(jackknife(log_weight, 2), alone, rtol=1e-12, atol=1e-12)


# --- the order of the bias -----------------------------------------------------------------------
#
# Toy T: z ~ N(0, 1), x | z ~ N(z, 1), x = 0, proposed from the prior. In units of p(0) = N(0; 0, 2)
# the weight is sqrt(2) exp(-z²/2).


@functools.cache
def log_sums(counts):
    z = np.linspace(-12.0, 12.0, 1201)
    probability = np.exp(oracles.normal_logpdf(z)) * (z[1] - z[0])
    found = oracles.expected_log_sum(np.sqrt(2) * np.exp(-(z**2) / 2), probability, counts)
    return dict(zip(counts, found, strict=True))


def expected_biases(num_samples):
    """Of the plain estimate, the first and the second order, each E log p̂ - log p."""
    near = tuple(num_samples - out for out in range(3))
    sums = log_sums(near)
    plain = [sums[k] - np.log(k) for k in near]
    k = num_samples
    return (
        plain[0],
        k * plain[0] - (k - 1) * plain[1],
        k**2 / 2 * plain[0] - (k - 1) ** 2 * plain[1] + (k - 2) ** 2 / 2 * plain[2],
    )


def slopes(small, large):
    ratio = np.divide(expected_biases(large), expected_biases(small))
    return np.log(ratio) / np.log(large / small)


def test_the_expected_bias_has_the_tail_that_theory_gives():
    """E L_K - log p is -CV²/2K, where CV² = 2/sqrt(3) - 1."""
    bias = expected_biases(512)[0]
    assert bias * 512 == pytest.approx(-(2 / np.sqrt(3) - 1) / 2, rel=0.01)


def test_the_expected_biases_fall_by_one_order_more_each():
    """What a slope still lacks at K falls like 1/K, so two of them tell the limit."""
    limit = 2 * slopes(32, 64) - slopes(16, 32)
    np.testing.assert_allclose(limit, [-1, -2, -3], atol=0.02)


def model(x):
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", dist.Normal(x.new_zeros(()), 1.0))
        pyro.sample("x", dist.Normal(z, 1.0), obs=x)


def prior_as_guide(x):
    with pyro.plate("data", len(x)):
        pyro.sample("z", dist.Normal(x.new_zeros(()), 1.0))


@functools.cache
def measured(num_samples, order):
    """Errors of as many estimates as there are data, all of them x = 0."""
    settings = {"num_samples": num_samples, "seed": num_samples}
    estimator = (
        JackknifeImportanceSampling(order=order, **settings)
        if order
        else ImportanceSampling(**settings)
    )
    x = torch.zeros(100_000, dtype=torch.float64)
    log_evidence = estimator(model, prior_as_guide, x).log_evidence.numpy()
    return log_evidence - oracles.normal_logpdf(0.0, 0.0, np.sqrt(2))


def mean_and_error(sample):
    return sample.mean(), sample.std() / np.sqrt(len(sample))


@pytest.mark.parametrize("order", [0, 1, 2])
@pytest.mark.parametrize("num_samples", [4, 8, 16])
def test_the_estimators_bias_is_the_expected_one(num_samples, order):
    mean, error = mean_and_error(measured(num_samples, order))
    assert abs(mean - expected_biases(num_samples)[order]) < 5 * error


@pytest.mark.parametrize("order", [1, 2])
@pytest.mark.parametrize("num_samples", [4, 8, 16])
def test_what_the_jackknife_adds_is_the_expected_difference(num_samples, order):
    """On the same draws most of the noise is gone, and the test is sharp."""
    mean, error = mean_and_error(measured(num_samples, order) - measured(num_samples, 0))
    biases = expected_biases(num_samples)
    assert abs(mean - (biases[order] - biases[0])) < 5 * error
    assert biases[order] - biases[0] > 20 * error


def bias_and_error(num_samples, order):
    """The measured bias; for the jackknife with the plain estimate as a control variate."""
    if order == 0:
        return mean_and_error(measured(num_samples, 0))
    mean, error = mean_and_error(measured(num_samples, order) - measured(num_samples, 0))
    return mean + expected_biases(num_samples)[0], error


@pytest.mark.parametrize(("order", "small", "large"), [(0, 4, 16), (1, 4, 16), (2, 4, 8)])
def test_the_measured_slope_is_the_expected_one(order, small, large):
    """And for the orders told apart: the next lower slope is excluded."""
    (first, error_1), (second, error_2) = (bias_and_error(k, order) for k in (small, large))
    slope = np.log(second / first) / np.log(large / small)
    error = np.hypot(error_1 / first, error_2 / second) / np.log(large / small)
    assert abs(slope - slopes(small, large)[order]) < 5 * error
    assert slope + 5 * error < -order
