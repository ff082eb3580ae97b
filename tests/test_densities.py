"""Priors, posteriors and likelihoods against independent densities, in easy cases and hard ones."""

from __future__ import annotations

import numpy as np
import oracles
import pyro.distributions as dist
import pytest
import torch
from torch import nn

from pyrovae.models.independent import BernoulliVector, NormalVector
from pyrovae.models.likelihoods import Bernoulli, ContinuousBernoulli, Gaussian, LearnedScale
from pyrovae.models.mixtures import DiagonalNormalMixture
from pyrovae.models.nets import MLP
from pyrovae.models.posteriors import DiagonalNormal, FullRankNormal
from pyrovae.models.priors import GaussianMixture, VampPrior


def mixture(num_components=5, dim=3, spread=1.0, width=1.0, dtype=torch.float64):
    torch.manual_seed(4)
    logits = torch.randn(num_components, dtype=dtype)
    loc = spread * torch.randn(num_components, dim, dtype=dtype)
    scale = width * torch.rand(num_components, dim, dtype=dtype).add(0.5)
    return logits, loc, scale


def mixture_oracle(logits, loc, scale, z):
    weight = logits.double() - logits.double().logsumexp(-1)
    parts = oracles.normal_logpdf(
        z.double().numpy()[..., None, :], loc.double().numpy(), scale.double().numpy()
    ).sum(-1)
    return oracles.logsumexp(parts + weight.numpy(), -1)


@pytest.mark.parametrize(
    ("dtype", "spread", "width", "tolerance"),
    [
        (torch.float64, 1.0, 1.0, 1e-12),
        (torch.float32, 1.0, 1.0, 1e-6),
        # narrow and far away: terms of 1e8 cancel to a few nats, in single precision all of them
        (torch.float32, 100.0, 0.01, 1e-6),
        (torch.float64, 1000.0, 0.001, 1e-4),
    ],
)
def test_mixture_density(dtype, spread, width, tolerance):
    logits, loc, scale = mixture(spread=spread, width=width, dtype=dtype)
    z = loc[[0, 2, 4]] + 2 * scale[[0, 2, 4]]  # near components, where the density is not tiny
    ours = DiagonalNormalMixture(logits, loc, scale).log_prob(z)
    np.testing.assert_allclose(ours, mixture_oracle(logits, loc, scale, z), rtol=tolerance * 10)
    assert ours.dtype == dtype


def test_mixture_gradient_is_that_of_the_naive_formula():
    parts = [p.requires_grad_() for p in mixture()]
    z = torch.randn(7, 2, 3, dtype=torch.float64, requires_grad=True)
    naive = dist.MixtureSameFamily(
        dist.Categorical(logits=parts[0]), dist.Normal(parts[1], parts[2]).to_event(1)
    )
    ours = torch.autograd.grad(DiagonalNormalMixture(*parts).log_prob(z).sum(), [*parts, z])
    theirs = torch.autograd.grad(naive.log_prob(z).sum(), [*parts, z])
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a, b)


def test_mixture_draws_have_its_moments():
    one = DiagonalNormalMixture(*mixture())
    z = one.sample(torch.Size((200_000,)))
    stderr = (one.variance / len(z)).sqrt()
    assert ((z.mean(0) - one.mean) / stderr).abs().max() < 5
    assert (z.var(0) / one.variance - 1).abs().max() < 0.05
    assert one.expand(torch.Size((2, 3))).sample().shape == (2, 3, 3)


def test_gaussian_mixture_prior_integrates_to_one():
    torch.manual_seed(0)
    prior = GaussianMixture(2, num_components=4).double()
    grid = torch.linspace(-9, 9, 400, dtype=torch.float64)
    points = torch.cartesian_prod(grid, grid)
    with torch.no_grad():
        total = prior().log_prob(points).exp().sum() * (grid[1] - grid[0]) ** 2
    assert float(total) == pytest.approx(1.0, abs=1e-8)


@pytest.mark.parametrize("kind", [DiagonalNormal, FullRankNormal])
@pytest.mark.parametrize("bounds", [None, (0.0, 1.0)])
def test_vamp_prior_is_the_mean_of_posteriors(kind, bounds):
    torch.manual_seed(0)
    posterior = kind(MLP(4, 4 if kind is DiagonalNormal else 5)).double()
    inputs = 3 * torch.randn(6, 4, dtype=torch.float64)
    z = torch.randn(5, 2, dtype=torch.float64)
    seen = inputs if bounds is None else inputs.clamp(*bounds)
    expected = torch.stack([posterior(row).log_prob(z) for row in seen]).logsumexp(0) - np.log(6)
    prior = VampPrior(posterior, inputs, bounds)
    torch.testing.assert_close(prior().log_prob(z), expected)


def test_full_rank_normal_is_the_oracles():
    torch.manual_seed(0)
    posterior = FullRankNormal(nn.Linear(3, 2 + 3)).double()
    q = posterior(torch.randn(4, 3, dtype=torch.float64))
    z = torch.randn(4, 2, dtype=torch.float64)
    for n in range(4):
        exact = oracles.gaussian_logpdf(
            z[n].numpy(), q.mean[n].detach().numpy(), q.covariance_matrix[n].detach().numpy()
        )
        assert float(q.log_prob(z)[n].detach()) == pytest.approx(float(exact[0]), rel=1e-12)
    assert q.scale_tril[0, 0, 1] == 0


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("shape", [(3,), (7, 3), (2, 7, 3)])
def test_vectors_are_independent_components(dtype, shape):
    torch.manual_seed(0)
    plain = dist.Normal(torch.randn(7, 3, dtype=dtype), torch.rand(7, 3, dtype=dtype) + 0.1)
    z = torch.randn(*shape, dtype=dtype)
    for one in (NormalVector(plain, 1), NormalVector(plain, 1).expand(torch.Size((2, 7)))):
        torch.testing.assert_close(one.log_prob(z), one.base_dist.log_prob(z).sum(-1))
    shared = NormalVector(dist.Normal(torch.zeros(3, dtype=dtype), 2.0), 1)  # one scale for all
    torch.testing.assert_close(shared.log_prob(z), shared.base_dist.log_prob(z).sum(-1))
    logits = 30 * torch.randn(7, 3, dtype=dtype)
    x = torch.rand(*shape, dtype=dtype).round()
    ours = BernoulliVector(dist.Bernoulli(logits=logits), 1)
    torch.testing.assert_close(ours.log_prob(x), ours.base_dist.log_prob(x).sum(-1))
    spread = ours.expand(torch.Size((2, 7)))
    torch.testing.assert_close(spread.log_prob(x), spread.base_dist.log_prob(x).sum(-1))


def test_bernoulli_of_huge_logits_stays_finite_with_the_right_gradient():
    logits = torch.tensor([-200.0, -20.0, 0.0, 20.0, 200.0], requires_grad=True)
    x = torch.tensor([0.0, 1.0, 1.0, 0.0, 0.0])
    log_prob = BernoulliVector(dist.Bernoulli(logits=logits), 1).log_prob(x)
    assert float(log_prob.detach()) == pytest.approx(-20 - np.log(2) - 20 - 200, rel=1e-6)
    (gradient,) = torch.autograd.grad(log_prob, logits)
    torch.testing.assert_close(gradient, x - logits.detach().sigmoid())


def test_bernoulli_images_sum_over_all_their_dimensions():
    net = nn.Sequential(nn.Linear(2, 12), nn.Unflatten(-1, (1, 3, 4)))
    x, z = torch.rand(5, 1, 3, 4).round(), torch.randn(6, 5, 2)
    expected = dist.Bernoulli(logits=net(z)).log_prob(x).sum((-1, -2, -3))
    torch.testing.assert_close(Bernoulli(net, event_dim=3)(z).log_prob(x), expected)


def test_continuous_bernoulli_integrates_to_one():
    likelihood = ContinuousBernoulli(nn.Linear(1, 1)).double()
    with torch.no_grad():
        likelihood.net.weight.fill_(1.0)
        likelihood.net.bias.zero_()
    grid = torch.linspace(0, 1, 20_001, dtype=torch.float64)[:, None]
    for logit in (-8.0, -0.5, 0.0, 1e-4, 3.0):
        density = likelihood(torch.tensor([[logit]], dtype=torch.float64)).log_prob(grid).exp()
        assert float(torch.trapezoid(density, grid[:, 0])) == pytest.approx(1.0, abs=1e-4)


@pytest.mark.parametrize(
    ("scale", "features", "expected"),
    [
        (0.3, 4, torch.full((4,), 0.3)),
        (LearnedScale(initial=0.3), 4, torch.full((4,), 0.3)),
        (LearnedScale((4,), initial=0.3), 4, torch.full((4,), 0.3)),
        (None, 8, None),
    ],
)
def test_gaussian_scales(scale, features, expected):
    torch.manual_seed(0)
    net = nn.Linear(2, features)
    z, x = torch.randn(3, 5, 2), torch.randn(5, 4)
    out = net(z)
    loc = out[..., :4]
    sigma = out[..., 4:].exp() if expected is None else expected
    exact = oracles.normal_logpdf(x.numpy(), loc.detach().numpy(), sigma.detach().numpy()).sum(-1)
    ours = Gaussian(net, scale)(z).log_prob(x)
    np.testing.assert_allclose(ours.detach(), exact, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Gaussian(nn.Linear(2, 2), scale=0.0), r"scale must be positive, but is 0\.0"),
        (lambda: LearnedScale(initial=-1.0), r"initial must be positive, but is -1\.0"),
        (
            lambda: DiagonalNormal(nn.Linear(3, 5))(torch.zeros(2, 3)),
            "net must return 2 Z features .* but returns 5",
        ),
        (
            lambda: FullRankNormal(nn.Linear(3, 6))(torch.zeros(2, 3)),
            r"net must return Z \+ Z .* but returns 6",
        ),
        (
            lambda: VampPrior(DiagonalNormal(MLP(3, 4)), torch.zeros(3)),
            r"pseudo_inputs must be .* of shape \(3,\)",
        ),
    ],
)
def test_bad_parts_are_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()
