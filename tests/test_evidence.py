"""Estimates of log p(x): values and errors against exact answers, and reproducibility."""

from __future__ import annotations

import json
import math
import subprocess
import sys
import warnings

import numpy as np
import oracles
import programs
import pyro
import pyro.distributions as dist
import pytest
import torch
from torch.utils.data import DataLoader, TensorDataset

from pyrovae.inference import ImportanceSampling, PriorMonteCarlo
from pyrovae.inference.evidence.accumulator import WeightSums
from pyrovae.models import VAE, LinearGaussianVAE
from pyrovae.models.likelihoods import Bernoulli
from pyrovae.models.nets import MLP
from pyrovae.models.posteriors import DiagonalNormal
from pyrovae.models.priors import StandardNormal

ESTIMATORS = [ImportanceSampling, PriorMonteCarlo]


def linear_program(data_dim, latent_dim, inflate=1.0, shift=0.0, scale=1.0):
    """A linear-Gaussian model, a guide near its posterior, and the oracle's answer for x."""
    linear = LinearGaussianVAE(data_dim, latent_dim, scale).double().requires_grad_(False).eval()

    def guide(x):
        exact = linear.posterior(x)
        with pyro.plate("data", len(x)):
            pyro.sample(
                "z",
                dist.MultivariateNormal(exact.mean + shift, scale_tril=exact.scale_tril * inflate),
            )

    def evidence(x):
        weight, bias = (p.numpy() for p in linear.decoder.parameters())
        return oracles.linear_gaussian_evidence(weight, bias, scale, x.numpy())

    return linear, guide, evidence


@pytest.mark.parametrize(("data_dim", "latent_dim"), [(2, 1), (10, 3), (100, 10), (784, 50)])
def test_importance_sampling_is_within_five_errors_of_exact(data_dim, latent_dim):
    torch.manual_seed(data_dim)
    linear, guide, evidence = linear_program(data_dim, latent_dim, inflate=1.1)
    x = linear.sample(8)
    estimate = ImportanceSampling(num_samples=2000, seed=1)(linear.model, guide, x)
    error = estimate.log_evidence.numpy() - estimate.bias.numpy() - evidence(x)
    assert np.abs(error / estimate.stderr.numpy()).max() < 5
    assert estimate.reliable.all()


def test_exact_guide_leaves_no_error():
    torch.manual_seed(0)
    linear, _, evidence = linear_program(784, 50, scale=0.5)
    x = linear.sample(3)
    estimate = ImportanceSampling(num_samples=100)(linear.model, linear.exact_guide, x)
    assert np.abs(estimate.log_evidence.numpy() - evidence(x)).max() < 1e-9
    assert estimate.stderr.max() < 1e-6
    assert (estimate.khat == -math.inf).all()
    torch.testing.assert_close(estimate.ess, torch.full((3,), 100.0).double())


def test_prior_monte_carlo_agrees_with_quadrature():
    def model(x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(x.new_zeros(()), 1.0))
            pyro.sample("x", dist.Normal(z.sin() * 3, 0.5), obs=x)

    x = torch.tensor([-2.0, 0.1, 2.9], dtype=torch.float64)
    exact = [
        oracles.integrate(
            lambda z, v=v: oracles.normal_logpdf(z) + oracles.normal_logpdf(v, 3 * np.sin(z), 0.5)
        )
        for v in x.tolist()
    ]
    estimate = PriorMonteCarlo(num_samples=20_000)(model, None, x)
    assert ((estimate.log_evidence - torch.tensor(exact)) / estimate.stderr).abs().max() < 5
    assert estimate.direction == "lower"


def test_intervals_cover_as_often_as_they_say():
    torch.manual_seed(3)
    linear, guide, evidence = linear_program(6, 2, inflate=1.3, shift=0.2)
    x = linear.sample(1000)
    estimate = ImportanceSampling(num_samples=1000, seed=5)(linear.model, guide, x)
    assert (estimate.khat < 0.5).all()
    centre = (estimate.log_evidence - estimate.bias).numpy()
    inside = np.abs(centre - evidence(x)) < 1.96 * estimate.stderr.numpy()
    assert 0.93 < inside.mean() < 0.97


def test_the_elbo_is_evidence_minus_kl():
    torch.manual_seed(4)
    linear, guide, evidence = linear_program(6, 2, inflate=1.3)
    x = linear.sample(5)
    estimate = ImportanceSampling(num_samples=5000)(linear.model, guide, x)
    # KL(N(m, s² C) || N(m, C)) in two dimensions
    kl = 0.5 * (2 * 1.3**2 - 2 - 2 * math.log(1.3**2))
    error = estimate.elbo.numpy() - (evidence(x) - kl)
    assert np.abs(error / estimate.elbo_stderr.numpy()).max() < 5


@pytest.mark.parametrize(
    "case",
    [case for case in programs.CASES if case.__name__ != "per_row_loop"],
    ids=lambda case: case.__name__,
)
def test_programs_of_any_structure_are_scored(case):
    case = case()
    estimate = ImportanceSampling(num_samples=500, seed=2)(case.model, case.guide, *case.args)
    error = (estimate.log_evidence - estimate.bias).numpy() - case.exact
    assert np.abs(error / np.maximum(estimate.stderr.numpy(), 1e-9)).max() < 5


def test_a_program_for_a_fixed_set_of_data_is_scored_whole():
    case = programs.per_row_loop()
    estimate = ImportanceSampling(num_samples=5)(case.model, case.guide, *case.args)
    assert np.abs(estimate.log_evidence.numpy() - case.exact).max() < 1e-9
    assert estimate.provenance["model_way"] == "loop"


# --- streaming -----------------------------------------------------------------------------------


def test_sums_over_tiles_equal_the_formulas():
    torch.manual_seed(0)
    log_weight = 3 * torch.randn(1000, 4, dtype=torch.float64) - 500
    sums = WeightSums(1000)
    for tile in log_weight.split(170):
        sums.add(tile)
    weight = (log_weight + 500).exp()
    torch.testing.assert_close(sums.log_evidence(), weight.mean(0).log() - 500)
    ess = weight.sum(0) ** 2 / weight.square().sum(0)
    torch.testing.assert_close(sums.ess(), ess)
    torch.testing.assert_close(sums.stderr(), (1 / ess - 1 / 1000).sqrt())
    relative = weight.std(0, correction=0) / weight.mean(0) / math.sqrt(1000)
    torch.testing.assert_close(sums.stderr(), relative)
    torch.testing.assert_close(sums.elbo(), log_weight.mean(0))
    torch.testing.assert_close(sums.elbo_stderr(), log_weight.std(0) / math.sqrt(1000))


def test_weights_of_zero_are_weights():
    sums = WeightSums(4)
    sums.add(torch.tensor([[-math.inf, -math.inf], [0.0, -math.inf]]).double())
    sums.add(torch.tensor([[0.0, -math.inf], [-math.inf, -math.inf]]).double())
    assert sums.log_evidence().tolist() == [math.log(0.5), -math.inf]
    assert sums.ess().tolist() == [2.0, 0.0]


@pytest.mark.parametrize("estimator", ESTIMATORS)
def test_same_seed_same_numbers_and_other_tiles_agree(estimator):
    torch.manual_seed(6)
    linear, guide, _ = linear_program(10, 2, inflate=1.2, scale=2.0)
    x = linear.sample(9)
    one = estimator(num_samples=700, seed=3)(linear.model, guide, x)
    torch.rand(5)  # what others draw in between is of no consequence
    two = estimator(num_samples=700, seed=3)(linear.model, guide, x)
    assert torch.equal(one.log_evidence, two.log_evidence)
    assert torch.equal(one.khat, two.khat)
    small = estimator(num_samples=700, seed=3, memory=20_000)(linear.model, guide, x)
    assert small.provenance["tile"] != one.provenance["tile"]
    z = (one.log_evidence - small.log_evidence) / (one.stderr**2 + small.stderr**2).sqrt()
    assert z.abs().max() < 5
    other = estimator(num_samples=700, seed=4)(linear.model, guide, x)
    assert not torch.equal(one.log_evidence, other.log_evidence)


@pytest.mark.parametrize("num_samples", [1, 250, 251, 1000])
def test_exactly_the_requested_samples_are_drawn(num_samples):
    torch.manual_seed(0)
    drawn = []

    def model(x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(x.new_zeros(()), 1.0))
            drawn.append(z.numel())
            pyro.sample("x", dist.Normal(z, 1.0), obs=x)

    def guide(x):
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(x / 2, 1.0))

    def count(k):
        drawn.clear()
        ImportanceSampling(num_samples=k, memory=8000)(model, guide, torch.zeros(7))
        return sum(drawn)

    # planning and checking draw a number of their own, which does not depend on K
    assert count(num_samples) - count(2 * num_samples) == -7 * num_samples


def test_the_encoder_runs_once_per_datum():
    torch.manual_seed(0)
    vae = VAE(StandardNormal(2), DiagonalNormal(MLP(6, 4)), Bernoulli(MLP(2, 6)))
    rows = []
    vae.posterior.net.register_forward_hook(lambda *call: rows.append(len(call[1][0])))
    x = torch.bernoulli(torch.rand(10, 6))

    def encoded(num_samples):
        rows.clear()
        ImportanceSampling(num_samples=num_samples, memory=50_000)(vae.model, vae.guide, x)
        return sum(rows)

    assert encoded(1000) == encoded(200)


def test_memory_does_not_grow_with_the_number_of_samples():
    program = """
import resource, sys, torch
from pyrovae.inference import ImportanceSampling
from pyrovae.models import LinearGaussianVAE
torch.manual_seed(0)
linear = LinearGaussianVAE(data_dim=30, latent_dim=10)
x = linear.sample(1)
ImportanceSampling(num_samples=int(sys.argv[1]))(linear.model, linear.guide, x)
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
"""
    peaks = [
        int(
            subprocess.run(
                [sys.executable, "-W", "ignore", "-c", program, str(k)],
                capture_output=True,
                check=True,
                text=True,
            ).stdout
        )
        for k in (1000, 1_000_000)
    ]
    assert peaks[1] - peaks[0] < 200_000  # kilobytes


# --- the estimate --------------------------------------------------------------------------------


def _estimate(size=6, num_samples=500):
    torch.manual_seed(1)
    linear, guide, _ = linear_program(5, 2, inflate=1.3)
    return ImportanceSampling(num_samples=num_samples)(linear.model, guide, linear.sample(size))


def test_the_mean_keeps_its_errors_apart():
    estimate = _estimate(size=50)
    mean = estimate.mean()
    assert mean.value == pytest.approx(float(estimate.log_evidence.mean()))
    assert mean.monte_carlo_stderr == pytest.approx(float(estimate.stderr.norm()) / 50)
    both = math.hypot(mean.data_stderr, mean.monte_carlo_stderr)
    assert both == pytest.approx(float(estimate.log_evidence.std()) / math.sqrt(50))
    assert math.isnan(_estimate(size=1).mean().data_stderr)


def test_an_exact_guide_in_single_precision_has_no_tail():
    torch.manual_seed(0)
    linear = LinearGaussianVAE(data_dim=50, latent_dim=3)
    x = linear.sample(20)
    estimate = ImportanceSampling(num_samples=2000)(linear.model, linear.exact_guide, x)
    assert estimate.reliable.all()


def test_importance_sampling_needs_a_guide():
    linear = LinearGaussianVAE(data_dim=3, latent_dim=1)
    with pytest.raises(TypeError, match="guide must be a Pyro program, but is None"):
        ImportanceSampling(num_samples=5)(linear.model, None, torch.zeros(2, 3))


def test_one_sample_has_no_error_to_report():
    estimate = _estimate(num_samples=1)
    assert "k̂ unknown: it needs 21 weights, and these are 1" in repr(estimate)
    assert estimate.stderr.isnan().all()
    assert estimate.khat.isnan().all()
    assert not estimate.reliable.any()


def test_the_dataset_opens_in_arviz(tmp_path):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        import arviz as az
    estimate = _estimate()
    dataset = estimate.to_dataset()
    assert dict(dataset.sizes) == {"datum": 6}
    np.testing.assert_array_equal(dataset["log_evidence"], estimate.log_evidence)
    provenance = json.loads(dataset.attrs["provenance"])
    assert provenance["seed"] == 0
    assert {"data", "particles"} == set(provenance["tile"])
    assert "torch" in provenance["versions"]
    convert = getattr(az, "convert_to_datatree", None) or az.convert_to_inference_data
    assert "log_evidence" in convert(dataset)["posterior"]


def test_a_high_khat_is_said_loudly():
    torch.manual_seed(0)
    linear, guide, _ = linear_program(30, 10, inflate=0.4)
    estimate = ImportanceSampling(num_samples=1000)(linear.model, guide, linear.sample(20))
    assert estimate.mean().unreliable > 0.5
    assert "k̂ too high for" in repr(estimate)


def test_a_loader_is_scored_batch_by_batch():
    torch.manual_seed(1)
    linear, _, evidence = linear_program(5, 2)
    x = linear.sample(10)
    loader = DataLoader(TensorDataset(x), batch_size=4)
    estimate = ImportanceSampling(num_samples=10)(linear.model, linear.exact_guide, loader)
    assert np.abs(estimate.log_evidence.numpy() - evidence(x)).max() < 1e-9
