"""Likelihoods: densities against numpy where single precision is hard pressed; shapes; refusals."""

from __future__ import annotations

import math

import numpy as np
import oracles
import pyro.distributions as dist
import pytest
import torch
from torch import nn

from pyrovae.models import VAE
from pyrovae.models.likelihoods import Bernoulli, ContinuousBernoulli, Gaussian, LearnedScale
from pyrovae.models.posteriors import DiagonalNormal
from pyrovae.models.priors import StandardNormal

DTYPES = [torch.float32, torch.float64]


class Given(nn.Module):
    """A decoder whose output is its input."""

    def forward(self, z):
        return z


# --- Bernoulli -----------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("size", [1.0, 15.0, 30.0, 500.0])
@pytest.mark.parametrize("particles", [(), (3,)])
def test_bernoulli_errs_by_the_last_places_of_the_sum_of_logits(dtype, size, particles):
    """Both sums cancel where logits are large and right: what is left is ε Σ|l|, and no more."""
    torch.manual_seed(0)
    logits = (size * torch.randn(*particles, 20, 784, dtype=torch.float64)).to(dtype)
    likely = (logits.reshape(-1, 20, 784)[0] > 0).to(dtype)
    flipped = torch.where(torch.rand(20, 784) < 0.01, 1 - likely, likely)
    bound = 8 * torch.finfo(dtype).eps * (1 + logits.double().abs().sum(-1))
    for x in (likely, flipped):
        ours = Bernoulli(Given())(logits).log_prob(x).double()
        exact = oracles.bernoulli_logpmf(x.double().numpy(), logits.double().numpy()).sum(-1)
        assert ((ours - torch.as_tensor(exact)).abs() <= bound).all()


@pytest.mark.parametrize("dtype", DTYPES)
def test_bernoulli_gradient_is_data_minus_probability(dtype):
    logits = torch.tensor([-1000.0, -60, -25, -1, 0, 1, 25, 60, 1000], dtype=dtype)
    logits = logits.expand(2, 9).clone().requires_grad_()
    x = torch.zeros(2, 9, dtype=dtype)
    x[1] = 1
    Bernoulli(Given())(logits).log_prob(x).sum().backward()
    expected = x - logits.detach().sigmoid()
    torch.testing.assert_close(logits.grad, expected, rtol=0, atol=2 * torch.finfo(dtype).eps)


@pytest.mark.parametrize("kind", [Bernoulli, ContinuousBernoulli, Gaussian])
@pytest.mark.parametrize("shape", [(), (6,), (1, 2, 3)])
def test_a_datum_may_be_a_number_a_vector_or_an_image(kind, shape):
    torch.manual_seed(0)
    z, x = torch.randn(4, 5, *shape), torch.rand(5, *shape).round()
    one = kind(Given(), event_dim=len(shape))(z)
    assert (one.batch_shape, one.event_shape) == ((4, 5), shape)
    assert one.sample().shape == z.shape
    plain = {
        Bernoulli: dist.Bernoulli(logits=z),
        ContinuousBernoulli: dist.ContinuousBernoulli(logits=z),
        Gaussian: dist.Normal(z, 1.0),
    }[kind]
    expected = plain.log_prob(x).reshape(4, 5, -1).sum(-1)
    torch.testing.assert_close(one.log_prob(x), expected)
    torch.testing.assert_close(one.mean, plain.mean, rtol=1e-3, atol=1e-4)


# --- continuous Bernoulli ------------------------------------------------------------------------


def tilted(logits):
    return ContinuousBernoulli(Given(), event_dim=0)(logits)


LOGITS = [-1000.0, -100.0, -20.0, -3.0, -0.11, -0.099, -1e-3, -1e-7, 0.0]
LOGITS += [-each for each in LOGITS[:-1]]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("logit", LOGITS)
def test_continuous_bernoulli_is_normalised_at_every_logit(dtype, logit):
    """torch's own stops being so at 16 (36 in double): it integrates to 0.16 at 100."""
    log_normaliser, mean, variance = oracles.tilted_moments(logit)
    logits = torch.full((3,), logit, dtype=dtype, requires_grad=True)
    one = tilted(logits)
    x = torch.tensor([0.0, 0.25, 1.0], dtype=dtype)
    log_prob = one.log_prob(x)
    tolerance = 3e-6 if dtype == torch.float32 else 1e-11  # the quadrature's weights end there
    np.testing.assert_allclose(
        log_prob.detach(), x.numpy() * logit - log_normaliser, rtol=tolerance, atol=tolerance
    )
    (gradient,) = torch.autograd.grad(log_prob.sum(), logits)
    # around zero, terms of 1/l cancel down to a few l
    np.testing.assert_allclose(gradient, x.numpy() - mean, atol=tolerance)
    np.testing.assert_allclose(one.mean.detach(), [mean] * 3, atol=tolerance)
    np.testing.assert_allclose(
        one.variance.detach(), [variance] * 3, rtol=100 * tolerance, atol=tolerance
    )


@pytest.mark.parametrize("dtype", DTYPES)
def test_continuous_bernoulli_is_torchs_where_that_is_right(dtype):
    logits, x = torch.linspace(-10, 10, 101, dtype=dtype), torch.rand(101, dtype=dtype)
    ours, torchs = tilted(logits), dist.ContinuousBernoulli(logits=logits)
    torch.testing.assert_close(ours.log_prob(x), torchs.log_prob(x), rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(ours.mean, torchs.mean, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("logit", [-1000.0, -30.0, -2.0, -5e-4, 0.0, 5e-4, 2.0, 30.0, 1000.0])
def test_continuous_bernoulli_draws_are_inside_with_its_moments(dtype, logit):
    _, mean, variance = oracles.tilted_moments(logit)
    x = tilted(torch.full((100_000,), logit, dtype=dtype)).sample()
    assert x.dtype == dtype
    assert ((x >= 0) & (x <= 1)).all()
    assert abs(float(x.double().mean()) - mean) < 5 * math.sqrt(variance / len(x))
    squares = (x.double() - mean) ** 2 - variance
    assert abs(float(squares.mean() / (squares.std() / math.sqrt(len(x))))) < 5


def test_continuous_bernoulli_draws_carry_gradients(monkeypatch):
    """The quantile's slope in the logit is -(dF/dl) / (dF/dx), and a draw of 0 is no NaN."""
    uniform = torch.tensor([0.0, 0.2, 0.9], dtype=torch.float64)
    monkeypatch.setattr(torch, "rand", lambda *_, **__: uniform)
    for logit in (-40.0, -2.0, -2e-4, 0.0, 2e-4, 2.0, 40.0):
        logits = torch.full((3,), logit, dtype=torch.float64, requires_grad=True)
        x = tilted(logits).rsample()
        (slope,) = torch.autograd.grad(x.sum(), logits)
        step = 1e-5
        after, before = (tilted(logits.detach() + d).rsample() for d in (step, -step))
        np.testing.assert_allclose(slope, (after - before) / (2 * step), rtol=1e-3, atol=1e-7)


def test_continuous_bernoulli_spreads_and_refuses():
    one = tilted(torch.zeros(3))
    assert one.expand(torch.Size((2, 3))).sample().shape == (2, 3)
    assert one.sample(torch.Size((4,))).shape == (4, 3)
    with pytest.raises(ValueError, match="within the support"):
        one.log_prob(torch.full((3,), 1.5))


# --- Gaussian ------------------------------------------------------------------------------------


def test_a_learned_scale_is_learned():
    """Given residuals r, the likeliest σ is their root mean square: there its gradient is zero."""
    torch.manual_seed(0)
    r = torch.randn(1000, 3, dtype=torch.float64) * torch.tensor([0.5, 1.0, 2.0])
    for shape, best in (((), r.square().mean().sqrt()), ((3,), r.square().mean(0).sqrt())):
        scale = LearnedScale(shape).double()
        with torch.no_grad():
            scale.log_scale.copy_(best.log())
        Gaussian(Given(), scale)(torch.zeros_like(r)).log_prob(r).sum().backward()
        assert scale.log_scale.grad.abs().max() < 1e-9


def test_a_networks_scale_is_its_second_half():
    output = torch.tensor([[1.0, 2.0, math.log(3.0), math.log(4.0)]])
    one = Gaussian(Given(), scale=None)(output)
    torch.testing.assert_close(one.mean, torch.tensor([[1.0, 2.0]]))
    torch.testing.assert_close(one.stddev, torch.tensor([[3.0, 4.0]]))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("scale", [0.5, 2, LearnedScale(initial=0.5), None])
def test_gaussian_precision_follows_the_module(dtype, scale):
    likelihood = Gaussian(nn.Linear(2, 4), scale).to(dtype)
    assert likelihood(torch.zeros(3, 2, dtype=dtype)).sample().dtype == dtype


@pytest.mark.parametrize(
    ("make", "kind", "message"),
    [
        (
            lambda: Gaussian(Given(), scale=-0.5),
            ValueError,
            r"scale must be positive, but is -0\.5",
        ),
        (
            lambda: Gaussian(Given(), scale=math.nan),
            ValueError,
            "scale must be positive, but is nan",
        ),
        (
            lambda: Gaussian(Given(), scale=torch.tensor(0.5)),
            TypeError,
            "scale must be a number, a LearnedScale or None, but is a Tensor",
        ),
        (
            lambda: Gaussian(Given(), scale=None)(torch.zeros(5, 3)),
            ValueError,
            r"net must return 2 D features \(mean and log scale\), but returns 3",
        ),
        (lambda: LearnedScale(initial=0), ValueError, "initial must be positive, but is 0"),
    ],
)
def test_bad_likelihoods_are_refused(make, kind, message):
    with pytest.raises(kind, match=message):
        make()


@pytest.mark.parametrize("kind", [Bernoulli, ContinuousBernoulli, Gaussian])
@pytest.mark.parametrize("features", [1, 7])
def test_a_decoder_of_another_size_is_refused_where_it_would_broadcast(kind, features):
    vae = VAE(StandardNormal(2), DiagonalNormal(nn.Linear(4, 4)), kind(nn.Linear(2, features)))
    message = rf"x must hold data of shape \({features},\), as the likelihood does, .* \(4,\)"
    with pytest.raises(ValueError, match=message):
        vae.model(torch.zeros(5, 4))


def test_bernoulli_itself_refuses_to_broadcast():
    with pytest.raises(
        ValueError, match=r"value must end in the event shape \(1,\), but has shape \(5, 4\)"
    ):
        Bernoulli(Given())(torch.zeros(5, 1)).log_prob(torch.zeros(5, 4))
