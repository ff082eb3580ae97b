"""Pareto smoothing of the largest weights: against ArviZ's, and where there is no tail."""

from __future__ import annotations

import math
import warnings

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch

from pyrovae.inference import ImportanceSampling
from pyrovae.inference.evidence.accumulator import WeightSums
from pyrovae.inference.evidence.pareto import smooth_tail, tail_length

with warnings.catch_warnings():
    warnings.simplefilter("ignore", FutureWarning)
    import arviz as az

NEW_ARVIZ = int(az.__version__.split(".")[0]) >= 1


def arviz_log_mean(log_weights: np.ndarray) -> np.ndarray:
    """log of the mean smoothed weight of ``(N, K)``, whichever ArviZ's major version.

    ArviZ normalises what it smooths, so that the mean is 1 / K; the constant is found again at the
    smallest weight, which is in no tail and stays what it was.
    """
    if NEW_ARVIZ:  # takes a log-likelihood, that is the negative, since version 1
        from arviz_stats.base import array_stats

        smoothed = np.asarray(array_stats.psislw(-log_weights, axis=-1)[0])
    else:
        smoothed = np.asarray(az.psislw(log_weights)[0])
    rows = np.arange(len(log_weights))
    smallest = log_weights.argmin(-1)
    constant = log_weights[rows, smallest] - smoothed[rows, smallest]
    top = smoothed.max(-1)
    mean = np.log(np.exp(smoothed - top[:, None]).mean(-1)) + top
    return mean + constant


def arviz_tail(num_samples: int) -> int:
    """The length of the tail that ArviZ fits: version 1 rounds it down."""
    return math.floor(3 * math.sqrt(num_samples)) if NEW_ARVIZ else tail_length(num_samples)


def smoothed(log_weight: torch.Tensor, tail: int | None = None) -> tuple[dict, dict]:
    """Raw and smoothed results of log-weights ``(K, N)``."""
    size = len(log_weight)
    sums = WeightSums(size, None if tail is None else tail + 1, rest=True)
    sums.add(log_weight)
    raw = {name: getattr(sums, name)() for name in ("log_evidence", "stderr", "ess")}
    return raw, raw | smooth_tail(sums.largest(), *sums.log_rest(), size)


@pytest.mark.parametrize("num_samples", [400, 1000, 2500, 10_000])
@pytest.mark.parametrize("degrees", [4, 5, 30])
def test_the_mean_smoothed_weight_is_arvizs(num_samples, degrees):
    rng = np.random.default_rng(num_samples + degrees)
    log_weights = rng.standard_t(degrees, size=(20, num_samples)) - 300
    _, found = smoothed(torch.as_tensor(log_weights).T, arviz_tail(num_samples))
    np.testing.assert_allclose(found["log_evidence"], arviz_log_mean(log_weights), atol=1e-6)


@pytest.mark.parametrize("num_samples", [1000, 10_000])
def test_it_is_arvizs_where_the_largest_weight_was_nearly_all_there_was(num_samples):
    """With k̂ of 2 to 5 the quantiles are many orders of magnitude below the weight they replace.

    What is left of the sums must not be the rounding error of the sums that it was taken from.
    """
    rng = np.random.default_rng(num_samples + 2)
    log_weights = rng.standard_t(2, size=(20, num_samples)) - 300
    _, found = smoothed(torch.as_tensor(log_weights).T, arviz_tail(num_samples))
    np.testing.assert_allclose(found["log_evidence"], arviz_log_mean(log_weights), atol=1e-6)
    assert (found["ess"] <= num_samples * (1 + 1e-9)).all()
    assert (found["ess"] >= 1 - 1e-9).all()


def reference(log_weight: np.ndarray, shape: float, scale: float, tail: int) -> np.ndarray:
    """Weights of one datum in ascending order, the tail's replaced by quantiles."""
    ordered = np.sort(np.exp(log_weight - log_weight.max()))
    rank = (np.arange(1, tail + 1) - 0.5) / tail
    quantiles = ordered[-tail - 1] + scale / shape * ((1 - rank) ** -shape - 1)
    ordered[-tail:] = np.minimum(quantiles, 1.0)
    return ordered


def test_all_results_are_those_of_the_smoothed_weights():
    from pyrovae.inference.evidence.pareto import _fit, pareto_shape

    torch.manual_seed(0)
    log_weight = 1.5 * torch.randn(2000, 1, dtype=torch.float64) + 40
    tail = tail_length(2000)
    largest = log_weight.topk(tail + 1, dim=0).values
    weight = (largest - largest[0]).exp()
    shape, scale = _fit((weight[:-1] - weight[-1]).flip(0))
    torch.testing.assert_close(shape, pareto_shape(largest))
    weights = reference(log_weight[:, 0].numpy(), float(shape), float(scale), tail)
    _, found = smoothed(log_weight)
    top = float(log_weight.max())
    ess = weights.sum() ** 2 / (weights**2).sum()
    assert float(found["log_evidence"]) == pytest.approx(math.log(weights.mean()) + top, abs=1e-9)
    assert float(found["ess"]) == pytest.approx(ess, rel=1e-9)
    assert float(found["stderr"]) == pytest.approx(math.sqrt(1 / ess - 1 / 2000), rel=1e-9)


@pytest.mark.parametrize("degrees", [1, 2, 5, 30])
@pytest.mark.parametrize("num_samples", [25, 100, 1000])
def test_no_weight_becomes_larger_than_the_largest(num_samples, degrees):
    """Then the mean weight is at most what it would be were all of the tail as large as that."""
    rng = np.random.default_rng(degrees)
    log_weight = torch.as_tensor(rng.standard_t(degrees, size=(num_samples, 200)))
    _, found = smoothed(log_weight)
    ordered = log_weight.sort(0, descending=True).values
    ordered[: tail_length(num_samples)] = ordered[0].clone()
    bound = ordered.logsumexp(0) - math.log(num_samples)
    assert (found["log_evidence"] <= bound + 1e-9).all()


def test_heavy_tails_lose_variance():
    """Of many estimates from weights whose variance is infinite the smoothed ones spread less."""
    torch.manual_seed(1)
    log_weight = -0.6 * torch.rand(1000, 500, dtype=torch.float64).log()  # Pareto of shape 0.6
    raw, found = smoothed(log_weight)
    assert found["log_evidence"].std() < raw["log_evidence"].std()
    assert (found["ess"] > raw["ess"]).double().mean() > 0.5


def test_light_tails_change_little():
    torch.manual_seed(2)
    log_weight = 0.3 * torch.randn(4000, 20, dtype=torch.float64)
    raw, found = smoothed(log_weight)
    assert ((found["log_evidence"] - raw["log_evidence"]).abs() < raw["stderr"]).all()


def test_a_constant_in_the_log_weights_is_carried_through():
    torch.manual_seed(3)
    log_weight = torch.randn(500, 8, dtype=torch.float64)
    _, one = smoothed(log_weight)
    _, two = smoothed(log_weight - 3000)
    torch.testing.assert_close(two["log_evidence"] + 3000, one["log_evidence"])
    torch.testing.assert_close(two["ess"], one["ess"])


def test_data_are_smoothed_each_by_itself():
    torch.manual_seed(4)
    log_weight = torch.randn(500, 3, dtype=torch.float64)
    other = log_weight.clone()
    other[:, 1] = 0.0
    other[:, 2] = -torch.arange(500.0).double() * 50
    torch.testing.assert_close(
        smoothed(log_weight)[1]["log_evidence"][0], smoothed(other)[1]["log_evidence"][0]
    )


@pytest.mark.parametrize(
    "column",
    [
        torch.zeros(200),
        torch.cat([torch.zeros(100), -torch.ones(100)]),
        -1000 * torch.arange(200.0),
        torch.full((200,), -math.inf),
        torch.cat([torch.zeros(2), torch.full((198,), -math.inf)]),
    ],
    ids=["equal", "two values", "one weight is all", "none", "two weights are all"],
)
def test_where_the_tail_has_no_shape_the_weights_stay(column):
    raw, found = smoothed(column[:, None].double())
    for name, value in raw.items():
        torch.testing.assert_close(found[name], value, equal_nan=True)


@pytest.mark.parametrize("num_samples", [1, 2, 10, 20])
def test_tails_of_less_than_five_weights_stay(num_samples):
    torch.manual_seed(5)
    raw, found = smoothed(torch.randn(num_samples, 4, dtype=torch.float64))
    for name, value in raw.items():
        torch.testing.assert_close(found[name], value, equal_nan=True)


# --- as a setting --------------------------------------------------------------------------------


def _pair(scale):
    def model(x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(x.new_zeros(()), 1.0))
            pyro.sample("x", dist.Normal(z, 1.0), obs=x)

    def guide(x):
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(x / 2, scale))

    return model, guide


def test_a_smoothed_estimate_is_no_bound_and_is_made_of_the_same_draws():
    x = torch.linspace(-2, 2, 6, dtype=torch.float64)
    model, guide = _pair(0.55)
    raw = ImportanceSampling(num_samples=2000)(model, guide, x)
    found = ImportanceSampling(num_samples=2000, smooth=True)(model, guide, x)
    assert (raw.direction, found.direction) == ("lower", "consistent")
    assert torch.equal(raw.khat, found.khat)
    assert torch.equal(raw.elbo, found.elbo)
    assert not torch.equal(raw.log_evidence, found.log_evidence)
    exact = dist.Normal(0.0, math.sqrt(2)).log_prob(x)
    assert ((found.log_evidence - exact).abs() < 5 * found.stderr + 0.02).all()


def test_smoothing_takes_a_mixture_too():
    x = torch.linspace(-2, 2, 6, dtype=torch.float64)
    model, guide = _pair(0.4)
    found = ImportanceSampling(num_samples=2000, smooth=True, defensive=0.2)(model, guide, x)
    exact = dist.Normal(0.0, math.sqrt(2)).log_prob(x)
    assert ((found.log_evidence - exact).abs() < 5 * found.stderr + 1e-3).all()


def test_smoothing_does_not_depend_on_the_tiles():
    """Up to the other draws that other tiles make; with one particle way the tail is the same."""
    torch.manual_seed(6)
    log_weight = 2 * torch.randn(900, 5, dtype=torch.float64)
    sums = WeightSums(900, rest=True)
    for part in log_weight.split(70):
        sums.add(part)
    found = smooth_tail(sums.largest(), *sums.log_rest(), 900)
    for name, value in smoothed(log_weight)[1].items():
        torch.testing.assert_close(found[name], value)
