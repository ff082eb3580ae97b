"""The deep Markov model against a Kalman filter, with sequences of unequal length throughout."""

from __future__ import annotations

import math

import markov_toys as toys
import numpy as np
import oracles
import pyro
import pytest
import torch
from markov_toys import LENGTHS, D, N, T, Z
from pyro import poutine
from pyro.infer import SVI, Trace_ELBO
from torch import nn

from pyrovae.inference import (
    HMC,
    IWAE,
    AnnealedImportanceSampling,
    BidirectionalMonteCarlo,
    EvidenceUpperBound,
    ImportanceSampling,
    ProgramError,
    SequentialMonteCarlo,
    fit,
    log_joint,
    log_weights,
    simulate,
)
from pyrovae.models import DeepMarkovModel, load, save

WAYS = ("plate", "tile", "loop")
ANNEAL = {"num_temperatures": 25, "pilot_temperatures": 10, "kernel": HMC(3)}


def weigh(markov, x, lengths=None, seed=0, **settings):
    torch.manual_seed(seed)
    return log_weights(markov.model, markov.guide, x, lengths, **settings)


def padded(x, value):
    beyond = torch.arange(T) >= LENGTHS[:, None]
    return torch.where(beyond[..., None], torch.as_tensor(value, dtype=x.dtype), x)


# --- exact answers -------------------------------------------------------------------------------


def test_the_filter_agrees_with_the_dense_covariance():
    markov = toys.linear()
    x = toys.sequences(markov)
    found = toys.kalman(markov, x, LENGTHS)
    for value, sequence, length in zip(found, x.numpy(), LENGTHS.tolist(), strict=True):
        dense = oracles.gaussian_logpdf(sequence[:length].ravel(), *toys.joint(markov, length))[0]
        assert abs(value - dense) < 1e-10


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("lengths", [None, LENGTHS], ids=["whole", "ragged"])
def test_the_exact_posterior_leaves_every_weight_at_the_evidence(way, lengths):
    markov = toys.linear()
    x = toys.sequences(markov)
    weights = weigh(markov, x, lengths, num_particles=7, particles=way)
    exact = toys.kalman(markov, x, lengths)
    assert np.abs(weights.log_weight.detach().numpy() - exact).max() < 1e-11


@pytest.fixture(scope="module")
def trained():
    """A chain and its posterior, both learned from 500 sequences of another one; and these."""
    markov = toys.recurrent(latent_dim=1, hidden_dim=16)
    x = toys.sequences(toys.linear(latent_dim=1), num_data=500)
    lengths = torch.randint(1, T + 1, (500,))
    for part in (markov.transition, markov.likelihood):
        part.net.reset_parameters()
    before = float(weigh(markov, x, lengths, num_particles=20).log_weight.mean())
    history = fit(
        markov.model,
        markov.guide,
        x,
        lengths,
        objective=Trace_ELBO(),
        epochs=20,
        batch_size=50,
        learning_rate=0.02,
        schedule=lambda adam: torch.optim.lr_scheduler.LinearLR(adam, 1.0, 0.05, 20),
        validation=(x[:100], lengths[:100]),
        seed=0,
        progress=False,
    )
    return markov, x, lengths, before, history


def test_training_brings_the_elbo_to_the_evidence(trained):
    markov, x, lengths, before, history = trained
    elbo = float(weigh(markov, x, lengths, num_particles=50).log_weight.mean())
    truth = toys.kalman(toys.linear(latent_dim=1), x, lengths).mean()
    exact = toys.kalman(markov, x, lengths).mean()
    assert history.validation_elbo[0] < history.validation_elbo[-1]
    assert elbo > before + 5
    assert 0 < exact - elbo < 0.2  # what is left of KL(q || posterior)
    assert abs(exact - truth) < 0.2  # the model is as good as the one that made the data


ESTIMATORS = {
    "importance": ImportanceSampling(num_samples=2000),
    "annealed": AnnealedImportanceSampling(num_chains=32, **ANNEAL),
    "annealed_from_the_prior": AnnealedImportanceSampling(num_chains=32, start="prior", **ANNEAL),
    "sequential": SequentialMonteCarlo(num_chains=32, **ANNEAL),
    "adaptive": SequentialMonteCarlo(num_chains=32, adaptive=0.8, **ANNEAL),
}


@pytest.mark.parametrize("name", ESTIMATORS)
def test_estimators_meet_the_filter(trained, name):
    markov, x, lengths, *_ = trained
    x, lengths = x[:6], lengths[:6]
    assert len(lengths.unique()) > 2
    found = ESTIMATORS[name](markov.model, markov.guide, x, lengths)
    error = np.abs(found.log_evidence.numpy() - toys.kalman(markov, x, lengths))
    stderr = found.stderr.numpy()
    assert (error < 5 * stderr + 0.5 * stderr**2).all(), error / stderr
    assert stderr.max() < 0.3


def test_upper_and_lower_bounds_hold_the_evidence_between_them(trained):
    markov, x, lengths, *_ = trained
    x, lengths = x[:6], lengths[:6]
    exact = toys.kalman(markov, x, lengths)
    settings = {"num_chains": 16, "num_draws": 50, "num_warmup": 50, "kernel": HMC(3)}
    upper = EvidenceUpperBound(**settings)(markov.model, markov.guide, x, lengths)
    excess = upper.log_evidence.numpy() - exact
    assert (excess > -5 * upper.stderr.numpy()).all()
    assert excess.max() < 2.0  # KL(posterior || q), of a posterior that was learned
    pair = BidirectionalMonteCarlo(num_chains=8, start="prior", **ANNEAL)(
        markov.model, None, x, lengths
    )
    gap, _ = pair.mean_gap()
    noise = math.hypot(pair.lower.mean().monte_carlo_stderr, pair.upper.mean().monte_carlo_stderr)
    assert -5 * noise < gap < 1.0 + 5 * noise


def test_samples_have_the_moments_of_the_chain():
    markov = toys.linear()
    count = 20_000
    x = markov.sample(count, 3).flatten(1).numpy()
    mean, covariance = toys.joint(markov, 3)
    white = np.linalg.solve(np.linalg.cholesky(covariance), (x - mean).T)
    assert np.abs(white.mean(1)).max() < 5 / math.sqrt(count)
    # E of a product of two standard normals has variance 1, of a square 2
    assert np.abs(white @ white.T / count - np.eye(3 * D)).max() < 5 * math.sqrt(2 / count)


def test_forecasts_have_the_moments_of_what_follows():
    markov, length, ahead, count = toys.linear(), 3, 2, 20_000
    one = toys.sequences(markov, num_data=1)
    x = padded(one.expand(N, T, D), 9.0)[2:3].expand(count, T, D)  # the one of length 3
    drawn = markov.forecast(x, ahead, torch.full((count,), length)).flatten(1).numpy()
    mean, covariance = toys.joint(markov, length + ahead)
    past, future = slice(0, length * D), slice(length * D, None)
    gain = np.linalg.solve(covariance[past, past], covariance[past, future]).T
    mean = mean[future] + gain @ (one[0, :length].flatten().numpy() - mean[past])
    covariance = covariance[future, future] - gain @ covariance[past, future]
    white = np.linalg.solve(np.linalg.cholesky(covariance), (drawn - mean).T)
    assert np.abs(white.mean(1)).max() < 5 / math.sqrt(count)
    assert np.abs(white @ white.T / count - np.eye(ahead * D)).max() < 5 * math.sqrt(2 / count)


def test_reconstructions_are_the_means_along_the_posteriors_path():
    markov = toys.linear()
    x = toys.sequences(markov, num_data=1).expand(20_000, T, D)
    lengths = torch.full((20_000,), 4)
    found = markov.reconstruct(x, lengths)
    assert (found[:, 4:] == 0).all()
    # E C z + d given x: what the noise does not explain
    mean, covariance = toys.joint(markov, 4)
    residual = x[0, :4].flatten().numpy() - mean
    signal = covariance - toys.NOISE**2 * np.eye(4 * D)
    expected = mean + signal @ np.linalg.solve(covariance, residual)
    path = found[:, :4].flatten(1).numpy()
    error = (path.mean(0) - expected) / (path.std(0) / math.sqrt(20_000))
    assert np.abs(error).max() < 5


# --- padding -------------------------------------------------------------------------------------


@pytest.mark.parametrize("value", [0.0, 1e30, math.nan], ids=str)
def test_padding_changes_no_score_no_draw_and_no_gradient(value):
    for markov in (toys.recurrent(), toys.notes()):
        x = toys.sequences(markov)
        found = []
        for each in (x, padded(x, value)):
            markov.zero_grad()
            weights = weigh(markov, each, LENGTHS, num_particles=3)
            weights.log_weight.sum().backward()
            parts = [weights.log_joint, weights.log_guide, *weights.values.values()]
            found.append(parts + [p.grad.clone() for p in markov.parameters()])
        assert all(torch.equal(*pair) for pair in zip(*found, strict=True))


def test_padding_outside_the_support_is_no_fault_of_the_data():
    markov = toys.notes()
    x = padded(toys.sequences(markov), -1.0)
    assert pyro.poutine.util.is_validation_enabled()
    assert weigh(markov, x, LENGTHS).log_weight.isfinite().all()
    found = ImportanceSampling(num_samples=10)(markov.model, markov.guide, x, LENGTHS)
    assert found.log_evidence.isfinite().all()
    with pytest.raises(ProgramError, match=r"site 'x' takes values in Boolean\(\), but holds -1"):
        weigh(markov, x)


@pytest.mark.parametrize("make", [toys.recurrent, toys.notes])
def test_a_padded_sequence_scores_as_the_one_that_is_cut(make):
    markov = make().double()
    x = toys.sequences(markov)
    weights = weigh(markov, x, LENGTHS, num_particles=2)
    for n, length in enumerate(LENGTHS.tolist()):
        alone = x[n : n + 1, :length]
        values = {f"z_{t + 1}": weights.values[f"z_{t + 1}"][:, n : n + 1] for t in range(length)}
        joint = log_joint(markov.model, values, alone)[:, 0]
        torch.testing.assert_close(joint, weights.log_joint[:, n], rtol=1e-12, atol=1e-12)
        for k in range(2):
            given = {name: value[k] for name, value in values.items()}
            trace = poutine.trace(poutine.condition(markov.guide, given)).get_trace(alone)
            guide = trace.log_prob_sum()  # conditioned sites are counted like any others
            torch.testing.assert_close(guide, weights.log_guide[k, n], rtol=1e-12, atol=1e-12)


def test_without_lengths_all_are_whole():
    markov = toys.notes()
    x = toys.sequences(markov)
    whole = torch.full((N,), T)
    one, two = (weigh(markov, x, each, num_particles=2).log_weight for each in (None, whole))
    torch.testing.assert_close(one, two)


# --- contract ------------------------------------------------------------------------------------


@pytest.mark.parametrize("make", [toys.recurrent, toys.notes])
@pytest.mark.parametrize("lengths", [None, LENGTHS], ids=["whole", "ragged"])
def test_all_ways_of_drawing_particles_agree(make, lengths):
    markov = make().double()
    x = toys.sequences(markov)
    values = weigh(markov, x, lengths, num_particles=3, particles="loop").values
    assert {name: tuple(v.shape) for name, v in values.items()} == {
        f"z_{t}": (3, N, Z) for t in range(1, T + 1)
    }
    scores = [log_joint(markov.model, values, x, lengths, particles=way) for way in WAYS]
    for score in scores[1:]:
        torch.testing.assert_close(score, scores[0], rtol=1e-12, atol=1e-12)
    for way in WAYS:  # each is checked against a loop before it is trusted
        assert weigh(markov, x, lengths, num_particles=3, particles=way).log_weight.shape == (3, N)


def test_saving_keeps_every_score(tmp_path):
    for markov in (toys.notes(), toys.recurrent(cell=nn.LSTM, num_layers=2)):
        x = toys.sequences(markov)
        save(markov, tmp_path / "markov")
        again = load(tmp_path / "markov")
        one, two = (weigh(each, x, LENGTHS, num_particles=4) for each in (markov, again))
        assert torch.equal(one.log_weight, two.log_weight)
        assert again.name != markov.name


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_precision_follows_the_module(dtype):
    markov = toys.notes().to(dtype)
    x = toys.sequences(markov)
    drawn = [x, markov.reconstruct(x, LENGTHS), markov.forecast(x, 2, LENGTHS)]
    drawn += weigh(markov, x, LENGTHS).values.values()
    assert {each.dtype for each in drawn} == {dtype}


@pytest.mark.gpu
def test_the_device_follows_the_module():
    markov = toys.notes().cuda()
    x = toys.sequences(markov)
    for lengths in (None, LENGTHS, LENGTHS.cuda()):
        assert log_weights(markov.model, markov.guide, x, lengths).log_weight.is_cuda
        assert markov.forecast(x, 2, lengths).is_cuda
    assert markov.reconstruct(x, LENGTHS).is_cuda


@pytest.mark.parametrize("objective", [Trace_ELBO, lambda: IWAE(num_particles=3)])
def test_gradients_reach_every_parameter(objective):
    markov = toys.notes()
    x = toys.sequences(markov)
    objective().differentiable_loss(markov.model, markov.guide, x, LENGTHS).backward()
    missed = [n for n, p in markov.named_parameters() if p.grad is None or not p.grad.any()]
    assert missed == []


def test_pyros_svi_trains_it():
    markov = toys.notes()
    x = (toys.sequences(markov, num_data=20) + 1).clamp(max=1)  # all notes at all times
    lengths = torch.randint(1, T + 1, (20,))
    svi = SVI(markov.model, markov.guide, pyro.optim.Adam({"lr": 0.02}), Trace_ELBO())
    losses = [svi.step(x, lengths) for _ in range(60)]
    assert np.mean(losses[-10:]) < 0.5 * np.mean(losses[:10])


def test_simulated_sequences_take_the_place_of_x():
    markov = toys.notes()
    x = padded(toys.sequences(markov), -1.0)
    made = simulate(markov.model, x, LENGTHS).as_data(x)
    assert made.shape == x.shape
    assert weigh(markov, made, LENGTHS).log_weight.isfinite().all()


def test_one_step_is_enough():
    markov = toys.linear()
    x = toys.sequences(markov)[:, :1]
    found = weigh(markov, x, num_particles=3).log_weight.detach().numpy()
    assert np.abs(found - toys.kalman(markov, x)).max() < 1e-11
    assert markov.sample(2, 1).shape == (2, 1, D)


# --- refusals ------------------------------------------------------------------------------------

BAD_LENGTHS = [
    ([5, 0, 3, 4, 2], ValueError, "lengths must be from 1 to T = 5, but datum 1 has 0"),
    ([5, 1, 3, 6, 2], ValueError, "lengths must be from 1 to T = 5, but datum 3 has 6"),
    ([5, 1, 3, -4, 2], ValueError, "lengths must be from 1 to T = 5, but datum 3 has -4"),
    ([5.0, 1, 3, 4, 2], ValueError, r"lengths must be integers, but are torch\.float"),
    ([True] * N, ValueError, r"lengths must be integers, but are torch\.bool"),
    ([5, 1, 3, 4], ValueError, r"lengths must be of shape \(5,\), .* but have \(4,\)"),
    ([[5], [1], [3], [4], [2]], ValueError, r"of shape \(5,\), .* but have \(5, 1\)"),
]


@pytest.mark.parametrize(("lengths", "kind", "message"), BAD_LENGTHS)
def test_bad_lengths_are_refused(lengths, kind, message):
    markov = toys.notes()
    x, lengths = toys.sequences(markov), torch.tensor(lengths)
    for refuse in (
        lambda: markov.model(x, lengths),
        lambda: markov.guide(x, lengths),
        lambda: markov.reconstruct(x, lengths),
        lambda: markov.forecast(x, 2, lengths),
        lambda: weigh(markov, x, lengths),
        lambda: ImportanceSampling(num_samples=5)(markov.model, markov.guide, x, lengths),
    ):
        with pytest.raises(kind, match=message):
            refuse()
    with pytest.raises(kind, match="lengths must be"):  # of a batch, in another order
        fit(markov.model, markov.guide, x, lengths, epochs=1, batch_size=2)


def test_a_list_is_no_tensor_of_lengths():
    markov = toys.notes()
    with pytest.raises(TypeError, match="lengths must be a tensor, but is a list"):
        markov.guide(toys.sequences(markov), LENGTHS.tolist())


@pytest.mark.parametrize(
    ("x", "message"),
    [
        (torch.zeros(N, D), r"x must be sequences of shape \(N, T, D\), but has \(5, 3\)"),
        (torch.zeros(N, 0, D), r"x must be sequences of shape \(N, T, D\), but has \(5, 0, 3\)"),
        (torch.zeros(N, T, D + 1), r"x must be .* shape \(N, T, 3\), but has \(5, 5, 4\)"),
        (torch.zeros(N, T, D, 1), r"x must be .* shape \(N, T, 3\), but has \(5, 5, 3, 1\)"),
        (torch.zeros(N, T, D).double(), r"x must be torch\.float32, .* but is torch\.float64"),
        (torch.zeros(N, T, D).long(), r"x must be torch\.float32, .* but is torch\.int64"),
    ],
)
def test_bad_sequences_are_refused(x, message):
    markov = toys.notes()
    for refuse in (lambda: markov.guide(x, LENGTHS), lambda: markov.reconstruct(x, LENGTHS)):
        with pytest.raises(ValueError, match=message):
            refuse()


def test_sequences_of_another_size_are_refused_by_the_model_too():
    message = r"x must hold data of shape \(5, 3\), as the likelihood does, but holds \(5, 1\)"
    with pytest.raises(ValueError, match=message):
        toys.notes().model(torch.zeros(N, T, 1))


def test_nothing_is_drawn_of_no_length():
    markov = toys.notes()
    with pytest.raises(ValueError, match="num_samples must be at least 1, but is 0"):
        markov.sample(0, 3)
    with pytest.raises(ValueError, match="num_steps must be at least 1, but is 0"):
        markov.sample(3, 0)
    with pytest.raises(ValueError, match="num_steps must be at least 1, but is 0"):
        markov.forecast(torch.zeros(N, T, D), 0)


def test_parts_of_ones_own_take_a_few_lines():
    """Another transition and a posterior that looks at one datum: both plain modules."""

    class Walk(nn.Module):
        def forward(self, z):
            return pyro.distributions.Laplace(z, 0.5).to_event(1)

    class Local(nn.Module):
        def __init__(self):
            super().__init__()
            self.net = nn.Linear(D, Z)

        def forward(self, x, lengths=None):
            loc = self.net(x)
            return lambda t, z: pyro.distributions.Normal(loc[:, t], 1.0).to_event(1)

    given = toys.notes()
    markov = DeepMarkovModel(given.prior, Walk(), given.likelihood, Local())
    x = toys.sequences(markov)
    found = ImportanceSampling(num_samples=10)(markov.model, markov.guide, x, LENGTHS)
    assert found.log_evidence.isfinite().all()
