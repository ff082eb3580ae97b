"""Draws of the posterior: right, diagnosed, and what ArviZ takes."""

from __future__ import annotations

import warnings

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch

from pyrovae.inference import PosteriorSampling
from pyrovae.models import LinearGaussianVAE

with warnings.catch_warnings():
    warnings.simplefilter("ignore", FutureWarning)
    import arviz as az


@pytest.fixture(scope="module")
def drawn():
    torch.manual_seed(2)
    linear = LinearGaussianVAE(6, 2).double()
    x = linear.sample(5)
    draws = PosteriorSampling(16, num_draws=300, start="prior")(linear.model, None, x)
    return linear, x, draws


def test_they_have_the_moments_of_the_posterior(drawn):
    linear, x, draws = drawn
    posterior = linear.posterior(x)
    z = draws.latents["z"]
    assert z.shape == (16, 300, 5, 2)
    scale = posterior.variance.sqrt()
    error = 5 * scale / draws.ess.min().sqrt()
    assert ((z.mean((0, 1)) - posterior.mean).abs() < error).all()
    assert ((z.std((0, 1)) / scale - 1).abs() < 0.15).all()


def test_chains_have_mixed_and_say_so(drawn):
    _, _, draws = drawn
    assert (draws.rhat < 1.05).all()
    assert (draws.ess > 100).all()
    assert "0 divergences" in repr(draws)
    assert ((draws.sample_stats["acceptance_rate"].mean() - 0.8).abs() < 0.15).item()


def test_the_likelihood_is_that_of_the_draws(drawn):
    linear, x, draws = drawn
    loc = draws.latents["z"] @ linear.decoder.weight.T + linear.decoder.bias
    exact = dist.Normal(loc, 1.0).log_prob(x).sum(-1)
    torch.testing.assert_close(draws.log_likelihood, exact.detach())


def test_arviz_summarises_them(drawn):
    _, _, draws = drawn
    data = draws.to_arviz()
    assert len(az.summary(data, var_names=["z"])) == 10
    for group in ("posterior", "sample_stats", "log_likelihood"):
        assert data[group].sizes["datum"] == 5
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        assert np.isfinite(float(getattr(az.loo(data), "elpd_loo", None) or az.loo(data).elpd))


def test_bounded_latents_and_nested_plates_come_back_as_the_program_has_them():
    x = torch.tensor([[3.0, 1.0, 2.0], [0.0, 4.0, 1.0]], dtype=torch.float64)

    def model(x):
        with pyro.plate("data", len(x), dim=-1), pyro.plate("counts", 3, dim=-2):
            rate = pyro.sample("rate", dist.Gamma(x.new_tensor(2.0), 1.0))
            pyro.sample("x", dist.Poisson(rate), obs=x.T)

    draws = PosteriorSampling(16, num_draws=300, start="prior")(model, None, x)
    rate = draws.latents["rate"]
    assert rate.shape == (16, 300, 2, 3)
    assert (rate > 0).all()
    exact = (2 + x) / 2  # the mean of Gamma(2 + x, 2)
    error = 5 * ((2 + x) / 4).sqrt() / draws.ess.min().sqrt()
    assert ((rate.mean((0, 1)) - exact).abs() < error).all()
