"""k̂ against ArviZ's on the same weights, against known Pareto tails, and at its edges."""

from __future__ import annotations

import math
import warnings

import numpy as np
import pytest
import torch

from pyrovae.inference.evidence.pareto import pareto_shape, tail_length

with warnings.catch_warnings():
    warnings.simplefilter("ignore", FutureWarning)
    import arviz as az

NEW_ARVIZ = int(az.__version__.split(".")[0]) >= 1


def arviz_khat(log_weights: np.ndarray) -> np.ndarray:
    """ArviZ's k̂ of log-weights ``(N, K)``, whichever its major version."""
    if NEW_ARVIZ:  # takes a log-likelihood, that is the negative, since version 1
        from arviz_stats.base import array_stats

        return np.asarray(array_stats.psislw(-log_weights, axis=-1)[1])
    return np.asarray(az.psislw(log_weights)[1])


def arviz_tail(num_samples: int) -> int:
    """The length of the tail that ArviZ fits: version 1 rounds it down."""
    return math.floor(3 * math.sqrt(num_samples)) if NEW_ARVIZ else tail_length(num_samples)


@pytest.mark.parametrize("num_samples", [400, 1000, 2500, 10_000])
@pytest.mark.parametrize("degrees", [2, 5, 30])
def test_agrees_with_arviz(num_samples, degrees):
    rng = np.random.default_rng(num_samples + degrees)
    log_weights = rng.standard_t(degrees, size=(20, num_samples)) - 300
    ours = pareto_shape(
        torch.as_tensor(log_weights).T.topk(arviz_tail(num_samples) + 1, dim=0).values
    )
    np.testing.assert_allclose(ours.numpy(), arviz_khat(log_weights), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("k", [0.2, 0.5, 0.8, 1.2])
def test_recovers_a_known_shape(k):
    torch.manual_seed(1)
    log_weight = -k * torch.rand(20_000, 50, dtype=torch.float64).log()
    khat = pareto_shape(log_weight.topk(tail_length(20_000) + 1, dim=0).values)
    # the prior pulls by (0.5 - k) * 10 / (M + 10)
    expected = k + (0.5 - k) * 10 / (tail_length(20_000) + 10)
    assert abs(khat.mean() - expected) < 5 * khat.std() / math.sqrt(50)


def test_constant_weights_have_no_tail():
    assert pareto_shape(torch.full((100, 2), -7.0, dtype=torch.float64)).tolist() == [-math.inf] * 2


def test_too_few_weights_say_nothing():
    assert pareto_shape(torch.randn(5, 3, dtype=torch.float64)).isnan().all()


def test_weights_that_underflow_are_an_infinite_tail():
    largest = torch.cat([torch.zeros(2), torch.full((98,), -2000.0)]).double()[:, None]
    assert pareto_shape(largest).tolist() == [math.inf]
    zeros = torch.cat([torch.zeros(2), torch.full((98,), -math.inf)]).double()[:, None]
    assert pareto_shape(zeros).tolist() == [math.inf]


def test_a_datum_that_underflows_does_not_touch_the_others():
    torch.manual_seed(0)
    sound = torch.randn(1000, 1, dtype=torch.float64).topk(100, dim=0).values
    broken = torch.cat([torch.zeros(10), torch.full((90,), -2000.0)]).double()[:, None]
    both = pareto_shape(torch.cat([sound, broken], 1))
    assert both[0] == pytest.approx(float(pareto_shape(sound)[0]), rel=1e-12)


@pytest.mark.skipif(NEW_ARVIZ, reason="gives NaN where weights tie, since version 1")
def test_ties_with_the_threshold_are_no_part_of_the_tail():
    """ArviZ fits what lies strictly above the threshold, and so do we."""
    random = np.random.default_rng(3)
    log_weights = np.sort(random.standard_t(3, (1, 2000)))
    log_weights[:, -150:-80] = log_weights[:, -150:-149]
    weights = torch.from_numpy(log_weights.T.copy())
    khat = pareto_shape(weights.topk(arviz_tail(2000) + 1, dim=0).values)
    np.testing.assert_allclose(khat.numpy(), arviz_khat(log_weights), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("noise", [0.0, 1e-5])
@pytest.mark.parametrize(
    ("values", "chances"),
    [
        ((0.0, -1.0), (0.02, 0.98)),
        ((0.0, -1.0, -1.001, -3.0), (0.02, 0.06, 0.05, 0.87)),
        ((0.0, -0.5, -1.0), (0.3, 0.3, 0.4)),
    ],
)
def test_weights_of_few_values_are_bounded_by_one_that_is_seen_again_and_again(
    values, chances, noise
):
    """Bounded weights, which a fit of their ties would call heavy-tailed."""
    random = np.random.default_rng(4)
    drawn = random.choice(values, size=1000, p=chances) + noise * random.normal(size=1000)
    largest = torch.from_numpy(drawn)[:, None].topk(tail_length(1000) + 1, dim=0).values
    assert float(pareto_shape(largest)) < 0


@pytest.mark.parametrize("above", [1, 4])
def test_few_values_whose_largest_is_rare_say_nothing(above):
    tied = torch.cat([torch.linspace(2, 1, 5)[:above], torch.zeros(100 - above)]).double()
    assert pareto_shape(tied[:, None]).isnan().all()


def test_nearly_exact_proposals_are_not_taken_for_discrete_ones():
    torch.manual_seed(0)
    weights = 1e-3 * torch.randn(5000, 20, dtype=torch.float64)
    khat = pareto_shape(weights.topk(tail_length(5000) + 1, dim=0).values)
    assert khat.isfinite().all()
    assert (khat < 0.3).all()
