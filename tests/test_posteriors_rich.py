"""Mixtures and low-rank normals against torch and quadrature; each posterior in a VAE; refusals."""

from __future__ import annotations

import math

import numpy as np
import oracles
import pytest
import torch
from posterior_toys import (
    DOUBLE,
    GIVEN,
    NOISE,
    D,
    Z,
    assert_mean,
    exact_evidence,
    linear_gaussian,
    on_a_grid,
    posterior_gap,
    randomised,
    smooth,
)
from pyro.infer import Trace_ELBO
from torch import nn
from torch.distributions import Categorical, Independent, MixtureSameFamily, MultivariateNormal
from torch.distributions import Normal as TorchNormal

from pyrovae.inference import ImportanceSampling, fit, log_weights
from pyrovae.models import VAE
from pyrovae.models.distributions import DiagonalNormalMixture
from pyrovae.models.flows import AutoregressiveFlow, CouplingFlow, SplineFlow
from pyrovae.models.likelihoods import Gaussian
from pyrovae.models.nets import WithoutContext
from pyrovae.models.posteriors import (
    DiagonalNormal,
    FlowPosterior,
    LowRankNormal,
    MixturePosterior,
    PerDatum,
    SemiAmortised,
)

pytestmark = pytest.mark.usefixtures("one_thread")

H = 2


# --- refusals ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("make", "kind", "message"),
    [
        (
            lambda: FlowPosterior(GIVEN, nn.Linear(2, 2)),
            TypeError,
            "flow must be a Flow, but is Linear",
        ),
        (
            lambda: FlowPosterior(GIVEN, CouplingFlow(3, context_dim=2))(torch.zeros(5, 6)),
            ValueError,
            r"net must return 2 Z \+ H = 8 features .*, but returns 6",
        ),
        (
            lambda: FlowPosterior(GIVEN, CouplingFlow(3))(torch.zeros(5, 8)),
            ValueError,
            r"net must return 2 Z \+ H = 6 features .*, but returns 8",
        ),
        (lambda: MixturePosterior(GIVEN, 0), ValueError, "num_components must be at least 1"),
        (lambda: MixturePosterior(GIVEN, 1), ValueError, "num_components must be at least 2.* 1"),
        *(
            (
                lambda size=size: MixturePosterior(GIVEN, 2)(torch.zeros(5, size)),
                ValueError,
                rf"net must return num_components = 2 times 2 Z \+ 1 features, .* returns {size}",
            )
            for size in (2, 4, 7, 8)
        ),
        (lambda: LowRankNormal(GIVEN, 0), ValueError, "rank must be at least 1, but is 0"),
        *(
            (
                lambda size=size: LowRankNormal(GIVEN, 2)(torch.zeros(5, size)),
                ValueError,
                rf"net must return Z \(2 \+ rank\) features, rank being 2, but returns {size}",
            )
            for size in (0, 3, 6)
        ),
        *(
            (
                lambda index=index: PerDatum(5, 2)(torch.zeros(3, D), index),
                ValueError,
                rf"the last context must be the index of each datum, {found}",
            )
            for index, found in (
                (torch.tensor([0]), r"3 integers, but is torch.int64 of shape \(1,\)"),
                (torch.zeros(3), "3 integers, but is torch.float32"),
                (torch.ones(3).bool(), "3 integers, but is torch.bool"),
                (torch.tensor([0, -1, 2]), "from 0 to 4, but goes from -1 to 2"),
                (torch.tensor([0, 5, 2]), "from 0 to 4, but goes from 0 to 5"),
            )
        ),
        *(
            (
                lambda m=m, loc=loc, scale=scale: DiagonalNormalMixture(
                    torch.zeros(m), torch.zeros(loc), torch.ones(scale)
                ),
                ValueError,
                r"logits, loc and scale must be of shapes \(M,\), \(M, Z\) and \(M, Z\)",
            )
            for m, loc, scale in ((1, (3, 2), (3, 2)), (3, (3, 2), (1, 2)), ((), (2,), (2,)))
        ),
    ],
)
def test_bad_posteriors_are_refused(make, kind, message):
    with pytest.raises(kind, match=message):
        make()


# --- mixtures ------------------------------------------------------------------------------------

M = 3


def mixture_of(given, size):
    """The same in torch's own distributions: for each component mean, log scale and logit."""
    parts = given.unflatten(-1, (M, 2 * size + 1))
    components = TorchNormal(parts[..., :size], parts[..., size:-1].exp())
    return MixtureSameFamily(Categorical(logits=parts[..., -1]), Independent(components, 1))


def mixture_parameters(*leading, size, width=1.0, dtype=DOUBLE):
    """Modes that overlap, all of some width."""
    parts = torch.randn(*leading, M, 2 * size + 1, dtype=dtype)
    parts[..., :size] *= 1.5 * width
    parts[..., size:-1] = 0.3 * parts[..., size:-1] + math.log(width)
    return parts.flatten(-2)


@pytest.mark.parametrize("size", [1, 4])
@pytest.mark.parametrize("leading", [(5,), (4, 5)])
@pytest.mark.parametrize("dtype", [torch.float32, DOUBLE])
def test_a_mixture_is_torchs(size, leading, dtype):
    given = mixture_parameters(*leading, size=size, dtype=dtype)
    q, reference = MixturePosterior(GIVEN, M)(given), mixture_of(given, size)
    assert (q.batch_shape, q.event_shape) == (leading, (size,))
    z = 3 * torch.randn(2, *leading, size, dtype=dtype)
    torch.testing.assert_close(q.log_prob(z), reference.log_prob(z))
    torch.testing.assert_close(q.mean, reference.mean)
    torch.testing.assert_close(q.variance, reference.variance)


@pytest.mark.parametrize("reparameterised", [False, True])
def test_a_mixtures_draws_have_its_moments_and_masses(reparameterised):
    given = mixture_parameters(2, size=2)
    given[0, [4, 9, 14]] = torch.tensor([-2.0, 0.0, 1.0], dtype=DOUBLE)
    q, reference = MixturePosterior(GIVEN, M)(given), mixture_of(given, 2)
    draw = q.rsample if reparameterised else q.sample
    z = draw(torch.Size((50_000,)))
    assert_mean(z, reference.mean)
    assert_mean((z - reference.mean).square(), reference.variance)
    nodes, volume = on_a_grid(2, -9.0, 9.0, 181)
    both = reference.log_prob(nodes[:, None]).exp()
    for f in (smooth, lambda z: (-(z * z).sum(-1)).exp(), lambda z: z[..., 0] * z[..., 1]):
        assert_mean(f(z), (both * f(nodes)[:, None]).sum(0) * volume)


@pytest.mark.parametrize("leading", [(), (4,)], ids=["one draw", "particles"])
@pytest.mark.parametrize("width", [1.0, 0.01])
@pytest.mark.parametrize("size", [1, 2])
def test_a_mixtures_implicit_gradient_is_that_of_quadrature(size, width, leading):
    """Of means, scales and logits, each draw with parameters of its own to tell its share."""
    num_draws, given = 40_000, mixture_parameters(2, size=size, width=width)
    nodes, volume = on_a_grid(size, -12 * width, 12 * width, 961 if size == 1 else 241)
    exact_of = given.clone().requires_grad_()
    density = mixture_of(exact_of, size).log_prob(nodes[:, None]).exp()
    (density * smooth(nodes / width)[:, None]).sum().mul(volume).backward()
    apart = given.expand(num_draws, *given.shape).clone().requires_grad_()
    z = MixturePosterior(GIVEN, M)(apart).rsample(torch.Size(leading))
    (smooth(z / width).sum() / math.prod(leading)).backward()
    assert_mean(apart.grad, exact_of.grad)
    assert (exact_of.grad.abs() > 1e-4).all()
    assert apart.grad.any(0).all()


def test_a_mixtures_gradient_of_what_ties_data_together():
    """E f(z_1, z_2) of two data, in one draw of the batch, against a grid over both codes."""
    num_draws, given = 40_000, mixture_parameters(2, size=1)
    exact_of = given.clone().requires_grad_()
    nodes, volume = on_a_grid(2, -12.0, 12.0, 241)
    density = mixture_of(exact_of, 1).log_prob(nodes[..., None]).sum(-1).exp()

    def together(z):
        return (z[..., 0] * z[..., 1]).sin() + (z[..., 0] + 2 * z[..., 1]).cos()

    (density * together(nodes)).sum().mul(volume).backward()
    apart = given.expand(num_draws, *given.shape).clone().requires_grad_()
    together(MixturePosterior(GIVEN, M)(apart).rsample().squeeze(-1)).sum().backward()
    assert_mean(apart.grad, exact_of.grad)


def test_a_mixture_stays_reparameterised_in_a_plate():
    given = mixture_parameters(1, size=2).requires_grad_()
    q = MixturePosterior(GIVEN, M)(given).expand(torch.Size((3, 1)))
    z = q.rsample(torch.Size((2,)))
    assert z.shape == (2, 3, 1, 2)
    z.square().sum().backward()
    assert given.grad.all()


@pytest.mark.parametrize("distance", [1e2, 1e6, 1e15])
def test_a_mixtures_density_is_finite_far_out(distance):
    given = mixture_parameters(1, size=2, dtype=torch.float32)
    z = torch.tensor([[distance, -distance]])
    loc, log_scale, logits = (
        part.double().numpy() for part in given.view(M, 5).split([2, 2, 1], -1)
    )
    exact = oracles.mixture_logpdf(z.double().numpy(), logits[:, 0], loc, np.exp(log_scale))
    found = MixturePosterior(GIVEN, M)(given).log_prob(z).numpy()
    np.testing.assert_allclose(found, exact, rtol=1e-5)


# --- low rank ------------------------------------------------------------------------------------


def explicit(given, size):
    """Mean and covariance of what a network gives: the mean, log d, and V by rows."""
    loc, log_diag, rows = given[..., :size], given[..., size : 2 * size], given[..., 2 * size :]
    factor = rows.reshape(*given.shape[:-1], size, -1)
    return loc, factor @ factor.mT + torch.diag_embed(log_diag.exp())


@pytest.mark.parametrize(("size", "rank"), [(1, 1), (5, 2), (2, 3)])
@pytest.mark.parametrize("leading", [(4,), (3, 4)])
def test_a_low_rank_normal_is_torchs_with_its_covariance(size, rank, leading):
    given = torch.randn(*leading, size * (2 + rank), dtype=DOUBLE)
    q = LowRankNormal(GIVEN, rank)(given)
    loc, covariance = explicit(given, size)
    z = 2 * torch.randn(6, *leading, size, dtype=DOUBLE)
    torch.testing.assert_close(q.log_prob(z), MultivariateNormal(loc, covariance).log_prob(z))
    torch.testing.assert_close(q.covariance_matrix, covariance)
    torch.testing.assert_close(q.mean, loc)


def test_low_rank_draws_have_their_covariance_and_gradients():
    given = torch.randn(2, 3 * (2 + 2), dtype=DOUBLE, requires_grad=True)
    z = LowRankNormal(GIVEN, 2)(given).rsample(torch.Size((50_000,)))
    loc, covariance = explicit(given, 3)
    assert_mean(z, loc)
    outer = (z - loc)[..., None] * (z - loc)[..., None, :]
    assert_mean(outer.flatten(-2), covariance.flatten(-2))
    z.square().sum().backward()
    assert given.grad.all()


# --- in a VAE ------------------------------------------------------------------------------------


def linear(outputs):
    return randomised(nn.Linear(D, outputs), 0.1)


def flow_posterior(flow):
    posterior = FlowPosterior(linear(2 * Z + flow.context_dim), randomised(flow, 0.2))
    with torch.no_grad():
        posterior.net.bias[Z : 2 * Z] = 0.5  # wide, lest the weights have no variance
    return posterior


IN_A_VAE = {
    "IAF": lambda *_: flow_posterior(AutoregressiveFlow(Z, 2, (6,), H)),
    "coupling": lambda *_: flow_posterior(CouplingFlow(Z, 2, (6,))),
    "spline": lambda *_: flow_posterior(SplineFlow(Z, 1, (6,), num_bins=2)),
    "mixture": lambda *_: MixturePosterior(linear(M * (2 * Z + 1)), M),
    "low rank": lambda *_: LowRankNormal(linear(Z * 3), 1),
    "per datum": lambda *_: PerDatum(5, Z).eval(),
    "semi-amortised": lambda prior, likelihood: SemiAmortised(
        DiagonalNormal(linear(2 * Z)), prior, likelihood, num_steps=2
    ),
}


@pytest.mark.parametrize("name", IN_A_VAE)
def test_importance_sampling_finds_the_evidence(name):
    prior, likelihood, x = linear_gaussian()
    posterior = IN_A_VAE[name](prior, likelihood).double()
    vae = VAE(prior, posterior, likelihood)
    estimate = ImportanceSampling(20_000, seed=1)(vae.model, vae.guide, x)
    assert (
        (estimate.log_evidence - exact_evidence(likelihood, x)).abs() < 5 * estimate.stderr
    ).all()
    assert 1e-4 < estimate.stderr.max() < 0.1
    weights = log_weights(vae.model, vae.guide, x, num_particles=3)
    expected = posterior(x).log_prob(weights.values["z"])
    torch.testing.assert_close(weights.log_guide, expected.detach())


def test_per_datum_learns_each_datums_posterior_in_batches():
    prior, likelihood, x = linear_gaussian(num_data=6)
    posterior = PerDatum(6, Z).double()
    likelihood.net.requires_grad_(False)
    vae = VAE(prior, posterior, Gaussian(WithoutContext(likelihood.net), NOISE))
    before = posterior_gap(posterior.eval()(x), likelihood, x)
    options = {"batch_size": 2, "epochs": 80, "seed": 0, "progress": False}
    objective = Trace_ELBO(num_particles=10, vectorize_particles=True)
    for learning_rate in (0.05, 0.01):  # the noise of a gradient dies with the rate
        fit(
            vae.model,
            vae.guide,
            x,
            torch.arange(6),
            objective=objective,
            learning_rate=learning_rate,
            **options,
        )
    after = posterior_gap(posterior.eval()(x), likelihood, x)
    assert (after < 0.03).all()
    assert (before > 0.3).all()
