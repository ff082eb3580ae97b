"""The linear-Gaussian VAE against numpy, and its best guide against a closed form."""

from __future__ import annotations

import math

import numpy as np
import oracles
import pyro
import pytest
import torch
from pyro import poutine
from pyro.infer import SVI, Trace_ELBO
from torch.distributions import kl_divergence

from pyrovae.inference import ImportanceSampling, log_weights
from pyrovae.models import LinearGaussianVAE, load, save


def solvable(data_dim=4, latent_dim=2, scale=0.7, seed=3):
    torch.manual_seed(seed)
    linear = LinearGaussianVAE(data_dim, latent_dim, scale).double()
    return linear, linear.sample(50)


def numbers(linear):
    return [p.detach().double().numpy() for p in linear.decoder.parameters()]


SIZES = [(1, 1), (5, 2), (3, 6), (784, 50)]


@pytest.mark.parametrize("scale", [0.3, 2.0])
@pytest.mark.parametrize(("data_dim", "latent_dim"), SIZES)
def test_answers_are_the_oracles(data_dim, latent_dim, scale):
    linear, x = solvable(data_dim, latent_dim, scale)
    x, (weight, bias) = x[:4], numbers(linear)
    with torch.no_grad():
        evidence, posterior = linear.log_evidence(x), linear.posterior(x)
    exact = oracles.linear_gaussian_evidence(weight, bias, scale, x.numpy())
    assert np.abs(evidence.numpy() - exact).max() < 1e-9
    mean, cov = oracles.linear_gaussian_posterior(weight, bias, scale, x.numpy())
    np.testing.assert_allclose(posterior.mean, mean, rtol=1e-8, atol=1e-9)
    np.testing.assert_allclose(posterior.covariance_matrix[0], cov, rtol=1e-7, atol=1e-10)


@pytest.mark.parametrize("scale", [0.01, 1.0])
def test_single_precision_has_the_exact_evidence_of_its_own_parameters(scale):
    """1/σ² times terms that cancel: in single precision itself, half a nat is lost at σ = 0.01."""
    torch.manual_seed(0)
    linear = LinearGaussianVAE(784, 50, scale)
    x = linear.sample(5)
    evidence = linear.log_evidence(x)
    assert evidence.dtype == torch.float32
    exact = oracles.linear_gaussian_evidence(*numbers(linear), scale, x.double().numpy())
    np.testing.assert_allclose(evidence.detach(), exact, rtol=2e-7)


@pytest.mark.parametrize(("data_dim", "latent_dim"), SIZES)
def test_the_exact_guide_leaves_nothing_to_chance(data_dim, latent_dim):
    linear, x = solvable(data_dim, latent_dim)
    weights = log_weights(linear.model, linear.exact_guide, x[:5], num_particles=3)
    assert (weights.log_weight - linear.log_evidence(x[:5])).abs().max() < 1e-9


def test_draws_have_the_models_covariance():
    linear, _ = solvable(data_dim=3)
    x, (weight, bias) = linear.sample(100_000).numpy(), numbers(linear)
    centred = x - bias
    cov = weight @ weight.T + 0.7**2 * np.eye(3)
    outer = centred[:, :, None] * centred[:, None] - cov
    for error in (centred, outer.reshape(len(x), -1)):
        assert (abs(error.mean(0)) / (error.std(0) / math.sqrt(len(x)))).max() < 5


def test_a_perfect_reconstruction_is_the_mean_of_x():
    linear, x = solvable()
    with torch.no_grad():
        linear.vae.posterior.net.layers[0].weight.zero_()
        linear.vae.posterior.net.layers[0].bias.copy_(torch.tensor([1.0, -2.0, -40.0, -40.0]))
        expected = linear.decoder(torch.tensor([1.0, -2.0], dtype=torch.float64))
    torch.testing.assert_close(linear.reconstruct(x), expected.expand(50, 4))


def closed_form_elbo(linear, x):
    r"""E log p(x | z) - KL(q || p) of the trainable guide, (N,), in nats."""
    q, sigma = linear.vae.posterior(x), linear.scale
    error = (x - linear.decoder(q.mean)).square().sum(-1)
    spread = (q.variance @ linear.decoder.weight.square().T).sum(-1)
    constant = 0.5 * x.shape[-1] * math.log(2 * math.pi * sigma**2)
    return -0.5 * (error + spread) / sigma**2 - constant - kl_divergence(q, linear.vae.prior())


def test_the_guides_elbo_is_its_closed_form():
    linear, x = solvable()
    x = x[:5]
    with torch.no_grad():
        linear.vae.posterior.net.layers[0].weight.mul_(0.1)  # no outlandish codes, so little noise
    log_weight = log_weights(linear.model, linear.guide, x, num_particles=40_000).log_weight
    error = log_weight.mean(0) - closed_form_elbo(linear, x)
    stderr = log_weight.std(0) / math.sqrt(len(log_weight))
    assert (error / stderr).abs().max() < 5
    assert stderr.max() < 0.1


@pytest.mark.parametrize(("data_dim", "latent_dim"), [(4, 2), (6, 3), (3, 5)])
def test_the_trained_guide_misses_by_half_the_log_ratio_of_determinants(data_dim, latent_dim):
    r"""At the optimum of the ELBO the gap is ½ (Σ log Λ_ii − log det Λ), for every datum."""
    linear, x = solvable(data_dim, latent_dim)
    optimizer = torch.optim.LBFGS(
        linear.vae.posterior.parameters(),
        max_iter=500,
        tolerance_grad=1e-9,
        tolerance_change=0,
        line_search_fn="strong_wolfe",
    )

    def closure():
        optimizer.zero_grad()
        loss = -closed_form_elbo(linear, x).mean()
        loss.backward()
        return loss

    optimizer.step(closure)
    weight, _ = numbers(linear)
    precision = np.eye(latent_dim) + weight.T @ weight / linear.scale**2
    gap = 0.5 * (np.log(np.diag(precision)).sum() - np.linalg.slogdet(precision)[1])
    with torch.no_grad():
        missing = linear.log_evidence(x) - closed_form_elbo(linear, x)
    assert gap > 0.01
    np.testing.assert_allclose(missing, gap, atol=1e-6)
    estimate = ImportanceSampling(num_samples=2000)(linear.model, linear.guide, x)
    error = estimate.elbo.mean() - (linear.log_evidence(x).mean() - gap)
    assert abs(error) < 5 * estimate.mean_elbo().monte_carlo_stderr


def test_pyros_svi_trains_model_and_guide():
    truth, x = solvable(data_dim=5, latent_dim=2)
    torch.manual_seed(0)
    linear = LinearGaussianVAE(data_dim=5, latent_dim=2, scale=0.7).double()
    before = linear.log_evidence(x).mean()
    svi = SVI(linear.model, linear.guide, pyro.optim.Adam({"lr": 0.02}), Trace_ELBO())
    losses = [svi.step(x) / len(x) for _ in range(400)]
    assert np.mean(losses[-40:]) < np.mean(losses[:40]) - 1
    after = linear.log_evidence(x).mean()
    assert after > before + 1
    assert -np.mean(losses[-40:]) < after  # a bound
    assert after > truth.log_evidence(x).mean() - 0.5
    assert len(pyro.get_param_store().keys()) == len(list(linear.parameters()))


def test_predictive_draws_from_the_model():
    linear, x = solvable()
    drawn = pyro.infer.Predictive(poutine.uncondition(linear.model), num_samples=6)(x)
    assert drawn["x"].shape == (6, 50, 4)


def test_it_comes_back_from_a_file(tmp_path):
    linear, x = solvable()
    save(linear, tmp_path / "linear")
    again = load(tmp_path / "linear")
    assert torch.equal(again.log_evidence(x), linear.log_evidence(x))
    assert torch.equal(again.posterior(x).mean, linear.posterior(x).mean)
    assert torch.equal(again.vae.posterior(x).mean, linear.vae.posterior(x).mean)


@pytest.mark.gpu
def test_answers_follow_the_device():
    linear, x = solvable()
    evidence = linear.log_evidence(x).detach()
    linear, x = linear.cuda(), x.cuda()
    assert linear.sample(3).is_cuda
    torch.testing.assert_close(linear.log_evidence(x).detach().cpu(), evidence)
    weights = log_weights(linear.model, linear.exact_guide, x, num_particles=3)
    torch.testing.assert_close(weights.log_weight.cpu(), evidence.expand(3, -1))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((0, 2), "data_dim must be at least 1, but is 0"),
        ((3, -1), "latent_dim must be at least 1, but is -1"),
        ((3, 2, 0.0), r"scale must be positive, but is 0\.0"),
    ],
)
def test_bad_arguments_are_named(arguments, message):
    with pytest.raises(ValueError, match=message):
        LinearGaussianVAE(*arguments)
