"""Log-weights against exact answers, for programs of every structure and every way of drawing."""

from __future__ import annotations

import math

import numpy as np
import oracles
import programs
import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine

from pyrovae.inference import ProgramError, log_joint, log_weights, simulate
from pyrovae.inference.particles import plan_particles
from pyrovae.models import LinearGaussianVAE

# "auto" gives one of the ways, except where guide and model go different ones
WITH_WAYS = [
    (case, way)
    for case in programs.CASES
    for way in (*case().ways, *(("auto",) if len(set(case().chosen)) == 2 else ()))
]


def _z_score(log_weight: torch.Tensor, exact: np.ndarray) -> float:
    """Worst z-score over data of the mean weight, relative to p(x), against 1."""
    ratio = (log_weight - torch.as_tensor(exact)).exp()
    stderr = ratio.std(0) / math.sqrt(len(ratio))
    return float(((ratio.mean(0) - 1) / stderr).abs().max())


@pytest.mark.parametrize(("case", "way"), WITH_WAYS, ids=lambda v: getattr(v, "__name__", v))
def test_weights_average_to_the_evidence(case, way):
    case = case()
    count = 60 if way == "loop" else 2000
    weights = log_weights(case.model, case.guide, *case.args, num_particles=count, particles=way)
    assert weights.log_weight.shape == (count, len(case.exact))
    assert weights.log_weight.dtype == torch.float64
    log_weight = weights.log_weight.detach()
    if case.exact_guide:
        assert np.abs(log_weight.numpy() - case.exact).max() < 1e-9
    else:
        assert _z_score(log_weight, case.exact) < 5


@pytest.mark.parametrize("case", programs.CASES, ids=lambda case: case.__name__)
def test_the_cheapest_right_way_is_chosen(case):
    case = case()
    plan = plan_particles(case.model, case.guide, case.args)
    assert (plan.guide_way, plan.model_way) == case.chosen, plan.rejected


@pytest.mark.parametrize("case", programs.CASES, ids=lambda case: case.__name__)
def test_ways_that_are_wrong_are_refused(case):
    case = case()
    for way in set(programs.ALL) - set(case.ways):
        with pytest.raises(ProgramError, match=f"particles='{way}' is not right"):
            log_weights(case.model, case.guide, *case.args, num_particles=3, particles=way)


# an enumerated guide's values carry an enumerated dimension, an empty guide has none
GIVEN = [
    (case, way)
    for case, way in WITH_WAYS
    if case.__name__ not in ("enumerated_guide", "hidden_markov", "semi_supervised_unlabelled")
]


@pytest.mark.parametrize(("case", "way"), GIVEN, ids=lambda v: getattr(v, "__name__", v))
def test_log_joint_repeats_what_log_weights_saw(case, way):
    case = case()
    weights = log_weights(case.model, case.guide, *case.args, num_particles=3, particles=way)
    again = log_joint(case.model, weights.values, *case.args, particles=way)
    torch.testing.assert_close(again, weights.log_joint, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("num_particles", [1, 7, 1000])
@pytest.mark.parametrize("way", programs.ALL)
def test_exact_guide_gives_constant_weights(way, num_particles):
    torch.manual_seed(1)
    linear = LinearGaussianVAE(data_dim=20, latent_dim=4, scale=0.5).double()
    x = linear.sample(3)
    weights = log_weights(
        linear.model, linear.exact_guide, x, num_particles=num_particles, particles=way
    )
    weight, bias = (p.detach().numpy() for p in linear.decoder.parameters())
    exact = oracles.linear_gaussian_evidence(weight, bias, 0.5, x.numpy())
    assert np.abs(weights.log_weight.detach().numpy() - exact).max() < 1e-9


def test_mean_log_weight_of_a_wrong_guide_is_evidence_minus_kl():
    torch.manual_seed(2)
    linear = LinearGaussianVAE(data_dim=6, latent_dim=2).double()
    x = linear.sample(4)
    mean, scale = torch.tensor([0.3, -0.5]).double(), torch.tensor([0.7, 1.1]).double()

    def guide(x):
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(mean, scale).to_event(1))

    log_weight = log_weights(linear.model, guide, x, num_particles=40_000).log_weight.detach()
    weight, bias = (p.detach().numpy() for p in linear.decoder.parameters())
    posterior, cov = oracles.linear_gaussian_posterior(weight, bias, 1.0, x.numpy())
    evidence = oracles.linear_gaussian_evidence(weight, bias, 1.0, x.numpy())
    kl = [oracles.gaussian_kl(mean.numpy(), np.diag(scale.numpy() ** 2), p, cov) for p in posterior]
    error = log_weight.mean(0).numpy() - (evidence - np.array(kl))
    stderr = log_weight.std(0).numpy() / math.sqrt(len(log_weight))
    assert np.abs(error / stderr).max() < 5


def test_prior_proposal_weighs_with_the_likelihood():
    case = programs.enumerated_mixture()
    weights = log_weights(case.model, None, *case.args, num_particles=20_000)
    assert _z_score(weights.log_weight, case.exact) < 5


def test_gradients_reach_both_programs():
    torch.manual_seed(0)
    linear = LinearGaussianVAE(data_dim=5, latent_dim=2)
    weights = log_weights(linear.model, linear.guide, linear.sample(3), num_particles=4)
    weights.log_weight.mean().backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in linear.parameters())


def test_sites_and_values_are_reported():
    case = programs.nested_plates()
    weights = log_weights(case.model, case.guide, *case.args, num_particles=6)
    assert weights.values["z"].shape == (6, 5)
    assert weights.values["u"].shape == (6, 3, 5)
    assert set(weights.model_sites) == {"z", "u", "x"}
    assert set(weights.guide_sites) == {"z", "u"}
    total = sum(weights.model_sites.values()) - sum(weights.guide_sites.values())
    torch.testing.assert_close(total, weights.log_weight)


def test_simulated_data_have_the_models_moments():
    torch.manual_seed(0)
    linear = LinearGaussianVAE(data_dim=3, latent_dim=2).double()
    draws = simulate(linear.model, torch.zeros(20_000, 3).double())
    x, z = draws.observations["x"], draws.latents["z"]
    assert z.shape == (20_000, 2)
    weight, bias = (p.detach() for p in linear.decoder.parameters())
    cov = weight @ weight.T + torch.eye(3)
    error = (x.mean(0) - bias) / (cov.diagonal() / len(x)).sqrt()
    assert error.abs().max() < 5
    assert (torch.cov(x.T) - cov).abs().max() < 5 * 2 * cov.max() / math.sqrt(len(x))


# --- refusals ------------------------------------------------------------------------------------


def _model(x):
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", dist.Normal(0.0, 1.0))
        pyro.sample("x", dist.Normal(z, 1.0), obs=x)


def _guide(x):
    with pyro.plate("data", len(x)):
        pyro.sample("z", dist.Normal(x / 2, 1.0))


def _global_model(x):
    mu = pyro.sample("mu", dist.Normal(0.0, 1.0))
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", dist.Normal(mu, 1.0))
        pyro.sample("x", dist.Normal(z, 1.0), obs=x)


def _global_guide(x):
    pyro.sample("mu", dist.Normal(0.0, 1.0))
    _guide(x)


def _delta_guide(x):
    with pyro.plate("data", len(x)):
        pyro.sample("z", dist.Delta(x / 2))


def _factor_guide(x):
    with pyro.plate("data", len(x)):
        pyro.sample("z", dist.Normal(x / 2, 1.0))
        pyro.factor("penalty", -(x**2), has_rsample=False)


def _auxiliary_guide(x):
    with pyro.plate("data", len(x)):
        pyro.sample("extra", dist.Normal(0.0, 1.0), infer={"is_auxiliary": True})
        pyro.sample("z", dist.Normal(x / 2, 1.0))


def _silent_guide(x):
    pass


def _unobserved_model(x):
    with pyro.plate("data", len(x)):
        pyro.sample("z", dist.Normal(0.0, 1.0))


def _unplated_model(x):
    z = pyro.sample("z", dist.Normal(torch.zeros(len(x)), 1.0).to_event(1))
    pyro.sample("x", dist.Normal(z, 1.0).to_event(1), obs=x)


def _unplated_guide(x):
    pyro.sample("z", dist.Normal(x / 2, 1.0).to_event(1))


def _short_plate_model(x):
    with pyro.plate("data", len(x) - 1):
        z = pyro.sample("z", dist.Normal(0.0, 1.0))
        pyro.sample("x", dist.Normal(z, 1.0), obs=x[1:])


def _short_plate_guide(x):
    with pyro.plate("data", len(x) - 1):
        pyro.sample("z", dist.Normal(0.0, 1.0))


def _sequential_model(x):
    for i in pyro.plate("data", len(x)):
        z = pyro.sample(f"z_{i}", dist.Normal(0.0, 1.0))
        pyro.sample(f"x_{i}", dist.Normal(z, 1.0), obs=x[i])


def _sequential_guide(x):
    for i in pyro.plate("data", len(x)):
        pyro.sample(f"z_{i}", dist.Normal(0.0, 1.0))


def _stray_model(x):
    with pyro.plate("data"):
        z = pyro.sample("z", dist.Normal(torch.zeros(len(x)), 1.0))
        pyro.sample("x", dist.Normal(z[:, None] * torch.ones(1, 3), 1.0), obs=x[:, None] + 0)


def _partly_observed_model(x):
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", dist.Normal(0.0, 1.0))
        pyro.sample("x", dist.Normal(z, 1.0), obs=x, obs_mask=x > 0)


REFUSALS = [
    (_partly_observed_model, _guide, "model site 'x' has obs_mask=.*sample 'x_unobserved' in the"),
    (_global_model, _global_guide, "latent site 'mu' stands outside"),
    (_model, _delta_guide, "guide site 'z' is a Delta"),
    (_model, _factor_guide, "guide site 'penalty' is a factor"),
    (_model, _auxiliary_guide, "guide site 'extra' is not in the model"),
    (_model, _silent_guide, "model site 'z' is latent but not in the guide"),
    (_unobserved_model, _guide, "no observed site"),
    (_unplated_model, _unplated_guide, "site 'z' stands outside"),
    (_short_plate_model, _short_plate_guide, 'plate "data" has size'),
    (_sequential_model, _sequential_guide, "Python loop over data"),
    (_stray_model, _guide, "site 'x' has batch shape"),
]


@pytest.mark.parametrize(
    ("model", "guide", "message"),
    REFUSALS,
    ids=[case[0].__name__ + case[1].__name__ for case in REFUSALS],
)
def test_programs_without_per_datum_weights_are_refused(model, guide, message):
    with pytest.raises(ProgramError, match=message):
        log_weights(model, guide, torch.randn(6), num_particles=2)


def test_bad_arguments_are_named():
    x = torch.zeros(3)
    with pytest.raises(ValueError, match=r"num_particles must be .* but is 0"):
        log_weights(_model, _guide, x, num_particles=0)
    with pytest.raises(ValueError, match="particles must be 'auto' or one of"):
        log_weights(_model, _guide, x, num_particles=2, particles="vmap")
    with pytest.raises(TypeError, match="x must be a tensor"):
        log_weights(_model, _guide, [0.0, 1.0])
    with pytest.raises(ValueError, match="at least one datum"):
        log_weights(_model, _guide, torch.zeros(0))
    with pytest.raises(ValueError, match="same number of data"):
        log_weights(_model, _guide, (torch.zeros(3), torch.zeros(2)))
    with pytest.raises(ValueError, match="latents must be"):
        log_joint(_model, {"w": torch.zeros(2, 3)}, x)


def test_wrong_dtype_is_told_with_the_parameters_dtype():
    linear = LinearGaussianVAE(data_dim=4, latent_dim=2)
    with pytest.raises(ProgramError, match=r"fails on data of \(3, 4\) float64 .*float32"):
        log_weights(linear.model, linear.guide, torch.zeros(3, 4).double())


def test_values_outside_a_support_name_the_site():
    def model(x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            pyro.sample("x", dist.Bernoulli(logits=z), obs=x)

    with pytest.raises(ProgramError, match=r"site 'x' takes values in .* holds 0\.5"):
        log_weights(model, _guide, torch.full((3,), 0.5), num_particles=2)


def test_parameters_made_for_a_trial_do_not_outlive_it():
    def guide(x):
        loc = pyro.param("loc", lambda: torch.zeros(len(x)))
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(loc, 1.0))

    log_weights(_model, guide, torch.zeros(9), num_particles=3)
    assert pyro.get_param_store()["loc"].shape == (9,)


def test_predictive_draws_from_models():
    linear = LinearGaussianVAE(data_dim=3, latent_dim=2)
    x = torch.zeros(4, 3)
    predictive = pyro.infer.Predictive(poutine.uncondition(linear.model), num_samples=7)
    assert predictive(x)["x"].shape == (7, 4, 3)


def test_a_model_without_latents_of_its_own_has_a_joint():
    case = programs.hidden_markov()
    joint = log_joint(case.model, {}, *case.args)
    np.testing.assert_allclose(joint[0], case.exact, atol=1e-9)
