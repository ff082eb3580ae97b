"""Priors: densities, draws and gradients; what a VampPrior shares; what is refused."""

from __future__ import annotations

import math

import numpy as np
import oracles
import pyro.distributions as dist
import pytest
import torch
from torch import nn

from pyrovae.models import VAE
from pyrovae.models.distributions import DiagonalNormalMixture
from pyrovae.models.likelihoods import Bernoulli
from pyrovae.models.nets import MLP, ConvDecoder, ConvEncoder
from pyrovae.models.posteriors import DiagonalNormal, FullRankNormal
from pyrovae.models.priors import GaussianMixture, StandardNormal, VampPrior

Z = 2


def vamp(kind=DiagonalNormal, num_pseudo=4, **options):
    torch.manual_seed(5)
    posterior = kind(MLP(3, 2 * Z if kind is DiagonalNormal else Z + 3, hidden=(8,)))
    return VampPrior(posterior, torch.rand(num_pseudo, 3), **options)


PRIORS = {
    "standard": lambda: StandardNormal(Z),
    "mixture": lambda: GaussianMixture(Z, num_components=4),
    "vamp": vamp,
    "full-rank vamp": lambda: vamp(FullRankNormal),
}


@pytest.fixture(params=PRIORS)
def prior(request):
    torch.manual_seed(0)
    return PRIORS[request.param]().double()


def test_densities_integrate_to_one(prior):
    side = torch.linspace(-9, 9, 361, dtype=torch.float64)
    with torch.no_grad():
        density = prior().log_prob(torch.cartesian_prod(side, side)).exp()
    assert float(density.sum() * (side[1] - side[0]) ** 2) == pytest.approx(1.0, abs=1e-8)


def test_draws_follow_the_density(prior):
    """E p'(z) / p(z) under p is 1 for any density p': here one that is narrower everywhere."""
    with torch.no_grad():
        z = prior().sample(torch.Size((100_000,)))
        other = oracles.gaussian_logpdf(z.numpy(), np.array([0.2, -0.1]), 0.05 * np.eye(Z))
        ratio = np.exp(other - prior().log_prob(z).numpy())
    stderr = ratio.std() / math.sqrt(len(ratio))
    assert abs(ratio.mean() - 1) < 5 * stderr
    assert stderr < 0.05


def test_moments_are_those_of_the_draws(prior):
    with torch.no_grad():
        one = prior()
        z = one.sample(torch.Size((100_000,)))
        error = (z - one.mean).mean(0) / (one.variance / len(z)).sqrt()
        squares = (z - one.mean) ** 2 - one.variance
    assert error.abs().max() < 5
    assert (squares.mean(0) / (squares.std(0) / math.sqrt(len(z)))).abs().max() < 5


def test_particles_and_data_are_leading_dimensions(prior):
    z = torch.randn(3, 5, Z, dtype=torch.float64)
    together = prior().log_prob(z)
    assert together.shape == (3, 5)
    one_by_one = torch.stack([prior().log_prob(row) for row in z.reshape(-1, Z)])
    torch.testing.assert_close(together.reshape(-1), one_by_one)


def test_precision_follows_the_module():
    prior = StandardNormal(Z)
    assert prior().sample().dtype == torch.float32
    assert prior.double()().sample().dtype == torch.float64


# --- the mixture ---------------------------------------------------------------------------------


def test_a_mixture_starts_with_unit_components_on_a_sphere():
    prior = GaussianMixture(9, num_components=6)
    torch.testing.assert_close(prior.loc.norm(dim=-1), torch.full((6,), 3.0))
    assert (prior.log_scale == 0).all()
    z = torch.randn(4, 9)
    exact = oracles.mixture_logpdf(
        z.numpy(), np.zeros(6), prior.loc.detach().numpy(), np.ones((6, 9))
    )
    np.testing.assert_allclose(prior().log_prob(z).detach(), exact, rtol=1e-5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("spread", [1.0, 100.0, 1000.0])
@pytest.mark.parametrize("width", [1.0, 0.1, 0.01])
def test_mixture_errs_by_no_more_than_its_bound(dtype, spread, width):
    r"""ε₆₄ Σ_j (|z_j - c_j| + |μ_mj - c_j|)² / σ_mj² from the product, ε |log p| from the dtype."""
    torch.manual_seed(7)
    loc = (spread * torch.randn(8, 5, dtype=torch.float64)).to(dtype)
    scale = (width * (0.5 + torch.rand(8, 5, dtype=torch.float64))).to(dtype)
    logits = torch.randn(8, dtype=torch.float64).to(dtype)
    z = (loc + 2 * scale * torch.randn(50, 8, 5, dtype=dtype)).reshape(-1, 5)
    ours = DiagonalNormalMixture(logits, loc, scale).log_prob(z)
    loc, scale, logits, z = (part.double().numpy() for part in (loc, scale, logits, z))
    exact = oracles.mixture_logpdf(z, logits, loc, scale)
    centre = loc.mean(0)
    terms = (abs(z - centre)[:, None] + abs(loc - centre)) ** 2 / scale**2
    bound = 4 * np.finfo(np.float64).eps * terms.sum(-1).max(-1) + 16 * torch.finfo(dtype).eps * (
        1 + abs(exact)
    )
    assert (abs(ours.double().numpy() - exact) <= bound).all()
    assert bound.max() < 1e-3  # even a hundred thousand widths from the centre


def test_mixture_variance_survives_a_narrow_component_far_away():
    one = DiagonalNormalMixture(torch.zeros(1), torch.full((1, 2), 1000.0), torch.full((1, 2), 0.1))
    torch.testing.assert_close(one.variance, torch.full((2,), 0.01))


def test_mixture_logits_need_not_be_normalised():
    z = torch.randn(5, 3)
    parts = torch.randn(4), torch.randn(4, 3), torch.rand(4, 3) + 0.1
    shifted = parts[0] + 50, *parts[1:]
    a, b = (DiagonalNormalMixture(*each).log_prob(z) for each in (parts, shifted))
    torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-4)


# --- the VampPrior -------------------------------------------------------------------------------


def test_one_pseudo_input_is_the_posterior_there():
    for kind in (DiagonalNormal, FullRankNormal):
        prior = vamp(kind, num_pseudo=1)
        z = torch.randn(6, Z)
        expected = prior.posterior(prior.pseudo_inputs).log_prob(z)
        torch.testing.assert_close(prior().log_prob(z), expected)


def test_the_posteriors_parameters_count_once():
    prior = vamp()
    vae = VAE(prior, prior.posterior, Bernoulli(nn.Linear(Z, 3)))
    mine = list(prior.posterior.parameters())
    names = [name for name, p in vae.named_parameters() if any(p is each for each in mine)]
    assert len(names) == len(mine)
    assert len(list(vae.parameters())) == len(mine) + 1 + 2  # pseudo-inputs; the decoder's


def test_pseudo_inputs_start_as_a_copy():
    x = torch.rand(4, 3)
    prior = VampPrior(DiagonalNormal(nn.Linear(3, 2 * Z)), x)
    with torch.no_grad():
        prior.pseudo_inputs.zero_()
    assert x.min() > 0


def test_bounds_hold_the_pseudo_inputs_inside():
    prior, inside = vamp(bounds=(0.0, 1.0)), vamp()
    with torch.no_grad():
        prior.pseudo_inputs[0] = torch.tensor([-3.0, 0.5, 7.0])
        inside.pseudo_inputs[0] = torch.tensor([0.0, 0.5, 1.0])
    z = torch.randn(5, Z)
    torch.testing.assert_close(prior().log_prob(z), inside().log_prob(z))


def test_outside_its_bounds_an_entry_gets_the_gradient_that_leads_back():
    prior, at_bounds = vamp(bounds=(0.0, 1.0)), vamp()
    with torch.no_grad():
        prior.pseudo_inputs.copy_(torch.tensor([-3.0, 0.5, 7.0]).expand_as(prior.pseudo_inputs))
        at_bounds.pseudo_inputs.copy_(prior.pseudo_inputs.clamp(0, 1))
    z = torch.randn(5, Z)
    for sign in (1, -1):  # one of the two leads back, whatever the density
        for each in (prior, at_bounds):
            each.zero_grad()
            (sign * each().log_prob(z).sum()).backward()
        true = at_bounds.pseudo_inputs.grad
        below, between, above = true.unbind(-1)
        expected = torch.stack([below.clamp(max=0), between, above.clamp(min=0)], -1)
        assert expected.count_nonzero() < true.count_nonzero()
        torch.testing.assert_close(prior.pseudo_inputs.grad, expected)


def test_pseudo_pixels_that_start_black_and_white_are_not_stuck_outside():
    torch.manual_seed(0)
    wanted = 0.1 + 0.8 * torch.rand(6, 3)
    prior = VampPrior(DiagonalNormal(nn.Linear(3, 2 * 3)), (wanted > 0.5).float(), (0.0, 1.0))
    with torch.no_grad():
        prior.pseudo_inputs.add_(torch.where(wanted > 0.5, 0.3, -0.3))  # as if by a first step
        loc = prior.posterior(wanted).mean
    optimizer = torch.optim.Adam([prior.pseudo_inputs], lr=0.02)
    for _ in range(500):
        optimizer.zero_grad()
        (prior().loc - loc).square().sum().backward()
        optimizer.step()
    torch.testing.assert_close(prior.pseudo_inputs.detach(), wanted, atol=2e-2, rtol=0)


def test_pseudo_inputs_may_be_images():
    shape = (1, 6, 6)
    posterior = DiagonalNormal(ConvEncoder(shape, 2 * Z, channels=(2, 3)))
    prior = VampPrior(posterior, torch.rand(5, *shape))
    assert prior().sample(torch.Size((4,))).shape == (4, Z)
    vae = VAE(prior, posterior, Bernoulli(ConvDecoder(Z, shape, channels=(2, 3)), event_dim=3))
    assert vae.sample(3).shape == (3, *shape)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: StandardNormal(0), "latent_dim must be at least 1, but is 0"),
        (lambda: GaussianMixture(-1), "latent_dim must be at least 1, but is -1"),
        (lambda: GaussianMixture(2, 0), "num_components must be at least 1, but is 0"),
        (
            lambda: VampPrior(nn.Linear(3, 4), torch.zeros(0, 3)),
            r"pseudo_inputs must be .* of shape \(M, ...\), none of it 0, .* of shape \(0, 3\)",
        ),
        (
            lambda: VampPrior(nn.Linear(3, 4), torch.zeros(5, 3, dtype=torch.long)),
            "pseudo_inputs must be floating .* but are torch.int64",
        ),
        (
            lambda: VampPrior(nn.Linear(3, 4), torch.zeros(5, 3), bounds=(1.0, 0.0)),
            r"bounds must be \(low, high\) with low < high, but are \(1.0, 0.0\)",
        ),
    ],
)
def test_bad_priors_are_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_codes_of_another_dimension_are_refused_where_they_would_broadcast():
    for prior in (StandardNormal(1), GaussianMixture(1, 3), StandardNormal(5)):
        with pytest.raises(ValueError, match=r"event.shape"):
            prior().log_prob(torch.zeros(4, 1 if prior.latent_dim == 5 else 5))


def test_mixture_gradient_is_that_of_the_naive_formula():
    torch.manual_seed(4)
    parts = [torch.randn(5, dtype=torch.float64), torch.randn(5, 3, dtype=torch.float64)]
    parts.append(torch.rand(5, 3, dtype=torch.float64) + 0.5)
    parts = [part.requires_grad_() for part in parts]
    z = torch.randn(7, 2, 3, dtype=torch.float64, requires_grad=True)
    naive = dist.MixtureSameFamily(
        dist.Categorical(logits=parts[0]), dist.Normal(parts[1], parts[2]).to_event(1)
    )
    ours = torch.autograd.grad(DiagonalNormalMixture(*parts).log_prob(z).sum(), [*parts, z])
    theirs = torch.autograd.grad(naive.log_prob(z).sum(), [*parts, z])
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a, b)


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
