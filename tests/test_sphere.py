"""VAEs whose codes lie on a sphere: their parts, training, evidence against quadrature, files."""

from __future__ import annotations

import math

import numpy as np
import oracles
import pyro
import pytest
import torch
from pyro.infer import Trace_ELBO, TraceMeanField_ELBO
from scipy.special import ive
from torch import nn
from torch.distributions import kl_divergence
from torch.nn.functional import normalize, softplus

from pyrovae.inference import (
    AnnealedImportanceSampling,
    DReG,
    ImportanceSampling,
    PriorMonteCarlo,
    ProgramError,
    fit,
    log_joint,
    log_weights,
    simulate,
)
from pyrovae.models import VAE, load, save
from pyrovae.models.likelihoods import Bernoulli, Gaussian
from pyrovae.models.nets import MLP
from pyrovae.models.posteriors import VonMisesFisherPosterior
from pyrovae.models.priors import UniformSphere, VampPrior

N, D = 5, 6

pytestmark = pytest.mark.usefixtures("one_thread")


def build(latent_dim=2, dtype=torch.float64, likelihood=Bernoulli):
    torch.manual_seed(1)
    q = VonMisesFisherPosterior(MLP(D, latent_dim + 1, hidden=(7,)))
    return VAE(UniformSphere(latent_dim), q, likelihood(MLP(latent_dim, D, hidden=(7,)))).to(dtype)


def data(count=N, dtype=torch.float64):
    torch.manual_seed(2)
    return torch.rand(count, D, dtype=dtype).round()


def on_the_circle(vae, x):
    """log p(x) by the trapezoid rule over 2000 angles, for data (N, D)."""
    turn = torch.arange(2000, dtype=x.dtype) * (2 * math.pi / 2000)
    z = torch.stack((turn.cos(), turn.sin()), -1)
    with torch.no_grad():
        logits = vae.likelihood.net(z).numpy()
    log_p = oracles.bernoulli_logpmf(x.numpy(), logits[:, None]).sum(-1)
    return oracles.logsumexp(log_p, 0) - math.log(2000)


# --- the parts -----------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_network_gives_direction_and_concentration(dtype):
    net = nn.Linear(D, 4).to(dtype)
    x = torch.randn(3, N, D, dtype=dtype)
    q = VonMisesFisherPosterior(net)(x)
    assert (q.batch_shape, q.event_shape) == ((3, N), (3,))
    torch.testing.assert_close(q.direction, normalize(net(x)[..., :3], dim=-1))
    torch.testing.assert_close(q.concentration, softplus(net(x)[..., 3]))
    assert q.sample().dtype == dtype


def test_a_concentration_that_vanishes_is_the_prior():
    """Softplus of -200 is zero in single precision: no error, and no divergence."""
    net = nn.Linear(D, 4)
    with torch.no_grad():
        net.bias[3] = -200.0
    q = VonMisesFisherPosterior(net)(torch.zeros(N, D))
    assert (q.concentration == 0).all()
    assert kl_divergence(q, UniformSphere(3)()).abs().max() < 1e-6
    q.log_prob(q.rsample()).sum().backward()
    assert net.weight.grad.isfinite().all()


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: UniformSphere(1), "latent_dim must be at least 2 for a sphere, but is 1"),
        (
            lambda: VonMisesFisherPosterior(nn.Linear(4, 2))(torch.zeros(5, 4)),
            r"net must return Z \+ 1 features .* with Z at least 2, but returns 2",
        ),
        (lambda: UniformSphere(3)().log_prob(torch.zeros(5, 2)), r"event shape \(3,\)"),
    ],
)
def test_what_is_no_sphere_is_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_posteriors_make_a_vamp_prior():
    q = VonMisesFisherPosterior(MLP(D, 4, hidden=(7,))).double()
    inputs = data(3)
    prior = VampPrior(q, inputs)()
    z = prior.sample(torch.Size((4,)))
    assert z.shape == (4, 3)
    each = torch.stack([q(row).log_prob(z) for row in inputs])
    torch.testing.assert_close(prior.log_prob(z), each.logsumexp(0) - math.log(3))


# --- the whole -----------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("latent_dim", [2, 5])
def test_shapes_precision_and_gradients(latent_dim, dtype):
    vae, x = build(latent_dim, dtype), data(dtype=dtype)
    with pyro.validation_enabled(True):
        loss = Trace_ELBO(num_particles=3, vectorize_particles=True, max_plate_nesting=1)
        loss.differentiable_loss(vae.model, vae.guide, x).backward()
    assert [n for n, p in vae.named_parameters() if p.grad is None or not p.grad.any()] == []
    assert (vae.sample(7).shape, vae.reconstruct(x).shape) == ((7, D), (N, D))
    draws = simulate(vae.model, x)
    assert (draws.latents["z"].shape, draws.latents["z"].dtype) == ((N, latent_dim), dtype)
    weights = log_weights(vae.model, vae.guide, x, num_particles=4)
    assert weights.values["z"].dtype == dtype
    assert weights.log_weight.isfinite().all()


def test_all_ways_of_drawing_particles_agree():
    vae, x = build(3), data()
    values = log_weights(vae.model, vae.guide, x, num_particles=3, particles="loop").values
    ways = ("plate", "tile", "loop")
    scores = [log_joint(vae.model, values, x, particles=way) for way in ways]
    for score in scores[1:]:
        torch.testing.assert_close(score, scores[0], rtol=1e-10, atol=1e-10)
    vae = build()
    exact = on_the_circle(vae, x)
    for way in ways:
        estimate = ImportanceSampling(300, particles=way)(vae.model, vae.guide, x)
        error = estimate.log_evidence - torch.as_tensor(exact)
        assert (error.abs() < 5 * estimate.stderr).all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("estimator", [ImportanceSampling(20_000), PriorMonteCarlo(20_000)])
def test_evidence_on_the_circle_is_the_quadratures(estimator, dtype):
    vae, x = build(dtype=dtype), data(dtype=dtype)
    fit(vae.model, vae.guide, x, epochs=100, learning_rate=0.05, seed=0, progress=False)
    estimate = estimator(vae.model, vae.guide, x)
    exact = on_the_circle(vae.double(), x.double())
    error = (estimate.log_evidence.double() - torch.as_tensor(exact)).abs()
    assert (error < 5 * estimate.stderr + 1e-6).all()
    assert estimate.stderr.max() < 0.02


def linear(latent_dim):
    """Decoder z + noise of scale 1/2: the posterior is vMF(x / |x|, 4 |x|), in closed form."""
    vae = VAE(
        UniformSphere(latent_dim),
        VonMisesFisherPosterior(MLP(latent_dim, latent_dim + 1, hidden=(20,))),
        Gaussian(nn.Identity(), scale=0.5),
    ).double()
    z = normalize(torch.randn(200, latent_dim, dtype=torch.float64), dim=-1)
    x = z + 0.5 * torch.randn_like(z)
    size, order = x.norm(dim=-1).numpy(), latent_dim / 2 - 1
    log_bessel = np.log(ive(order, 4 * size)) + 4 * size - order * np.log(2 * size)
    evidence = math.lgamma(order + 1) + log_bessel - 2 * (size**2 + 1)
    return vae, x, torch.as_tensor(evidence - latent_dim / 2 * math.log(math.pi / 2))


class Exact(nn.Module):
    """The vector x, and the number whose softplus is 4 |x|."""

    def forward(self, x):
        kappa = 4 * x.norm(dim=-1, keepdim=True)
        return torch.cat((x, kappa + torch.log(-torch.expm1(-kappa))), -1)


@pytest.mark.parametrize("latent_dim", [2, 3, 10])
def test_with_the_posterior_as_guide_every_weight_is_the_evidence(latent_dim):
    torch.manual_seed(0)
    vae, x, exact = linear(latent_dim)
    exact_vae = VAE(vae.prior, VonMisesFisherPosterior(Exact()), vae.likelihood)
    weights = log_weights(exact_vae.model, exact_vae.guide, x, num_particles=7)
    torch.testing.assert_close(weights.log_weight, exact.expand(7, -1), rtol=0, atol=1e-9)


@pytest.mark.parametrize("objective", [Trace_ELBO(), TraceMeanField_ELBO(), DReG(5)])
@pytest.mark.parametrize("latent_dim", [2, 5])
def test_training_finds_the_posterior(objective, latent_dim):
    torch.manual_seed(0)
    vae, x, exact = linear(latent_dim)
    gaps = []
    for epochs in (0, 250):
        if epochs:
            fit(
                *(vae.model, vae.guide, x),
                **{"objective": objective, "epochs": epochs, "learning_rate": 0.05},
                **{"batch_size": 50, "seed": 0, "progress": False},
            )
        log_weight = log_weights(vae.model, vae.guide, x, num_particles=100).log_weight
        gaps.append(float((exact - log_weight.mean(0)).mean()))
    assert gaps[0] > 0.5
    assert 0 < gaps[1] < 0.02 * latent_dim


def test_the_analytic_divergence_is_the_drawn_ones_mean():
    vae, x = build(3), data()
    q = vae.posterior(x)
    kl = kl_divergence(q, vae.prior().expand(q.batch_shape))
    z = q.sample(torch.Size((50_000,)))
    ratio = q.log_prob(z) - vae.prior().log_prob(z)
    assert ((ratio.mean(0) - kl) / (ratio.std(0) / len(z) ** 0.5)).abs().max() < 5


def test_saving_keeps_every_score(tmp_path):
    vae, x = build(4), data()
    save(vae, tmp_path / "vae")
    again = load(tmp_path / "vae")
    one, two = (
        ImportanceSampling(num_samples=5, seed=0)(each.model, each.guide, x)
        for each in (vae, again)
    )
    assert torch.equal(one.log_evidence, two.log_evidence)
    assert again.prior().event_shape == (4,)


def test_chains_refuse_a_sphere_by_its_name():
    """No bijection with the real numbers covers it; estimators that draw are unharmed."""
    vae, x = build(3), data()
    with pytest.raises(ProgramError, match=r"latent 'z' has the support Sphere, .* be moved"):
        AnnealedImportanceSampling(4, num_temperatures=5)(vae.model, vae.guide, x)
