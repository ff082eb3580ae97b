"""What latents hold, against closed forms and quadrature."""

from __future__ import annotations

import math

import numpy as np
import oracles
import pyro
import pyro.distributions as dist
import pytest
import torch

from pyrovae.inference import (
    HMC,
    EqualLength,
    ImportanceSampling,
    ProgramError,
    RateDistortion,
    RefinedImportanceSampling,
    active_units,
    elbo_surgery,
    inference_gaps,
)
from pyrovae.models import LinearGaussianVAE


def linear(data_dim: int, latent_dim: int, num_data: int):
    torch.manual_seed(1)
    model = LinearGaussianVAE(data_dim, latent_dim).double()
    for parameter in model.parameters():
        parameter.requires_grad_(False)
    return model, model.sample(num_data)


def moments(model, x):
    """Means and covariance of the exact posterior, in numpy."""
    weight, bias = model.decoder.weight.numpy(), model.decoder.bias.numpy()
    return oracles.linear_gaussian_posterior(weight, bias, 1.0, x.numpy())


def mixture_parts(mean, scale):
    """I_q and KL(q(z) ‖ N(0, 1)) of an equal mixture of normals on a line, by a sum."""
    z = np.linspace(-12, 12, 20_001)
    each = oracles.normal_logpdf(z, mean[:, None], scale)
    whole = oracles.logsumexp(each, 0) - math.log(len(mean))
    density = np.exp(whole)
    entropy = -np.trapezoid(density * whole, z)
    own = 0.5 * np.log(2 * np.pi * np.e * scale**2)
    kl = np.trapezoid(density * (whole - oracles.normal_logpdf(z)), z)
    return entropy - own, kl


def test_surgery_agrees_with_quadrature_in_one_dimension():
    model, x = linear(4, 1, 60)
    mean, covariance = moments(model, x)
    information, kl = mixture_parts(mean[:, 0], math.sqrt(covariance[0, 0]))
    found = elbo_surgery(model.model, model.exact_guide, x, num_samples=200)
    assert abs(found.mutual_information - information) < 5 * found.mutual_information_stderr
    assert abs(found.marginal_kl - kl) < 5 * found.marginal_kl_stderr
    assert abs(found.rate - information - kl) < 5 * found.rate_stderr
    assert found.mutual_information_stderr < 0.02


def test_the_rate_is_the_mean_kl_and_its_parts_add_up():
    model, x = linear(10, 3, 40)
    mean, covariance = moments(model, x)
    exact = np.mean([oracles.gaussian_kl(m, covariance, np.zeros(3), np.eye(3)) for m in mean])
    found = elbo_surgery(model.model, model.exact_guide, x, num_samples=50)
    assert abs(found.rate - exact) < 5 * found.rate_stderr
    assert abs(found.rate - found.mutual_information - found.marginal_kl) < 1e-9


def test_codes_far_apart_hold_log_n_nats():
    x = 1000 * torch.arange(7, dtype=torch.float64)

    def model(x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros((), dtype=x.dtype), 3000.0))
            pyro.sample("x", dist.Normal(z, 1.0), obs=x)

    def guide(x):
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(x, 1.0))

    found = elbo_surgery(model, guide, x)
    assert abs(found.mutual_information - math.log(7)) < 1e-9


def test_surgery_is_the_same_whatever_the_coordinates():
    """A log-normal latent has the numbers of the normal one that it is the exponential of."""
    x = torch.linspace(-2, 2, 20, dtype=torch.float64)

    def pair(distribution, into):
        def model(x):
            with pyro.plate("data", len(x)):
                z = pyro.sample("z", distribution(torch.zeros((), dtype=x.dtype), 1.0))
                pyro.sample("x", dist.Normal(into(z), 1.0), obs=x)

        def guide(x):
            with pyro.plate("data", len(x)):
                pyro.sample("z", distribution(x / 2, 0.5**0.5))

        return model, guide

    plain = elbo_surgery(*pair(dist.Normal, lambda z: z), x)
    bounded = elbo_surgery(*pair(dist.LogNormal, torch.log), x)
    for name in ("rate", "mutual_information", "marginal_kl"):
        assert abs(getattr(plain, name) - getattr(bounded, name)) < 1e-9


def test_data_in_blocks_have_the_aggregate_of_all(monkeypatch):
    from pyrovae.inference.information import surgery

    model, x = linear(4, 2, 50)
    # a single draw: blocks take random numbers of their own before the next
    whole = elbo_surgery(model.model, model.exact_guide, x, num_samples=1)
    monkeypatch.setattr(surgery, "_PAIRS", 7 * 50)
    parts = elbo_surgery(model.model, model.exact_guide, x, num_samples=1)
    assert abs(whole.mutual_information - parts.mutual_information) < 1e-9


def test_activity_is_the_variance_of_the_posterior_mean():
    model, x = linear(10, 3, 300)
    mean, covariance = moments(model, x)
    found = active_units(model.model, model.exact_guide, x, num_samples=200)
    exact = mean.var(0, ddof=1)
    # the noise of 200 draws in each of 300 means
    error = 5 * np.sqrt(2 * np.diag(covariance) / 200 * exact / 300 * 4)
    assert (np.abs(found.variance["z"].numpy() - exact) < error + 1e-3).all()
    assert found.num_active == found.num_units == 3


def test_a_collapsed_dimension_is_not_active_and_holds_no_nats():
    model, x = linear(10, 3, 100)
    with torch.no_grad():
        model.decoder.weight[:, 1] = 0.0
    found = active_units(model.model, model.exact_guide, x)
    assert found.active["z"].tolist() == [True, False, True]


def test_kl_by_dimension_is_closed_form_for_independent_normals():
    x = torch.linspace(-1, 1, 12, dtype=torch.float64)[:, None].expand(-1, 2)

    def model(x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(x.new_zeros(2), 1.0).to_event(1))
            pyro.sample("x", dist.Normal(z, 1.0).to_event(1), obs=x)

    def guide(x):
        scale = x.new_tensor([0.5, 1.0])
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(x * x.new_tensor([1.0, 0.0]), scale).to_event(1))

    found = active_units(model, guide, x)
    first = float((0.5 * (0.25 + x[:, 0] ** 2 - 1 - math.log(0.25))).mean())
    np.testing.assert_allclose(found.kl["z"].numpy(), [first, 0.0], atol=1e-12)
    assert found.active["z"].tolist() == [True, False]


def test_dependent_dimensions_share_one_kl():
    model, x = linear(10, 3, 50)
    found = active_units(model.model, model.exact_guide, x, num_samples=400)
    mean, covariance = moments(model, x)
    exact = np.mean([oracles.gaussian_kl(m, covariance, np.zeros(3), np.eye(3)) for m in mean])
    assert found.kl["z"].shape == (1,)
    assert abs(float(found.kl["z"]) - exact) < 0.05


@pytest.fixture(scope="module")
def gaps():
    """A diagonal guide that is the best but for a shift, of a posterior with correlations."""
    model, x = linear(10, 3, 20)
    mean, covariance = moments(model, x)
    precision = np.linalg.inv(covariance)
    best = np.diag(1 / np.diag(precision))

    def guide(x):
        loc = model.posterior(x).mean + 0.3
        scale = torch.as_tensor(np.sqrt(np.diag(best)))
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(loc, scale).to_event(1))

    refined = RefinedImportanceSampling(num_samples=4000, num_steps=400)(model.model, guide, x)
    approximation = oracles.gaussian_kl(mean[0], best, mean[0], covariance)
    amortisation = oracles.gaussian_kl(mean[0] + 0.3, best, mean[0], covariance) - approximation
    return refined, approximation, amortisation


def test_gaps_agree_with_closed_forms(gaps):
    refined, approximation, amortisation = gaps
    found = inference_gaps(refined)
    value, noise, _ = found.mean("approximation")
    assert abs(value - approximation) < 5 * noise + 0.01  # the optimiser's last hundredth
    value, noise, _ = found.mean("amortisation")
    assert abs(value - amortisation) < 5 * noise + 0.01
    assert 0.05 < approximation < 2


def test_gaps_need_a_refined_estimate(gaps):
    model, x = linear(4, 2, 5)
    plain = ImportanceSampling(10)(model.model, model.exact_guide, x)
    with pytest.raises(ValueError, match="refined must be an estimate by RefinedImportanceSampl"):
        inference_gaps(plain)
    with pytest.raises(ValueError, match="best must be of the same 20 data, but is of 5"):
        inference_gaps(gaps[0], plain)


def test_the_rate_distortion_curve_is_that_of_tempered_posteriors():
    model, x = linear(6, 2, 4)
    weight, bias = model.decoder.weight.numpy(), model.decoder.bias.numpy()
    curve = RateDistortion(
        num_chains=64, num_temperatures=60, schedule=EqualLength(), kernel=HMC(5)
    )(model.model, x)
    for t in (10, 30, 60):
        for n in range(4):
            beta = float(curve.betas[n, t])
            mean, covariance = oracles.linear_gaussian_posterior(
                weight, bias, beta**-0.5, x[n : n + 1].numpy()
            )
            rate = oracles.gaussian_kl(mean[0], covariance, np.zeros(2), np.eye(2))
            off = x[n].numpy() - bias - weight @ mean[0]
            spread = np.trace(weight @ covariance @ weight.T)
            distortion = 0.5 * (off @ off + spread + 6 * np.log(2 * np.pi))
            assert abs(float(curve.rate[n, t]) - rate) < 5 * float(curve.rate_stderr[n, t]) + 0.02
            error = 5 * float(curve.distortion_stderr[n, t]) + 0.02
            assert abs(float(curve.distortion[n, t]) - distortion) < error


def test_the_curve_begins_without_rate_and_ends_at_the_evidence():
    model, x = linear(6, 2, 4)
    curve = RateDistortion(num_chains=64, num_temperatures=60)(model.model, x)
    assert curve.rate[:, 0].abs().max() < 1e-9
    exact = model.log_evidence(x)
    end = -(curve.rate + curve.distortion)[:, -1]
    assert ((end - exact).abs() < 0.6).all()
    assert set(curve.to_dataset().data_vars) >= {"rate", "distortion", "betas"}
    assert curve.mean()["rate"].shape == (61,)


def test_bad_input_is_refused():
    model, x = linear(4, 2, 5)
    with pytest.raises(ValueError, match="num_samples must be a whole number of at least 1"):
        elbo_surgery(model.model, model.exact_guide, x, num_samples=0)
    with pytest.raises(ValueError, match="num_samples must be at least 2"):
        active_units(model.model, model.exact_guide, x, num_samples=1)
    with pytest.raises(TypeError, match="guide must be a Pyro program, but is None"):
        active_units(model.model, None, x)
    with pytest.raises(ValueError, match="x must be finite, but datum 0 holds nan"):
        elbo_surgery(model.model, model.exact_guide, torch.full((3, 4), torch.nan).double())
    with pytest.raises(ValueError, match="start must be 'prior', whose rate is 0"):
        RateDistortion(start="guide")

    def discrete(x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Bernoulli(torch.tensor(0.5)))
            pyro.sample("x", dist.Normal(z, 1.0), obs=x)

    with pytest.raises(ProgramError, match="latent 'z' is discrete"):
        RateDistortion(num_temperatures=3)(discrete, torch.zeros(3))


def test_it_leaves_no_trace():
    model, x = linear(4, 2, 5)
    before = torch.get_rng_state()
    elbo_surgery(model.model, model.exact_guide, x)
    active_units(model.model, model.exact_guide, x)
    assert torch.equal(before, torch.get_rng_state())
