"""Counts out of a total, and what is left of log-gamma functions: sums, scipy and limits."""

from __future__ import annotations

import math

import numpy as np
import pyro.distributions as dist
import pytest
import torch
from scipy import special, stats
from torch import nn

from pyrovae.models.distributions import BetaBinomialByMean
from pyrovae.models.distributions.stirling import stirling
from pyrovae.models.likelihoods import BetaBinomial

DTYPES = [torch.float32, torch.float64]


class Given(nn.Module):
    """A decoder whose output is its input."""

    def forward(self, z):
        return z


def beta_binomial_logpmf(x, total, logit, concentration):
    """log P(x) likewise; the factors of each gamma function relative to their first."""
    m, rest = special.expit(logit), special.expit(-logit)
    j, k, n = (np.arange(count, dtype=float) for count in (x, total - x, total))
    ways = np.log(total - j) - np.log1p(j)
    up, down = np.log1p(j / concentration / m), np.log1p(k / concentration / rest)
    ends = x * special.log_expit(logit) + (total - x) * special.log_expit(-logit)
    factors = np.concatenate([ways, up, down, -np.log1p(n / concentration)])
    return float(factors.sum(dtype=np.longdouble)) + ends


# --- what remains of a log-gamma function --------------------------------------------------------


@pytest.mark.parametrize("dtype", DTYPES)
def test_stirling_is_what_the_large_terms_leave(dtype):
    a = torch.cat([torch.tensor([0.0]), torch.logspace(-6, 3, 400)]).to(dtype)
    value = a.double().numpy()
    exact = special.gammaln(value + 1) - special.xlogy(value, value) + value
    tolerance = 5e-6 if dtype == torch.float32 else 2e-12
    np.testing.assert_allclose(stirling(a), exact, rtol=0, atol=tolerance)
    large = torch.tensor([1e5, 1e12, 1e30], dtype=dtype)
    expected = 0.5 * np.log(2 * np.pi * large.double().numpy()) + 1 / 12 / large.double().numpy()
    tolerance = 1e-6 if dtype == torch.float32 else 1e-14
    np.testing.assert_allclose(stirling(large), expected, rtol=tolerance)


def test_stirlings_slope_is_finite_at_zero_and_right_elsewhere():
    a = torch.tensor([0.0, 1e-30, 0.3, 9.99, 10.0, 1e4], dtype=torch.float64, requires_grad=True)
    (slope,) = torch.autograd.grad(stirling(a).sum(), a)
    assert slope.isfinite().all()
    value = a.detach().numpy()[2:]
    np.testing.assert_allclose(
        slope[2:], special.digamma(value + 1) - np.log(value), rtol=1e-9, atol=1e-14
    )


# --- beta-binomial -------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("total", [1, 10, 100_000])
@pytest.mark.parametrize("concentration", [1e-3, 0.1, 1.0, 10.0, 1e3, 1e8, 1e30])
def test_beta_binomial_errs_by_last_places_of_the_residual(dtype, total, concentration):
    concentration = torch.tensor(concentration, dtype=dtype)
    counts = sorted({0, total // 2, min(total, 9), total - 1, total})
    for logit in (-20.0, -3.0, 0.0, 11.0):
        one = BetaBinomialByMean(torch.tensor(logit, dtype=dtype), concentration, total)
        for x, found in zip(counts, one.log_prob(torch.tensor(counts)).tolist(), strict=True):
            exact = beta_binomial_logpmf(x, total, logit, float(concentration))
            size = 1 + abs(x - total * special.expit(logit)) + abs(exact)
            bound = 30 * torch.finfo(dtype).eps * size + 1e-14 * total
            assert abs(found - exact) < bound


@pytest.mark.parametrize("total", [1, 12, 200])
@pytest.mark.parametrize("concentration", [0.05, 2.0, 1e3])
def test_beta_binomial_is_scipys_and_adds_up(total, concentration):
    logits = torch.tensor([-3.0, 0.0, 1.5], dtype=torch.float64)
    likelihood = BetaBinomial(Given(), total, concentration, event_dim=0)
    x = torch.arange(total + 1)[:, None]
    log_p = likelihood(logits).log_prob(x)
    a, b = (concentration * special.expit(sign * logits.numpy()) for sign in (1, -1))
    exact = stats.betabinom.logpmf(x.numpy(), total, a, b)
    np.testing.assert_allclose(log_p, exact, rtol=1e-9, atol=1e-10)
    np.testing.assert_allclose(log_p.exp().sum(0), 1.0, rtol=1e-12)


@pytest.mark.parametrize("dtype", DTYPES)
def test_beta_binomial_becomes_binomial(dtype):
    logits, x = torch.tensor([-6.0, 0.0, 3.0], dtype=dtype), torch.tensor([200, 49_000, 95_000])
    one = BetaBinomial(Given(), 100_000, math.inf, event_dim=0)(logits)
    exact = stats.binom.logpmf(x.numpy(), 100_000, special.expit(logits.double().numpy()))
    tolerance = 2e-5 if dtype == torch.float32 else 1e-10
    np.testing.assert_allclose(one.log_prob(x), exact, rtol=tolerance)


def test_beta_binomial_gradients_are_right_and_finite():
    x = torch.tensor([0, 1, 5, 12])[:, None]
    logits = torch.tensor([-3.0, 0.4, 2.0], dtype=torch.float64, requires_grad=True)
    log_c = torch.tensor([-2.0, 0.3, 4.0], dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(
        lambda logits, log_c: BetaBinomialByMean(logits, log_c.exp(), 12).log_prob(x),
        (logits, log_c),
    )
    for dtype in DTYPES:
        for c in (1e-30, 1.0, math.inf):
            logits = torch.tensor([-1e4, -200, -90, 0, 90, 200, 1e4], dtype=dtype)
            given = torch.full((7,), c, dtype=dtype, requires_grad=True)
            log_p = BetaBinomialByMean(logits.requires_grad_(), given, 12).log_prob(x)
            assert log_p.isfinite().all()
            slopes = torch.autograd.grad(log_p.sum(), (logits, given))
            assert all(slope.isfinite().all() for slope in slopes)


@pytest.mark.parametrize("dtype", DTYPES)
def test_beta_binomial_draws_have_its_probabilities(dtype):
    output = torch.tensor([0.4, math.log(3.0)], dtype=dtype)
    one = BetaBinomial(Given(), 5, None)(output)
    x = one.sample(torch.Size((100_000,)))
    assert x.dtype == dtype
    p = one.log_prob(torch.arange(6)[:, None]).double().exp()
    found = torch.bincount(x[:, 0].long(), minlength=6) / len(x)
    assert ((found - p).abs() < 5 * (p * (1 - p) / len(x)).sqrt()).all()
    number = torch.arange(6.0).double()
    assert float(one.mean) == pytest.approx(float(p @ number), rel=1e-5)
    spread = float(p @ (number - one.mean.double()) ** 2)
    assert float(one.variance) == pytest.approx(spread, rel=1e-5)
    assert one.expand(torch.Size((3,))).sample().shape == (3, 1)
    with pytest.raises(ValueError, match="within the support"):
        one.log_prob(torch.tensor([6]))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: BetaBinomial(Given(), 0), "total_count must be at least 1, but is 0"),
        (lambda: BetaBinomial(Given(), 3, 0), "concentration must be positive, but is 0"),
        (
            lambda: BetaBinomial(Given(), 3, None)(torch.zeros(5, 3)),
            r"net must return 2 D features \(logit and log concentration\), but returns 3",
        ),
    ],
)
def test_bad_likelihoods_are_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()


@pytest.mark.parametrize("shape", [(), (6,), (1, 2, 3)])
def test_a_datum_may_be_a_number_a_vector_or_an_image(shape):
    torch.manual_seed(0)
    z, x = torch.randn(4, 5, *shape), torch.randint(10, (5, *shape)).float()
    one = BetaBinomial(Given(), 9, 2.0, event_dim=len(shape))(z)
    assert (one.batch_shape, one.event_shape) == ((4, 5), shape)
    assert one.sample().shape == one.mean.shape == z.shape
    plain = dist.BetaBinomial(2 * z.sigmoid(), 2 * (-z).sigmoid(), 9)
    expected = plain.log_prob(x).reshape(4, 5, -1).sum(-1)
    torch.testing.assert_close(one.log_prob(x), expected, rtol=1e-4, atol=1e-4)
