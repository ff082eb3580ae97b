"""The VQ-VAE: its evidence against every grid of codes, its bounds, its prior, resumed training."""

from __future__ import annotations

import copy
import functools
import math

import numpy as np
import oracles
import pytest
import torch
from pyro.infer import Trace_ELBO
from quantised_toys import CODE, D, bits, small
from torch import nn
from training_toys import INSPECTIONS, QUIET, assert_same, assert_same_values, interrupting

from pyrovae.inference import ImportanceSampling, Penalised, fit, log_weights
from pyrovae.inference.training import TrainingInterrupted
from pyrovae.models import VQVAE
from pyrovae.models.likelihoods import Bernoulli, Gaussian
from pyrovae.models.nets import MLP
from pyrovae.models.priors import AutoregressivePrior, StandardNormal, UniformCodes
from pyrovae.models.quantised import Codebook, VectorQuantiser
from pyrovae.models.saving import load, save

pytestmark = pytest.mark.usefixtures("one_thread")

TRAINING = {"batch_size": 10, **QUIET}


def in_order(grid, num_codes):
    return AutoregressivePrior(grid, num_codes, hidden=4)


def sharp(prior=UniformCodes, **settings):
    """A model whose grids differ in their likelihood."""
    vq = small(prior, **settings).double().eval().requires_grad_(False)
    for weight in vq.likelihood.parameters():
        weight *= 2.5
    return vq


def numbers_in_numpy(module):
    return {name: value.detach().double().numpy() for name, value in module.state_dict().items()}


# --- every grid, written out ---------------------------------------------------------------------


def gru_log_prob(prior, grids):
    """log p of numbers (R, G): a gated recurrent unit by its equations."""
    w = numbers_in_numpy(prior)
    weights = [w[f"state.{kind}_{way}_l0"] for kind in ("weight", "bias") for way in ("ih", "hh")]
    hidden = weights[1].shape[1]
    sigmoid = lambda a: 1 / (1 + np.exp(-a))  # noqa: E731
    state, before = np.zeros((len(grids), hidden)), np.full(len(grids), len(w["head.bias"]))
    total = np.zeros(len(grids))
    for place, number in zip(w["place"], grids.T, strict=True):
        new = (w["previous.weight"][before] + place) @ weights[0].T + weights[2]
        old = state @ weights[1].T + weights[3]
        reset, update = (
            sigmoid(new[:, part] + old[:, part])
            for part in (slice(0, hidden), slice(hidden, 2 * hidden))
        )
        candidate = np.tanh(new[:, 2 * hidden :] + reset * old[:, 2 * hidden :])
        state = (1 - update) * candidate + update * state
        logits = state @ w["head.weight"].T + w["head.bias"]
        total += logits[np.arange(len(grids)), number] - oracles.logsumexp(logits, -1)
        before = number
    return total


def every_joint(vq, x):
    """All grids (R, G), their log p(k) and log p(x, k), ``(R, N)``."""
    codes = vq.posterior.codebook.vectors.detach().double().numpy()
    places = math.prod(vq.posterior.grid)
    grids = oracles.enumerated_codes(places, len(codes))
    w = numbers_in_numpy(vq.likelihood.net[1].layers)
    flat = codes[grids].transpose(0, 2, 1).reshape(len(grids), -1)  # the code's numbers, then place
    logits = np.tanh(flat @ w["0.weight"].T + w["0.bias"]) @ w["2.weight"].T + w["2.bias"]
    uniform = np.full(len(grids), -places * math.log(len(codes)))
    learned = isinstance(vq.prior, AutoregressivePrior)
    log_prior = gru_log_prob(vq.prior, grids) if learned else uniform
    likelihood = [oracles.bernoulli_logpmf(row, logits).sum(-1) for row in x.double().numpy()]
    return grids, log_prior, log_prior[:, None] + np.stack(likelihood, -1)


@functools.cache
def written_out(prior):
    vq, x = sharp(prior), bits(3).double()
    return vq, x, *every_joint(vq, x)


@pytest.fixture(params=[UniformCodes, in_order], ids=["uniform", "in order"])
def enumerated(request, one_thread):
    """A model of 65,536 grids, three data, and what :func:`every_joint` says of them."""
    return written_out(request.param)


def test_the_evidence_is_the_sum_over_all_grids(enumerated):
    vq, x, _, log_prior, log_joint = enumerated
    assert oracles.logsumexp(log_prior, 0) == pytest.approx(0, abs=1e-9)
    exact = oracles.logsumexp(log_joint, 0)
    np.testing.assert_allclose(vq.log_evidence(x).numpy(), exact, atol=1e-9)
    # the sum in parts, which many data make it
    np.testing.assert_allclose(vq.log_evidence(bits(60).double())[:3], exact, atol=1e-9)


def test_the_elbo_is_the_joint_at_the_nearest_codes(enumerated):
    vq, x, grids, log_prior, log_joint = enumerated
    chosen = vq.codes(x).flatten(1).numpy() @ 16 ** np.arange(3, -1, -1)
    np.testing.assert_array_equal(grids[chosen], vq.codes(x).flatten(1))
    by_hand = log_joint[chosen, np.arange(3)]
    weights = log_weights(vq.model, vq.guide, x, num_particles=2)
    np.testing.assert_allclose(weights.log_weight.numpy(), [by_hand, by_hand], atol=1e-9)
    assert -Trace_ELBO().loss(vq.model, vq.guide, x) == pytest.approx(by_hand.sum(), abs=1e-9)
    assert (by_hand < oracles.logsumexp(log_joint, 0) - 1).all()
    # the rate: a sure guide spends the whole price of its codes
    assert (weights.log_guide == 0).all()
    np.testing.assert_allclose(weights.model_sites["z"][0].numpy(), log_prior[chosen], atol=1e-9)


def test_the_softened_guide_finds_the_evidence(enumerated):
    vq, x, _, _, log_joint = enumerated
    soft = vq.softened(8.0)
    estimate = ImportanceSampling(4000, seed=0)(soft.model, soft.guide, x)
    exact = torch.as_tensor(oracles.logsumexp(log_joint, 0))
    assert (estimate.khat < 0.5).all()
    assert ((estimate.log_evidence - exact).abs() < 5 * estimate.stderr).all()
    assert estimate.stderr.max() < 0.1


def test_the_softened_model_is_the_same_one():
    vq = small()
    soft = vq.softened(2.0)
    assert all(a is b for a, b in zip(soft.parameters(), vq.parameters(), strict=True))
    assert soft.posterior.codebook is vq.posterior.codebook
    assert (soft.posterior.temperature, vq.posterior.temperature) == (2.0, 0.0)
    assert soft.training
    assert not vq.eval().softened(2.0).training
    assert torch.equal(soft.eval().codes(bits()), vq.codes(bits()))


def test_the_uniform_prior_costs_the_logarithm_of_the_codes_each():
    vq = small(grid=(2, 3), num_codes=7).eval()
    weights = log_weights(vq.model, vq.guide, bits(), num_particles=1)
    rate = (weights.log_guide - weights.model_sites["z"]).numpy()
    np.testing.assert_allclose(rate, 6 * math.log(7), rtol=1e-6)


def test_draws_of_the_prior_in_order_have_its_probabilities():
    prior = sharp(in_order, grid=(2,), num_codes=3).prior
    grids, count = oracles.enumerated_codes(2, 3), 20_000
    probs = np.exp(gru_log_prob(prior, grids))
    np.testing.assert_allclose(prior().log_prob(torch.as_tensor(grids)).exp(), probs)
    drawn = prior().sample((count,)).numpy() @ [3, 1]
    share = np.bincount(drawn, minlength=9) / count
    assert (abs(share - probs) < 5 * np.sqrt(probs * (1 - probs) / count)).all()


# --- use -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("prior", [UniformCodes, in_order])
@pytest.mark.parametrize("grid", [(3,), (2, 2), (1, 2, 2)])
def test_shapes(prior, grid):
    vq, x = small(prior, grid).eval(), bits(7)
    assert vq.sample(4).shape == (4, D)
    assert vq.codes(x).shape == (7, *grid)
    vectors = vq.posterior.codebook.vectors[vq.codes(x)].movedim(-1, 1)
    assert torch.equal(vq.reconstruct(x), vq.likelihood(vectors).mean)
    assert torch.equal(vq.decode(vq.codes(x)).mean, vq.reconstruct(x))
    assert vq.softened(1.0).reconstruct(x).shape == x.shape
    assert vq.log_evidence(x).shape == (7,)
    assert vq.log_evidence(x).dtype == torch.float64


class Given(nn.Module):
    """A net whose first layer sees the context, too."""

    def __init__(self, *layers):
        super().__init__()
        self.layers = nn.Sequential(*layers)

    def forward(self, h, y):
        return self.layers(torch.cat([h.flatten(h.dim() - (h.shape[-1] != D) - 1), y], -1))


def test_a_context_goes_to_encoder_and_decoder():
    torch.manual_seed(0)
    encoder = Given(nn.Linear(D + 1, CODE * 2), nn.Unflatten(-1, (CODE, 2)))
    quantiser = VectorQuantiser(encoder, Codebook(4, CODE), (2,))
    decoder = Given(nn.Linear(CODE * 2 + 1, D))
    vq = VQVAE(UniformCodes((2,), 4), quantiser, Bernoulli(decoder)).eval()
    x, y = bits(5), 3 * torch.randn(5, 1)
    by_hand = vq.decode(vq.codes(x, y), y).log_prob(x) - 2 * math.log(4)
    weights = log_weights(vq.model, vq.guide, x, y, num_particles=1)
    torch.testing.assert_close(weights.log_weight[0], by_hand.double().detach())
    assert vq.sample(5, y).shape == x.shape
    assert not torch.equal(vq.codes(x, y), vq.codes(x, -y))


@pytest.mark.parametrize("decay", [0.9, None])
def test_a_saved_model_keeps_its_codebook(decay, tmp_path):
    vq = small(in_order, decay=decay)
    fit(vq.model, vq.guide, bits(), epochs=2, **TRAINING | {"objective": Penalised()})
    vq.only_prior()
    save(vq, tmp_path / "vq.safetensors")
    again = load(tmp_path / "vq.safetensors")
    assert_same_values(again.state_dict(), vq.state_dict())
    assert again.posterior.codebook.frozen
    assert torch.equal(again.log_evidence(bits(3)), vq.log_evidence(bits(3)))


# --- training ------------------------------------------------------------------------------------


def moved(module, before):
    now = module.state_dict()
    return {name for name, value in before.items() if not torch.equal(value, now[name])}


@pytest.mark.parametrize("decay", [0.9, None])
def test_training_moves_everything_and_then_the_prior_alone(decay):
    """Batch norm's running moments, too: else the codes that the prior learns would drift."""
    vq, x = small(in_order, norm=True, decay=decay), bits()
    training = TRAINING | {"objective": Penalised(), "epochs": 3}
    before = copy.deepcopy(vq.state_dict())
    fit(vq.model, vq.guide, x, **training)
    assert moved(vq, before) == set(before)

    vq.train().only_prior()
    modes = [part.training for part in (vq.prior, vq.posterior.net, vq.likelihood.net)]
    assert modes == [True, False, False]
    before, codes = copy.deepcopy(vq.state_dict()), vq.codes(x)
    fit(vq.model, vq.guide, x, **training)
    assert moved(vq, before) == {name for name in before if name.startswith("prior.")}
    assert torch.equal(vq.eval().codes(x), codes)


def test_a_prior_in_order_comes_to_cost_the_entropy_of_the_codes():
    vq = small(AutoregressivePrior, num_codes=8)
    x = bits(4).repeat_interleave(torch.tensor([8, 4, 2, 2]), 0)
    vq.only_prior()
    training = {"epochs": 60, "learning_rate": 0.02, "batch_size": len(x), **QUIET}
    fit(vq.model, vq.guide, x, objective=Penalised(), **training)
    _, counts = vq.codes(x).flatten(1).unique(dim=0, return_counts=True)
    entropy = torch.distributions.Categorical(counts.double()).entropy()
    assert entropy > 1
    weights = log_weights(vq.eval().model, vq.guide, x, num_particles=1)
    rate = -weights.model_sites["z"].double().mean()
    assert entropy < rate < entropy + 0.1  # no code is shorter


def test_training_raises_the_evidence():
    vq, x = small(num_codes=4), bits(4).repeat(10, 1)
    before = vq.eval().log_evidence(x[:4]).mean()
    training = TRAINING | {"objective": Penalised(), "epochs": 30}
    fit(vq.model, vq.guide, x, **training, learning_rate=0.02)
    with torch.no_grad():
        elbo = -Trace_ELBO().loss(vq.eval().model, vq.guide, x[:4]) / 4
    after = vq.log_evidence(x[:4]).mean()
    assert before + 1 < after
    assert elbo < after


@pytest.mark.parametrize("decay", [0.5, None])
@pytest.mark.parametrize("step", [3, 6])
def test_an_interrupted_run_resumes_exactly(decay, step, tmp_path):
    """Codes die and are put elsewhere at random on both sides of the interrupt."""
    settings = TRAINING | {"objective": Penalised(), "epochs": 3, "validation": bits(12)}
    x, path = bits(), tmp_path / "run.safetensors"
    whole, one, again = (small(in_order, decay=decay) for _ in range(3))
    start = whole.posterior.codebook.vectors.clone()
    expected = fit(whole.model, whole.guide, x, **settings)
    guide = interrupting(one.guide, step + INSPECTIONS)
    with pytest.raises(TrainingInterrupted):
        fit(one.model, guide, x, checkpoint=path, **settings)
    torch.manual_seed(99)
    history = fit(again.model, again.guide, x, checkpoint=path, resume=True, **settings)
    assert_same(history, expected)
    assert_same_values(again.state_dict(), whole.state_dict())
    if decay:
        away = (whole.posterior.codebook.vectors - start).abs().amax(-1)
        assert (away > 1e-3).all()  # those that stand for nothing, too


# --- refusals ------------------------------------------------------------------------------------


def parts(**changed):
    encoder = nn.Sequential(MLP(D, CODE * 2, ()), nn.Unflatten(-1, (CODE, 2)))
    decoder = nn.Sequential(nn.Flatten(-2), MLP(CODE * 2, D, ()))
    return {
        "prior": UniformCodes((2,), 4),
        "posterior": VectorQuantiser(encoder, Codebook(4, CODE), (2,)),
        "likelihood": Bernoulli(decoder),
    } | changed


@pytest.mark.parametrize(
    ("changed", "kind", "message"),
    [
        (
            {"posterior": nn.Identity()},
            TypeError,
            "posterior must be a VectorQuantiser, but is a Identity",
        ),
        (
            {"prior": UniformCodes((3,), 4)},
            ValueError,
            r"prior must give numbers on the posterior's grid \(2,\), but gives \(3,\)",
        ),
        (
            {"prior": in_order((2,), 5)},
            ValueError,
            "prior must give numbers of the codebook's 4 codes, but gives those of 5",
        ),
        ({"prior": StandardNormal(2)}, ValueError, "prior must give numbers of codes, but gives a"),
    ],
)
def test_parts_that_do_not_fit_are_refused(changed, kind, message):
    with pytest.raises(kind, match=message):
        VQVAE(**parts(**changed))


@pytest.mark.parametrize("temperature", [0, -1.0, math.nan])
def test_softening_without_a_temperature_is_refused(temperature):
    with pytest.raises(ValueError, match="temperature must be positive, but is"):
        VQVAE(**parts()).softened(temperature)


def test_too_many_grids_are_refused():
    with pytest.raises(ValueError, match=r"at most 1048576 grids, .* 33 codes .* make 33\^4"):
        small(num_codes=33).log_evidence(bits(1))


@pytest.mark.parametrize("family", [Bernoulli, Gaussian])
def test_data_of_another_shape_are_refused(family):
    """A datum of one number would broadcast against all of the likelihood's."""
    likelihood = family(parts()["likelihood"].net)
    vq = VQVAE(**parts(likelihood=likelihood))
    for use in (vq.log_evidence, vq.model):
        with pytest.raises(
            ValueError, match=r"x must hold data of shape \(6,\), as the likelihood"
        ):
            use(torch.ones(3, 1))


def test_the_exact_evidence_is_that_of_evaluation():
    """Batch norm would make a grid's density depend on which others are in its part of the sum."""
    torch.manual_seed(0)
    encoder = nn.Sequential(nn.Linear(4, 4), nn.Unflatten(-1, (2, 2)))
    quantiser = VectorQuantiser(encoder, Codebook(3, 2), grid=(2,))
    decoder = nn.Sequential(nn.Flatten(-2), nn.Linear(4, 8), nn.BatchNorm1d(8), nn.Linear(8, 4))
    vq = VQVAE(UniformCodes((2,), 3), quantiser, Bernoulli(decoder))
    x = torch.rand(20, 4).round()
    vq.train()
    found, norm = vq.log_evidence(x), decoder[2]
    assert vq.training
    assert norm.training
    assert torch.equal(norm.running_mean, torch.zeros(8))
    assert torch.equal(found, vq.eval().log_evidence(x))
    assert torch.equal(found[:3], vq.log_evidence(x[:3]))
