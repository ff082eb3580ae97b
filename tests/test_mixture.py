"""Mixture VAEs: evidence by quadrature for each class, the two ELBOs by hand, Bayes' rule."""

from __future__ import annotations

import numpy as np
import oracles
import pytest
import torch
from pyro.infer import TraceEnum_ELBO
from torch import nn

from pyrovae.inference import (
    ELBO,
    HMC,
    AnnealedImportanceSampling,
    ImportanceSampling,
    fit,
    log_joint,
    log_weights,
)
from pyrovae.models import VAE, MixtureVAE
from pyrovae.models.likelihoods import Gaussian
from pyrovae.models.nets import MLP
from pyrovae.models.posteriors import DiagonalNormal
from pyrovae.models.priors import GaussianMixture, StandardNormal

pytestmark = pytest.mark.usefixtures("one_thread")

N, D, C = 4, 5, 3
NOISE = 0.7
ANNEALING = {"num_temperatures": 6, "pilot_temperatures": 5, "start": "prior", "seed": 0}
ENUMERATING = TraceEnum_ELBO(max_plate_nesting=1)


def build(classified, latent_dim=2, context=0, likelihood=Gaussian, **options):
    """In double precision; components differ from one another, the guide is wide."""
    torch.manual_seed(1)
    prior = GaussianMixture(latent_dim, C)
    with torch.no_grad():
        prior.logits.copy_(torch.tensor([0.3, -1.0, 0.8]))
        prior.loc.mul_(1.5)
        prior.log_scale.normal_(-0.5, 0.3)
    more = C if classified else 0
    vae = MixtureVAE(
        prior,
        DiagonalNormal(MLP(D + more + context, 2 * latent_dim, hidden=(6,))),
        likelihood(MLP(latent_dim + context, D, hidden=(7,)), **options),
        MLP(D + context, C, hidden=(6,)) if classified else None,
    )
    with torch.no_grad():
        last = vae.posterior.net.layers[-1]
        last.weight.mul_(0.4)
        last.bias[latent_dim:] = 0.3
    return vae.double()


@pytest.fixture(params=[False, True], ids=["no classifier", "classifier"])
def classified(request):
    return request.param


def data(num_data=N):
    generator = torch.Generator().manual_seed(2)
    return torch.randn(num_data, D, generator=generator, dtype=torch.float64)


# --- the model in numpy --------------------------------------------------------------------------


def through(net, z):
    """A network of one hidden layer of hyperbolic tangents."""
    first, last = net.layers[0], net.layers[2]
    w, b, v, c = (p.detach().numpy() for p in (*first.parameters(), *last.parameters()))
    return np.tanh(z @ w.T + b) @ v.T + c


def log_share(prior):
    logits = prior.logits.detach().numpy()
    return logits - oracles.logsumexp(logits, 0)


def log_components(prior, z):
    """log N(z; μ_k, σ_k²), the classes last."""
    loc, scale = prior.loc.detach().numpy(), prior.log_scale.detach().exp().numpy()
    return oracles.normal_logpdf(z[..., None, :], loc, scale).sum(-1)


def log_likelihood(vae, z, x, *context):
    inputs = np.concatenate([z, *context], -1)
    return oracles.normal_logpdf(x, through(vae.likelihood.net, inputs), NOISE).sum(-1)


def brute_force(vae, x):
    """log p(x) as the sum over classes of their share times an integral over a grid of codes."""
    dim = vae.prior.latent_dim
    nodes, log_volume = oracles.grid(dim, -8.0, 8.0, 1601 if dim == 1 else 161)
    of_x = log_likelihood(vae, nodes[:, None], x.numpy())
    of_classes = [
        oracles.logsumexp(one[:, None] + of_x, 0) + log_volume
        for one in log_components(vae.prior, nodes).T
    ]
    return torch.as_tensor(oracles.logsumexp(np.stack(of_classes, -1) + log_share(vae.prior), -1))


# --- the evidence --------------------------------------------------------------------------------


@pytest.mark.parametrize("latent_dim", [1, 2])
def test_importance_sampling_finds_the_evidence(classified, latent_dim):
    vae, x = build(classified, latent_dim, scale=NOISE), data()
    estimate = ImportanceSampling(10_000, seed=0)(vae.model, vae.guide, x)
    assert ((estimate.log_evidence - brute_force(vae, x)).abs() < 5 * estimate.stderr).all()
    assert estimate.stderr.max() < 0.2


@pytest.mark.parametrize("latent_dim", [1, 2])
def test_annealing_finds_the_evidence(latent_dim):
    vae, x = build(False, latent_dim, scale=NOISE), data(2)
    annealing = AnnealedImportanceSampling(128, kernel=HMC(2), **ANNEALING)
    estimate = annealing(vae.model, None, x)
    assert ((estimate.log_evidence - brute_force(vae, x)).abs() < 5 * estimate.stderr).all()
    assert estimate.stderr.max() < 0.3


def test_the_joint_is_that_of_a_vae_with_the_mixture_as_prior():
    vae, x = build(False, scale=NOISE), data()
    plain = VAE(vae.prior, vae.posterior, vae.likelihood)
    weights = log_weights(plain.model, plain.guide, x, num_particles=6)
    for way in ("plate", "tile", "loop"):
        found = log_joint(vae.model, weights.values, x, particles=way)
        torch.testing.assert_close(found, weights.log_joint, rtol=1e-12, atol=1e-12)
    z = weights.values["z"].detach().numpy()
    parts = log_share(vae.prior) + log_components(vae.prior, z)
    expected = oracles.logsumexp(parts, -1) + log_likelihood(vae, z, x.numpy())
    np.testing.assert_allclose(weights.log_joint.detach(), expected, rtol=1e-12)


# --- the bounds ----------------------------------------------------------------------------------


def log_q(vae, z, x, *context):
    output = through(vae.posterior.net, np.concatenate([x, *context], -1))
    loc, log_scale = np.split(output, 2, -1)
    return oracles.normal_logpdf(z, loc, np.exp(log_scale)).sum(-1)


def drawn(vae, x, *told):
    """The codes that the guide draws after the same seed."""
    torch.manual_seed(3)
    return vae.posterior(x, *told).rsample().detach().numpy()


@pytest.mark.parametrize("objective", [ENUMERATING, ELBO()], ids=["Pyro's", "ours"])
def test_the_elbo_sums_over_the_classes(objective):
    """Without a classifier the class is in the model alone."""
    vae, x = build(False, scale=NOISE), data()
    z = drawn(vae, x)
    parts = log_share(vae.prior) + log_components(vae.prior, z)
    elbo = oracles.logsumexp(parts, -1) + log_likelihood(vae, z, x.numpy()) - log_q(vae, z, x)
    torch.manual_seed(3)
    assert objective.loss(vae.model, vae.guide, x) == pytest.approx(-elbo.sum(), rel=1e-10)


EACH = torch.eye(C, dtype=torch.float64)[:, None].expand(C, N, C)


def joint_of_classes(vae, x, z):
    """log p(x, y, z_y) - log q(z_y | x, y) with a code for each class, (C, N)."""
    of_z = np.diagonal(log_components(vae.prior, z), axis1=0, axis2=2).T
    of_x = log_likelihood(vae, z, x.numpy())
    of_q = log_q(vae, z, np.broadcast_to(x, (C, N, D)), EACH)
    return log_share(vae.prior)[:, None] + of_z + of_x - of_q


def log_classes(vae, x):
    """log q(y | x), (C, N)."""
    logits = through(vae.classifier, x.numpy()).T
    return logits - oracles.logsumexp(logits, 0)


def test_with_a_classifier_the_elbo_is_the_expectation_over_classes():
    vae, x = build(True, scale=NOISE), data()
    log_r, z = log_classes(vae, x), drawn(vae, x.expand(C, N, D), EACH)
    elbo = (np.exp(log_r) * (joint_of_classes(vae, x, z) - log_r)).sum()
    torch.manual_seed(3)
    np.testing.assert_allclose(ENUMERATING.loss(vae.model, vae.guide, x), -elbo, rtol=1e-10)


def test_with_a_classifier_weights_are_sums_over_classes():
    """Our ELBO is of their logarithm, and has no classifier to pay for."""
    vae, x = build(True, scale=NOISE), data()
    weights = log_weights(vae.model, vae.guide, x, num_particles=3)
    for z, found in zip(weights.values["z"].detach(), weights.log_weight.detach(), strict=True):
        log_weight = oracles.logsumexp(joint_of_classes(vae, x, z.numpy()), 0)
        np.testing.assert_allclose(found, log_weight, rtol=1e-10)
    torch.manual_seed(3)
    found = ELBO().loss(vae.model, vae.guide, x)
    joint = joint_of_classes(vae, x, drawn(vae, x.expand(C, N, D), EACH))
    np.testing.assert_allclose(found, -oracles.logsumexp(joint, 0).sum(), rtol=1e-10)


def test_gradients_reach_every_parameter(classified):
    vae = build(classified)
    ENUMERATING.differentiable_loss(vae.model, vae.guide, data()).backward()
    assert [n for n, p in vae.named_parameters() if p.grad is None or not p.grad.any()] == []


# --- classes -------------------------------------------------------------------------------------


def test_responsibilities_are_the_posterior_of_the_class_given_the_code():
    """By Bayes' rule, at a code that is no longer random."""
    vae, x = build(False), data()
    with torch.no_grad():
        vae.posterior.net.layers[-1].bias[2:] = -40.0  # log σ
    z = np.split(through(vae.posterior.net, x.numpy()), 2, -1)[0]
    parts = log_share(vae.prior) + log_components(vae.prior, z)
    expected = np.exp(parts - oracles.logsumexp(parts, -1)[:, None])
    found = vae.responsibilities(x)
    np.testing.assert_allclose(found, expected, rtol=1e-8)
    np.testing.assert_allclose(found.sum(-1), np.ones(N), rtol=1e-12)
    assert len(set(found.argmax(-1).tolist())) > 1


def test_responsibilities_are_the_classifiers_where_there_is_one():
    vae, x = build(True), data()
    np.testing.assert_allclose(vae.responsibilities(x), np.exp(log_classes(vae, x)).T, rtol=1e-12)


@pytest.mark.parametrize("y", [0, 1, 2, torch.tensor(1), np.int64(2), None])
def test_samples_have_the_moments_of_their_class(y):
    """Through a decoder that is affine, so that mean and variance are known."""
    vae, count = build(False), 40_000
    vae.likelihood = Gaussian(MLP(2, D, ()), scale=NOISE).double()
    weight, bias = (p.detach().numpy() for p in vae.likelihood.net.parameters())
    loc, scale = vae.prior.loc.detach().numpy(), vae.prior.log_scale.detach().exp().numpy()
    share = np.exp(log_share(vae.prior)) if y is None else np.eye(C)[int(y)]
    mean = share @ loc
    spread = np.einsum("k,ki,kj->ij", share, loc - mean, loc - mean) + np.diag(share @ scale**2)
    variance = np.diag(weight @ spread @ weight.T) + NOISE**2
    draws = vae.sample(count, y=y).numpy()
    assert draws.shape == (count, D)
    centred = draws - (weight @ mean + bias)
    assert (abs(centred.mean(0)) < 5 * np.sqrt(variance / count)).all()
    error = 5 * (centred**2).std(0) / np.sqrt(count)
    assert (abs((centred**2).mean(0) - variance) < error).all()


def test_reconstructions_are_the_decoders_mean(classified):
    vae, x = build(classified), data()
    told = ()
    with torch.no_grad():
        vae.posterior.net.layers[-1].bias[2:] = -40.0  # log σ
        if classified:
            vae.classifier.layers[-1].bias[1] = 1e3
            told = (np.eye(C)[[1] * N],)
    z = np.split(through(vae.posterior.net, np.concatenate([x, *told], -1)), 2, -1)[0]
    np.testing.assert_allclose(vae.reconstruct(x), through(vae.likelihood.net, z), rtol=1e-8)


def test_a_context_is_told_to_every_network(classified):
    vae, x, context = build(classified, context=2, scale=NOISE), data(), data()[:, :2] + 1
    weights = log_weights(vae.model, vae.guide, x, context, num_particles=3)
    assert weights.log_weight.shape == (3, N)
    if not classified:
        z = weights.values["z"].detach().numpy()
        parts = log_share(vae.prior) + log_components(vae.prior, z)
        told = np.broadcast_to(context, (3, N, 2))
        expected = oracles.logsumexp(parts, -1) + log_likelihood(vae, z, x.numpy(), told)
        np.testing.assert_allclose(weights.log_joint.detach(), expected, rtol=1e-12)
        of_q = log_q(vae, z, np.broadcast_to(x, (3, N, D)), told)
        np.testing.assert_allclose(weights.log_guide.detach(), of_q, rtol=1e-12)
    assert vae.sample(N, context, y=2).shape == vae.reconstruct(x, context).shape == (N, D)
    ENUMERATING.differentiable_loss(vae.model, vae.guide, x, context).backward()
    assert [n for n, p in vae.named_parameters() if p.grad is None or not p.grad.any()] == []


def test_training_finds_the_clusters(classified):
    """Two, far apart: each becomes a class of its own."""
    torch.manual_seed(0)
    truth = torch.arange(200) % 2
    x = 4.0 * (2.0 * truth - 1)[:, None] * torch.tensor([1.0, -1.0]) + 0.5 * torch.randn(200, 2)
    vae = MixtureVAE(
        GaussianMixture(2, 2),
        DiagonalNormal(MLP(2 + 2 * classified, 4, (16,))),
        Gaussian(MLP(2, 2, (16,)), scale=0.5),
        MLP(2, 2, (16,)) if classified else None,
    )
    with torch.no_grad():
        vae.prior.loc.copy_(torch.tensor([[3.0, 0.0], [-3.0, 0.0]]))
    options = {"epochs": 60, "learning_rate": 0.01, "seed": 0, "progress": False}
    fit(vae.model, vae.guide, x, objective=ENUMERATING, **options)
    found = vae.responsibilities(x).argmax(-1)
    agreement = (found == truth).double().mean()
    assert max(agreement, 1 - agreement) > 0.95


# --- refusals ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"prior": StandardNormal(2)}, "prior must be a GaussianMixture, but is a StandardNormal"),
        ({"posterior": None}, "posterior must be a module, but is a NoneType"),
        ({"classifier": "net"}, "classifier must be a module, but is a str"),
    ],
)
def test_parts_of_another_kind_are_refused(changed, message):
    parts = {
        "prior": GaussianMixture(2, C),
        "posterior": nn.Identity(),
        "likelihood": nn.Identity(),
    }
    with pytest.raises(TypeError, match=message):
        MixtureVAE(**parts | changed)


@pytest.mark.parametrize("size", [1, C - 1, C + 1])
def test_a_classifier_of_other_classes_is_refused(size):
    """One of fewer would leave the rest out of the sum."""
    vae, x = build(True), data()
    vae.classifier = MLP(D, size).double()
    message = f"classifier must return 3 logits, one for each class, but returns {size}"
    for call in (vae.guide, vae.responsibilities, vae.reconstruct):
        with pytest.raises(ValueError, match=message):
            call(x)


@pytest.mark.parametrize(
    ("y", "kind", "message"),
    [
        (-1, ValueError, "y must be between 0 and 2, but is -1"),
        (C, ValueError, "y must be between 0 and 2, but is 3"),
        (1.5, TypeError, "y must be a whole number or None, but is 1.5"),
        ("a", TypeError, "y must be a whole number or None, but is 'a'"),
        (torch.tensor([0, 1]), TypeError, "y must be a whole number or None, but is tensor"),
    ],
)
def test_samples_of_no_class_are_refused(y, kind, message):
    with pytest.raises(kind, match=message):
        build(False).sample(3, y=y)


@pytest.mark.parametrize(("count", "rows"), [(1, 3), (4, 3)])
@pytest.mark.parametrize("y", [None, 1])
def test_samples_of_another_number_of_contexts_are_refused(count, rows, y):
    vae = build(False, context=2)
    with pytest.raises(ValueError, match="context must have one entry for each"):
        vae.sample(count, torch.zeros(rows, 2, dtype=torch.float64), y=y)
