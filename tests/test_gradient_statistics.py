"""Statistics of gradients against their exact moments, by quadrature over the noise."""

from __future__ import annotations

import json
from functools import partial

import gradient_oracles as oracles
import numpy as np
import pyro
import pytest
import torch
from gradient_toys import Chain, Code
from oracles import normal_logpdf
from pyro.infer import Trace_ELBO

from pyrovae.benchmarks.studies import gradient_snr
from pyrovae.inference import (
    ELBO,
    IWAE,
    NVIL,
    REINFORCE,
    STL,
    MonteCarloObjective,
    bounds,
    gradient_statistics,
    gradients,
)
from pyrovae.models import VAE
from pyrovae.models.likelihoods import Bernoulli
from pyrovae.models.nets import MLP
from pyrovae.models.posteriors import DiagonalNormal
from pyrovae.models.priors import VampPrior

pytestmark = pytest.mark.usefixtures("one_thread")

NOISE = 0.7
THETA, PHI = np.array([0.9, 0.3]), np.array([0.4, 0.2, -0.3])
X = np.array([-0.5, 1.4])


def pathwise(datum, eps):
    """The descent of one particle's ELBO along phi, by the chain rule: ``(3, P)``."""
    scale = np.exp(PHI[2])
    z = PHI[0] * datum + PHI[1] + scale * eps
    pull = -z + (datum - THETA[0] * z - THETA[1]) * THETA[0] / NOISE**2
    return -np.stack([pull * datum, pull, pull * scale * eps + 1])


def score(datum, eps):
    """The same by the score function, centred as the rule is."""
    scale = np.exp(PHI[2])
    z = PHI[0] * datum + PHI[1] + scale * eps
    joint = normal_logpdf(z) + normal_logpdf(datum, THETA[0] * z + THETA[1], NOISE)
    worth = joint - normal_logpdf(eps) + PHI[2]
    return -worth * np.stack([eps / scale * datum, eps / scale, eps**2 - 1])


@pytest.mark.parametrize(
    ("objective", "gradient"), [(ELBO(), pathwise), (REINFORCE(), score), (Trace_ELBO(), pathwise)]
)
def test_mean_and_variance_are_those_of_the_estimator(objective, gradient):
    """Per datum and as a mean over two data, whose noise is independent."""
    found = gradient_statistics(
        objective, *_pair(), torch.tensor(X), repeats=1200, reference=ELBO(), seed=1
    )
    eps, weight = oracles.gaussian_grid(1, 60)
    means = [(weight * gradient(d, eps[0])).sum(-1) for d in X]
    squares = [(weight * gradient(d, eps[0]) ** 2).sum(-1) for d in X]
    mean = np.mean(means, axis=0)
    variance = np.mean([s - m**2 for s, m in zip(squares, means, strict=True)], axis=0) / len(X)
    phi = found.sel(group="phi")
    inside = found.component_group == "phi"
    stderr = np.sqrt(variance / 1200)
    assert (np.abs(found["mean"][inside] - mean) < 5 * stderr).all()
    assert abs(phi.variance - variance.sum()) < 5 * phi.variance_stderr
    assert phi.snr == pytest.approx((np.abs(mean) / np.sqrt(variance)).mean(), abs=0.1)
    pooled = np.sqrt((mean**2).sum() / variance.sum())
    assert abs(phi.snr_pooled - pooled) < 5 * phi.snr_pooled_stderr


def _pair():
    pair = Chain(THETA, PHI, NOISE)
    return pair.model, pair.guide


def test_the_score_function_is_noisier_than_the_path():
    found = [
        gradient_statistics(o, *_pair(), torch.tensor(X), repeats=400, reference=ELBO())
        for o in (ELBO(), REINFORCE())
    ]
    path, score_ = (one.sel(group="phi") for one in found)
    assert score_.variance > 3 * path.variance
    assert score_.cosine < path.cosine


def test_a_gradient_without_noise_has_an_infinite_ratio_and_points_at_itself():
    precision = THETA[0] ** 2 + NOISE**2
    slope = THETA[0] / precision
    guide = [slope, -slope * THETA[1], np.log(NOISE / np.sqrt(precision))]
    pair = Chain(THETA, np.array(guide), NOISE)
    x = torch.tensor(X)
    found = gradient_statistics(STL(), pair.model, pair.guide, x, reference=STL())
    phi = found.sel(group="phi")
    assert phi.variance < 1e-24
    assert phi.norm < 1e-12


def test_parameters_are_told_apart_by_what_the_guide_reads():
    torch.manual_seed(0)
    posterior = DiagonalNormal(MLP(6, 4, hidden=(5,)))
    vae = VAE(VampPrior(posterior, torch.rand(3, 6)), posterior, Bernoulli(MLP(2, 6, hidden=(5,))))
    x = torch.bernoulli(torch.full((8, 6), 0.4))
    found = gradient_statistics(IWAE(3), vae.model, vae.guide, x, repeats=20, reference=IWAE(3))
    names = {
        group: {str(n) for n in found.parameter[found.component_group == group].values}
        for group in ("theta", "phi")
    }
    assert all("posterior" in name for name in names["phi"])
    assert any("pseudo_inputs" in name for name in names["theta"])
    assert all("pseudo_inputs" in name or "likelihood" in name for name in names["theta"])
    assert found.sizes["component"] == sum(p.numel() for p in vae.parameters())


def test_nothing_is_left_behind():
    pair, x = Chain(THETA, PHI, NOISE), torch.tensor(X)
    rule = gradients.ScoreFunction(gradients.MovingAverage(), everywhere=True)
    objective = MonteCarloObjective(bounds.ELBO(), rule)
    objective.differentiable_loss(pair.model, pair.guide, x).backward()
    before = torch.get_rng_state(), objective.state_dict(), set(pyro.get_param_store().keys())
    gradient_statistics(objective, pair.model, pair.guide, x, repeats=20)
    assert torch.equal(before[0], torch.get_rng_state())
    assert before[1] == objective.state_dict()
    assert before[2] == set(pyro.get_param_store().keys())


def test_the_same_seed_gives_the_same_numbers():
    x = torch.tensor(X)
    one, same, other = (
        gradient_statistics(IWAE(3), *_pair(), x, repeats=20, seed=seed) for seed in (5, 5, 6)
    )
    assert one.equals(same)
    assert not one.equals(other)
    assert one.attrs["objective"] == repr(IWAE(3))


@pytest.mark.parametrize(
    ("repeats", "message"),
    [(19, "repeats must be at least 20, but is 19"), (2.5, "repeats must be a whole number")],
)
def test_too_few_repeats_are_refused(repeats, message):
    with pytest.raises(ValueError, match=message):
        gradient_statistics(ELBO(), *_pair(), torch.tensor(X), repeats=repeats)


def test_means_of_a_discrete_pair_are_exact_too():
    theta, phi = np.array([0.3, 1.2, 0.1]), np.array([0.8, -0.2])
    pair, system = Code(theta, phi, NOISE), oracles.BinaryCode(1, NOISE)
    formula = partial(oracles.bound_of, "elbo")
    found = gradient_statistics(
        NVIL(num_particles=4), pair.model, pair.guide, torch.tensor(X), repeats=400
    )
    expected = -np.concatenate(
        [
            oracles.derivative(lambda t: system.expected_bound(formula, t, phi, phi, X, 1), theta),
            oracles.derivative(lambda p: system.expected_bound(formula, theta, p, p, X, 1), phi),
        ]
    ) / len(X)
    stderr = found["std"] / np.sqrt(400)
    assert (np.abs(found["mean"] - expected) < 5 * stderr).all()
    assert set(found.component_group.values) == {"theta", "phi"}


def test_a_baseline_is_left_without_gradients():
    net = torch.nn.Sequential(torch.nn.Unflatten(0, (-1, 1)), torch.nn.Linear(1, 1).double())
    pair = Code(np.array([0.3, 1.2, 0.1]), np.array([0.8, -0.2]), NOISE)
    gradient_statistics(NVIL(net), pair.model, pair.guide, torch.tensor(X), repeats=20)
    assert all(parameter.grad is None for parameter in (*net.parameters(), *pair.parameters()))


def test_the_study_of_the_signal_to_noise_ratio(monkeypatch, tmp_path):
    monkeypatch.setattr(gradient_snr, "PARTICLES", (1, 10, 20, 30, 40))
    monkeypatch.setattr("sys.argv", ["gradient_snr", "--repeats", "20", "--output", str(tmp_path)])
    gradient_snr.main()
    rows = json.loads((tmp_path / "gradient-snr.json").read_text())["rows"]
    assert len(rows) == 3 * 5
    found = {(row["rule"], row["particles"]): row for row in rows}
    assert found["IWAE, doubly reparameterised", 40]["phi"]["snr"] > 0.5
    assert found["IWAE", 40]["theta"]["snr"] > 2 * found["IWAE", 1]["theta"]["snr"]
    assert "| IWAE, doubly reparameterised |" in (tmp_path / "gradient-snr.md").read_text()
    assert (tmp_path / "gradient-snr.png").stat().st_size > 10_000
