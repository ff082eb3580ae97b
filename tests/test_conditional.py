"""Conditional VAEs: against the VAE, linear models in closed form; contexts of every kind."""

from __future__ import annotations

import copy

import numpy as np
import oracles
import pytest
import torch
from pyro.infer import Trace_ELBO
from torch import nn

from pyrovae.inference import (
    ELBO,
    HMC,
    AnnealedImportanceSampling,
    ImportanceSampling,
    ProgramError,
    fit,
    log_joint,
    log_weights,
)
from pyrovae.models import VAE, ConditionalVAE
from pyrovae.models.likelihoods import Bernoulli, Gaussian
from pyrovae.models.nets import MLP, ConvEncoder, EncodedContext, OneHot
from pyrovae.models.posteriors import DiagonalNormal
from pyrovae.models.priors import GaussianMixture, StandardNormal

pytestmark = pytest.mark.usefixtures("one_thread")

N, D, Z, C = 5, 4, 2, 3
NOISE = 0.6
LABELS = torch.tensor([0, 2, 1, 2, 0])
ONE_HOT = torch.eye(C, dtype=torch.float64)[LABELS]


class Missing(nn.Module):
    """The encoder of a context that is None: no feature."""

    def forward(self, part):
        assert part is None
        return torch.zeros(0, dtype=torch.float64)


CONTEXTS = {  # the same C numbers for each datum, and what makes vectors of them
    "a vector": ((ONE_HOT,), lambda: [nn.Identity()]),
    "two vectors": ((ONE_HOT[:, :1], ONE_HOT[:, 1:]), lambda: [nn.Identity(), nn.Identity()]),
    "labels": ((LABELS,), lambda: [OneHot(C)]),
    "an image": ((ONE_HOT.reshape(N, 1, C, 1),), lambda: [nn.Flatten(-3)]),
    "labels and None": ((LABELS, None), lambda: [OneHot(C), Missing()]),
}


def linear(encoders, conditional_prior):
    """Affine in code and context, in double precision; the guide hardly looks at its input."""
    torch.manual_seed(1)

    def told(inputs, outputs, **options):
        return EncodedContext(MLP(inputs + C, outputs, hidden=()), encoders(), **options)

    prior = DiagonalNormal(told(0, 2 * Z, alone=True)) if conditional_prior else StandardNormal(Z)
    posterior = DiagonalNormal(told(D, 2 * Z))
    likelihood = Gaussian(told(Z, D), scale=NOISE)
    with torch.no_grad():
        posterior.net.net.layers[0].weight.mul_(0.2)
        likelihood.net.net.layers[0].bias.normal_()
    return ConditionalVAE(prior, posterior, likelihood, conditional_prior).double()


def closed_form(vae, x):
    """log p(x | y), a normal whose mean and covariance are those of the row's own label."""
    weight, bias = (p.detach().numpy() for p in vae.likelihood.net.net.parameters())
    exact = []
    for row, y in zip(x.numpy(), ONE_HOT.numpy(), strict=True):
        mean, scale = np.zeros(Z), np.ones(Z)
        if vae.conditional_prior:
            of_z, start = (p.detach().numpy() for p in vae.prior.net.net.parameters())
            output = of_z @ y + start
            mean, scale = output[:Z], np.exp(output[Z:])
        loading = weight[:, :Z] * scale
        centre = weight @ np.concatenate([mean, y]) + bias
        covariance = loading @ loading.T + NOISE**2 * np.eye(D)
        exact.append(oracles.gaussian_logpdf(row, centre, covariance)[0])
    return torch.tensor(exact)


# --- without a context it is a VAE ---------------------------------------------------------------


def twins(prior):
    torch.manual_seed(0)
    parts = prior(), DiagonalNormal(MLP(D, 2 * Z, (7,))), Bernoulli(MLP(Z, D, (7,)))
    return VAE(*copy.deepcopy(parts)), ConditionalVAE(*parts)


def binary(num_data=N):
    return torch.rand(num_data, D, generator=torch.Generator().manual_seed(2)).round()


@pytest.mark.parametrize("prior", [lambda: StandardNormal(Z), lambda: GaussianMixture(Z, 3)])
def test_without_context_it_has_the_numbers_of_a_vae(prior):
    x, seen = binary(), []
    for vae in twins(prior):
        torch.manual_seed(3)
        weights = log_weights(vae.model, vae.guide, x, num_particles=4)
        losses = [one.loss(vae.model, vae.guide, x) for one in (Trace_ELBO(), ELBO(3))]
        evidence = ImportanceSampling(50, seed=0)(vae.model, vae.guide, x).log_evidence
        draws = vae.sample(7), vae.reconstruct(x)
        seen.append((weights.log_joint, weights.log_guide, torch.tensor(losses), evidence, *draws))
    assert all(torch.equal(a, b) for a, b in zip(*seen, strict=True))


def test_without_context_it_trains_as_a_vae():
    losses = [
        fit(v.model, v.guide, binary(20), epochs=3, batch_size=7, seed=0, progress=False).loss
        for v in twins(lambda: StandardNormal(Z))
    ]
    np.testing.assert_array_equal(*losses)
    assert losses[0][-1] != losses[0][0]


# --- linear models are normal --------------------------------------------------------------------


@pytest.mark.parametrize("conditional_prior", [False, True])
@pytest.mark.parametrize("kind", CONTEXTS)
def test_importance_sampling_finds_the_conditional_evidence(kind, conditional_prior):
    context, encoders = CONTEXTS[kind]
    vae = linear(encoders, conditional_prior)
    x = vae.sample(N, *context)
    estimate = ImportanceSampling(10_000, defensive=0.3, seed=0)(vae.model, vae.guide, x, *context)
    error = (estimate.log_evidence - closed_form(vae, x)).abs()
    assert (error < 5 * estimate.stderr).all()
    assert estimate.stderr.max() < 0.05


@pytest.mark.parametrize("start", ["prior", "guide"])
@pytest.mark.parametrize("conditional_prior", [False, True])
def test_annealing_finds_the_conditional_evidence(conditional_prior, start):
    vae = linear(CONTEXTS["labels"][1], conditional_prior)
    x = vae.sample(N, LABELS)
    annealing = AnnealedImportanceSampling(
        128, num_temperatures=6, pilot_temperatures=5, kernel=HMC(2), start=start, seed=0
    )
    estimate = annealing(vae.model, vae.guide, x, LABELS)
    error = (estimate.log_evidence - closed_form(vae, x)).abs()
    assert (error < 5 * estimate.stderr).all()
    assert estimate.stderr.max() < 0.3


@pytest.mark.parametrize("conditional_prior", [False, True])
def test_every_context_gives_the_same_densities(conditional_prior):
    z = torch.randn(3, N, Z, dtype=torch.float64)
    x = torch.randn(N, D, dtype=torch.float64)
    scores = []
    for context, encoders in CONTEXTS.values():
        vae = linear(encoders, conditional_prior)
        scores += [
            log_joint(vae.model, {"z": z}, x, *context, particles=way)
            for way in ("plate", "tile", "loop")
        ]
    for score in scores[1:]:
        torch.testing.assert_close(score, scores[0], rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("conditional_prior", [False, True])
def test_draws_have_the_moments_of_their_own_context(conditional_prior):
    """Prior and likelihood each told what stands in their row."""
    vae = linear(CONTEXTS["labels"][1], conditional_prior)
    count = 20_000
    for label in range(C):
        x = vae.sample(count, torch.full((count,), label)).numpy()
        of_one = vae.sample(count, torch.tensor([label])).numpy()
        weight, bias = (p.detach().numpy() for p in vae.likelihood.net.net.parameters())
        mean, scale = np.zeros(Z), np.ones(Z)
        if conditional_prior:
            of_z, start = (p.detach().numpy() for p in vae.prior.net.net.parameters())
            mean, scale = (of_z[:Z, label] + start[:Z]), np.exp(of_z[Z:, label] + start[Z:])
        centre = weight @ np.concatenate([mean, np.eye(C)[label]]) + bias
        variance = ((weight[:, :Z] * scale) ** 2).sum(1) + NOISE**2
        for draws in (x, of_one):
            assert (abs(draws.mean(0) - centre) < 5 * np.sqrt(variance / count)).all()
            assert (abs(draws.var(0) / variance - 1) < 5 * np.sqrt(2 / count)).all()


# --- contexts ------------------------------------------------------------------------------------


def pictured():
    """Told of images of (1, 4, 3), by a network for each part."""
    torch.manual_seed(0)

    def told(inputs, outputs, **options):
        encoders = [ConvEncoder((1, 4, 3), 3, channels=(2,))]
        return EncodedContext(MLP(inputs + 3, outputs, hidden=(7,)), encoders, **options)

    return ConditionalVAE(
        DiagonalNormal(told(0, 2 * Z, alone=True)),
        DiagonalNormal(told(D, 2 * Z)),
        Bernoulli(told(Z, D)),
        conditional_prior=True,
    )


def test_gradients_reach_every_network():
    vae, image = pictured(), torch.randn(N, 1, 4, 3)
    Trace_ELBO().differentiable_loss(vae.model, vae.guide, binary(), image).backward()
    assert [n for n, p in vae.named_parameters() if p.grad is None or not p.grad.any()] == []


def test_shapes_with_images_as_context():
    vae, x, image = pictured(), binary(), torch.randn(N, 1, 4, 3)
    assert vae.sample(N, image).shape == (N, D)
    assert vae.sample(7, image[:1]).shape == (7, D)
    assert vae.reconstruct(x, image).shape == (N, D)
    assert log_weights(vae.model, vae.guide, x, image, num_particles=3).log_weight.shape == (3, N)


def test_what_is_reconstructed_is_told_its_context():
    vae = linear(CONTEXTS["labels"][1], conditional_prior=True)
    x = torch.randn(N, D, dtype=torch.float64)
    with torch.no_grad():
        vae.posterior.net.net.layers[0].weight.zero_()
        vae.posterior.net.net.layers[0].bias[Z:] = -40.0  # log σ: the code is its mean
        weight, bias = vae.likelihood.net.net.parameters()
        code = vae.posterior.net.net.layers[0].bias[:Z].expand(N, Z)
        expected = torch.cat([code, ONE_HOT], -1) @ weight.T + bias
    torch.testing.assert_close(vae.reconstruct(x, LABELS), expected)


def test_training_learns_what_the_context_says():
    """Data that are their labels' centre and noise, in batches that keep the two together."""
    torch.manual_seed(0)
    labels = torch.arange(300) % C
    x = 3 * torch.eye(C, D)[labels] + 0.5 * torch.randn(300, D)
    vae = linear(CONTEXTS["labels"][1], conditional_prior=True).float()
    fit(vae.model, vae.guide, x, labels, epochs=40, learning_rate=0.03, seed=0, progress=False)
    scorer = ImportanceSampling(200, seed=0)
    right, wrong = (
        scorer(vae.model, vae.guide, x, (labels + shift) % C).log_evidence for shift in (0, 1)
    )
    entropy = D * oracles.normal_logpdf(np.zeros(1), 0.0, 0.5)[0] - D / 2  # negative, of the noise
    assert right.mean() > entropy - 0.6
    assert (wrong < right - 5).double().mean() > 0.95


# --- refusals ------------------------------------------------------------------------------------


def joined(conditional_prior):
    return linear(CONTEXTS["a vector"][1], conditional_prior).float()


@pytest.mark.parametrize("conditional_prior", [False, True])
@pytest.mark.parametrize("rows", [3, N + 1])
def test_a_context_of_another_length_is_refused(conditional_prior, rows):
    vae, x, y = joined(conditional_prior), torch.zeros(N, D), torch.zeros(rows, C)
    message = rf"context must have one entry for each .*\(5,\), or one for all.*\[\({rows},\)\]"
    for call in (vae.guide, vae.reconstruct):
        with pytest.raises(ValueError, match=message):
            call(x, y)
    with pytest.raises(ValueError, match="data" if conditional_prior else message):
        vae.model(x, y)  # a prior is of as many codes as contexts, which the plate refuses
    with pytest.raises(ProgramError, match=message):
        log_weights(vae.model, vae.guide, x, y)


@pytest.mark.parametrize("conditional_prior", [False, True])
@pytest.mark.parametrize(("count", "rows"), [(5, 3), (3, 5), (1, 5)])
def test_samples_of_another_number_of_contexts_are_refused(conditional_prior, count, rows):
    vae = joined(conditional_prior)
    with pytest.raises(ValueError, match=r"context must have one entry for each .* one for all"):
        vae.sample(count, torch.zeros(rows, C))


@pytest.mark.parametrize(
    ("context", "kind", "message"),
    [
        ((None,), TypeError, "context must be tensors, but has a NoneType among them"),
        (([0, 1, 2, 0, 1],), TypeError, "context must be tensors, but has a list among them"),
        ((LABELS,), ValueError, r"context must be floating .*int64 of shape \(5,\)"),
    ],
)
def test_what_no_network_can_join_is_refused(context, kind, message):
    vae = ConditionalVAE(
        StandardNormal(Z), DiagonalNormal(MLP(D + C, 2 * Z)), Bernoulli(MLP(Z + C, D))
    )
    for call in (vae.model, vae.guide, vae.reconstruct):
        with pytest.raises(kind, match=message):
            call(binary(), *context)
    with pytest.raises(kind, match=message):
        vae.sample(N, *context)


@pytest.mark.parametrize("conditional_prior", [False, True])
@pytest.mark.parametrize("context", [(), (LABELS, LABELS)])
def test_another_number_of_contexts_is_refused(conditional_prior, context):
    vae = linear(CONTEXTS["labels"][1], conditional_prior).float()
    message = f"context must be (of 1 parts.*but is of {len(context)}|given.*but there is none)"
    for call in (vae.model, vae.guide, vae.reconstruct):
        with pytest.raises(ValueError, match=message):
            call(torch.zeros(N, D), *context)
    with pytest.raises(ValueError, match=message):
        vae.sample(N, *context)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"prior": None}, "prior must be a module, but is a NoneType"),
        ({"prior": StandardNormal}, "prior must be a module, but is the class StandardNormal"),
        ({"posterior": "normal"}, "posterior must be a module, but is a str"),
        ({"likelihood": 3}, "likelihood must be a module, but is a int"),
    ],
)
def test_parts_that_are_no_modules_are_refused(changed, message):
    parts = {"prior": StandardNormal(Z), "posterior": nn.Identity(), "likelihood": nn.Identity()}
    with pytest.raises(TypeError, match=message):
        ConditionalVAE(**parts | changed)


@pytest.mark.parametrize(
    ("count", "kind", "message"),
    [
        (0, ValueError, "num_samples must be at least 1, but is 0"),
        (2.5, TypeError, "num_samples must be a whole number, but is 2.5"),
        ("2", TypeError, "num_samples must be a whole number, but is '2'"),
    ],
)
def test_no_number_of_samples_is_refused(count, kind, message):
    with pytest.raises(kind, match=message):
        joined(conditional_prior=True).sample(count, torch.zeros(1, C))


def test_data_of_another_shape_are_refused():
    with pytest.raises(ValueError, match=r"x must hold data of shape \(4,\), as the likelihood"):
        joined(conditional_prior=False).model(torch.zeros(N, D + 1), torch.zeros(N, C))
