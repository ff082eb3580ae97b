"""The contract of a VAE, over every prior, posterior and likelihood from one literal list."""

from __future__ import annotations

import copy
import itertools
import pickle

import numpy as np
import oracles
import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from pyro.infer import SVI, Trace_ELBO, TraceMeanField_ELBO
from safetensors import safe_open
from torch import nn

from pyrovae.inference import ImportanceSampling, log_joint, log_weights, simulate
from pyrovae.models import VAE, load, save
from pyrovae.models.likelihoods import Bernoulli, ContinuousBernoulli, Gaussian, LearnedScale
from pyrovae.models.nets import MLP, ConvDecoder, ConvEncoder, GatedMLP, WithoutContext
from pyrovae.models.posteriors import DiagonalNormal, FullRankNormal, PerDatum
from pyrovae.models.priors import GaussianMixture, StandardNormal, VampPrior

N, D, Z = 5, 6, 2

POSTERIORS = {
    "diagonal": lambda: DiagonalNormal(MLP(D, 2 * Z, hidden=(7,))),
    "gated": lambda: DiagonalNormal(GatedMLP(D, 2 * Z, hidden=(7, 7))),
    "full-rank": lambda: FullRankNormal(MLP(D, Z + 3, hidden=(7,))),
    "per-datum": lambda: PerDatum(N, Z).eval(),
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
    with safe_open(tmp_path / "vae", framework="pt") as file:
        stored = [file.get_tensor(name) for name in file.keys()]  # noqa: SIM118 - no mapping
    assert sum(t.numel() for t in stored) == sum(p.numel() for p in vae.parameters())


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_precision_follows_the_module(combination, dtype):
    vae, x = build(*combination).to(dtype), data(combination[2], dtype)
    weights = log_weights(vae.model, vae.guide, x, num_particles=2)
    assert weights.values["z"].dtype == dtype
    assert weights.log_weight.dtype == torch.float64
    assert weights.log_weight.isfinite().all()
    assert (vae.sample(2).dtype, vae.reconstruct(x).dtype) == (dtype, dtype)


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
    assert vae.reconstruct(x, label).shape == (N, D)
    assert simulate(vae.model, x, label).observations["x"].shape == (N, D)


def test_per_datum_posteriors_train_in_batches_with_an_index():
    q = PerDatum(N, Z)
    vae = VAE(StandardNormal(Z), q, Bernoulli(WithoutContext(MLP(Z, D))))
    x, index = data("bernoulli"), torch.arange(N)
    rows = torch.tensor([4, 1])
    Trace_ELBO().differentiable_loss(vae.model, vae.guide, x[rows], index[rows]).backward()
    assert (q.loc.grad.abs().sum(1) > 0).tolist() == [False, True, False, False, True]
    with pytest.raises(ValueError, match="in training the last context must be the index"):
        q(x)  # which fit would have shuffled
    with pytest.raises(ValueError, match=r"x must hold all 5 data .* but holds 2"):
        q.eval()(x[rows])


def test_images_keep_their_shape():
    shape = (1, 7, 5)  # odd sides must come back as they were
    q = DiagonalNormal(ConvEncoder(shape, 2 * Z, channels=(3, 4)))
    vae = VAE(StandardNormal(Z), q, Bernoulli(ConvDecoder(Z, shape, channels=(3, 4)), event_dim=3))
    x = torch.rand(N, *shape).round()
    assert vae.sample(2).shape == (2, *shape)
    assert vae.reconstruct(x).shape == x.shape
    assert log_weights(vae.model, vae.guide, x, num_particles=3).log_weight.shape == (3, N)


@pytest.mark.parametrize(("model_dim", "guide_dim"), [(1, 3), (3, 1), (2, 3)])
def test_codes_of_two_sizes_are_refused(model_dim, guide_dim):
    vae = VAE(
        StandardNormal(model_dim), DiagonalNormal(MLP(D, 2 * guide_dim)), Bernoulli(MLP(2, D))
    )
    with pytest.raises((ValueError, RuntimeError), match=r"match|shapes|size"):
        Trace_ELBO().loss(vae.model, vae.guide, data("bernoulli"))


def test_nothing_is_drawn_from_less_than_one():
    with pytest.raises(ValueError, match="num_samples must be at least 1, but is 0"):
        build("standard", "diagonal", "bernoulli").sample(0)


def test_reconstructions_of_a_narrow_posterior_are_the_decoders_mean():
    vae, x = build("standard", "diagonal", "gaussian-fixed"), data("gaussian-fixed")
    with torch.no_grad():
        vae.posterior.net.layers[-1].bias[Z:] = -30.0  # log σ
    expected = vae.likelihood.net(vae.posterior(x).mean)
    torch.testing.assert_close(vae.reconstruct(x), expected.detach())


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


@pytest.mark.parametrize(
    "duplicate",
    [copy.deepcopy, lambda vae: pickle.loads(pickle.dumps(vae))],
    ids=["copied", "pickled"],
)
def test_a_copy_is_a_model_of_its_own(duplicate):
    """Under its original's name, the copy would be scored while the original is trained."""
    x, vae = data("bernoulli"), build("vamp", "diagonal", "bernoulli")
    twin, before = duplicate(vae), [p.clone() for p in vae.parameters()]
    SVI(vae.model, vae.guide, pyro.optim.Adam({"lr": 0.01}), Trace_ELBO()).step(x)
    start = [p.clone() for p in vae.parameters()]
    SVI(twin.model, twin.guide, pyro.optim.Adam({"lr": 0.01}), Trace_ELBO()).step(x)
    assert all(torch.equal(a, b) for a, b in zip(vae.parameters(), start, strict=True))
    assert not any(torch.equal(a, b) for a, b in zip(twin.parameters(), before, strict=True))
    assert twin.prior.posterior is twin.posterior


def test_a_name_of_ones_own_is_kept():
    parts = StandardNormal(Z), POSTERIORS["diagonal"](), LIKELIHOODS["bernoulli"]()
    vae = VAE(*parts, name="mine")
    assert copy.deepcopy(vae).name == "mine"
    vae.model(data("bernoulli"))
    assert {name.partition("$")[0] for name in pyro.get_param_store()} == {"mine"}


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


@pytest.mark.parametrize("parallel", [False, True])
def test_predictive_and_uncondition_draw(parallel):
    vae, x = build("vamp", "diagonal", "bernoulli"), data("bernoulli")
    drawn = pyro.infer.Predictive(
        poutine.uncondition(vae.model), num_samples=3, parallel=parallel, return_sites=("x",)
    )(x)
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
