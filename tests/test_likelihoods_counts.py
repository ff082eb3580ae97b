"""Likelihoods of counts: against sums of logarithms, scipy and their limits; sizes; refusals."""

from __future__ import annotations

import math

import numpy as np
import pyro.distributions as dist
import pytest
import torch
from scipy import special, stats
from torch import nn

from pyrovae.models.distributions import GammaPoisson, ZeroInflated
from pyrovae.models.likelihoods import (
    LearnedScale,
    NegativeBinomial,
    ZeroInflatedNegativeBinomial,
)

DTYPES = [torch.float32, torch.float64]
COUNTS = [0, 1, 7, 1000, 100_000]


class Given(nn.Module):
    """A decoder whose output is its input."""

    def forward(self, z):
        return z


def negative_binomial_logpmf(x, log_mean, theta):
    """log P(x) by adding up the logarithms of the factors of both gamma functions."""
    j, mean = np.arange(x, dtype=float), math.exp(log_mean)
    if math.isinf(theta):
        rising, zero = np.zeros(0), -mean
    else:
        near, zero = theta > 1e6, -theta * math.log1p(mean / theta)
        scale = theta + mean
        rising = np.log1p((j - mean) / scale) if near else np.log((theta + j) / scale)
    factors = np.concatenate([rising, -np.log1p(j)])
    return float(factors.sum(dtype=np.longdouble)) + zero + x * log_mean


# --- negative binomial ---------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("theta", [1e-3, 0.1, 1.0, 10.0, 1e3, 1e5, 1e8, 1e15, 1e30, math.inf])
def test_negative_binomial_errs_by_last_places_of_the_residual(dtype, theta):
    """Of log μ, single precision knows so much that x and μ are off by ε |x - μ|: no more is lost.

    In double precision the sums themselves err, by some 1e-15 for each of x terms.
    """
    theta = torch.tensor(theta, dtype=dtype)
    for log_mean in (-5.0, 0.0, 2.0, math.log(1e3), math.log(1e5), 15.0):
        log_mean = torch.tensor(log_mean, dtype=dtype)
        ours = GammaPoisson(log_mean, theta).log_prob(torch.tensor(COUNTS))
        for x, found in zip(COUNTS, ours.tolist(), strict=True):
            exact = negative_binomial_logpmf(x, float(log_mean), float(theta))
            size = 1 + abs(x - math.exp(log_mean)) + abs(exact)
            bound = 8 * torch.finfo(dtype).eps * size + 1e-14 * x
            assert abs(found - exact) < bound


@pytest.mark.parametrize("theta", [1e-3, 0.5, 3.0, 100.0])
def test_negative_binomial_is_scipys_and_adds_up(theta):
    mean = torch.tensor([0.01, 1.0, 20.0], dtype=torch.float64)
    x = torch.arange(60_000 if theta < 0.1 else 3000)[:, None]
    log_p = GammaPoisson(mean.log(), torch.tensor(theta, dtype=torch.float64)).log_prob(x)
    exact = stats.nbinom.logpmf(x.numpy(), theta, (theta / (theta + mean)).numpy())
    np.testing.assert_allclose(log_p, exact, rtol=1e-9, atol=1e-10)
    left = stats.nbinom.sf(x[-1].item(), theta, (theta / (theta + mean)).numpy())
    np.testing.assert_allclose(log_p.exp().sum(0).numpy() + left, 1.0, rtol=1e-10)


@pytest.mark.parametrize("dtype", DTYPES)
def test_negative_binomial_becomes_poisson(dtype):
    log_mean = torch.tensor([0.5, 4.0, 11.0], dtype=dtype)
    x = torch.tensor([0, 3, 60_000])
    exact = stats.poisson.logpmf(x.numpy(), log_mean.double().exp().numpy())
    for theta in (1e30, math.inf):
        one = NegativeBinomial(Given(), theta)(log_mean).base_dist
        tolerance = 2e-6 if dtype == torch.float32 else 1e-11
        np.testing.assert_allclose(one.log_prob(x), exact, rtol=tolerance, atol=tolerance)
        draws = one.sample(torch.Size((20_000,))).double()
        mean = log_mean.double().exp()
        assert ((draws.mean(0) - mean).abs() < 5 * (mean / 20_000).sqrt()).all()
        spread = draws.var(0) / mean - 1
        assert (spread.abs() < 5 * ((2 + 1 / mean) / 20_000).sqrt()).all()


def test_negative_binomial_gradients_are_right():
    x = torch.tensor([0, 1, 5, 300])
    log_mean = torch.tensor([-1.0, 0.3, 2.0, 5.5], dtype=torch.float64, requires_grad=True)
    log_theta = torch.tensor([-2.0, 3.0, 0.1, 1.0], dtype=torch.float64, requires_grad=True)

    def score(log_mean, log_theta):
        return GammaPoisson(log_mean[:, None], log_theta.exp()).log_prob(x[:, None, None])

    assert torch.autograd.gradcheck(score, (log_mean, log_theta))


@pytest.mark.parametrize("dtype", DTYPES)
def test_negative_binomial_slope_is_the_residual(dtype):
    """d log P / d log μ = (x - μ) / (1 + μ / θ)."""
    log_mean = torch.tensor([-90.0, -3.0, 2.0, 11.0, 90.0], dtype=dtype)
    for theta in (1e-6, 1.0, 1e6, math.inf):
        for x in COUNTS:
            given = log_mean[: -1 if theta == math.inf else None].clone().requires_grad_()
            log_p = GammaPoisson(given, torch.tensor(theta, dtype=dtype)).log_prob(torch.tensor(x))
            (slope,) = torch.autograd.grad(log_p.sum(), given)
            mean = given.detach().double().exp().numpy()
            eps = torch.finfo(dtype).eps
            exact = (x - mean) / (1 + mean / theta)
            bound = 200 * eps * (1 + np.minimum(mean, max(theta, x)) + x)
            assert (np.abs(slope.double().numpy() - exact) < bound).all()


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("theta", [1e-30, 1e-6, 1.0, 1e6, 1e37, math.inf])
def test_negative_binomial_has_no_edge_where_it_is_not_a_number(dtype, theta):
    log_mean = torch.tensor([-math.inf, -1e4, -300.0, 0.0, 300.0, 1e4], dtype=dtype)
    for x in (0, 1, 100_000):
        given = log_mean.clone().requires_grad_()
        shape = torch.full((6,), theta, dtype=dtype, requires_grad=True)
        log_p = GammaPoisson(given, shape).log_prob(torch.tensor(x))
        assert log_p.isfinite().all()
        slopes = torch.autograd.grad(log_p.sum(), (given, shape))
        assert all(slope.isfinite().all() for slope in slopes)
    assert GammaPoisson(log_mean[:1], torch.ones(1).to(dtype)).log_prob(torch.tensor(0)) == 0


@pytest.mark.parametrize("dtype", DTYPES)
def test_negative_binomial_draws_have_its_probabilities(dtype):
    one = GammaPoisson(torch.tensor(0.7, dtype=dtype), torch.tensor(0.8, dtype=dtype))
    x = one.sample(torch.Size((100_000,)))
    assert x.dtype == dtype
    p = one.log_prob(torch.arange(10)).double().exp().numpy()
    found = np.bincount(x.long().numpy(), minlength=10)[:10] / len(x)
    assert (abs(found - p) < 5 * np.sqrt(p * (1 - p) / len(x))).all()
    mean = math.exp(0.7)
    np.testing.assert_allclose([one.mean, one.variance], [mean, mean + mean**2 / 0.8], rtol=1e-6)


# --- sizes ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", [NegativeBinomial, ZeroInflatedNegativeBinomial])
@pytest.mark.parametrize("size", ["total", "factor"])
def test_the_last_context_is_the_size_and_stays_out_of_the_network(kind, size):
    class Labelled(nn.Module):
        def forward(self, z, label):
            return z + label

    torch.manual_seed(0)
    parts = 2 if kind is ZeroInflatedNegativeBinomial else 1
    z, label = torch.randn(4, 5, 3 * parts), torch.randn(5, 3 * parts)
    total = torch.tensor([[10], [200], [3000], [0], [7]])  # whole numbers, one of them empty
    one = kind(Labelled(), 2.0, size)(z, label, total).base_dist
    counts = one.base_dist if parts == 2 else one
    rate = (z + label)[..., :3]
    share = rate.softmax(-1) if size == "total" else rate.exp()
    torch.testing.assert_close(counts.mean, share * total)
    scores = one.log_prob(torch.zeros(5, 3))
    assert scores.isfinite().all()
    if parts == 1:
        assert (scores[:, 3] == 0).all()  # nothing was counted, and nothing could be


def test_a_total_is_shared_out_over_the_whole_datum():
    z = torch.randn(4, 5, 1, 2, 3)
    total = torch.full((5, 1), 60.0)
    one = NegativeBinomial(Given(), size="total", event_dim=3)(z, total)
    assert one.event_shape == (1, 2, 3)
    torch.testing.assert_close(one.mean.sum((-1, -2, -3)), torch.full((4, 5), 60.0))


def test_a_single_count_has_an_exposure():
    z, exposure = torch.randn(4, 5), torch.arange(1.0, 6)[:, None]
    one = NegativeBinomial(Given(), size="factor", event_dim=0)(z, exposure)
    torch.testing.assert_close(one.mean, z.exp() * exposure[:, 0])


def test_features_stand_side_by_side():
    """Log-rates, then log θ where it is the network's, then the logits of a dropout."""
    rate, log_theta, logit = torch.randn(3, 5, 2)
    x = torch.tensor([0.0, 3.0])
    expected = GammaPoisson(rate, log_theta.exp())
    one = NegativeBinomial(Given(), None)(torch.cat([rate, log_theta], -1))
    torch.testing.assert_close(one.log_prob(x), expected.log_prob(x).sum(-1))
    one = ZeroInflatedNegativeBinomial(Given(), None)(torch.cat([rate, log_theta, logit], -1))
    inflated = ZeroInflated(expected, gate_logits=logit)
    torch.testing.assert_close(one.log_prob(x), inflated.log_prob(x).sum(-1))
    per_feature = LearnedScale((2,), initial=3.0)
    one = ZeroInflatedNegativeBinomial(Given(), per_feature)(torch.cat([rate, logit], -1))
    inflated = ZeroInflated(GammaPoisson(rate, torch.tensor(3.0)), gate_logits=logit)
    torch.testing.assert_close(one.log_prob(x), inflated.log_prob(x).sum(-1))


def test_dispersion_is_learned_to_its_likeliest():
    """At the maximum of the likelihood in θ, which scipy's density finds, the slope is zero."""
    x = stats.nbinom.rvs(2.0, 2.0 / 7.0, size=2000, random_state=0)
    grid = np.exp(np.linspace(-1, 3, 4001))
    mean = x.mean()
    p = grid / (grid + mean)
    values, number = np.unique(x, return_counts=True)
    score = (stats.nbinom.logpmf(values[:, None], grid, p) * number[:, None]).sum(0)
    dispersion = LearnedScale(initial=float(grid[score.argmax()])).double()
    likelihood = NegativeBinomial(Given(), dispersion, event_dim=0)
    log_mean = torch.full((2000,), math.log(mean), dtype=torch.float64)
    likelihood(log_mean).log_prob(torch.as_tensor(x)).sum().backward()
    curvature = (score[1:-1] * 2 - score[2:] - score[:-2]).max() / 1e-6
    assert abs(float(dispersion.log_scale.grad)) < 1e-3 * curvature


# --- zero inflation ------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", DTYPES)
def test_zero_inflation_mixes_a_zero_with_the_counts(dtype):
    logits = torch.linspace(-300, 300, 25, dtype=dtype)
    counts = GammaPoisson(torch.tensor(1.0, dtype=dtype), torch.tensor(2.0, dtype=dtype))
    x = torch.tensor([0.0, 1.0, 40.0], dtype=dtype)[:, None]
    one = ZeroInflated(counts, gate_logits=logits)
    plain = counts.log_prob(x).double().numpy() + special.log_expit(-logits.double().numpy())
    gate = special.log_expit(logits.double().numpy())
    exact = np.where(x == 0, np.logaddexp(gate, plain), plain)
    tolerance = 1e-6 if dtype == torch.float32 else 1e-14
    np.testing.assert_allclose(one.log_prob(x), exact, rtol=tolerance, atol=tolerance)
    spread = one.expand(torch.Size((2, 25)))
    np.testing.assert_allclose(
        spread.log_prob(x[:, None])[:, 1], exact, rtol=tolerance, atol=tolerance
    )


def test_zero_inflation_adds_up_and_draws():
    output = torch.tensor([0.5, -0.4], dtype=torch.float64)
    one = ZeroInflatedNegativeBinomial(Given(), 3.0)(output)
    p = one.log_prob(torch.arange(400)[:, None]).exp()
    assert float(p.sum()) == pytest.approx(1.0, abs=1e-12)
    assert float(one.mean) == pytest.approx(float(p @ torch.arange(400.0).double()), rel=1e-10)
    x = one.sample(torch.Size((100_000,)))[:, 0]
    found = torch.bincount(x.long(), minlength=6)[:6] / len(x)
    assert ((found - p[:6]).abs() < 5 * (p[:6] * (1 - p[:6]) / len(x)).sqrt()).all()


def test_zero_inflation_has_finite_gradients_at_the_ends():
    for x in (0.0, 2.0):
        output = torch.tensor([[-200.0, 3, 3, -200], [-90, 90, 90, -90]]).requires_grad_()
        one = ZeroInflatedNegativeBinomial(Given(), 1.0)(output)
        (slope,) = torch.autograd.grad(one.log_prob(torch.full((2, 2), x)).sum(), output)
        assert slope.isfinite().all()


# --- refusals ------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", [NegativeBinomial, ZeroInflatedNegativeBinomial])
@pytest.mark.parametrize("bad", [-1.0, 0.5, math.nan])
def test_what_is_no_count_is_refused(kind, bad):
    with pytest.raises(ValueError, match="within the support"):
        kind(Given())(torch.zeros(5, 4)).log_prob(
            torch.full((2 if kind is ZeroInflatedNegativeBinomial else 4,), bad)
        )


@pytest.mark.parametrize(
    ("make", "kind", "message"),
    [
        (
            lambda: NegativeBinomial(Given(), -2.0),
            ValueError,
            r"dispersion must be positive, but is -2\.0",
        ),
        (
            lambda: ZeroInflatedNegativeBinomial(Given(), torch.ones(3)),
            TypeError,
            "dispersion must be a number, a LearnedScale or None, but is a Tensor",
        ),
        (
            lambda: NegativeBinomial(Given(), size="observed"),
            ValueError,
            "size must be None, 'total' or 'factor', but is 'observed'",
        ),
        (
            lambda: NegativeBinomial(Given(), size="total", event_dim=0),
            ValueError,
            "event_dim must be at least 1 .*, but is 0",
        ),
        (
            lambda: NegativeBinomial(Given(), size="total")(torch.zeros(5, 3)),
            ValueError,
            r"the last context must be the size of each datum, \(N, 1\), but is missing",
        ),
        (
            lambda: NegativeBinomial(Given(), size="factor")(torch.zeros(5, 3), torch.ones(5)),
            ValueError,
            r"the last context must be .* but is of shape \(5,\)",
        ),
        (
            lambda: NegativeBinomial(Given(), size="total")(torch.zeros(5, 3), -torch.ones(5, 1)),
            ValueError,
            "log_mean",
        ),
        (
            lambda: ZeroInflatedNegativeBinomial(Given(), None)(torch.zeros(5, 4)),
            ValueError,
            r"net must return 3 D features \(log rate, log dispersion and dropout logit\), .* 4",
        ),
    ],
)
def test_bad_likelihoods_are_refused(make, kind, message):
    with pytest.raises(kind, match=message):
        make()


@pytest.mark.parametrize("shape", [(), (6,), (1, 2, 3)])
def test_a_datum_may_be_a_number_a_vector_or_an_image(shape):
    torch.manual_seed(0)
    z, x = torch.randn(4, 5, *shape), torch.randint(10, (5, *shape)).float()
    one = NegativeBinomial(Given(), 2.0, event_dim=len(shape))(z)
    assert (one.batch_shape, one.event_shape) == ((4, 5), shape)
    assert one.sample().shape == one.mean.shape == z.shape
    plain = dist.NegativeBinomial(2.0, logits=z - math.log(2))
    expected = plain.log_prob(x).reshape(4, 5, -1).sum(-1)
    torch.testing.assert_close(one.log_prob(x), expected, rtol=1e-4, atol=1e-4)
