"""The contract of a VAE, over every prior, posterior and likelihood from one literal list."""

from __future__ import annotations

import itertools
import math

import numpy as np
import oracles
import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from pyro.infer import SVI, Trace_ELBO, TraceMeanField_ELBO
from torch import nn

from pyrovae.inference import ImportanceSampling, log_joint, log_weights, simulate
from pyrovae.models import VAE, LinearGaussianVAE, load, save
from pyrovae.models.likelihoods import Bernoulli, ContinuousBernoulli, Gaussian, LearnedScale
from pyrovae.models.nets import MLP, ConvDecoder, ConvEncoder, GatedMLP, WithoutContext
from pyrovae.models.posteriors import DiagonalNormal, FullRankNormal, PerDatum
from pyrovae.models.priors import GaussianMixture, StandardNormal, VampPrior

N, D, Z = 5, 6, 2

POSTERIORS = {
    "diagonal": lambda: DiagonalNormal(MLP(D, 2 * Z, hidden=(7,))),
    "gated": lambda: DiagonalNormal(GatedMLP(D, 2 * Z, hidden=(7, 7))),
    "full-rank": lambda: FullRankNormal(MLP(D, Z + 3, hidden=(7,))),
    "per-datum": lambda: PerDatum(N, Z),
}
PRIORS = {
    "standard": lambda posterior: StandardNormal(Z),
    "mixture": lambda posterior: GaussianMixture(Z, 3),
    "vamp": lambda posterior: VampPrior(posterior, torch.rand(4, D)),
    "bounded-vamp": lambda posterior: VampPrior(posterior, torch.rand(4, D), bounds=(0.0, 1.0)),
}
LIKELIHOODS = {
    "bernoulli": lambda: Bernoulli(MLP(Z, D, hidden=(7,))),
    "continuous-bernoulli": lambda: ContinuousBernoulli(MLP(Z, D, hidden=(7,))),
    "gaussian-fixed": lambda: Gaussian(MLP(Z, D, hidden=(7,)), scale=0.5),
    "gaussian-learned": lambda: Gaussian(MLP(Z, D, hidden=(7,)), LearnedScale(initial=0.5)),
    "gaussian-per-pixel": lambda: Gaussian(MLP(Z, D, hidden=(7,)), LearnedScale((D,))),
    "gaussian-net": lambda: Gaussian(MLP(Z, 2 * D, hidden=(7,)), scale=None),
}
COMBINATIONS = [
    names
    for names in itertools.product(PRIORS, POSTERIORS, LIKELIHOODS)
    if not (names[1] == "per-datum" and "vamp" in names[0])  # pseudo-inputs are no data of its own
]


def build(prior, posterior, likelihood):
    torch.manual_seed(1)
    q = POSTERIORS[posterior]()
    return VAE(PRIORS[prior](q), q, LIKELIHOODS[likelihood]())


def data(likelihood, dtype=torch.float32):
    x = torch.rand(N, D, generator=torch.Generator().manual_seed(2), dtype=dtype)
    return x.round() if likelihood == "bernoulli" else x


@pytest.fixture(params=COMBINATIONS, ids="/".join)
def combination(request):
    return request.param


def test_shapes_and_draws(combination):
    vae, x = build(*combination), data(combination[2])
    assert vae.sample(7).shape == (7, D)
    assert vae.reconstruct(x).shape == (N, D)
    draws = simulate(vae.model, x)
    assert draws.latents["z"].shape == (N, Z)
    score = log_joint(vae.model, {"z": draws.latents["z"][None]}, draws.observations["x"])
    assert score.shape == (1, N)
    assert score.isfinite().all()


def test_gradients_reach_every_parameter(combination):
    vae, x = build(*combination), data(combination[2])
    Trace_ELBO().differentiable_loss(vae.model, vae.guide, x).backward()
    assert [n for n, p in vae.named_parameters() if p.grad is None or not p.grad.any()] == []


def test_all_ways_of_drawing_particles_agree(combination):
    vae, x = build(*combination).double(), data(combination[2], torch.float64)
    ways = ("plate", "loop") if combination[1] == "per-datum" else ("plate", "tile", "loop")
    values = log_weights(vae.model, vae.guide, x, num_particles=3, particles="loop").values
    scores = [log_joint(vae.model, values, x, particles=way) for way in ways]
    for score in scores[1:]:
        torch.testing.assert_close(score, scores[0], rtol=1e-10, atol=1e-10)


def test_saving_keeps_every_score(combination, tmp_path):
    vae, x = build(*combination), data(combination[2])
    save(vae, tmp_path / "vae")
    again = load(tmp_path / "vae")
    one, two = (
        ImportanceSampling(num_samples=5)(each.model, each.guide, x) for each in (vae, again)
    )
    assert torch.equal(one.log_evidence, two.log_evidence)
    assert again.name != vae.name
    if "vamp" in combination[0]:
        assert again.prior.posterior is again.posterior


def test_double_precision_follows_the_module(combination):
    vae, x = build(*combination).double(), data(combination[2], torch.float64)
    weights = log_weights(vae.model, vae.guide, x, num_particles=2)
    assert weights.values["z"].dtype == torch.float64


@pytest.mark.gpu
def test_the_device_follows_the_module(combination):
    vae, x = build(*combination).cuda(), data(combination[2]).cuda()
    assert log_weights(vae.model, vae.guide, x, num_particles=2).log_weight.is_cuda
    assert vae.sample(3).is_cuda


# --- structure -----------------------------------------------------------------------------------


def test_a_prior_of_ones_own_takes_a_few_lines():
    class Laplace(nn.Module):
        def forward(self):
            return dist.Laplace(torch.zeros(Z), 1.0).to_event(1)

    q = POSTERIORS["diagonal"]()
    vae = VAE(Laplace(), q, LIKELIHOODS["bernoulli"]())
    estimate = ImportanceSampling(num_samples=10)(vae.model, vae.guide, data("bernoulli"))
    assert estimate.log_evidence.isfinite().all()


def test_context_reaches_posterior_and_likelihood():
    torch.manual_seed(0)
    q = DiagonalNormal(MLP(D + 3, 2 * Z))
    vae = VAE(StandardNormal(Z), q, Bernoulli(MLP(Z + 3, D)))
    x, label = data("bernoulli"), torch.eye(3)[[0, 1, 2, 0, 1]]
    weights = log_weights(vae.model, vae.guide, x, label, num_particles=4)
    assert weights.log_weight.shape == (4, N)
    other = log_joint(vae.model, weights.values, x, label.roll(1, 0))
    assert (other - weights.log_joint).abs().min() > 0
    assert vae.sample(3, label[:3]).shape == (3, D)


def test_per_datum_posteriors_train_in_batches_with_an_index():
    q = PerDatum(N, Z)
    vae = VAE(StandardNormal(Z), q, Bernoulli(WithoutContext(MLP(Z, D))))
    x, index = data("bernoulli"), torch.arange(N)
    rows = torch.tensor([4, 1])
    Trace_ELBO().differentiable_loss(vae.model, vae.guide, x[rows], index[rows]).backward()
    assert (q.loc.grad.abs().sum(1) > 0).tolist() == [False, True, False, False, True]
    with pytest.raises(ValueError, match=r"x must hold all 5 data .* but holds 2"):
        q(x[rows])


def test_images_keep_their_shape():
    shape = (1, 7, 5)  # odd sides must come back as they were
    q = DiagonalNormal(ConvEncoder(shape, 2 * Z, channels=(3, 4)))
    vae = VAE(StandardNormal(Z), q, Bernoulli(ConvDecoder(Z, shape, channels=(3, 4)), event_dim=3))
    x = torch.rand(N, *shape).round()
    assert vae.sample(2).shape == (2, *shape)
    assert vae.reconstruct(x).shape == x.shape
    assert log_weights(vae.model, vae.guide, x, num_particles=3).log_weight.shape == (3, N)


# --- Pyro's own tools ----------------------------------------------------------------------------


@pytest.mark.parametrize("objective", [Trace_ELBO, TraceMeanField_ELBO])
def test_pyros_svi_trains_two_models_that_stay_two(objective):
    x = data("bernoulli")
    models = [build("standard", "diagonal", "bernoulli") for _ in range(2)]
    models[1].load_state_dict(models[0].state_dict())
    untouched = [p.clone() for p in models[1].parameters()]
    svi = SVI(
        models[0].model, models[0].guide, pyro.optim.Adam({"lr": 0.01}), objective(num_particles=5)
    )
    losses = [svi.step(x) for _ in range(300)]
    assert np.mean(losses[-30:]) < np.mean(losses[:30]) - 1
    assert all(torch.equal(a, b) for a, b in zip(models[1].parameters(), untouched, strict=True))
    names = {name.partition("$")[0] for name in pyro.get_param_store()}
    assert names == {models[0].name}


def test_pyros_svi_learns_a_prior_that_shares_its_encoder():
    vae, x = build("vamp", "diagonal", "bernoulli"), data("bernoulli")
    before = vae.prior.pseudo_inputs.detach().clone()
    svi = SVI(vae.model, vae.guide, pyro.optim.Adam({"lr": 0.01}), Trace_ELBO())
    for _ in range(3):
        svi.step(x)
    assert (vae.prior.pseudo_inputs - before).abs().max() > 1e-3


def test_analytic_kl_is_pyros():
    """Trace_ELBO's Monte Carlo KL agrees with TraceMeanField_ELBO's, which needs a known pair."""
    vae, x = build("standard", "diagonal", "gaussian-fixed"), data("gaussian-fixed")
    q = vae.posterior(x)
    kl = torch.distributions.kl_divergence(q, vae.prior())
    mean, scale = q.mean.detach().numpy(), q.stddev.detach().numpy()
    exact = [
        oracles.gaussian_kl(m, np.diag(s**2), np.zeros(Z), np.eye(Z))
        for m, s in zip(mean, scale, strict=True)
    ]
    np.testing.assert_allclose(kl.detach(), exact, rtol=1e-5)


def test_predictive_and_uncondition_draw():
    vae, x = build("vamp", "diagonal", "bernoulli"), data("bernoulli")
    drawn = pyro.infer.Predictive(poutine.uncondition(vae.model), num_samples=3)(x)
    assert drawn["x"].shape == (3, N, D)
    assert ((drawn["x"] == 0) | (drawn["x"] == 1)).all()
    posterior = pyro.infer.Predictive(
        poutine.uncondition(vae.model), guide=vae.guide, num_samples=3, return_sites=("z", "x")
    )(x)
    assert posterior["z"].shape == (3, N, Z)


def test_the_param_store_is_left_alone_where_pyro_says_so():
    vae, x = build("standard", "diagonal", "bernoulli"), data("bernoulli")
    with pyro.settings.context(module_local_params=True):
        vae.model(x)
    assert not pyro.get_param_store().keys()
    vae.model(x)
    assert len(pyro.get_param_store().keys()) == len(list(vae.likelihood.parameters())) + len(
        list(vae.posterior.parameters())
    )


# --- the solvable one ----------------------------------------------------------------------------


@pytest.mark.parametrize(("data_dim", "latent_dim"), [(1, 1), (5, 2), (3, 6), (784, 50)])
def test_linear_gaussian_answers_are_the_oracles(data_dim, latent_dim):
    torch.manual_seed(0)
    linear = LinearGaussianVAE(data_dim, latent_dim, scale=0.3).double()
    x = linear.sample(4)
    weight, bias = (p.detach().numpy() for p in linear.decoder.parameters())
    with torch.no_grad():
        evidence, posterior = linear.log_evidence(x), linear.posterior(x)
    exact = oracles.linear_gaussian_evidence(weight, bias, 0.3, x.numpy())
    np.testing.assert_allclose(evidence, exact, rtol=1e-11, atol=1e-9)
    mean, cov = oracles.linear_gaussian_posterior(weight, bias, 0.3, x.numpy())
    np.testing.assert_allclose(posterior.mean, mean, rtol=1e-8, atol=1e-9)
    np.testing.assert_allclose(posterior.covariance_matrix[0], cov, rtol=1e-7, atol=1e-10)


def test_the_best_diagonal_guide_misses_by_half_the_log_ratio_of_determinants():
    """Trained to the optimum, the gap is ½ (Σ log Λ_ii − log det Λ), for every datum."""
    torch.manual_seed(3)
    linear = LinearGaussianVAE(data_dim=4, latent_dim=2, scale=0.7).double()
    linear.vae.likelihood.requires_grad_(False)
    x = linear.sample(50)
    weight, bias = (p.detach().numpy() for p in linear.decoder.parameters())
    # the optimum of a mean-field Gaussian: the exact mean, and variances 1 / Λ_ii
    precision = np.eye(2) + weight.T @ weight / 0.7**2
    layer = linear.vae.posterior.net.layers[0]
    gain = np.linalg.solve(precision, weight.T / 0.7**2)
    with torch.no_grad():
        layer.weight.zero_()[:2] = torch.as_tensor(gain)
        layer.bias[:2] = torch.as_tensor(-gain @ bias)
        layer.bias[2:] = torch.as_tensor(-0.5 * np.log(np.diag(precision)))
    gap = 0.5 * (np.log(np.diag(precision)).sum() - np.linalg.slogdet(precision)[1])
    estimate = ImportanceSampling(num_samples=4000)(linear.model, linear.guide, x)
    error = estimate.elbo.mean() - (linear.log_evidence(x).mean() - gap)
    assert abs(error) < 5 * estimate.mean_elbo().monte_carlo_stderr
    assert gap > 20 * estimate.mean_elbo().monte_carlo_stderr  # the test can tell
    assert math.isfinite(gap)
