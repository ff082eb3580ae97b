"""M2: evidence by quadrature, the paper's objective written out, labels there or not."""

from __future__ import annotations

import numpy as np
import oracles
import pytest
import torch
from pyro.infer import TraceEnum_ELBO
from torch import nn
from torch.distributions import Categorical, Normal

from pyrovae.inference import (
    HMC,
    AnnealedImportanceSampling,
    ImportanceSampling,
    Penalised,
    fit,
    log_joint,
    log_weights,
)
from pyrovae.models import SemiSupervisedVAE
from pyrovae.models.likelihoods import Gaussian
from pyrovae.models.nets import MLP
from pyrovae.models.posteriors import DiagonalNormal
from pyrovae.models.priors import StandardNormal

pytestmark = pytest.mark.usefixtures("one_thread")

N, D, C = 6, 4, 3
NOISE = 0.7
ANNEALING = {"num_temperatures": 6, "pilot_temperatures": 5, "start": "prior", "seed": 0}
LABELS = {
    "some": torch.tensor([2, -1, 0, -1, 1, -1]),
    "all": torch.tensor([2, 0, 0, 1, 1, 2]),
    "none": torch.full((N,), -1),
    "no argument": None,
}


def build(latent_dim=1, classes=C, **options):
    """In double precision; the guide is wide."""
    torch.manual_seed(1)
    vae = SemiSupervisedVAE(
        C,
        MLP(D, classes, hidden=(6,)),
        StandardNormal(latent_dim),
        DiagonalNormal(MLP(D + C, 2 * latent_dim, hidden=(6,))),
        Gaussian(MLP(latent_dim + C, D, hidden=(7,)), scale=NOISE),
        **options,
    )
    with torch.no_grad():
        last = vae.posterior.net.layers[-1]
        last.weight.mul_(0.4)
        last.bias[latent_dim:] = 0.3
    return vae.double()


def data():
    return torch.randn(N, D, generator=torch.Generator().manual_seed(2), dtype=torch.float64)


def given(kind):
    label = LABELS[kind]
    return () if label is None else (label,)


@pytest.fixture(params=LABELS)
def kind(request):
    return request.param


# --- the evidence --------------------------------------------------------------------------------


def decoded(vae, z):
    """The decoder's mean for each class, (C, G, D), in numpy."""
    first, last = vae.likelihood.net.layers[0], vae.likelihood.net.layers[2]
    w, b, v, c = (p.detach().numpy() for p in (*first.parameters(), *last.parameters()))
    inputs = [np.concatenate([z, np.tile(y, (len(z), 1))], 1) for y in np.eye(C)]
    return np.stack([np.tanh(one @ w.T + b) @ v.T + c for one in inputs])


def log_classes(vae, x):
    """log p(x, y) of every class, (C, N), the code integrated out on a grid."""
    dim = vae.prior.latent_dim
    nodes, log_volume = oracles.grid(dim, -8.0, 8.0, 1601 if dim == 1 else 161)
    of_z = oracles.normal_logpdf(nodes).sum(1)
    means = decoded(vae, nodes)
    of_x = oracles.normal_logpdf(x.numpy()[:, None], means[:, None], NOISE).sum(-1)  # (C, N, G)
    return oracles.logsumexp(of_x + of_z, -1) + log_volume - np.log(C)


def pick(of_classes, label):
    """The label's own where it is known, the sum over classes elsewhere."""
    total = oracles.logsumexp(of_classes, 0)
    if label is None:
        return torch.as_tensor(total)
    own = of_classes[label.clamp(min=0).numpy(), np.arange(of_classes.shape[1])]
    return torch.as_tensor(np.where(label >= 0, own, total))


@pytest.mark.parametrize("latent_dim", [1, 2])
def test_importance_sampling_finds_the_evidence(kind, latent_dim):
    vae, x = build(latent_dim), data()
    estimate = ImportanceSampling(5_000, seed=0)(vae.model, vae.guide, x, *given(kind))
    exact = pick(log_classes(vae, x), LABELS[kind])
    assert ((estimate.log_evidence - exact).abs() < 5 * estimate.stderr).all()
    assert estimate.stderr.max() < 0.1


def test_annealing_finds_the_evidence():
    vae, x, label = build(), data()[:2], LABELS["some"][:2]
    annealing = AnnealedImportanceSampling(128, kernel=HMC(2), **ANNEALING)
    estimate = annealing(vae.model, None, x, label)
    exact = pick(log_classes(vae, x), label)
    assert ((estimate.log_evidence - exact).abs() < 5 * estimate.stderr).all()
    assert estimate.stderr.max() < 0.3


def test_the_joint_is_its_formula(kind):
    vae, x = build(), data()
    z = torch.randn(5, N, 1, dtype=torch.float64)
    means = decoded(vae, z.reshape(-1, 1).numpy()).reshape(C, 5, N, D)
    of_classes = oracles.normal_logpdf(x.numpy(), means, NOISE).sum(-1) - np.log(C)
    of_classes += oracles.normal_logpdf(z.numpy()).sum(-1)
    expected = torch.stack([pick(one, LABELS[kind]) for one in of_classes.swapaxes(0, 1)])
    for way in ("plate", "tile", "loop"):
        found = log_joint(vae.model, {"z": z}, x, *given(kind), particles=way)
        torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)


# --- the objective -------------------------------------------------------------------------------


def written_out(vae, x, label, particles=1, alpha=0.0):
    r"""J of the paper: \sum_labelled L + \sum_unlabelled U - alpha \sum_labelled log q(y | x).

    With the codes that the program draws from the same seed: one for each class, particle and
    datum. Those of a labelled datum are of its own label, and their mean is taken.
    """
    label = torch.full((N,), -1) if label is None else label
    known = label >= 0
    y = torch.where(known, label, torch.arange(C)[:, None])  # (C, N)
    one_hot = nn.functional.one_hot(y, C).double()[:, None]  # (C, 1, N, C)
    shape = (C, particles, N)
    inputs = torch.cat([x.expand(*shape, D), one_hot.expand(*shape, C)], -1)
    loc, log_scale = vae.posterior.net.layers(inputs).chunk(2, -1)
    q = Normal(loc, log_scale.exp())
    torch.manual_seed(3)
    z = q.rsample()
    mean = vae.likelihood.net.layers(torch.cat([z, one_hot.expand(*shape, C)], -1))
    bound = Normal(mean, NOISE).log_prob(x).sum(-1) + Normal(0.0, 1.0).log_prob(z).sum(-1)
    bound = bound - np.log(C) - q.log_prob(z).sum(-1)  # minus L(x, y), (C, K, N)
    classes = Categorical(logits=vae.classifier.layers(x))
    labelled = -bound.mean((0, 1))[known].sum()
    expected = (classes.probs.T[:, None] * bound).sum(0) + classes.entropy()
    unlabelled = -expected.mean(0)[~known].sum()
    taught = -classes.log_prob(label.clamp(min=0))[known].sum()
    return labelled + unlabelled + alpha * taught


def gradients(vae, loss):
    found = torch.autograd.grad(loss, list(vae.parameters()), allow_unused=True)
    return [torch.zeros(()) if slope is None else slope for slope in found]


@pytest.mark.parametrize("particles", [1, 3])
@pytest.mark.parametrize("alpha", [0.0, 1.0, 7.5])
def test_the_objective_is_that_of_the_paper(kind, alpha, particles):
    vae, x = build(2, label_weight=alpha), data()
    options = {"num_particles": particles, "vectorize_particles": particles > 1}
    objective = Penalised(TraceEnum_ELBO(max_plate_nesting=1, **options))
    expected = written_out(vae, x, LABELS[kind], particles, alpha)
    torch.manual_seed(3)
    loss = objective.differentiable_loss(vae.model, vae.guide, x, *given(kind))
    torch.testing.assert_close(loss, expected, rtol=1e-10, atol=0)
    for a, b in zip(gradients(vae, loss), gradients(vae, expected), strict=True):
        torch.testing.assert_close(a.expand_as(b), b, rtol=1e-8, atol=1e-10)
    bare = written_out(vae, x, LABELS[kind], particles).item()
    torch.manual_seed(3)
    assert objective.loss(vae.model, vae.guide, x, *given(kind)) == pytest.approx(bare, rel=1e-10)


def test_our_elbo_of_labelled_data_is_the_papers():
    """The codes of C classes, all the label's, stand in one weight: the bound is C samples'."""
    vae, x, label = build(2), data(), LABELS["all"]
    weights = log_weights(vae.model, vae.guide, x, label, num_particles=3)
    z = weights.values["z"].detach()
    assert z.shape == (3, C, N, 2)
    y = nn.functional.one_hot(label, C).double().expand(3, C, N, C)
    loc, log_scale = vae.posterior.net.layers(torch.cat([x.expand(3, C, N, D), y], -1)).chunk(2, -1)
    mean = vae.likelihood.net.layers(torch.cat([z, y], -1))
    each = Normal(mean, NOISE).log_prob(x).sum(-1) + Normal(0.0, 1.0).log_prob(z).sum(-1)
    each = each - np.log(C) - Normal(loc, log_scale.exp()).log_prob(z).sum(-1)
    expected = each.logsumexp(1) - np.log(C)
    torch.testing.assert_close(weights.log_weight, expected, rtol=1e-10, atol=0)


# --- use -----------------------------------------------------------------------------------------


def test_classes_are_the_classifiers_likeliest():
    vae, x = build(), data()
    probabilities = vae.classifier.layers(x).softmax(-1)
    found = vae.classify(x)
    assert found.tolist() == [int(np.argmax(row)) for row in probabilities.detach().numpy()]
    assert len(set(found.tolist())) > 1


@pytest.mark.parametrize("dtype", [torch.int8, torch.int16, torch.int32, torch.uint8])
def test_labels_may_be_of_any_whole_type(dtype):
    vae, x = build(), data()
    label = LABELS["all" if dtype == torch.uint8 else "some"]
    z = {"z": torch.randn(2, N, 1, dtype=torch.float64)}
    found = log_joint(vae.model, z, x, label.to(dtype))
    assert torch.equal(found, log_joint(vae.model, z, x, label))


def test_reconstructions_are_of_the_label_or_of_a_guess(kind):
    vae, x = build(), data()
    with torch.no_grad():
        last = vae.posterior.net.layers[-1]
        last.bias[1:] = -40.0  # log σ: the code is its mean, which does not see x
        last.weight.zero_()
    label = LABELS["none"] if LABELS[kind] is None else LABELS[kind]
    y = torch.where(label >= 0, label, vae.classify(x))
    expected = decoded(vae, last.bias[:1].detach().numpy()[None])[y.numpy(), 0]
    np.testing.assert_allclose(vae.reconstruct(x, *given(kind)), expected, rtol=1e-10)


@pytest.mark.parametrize("label", [None, 0, 2])
def test_samples_have_the_moments_of_their_label(label):
    """Through a decoder that is affine, so that mean and variance are known."""
    vae, count = build(), 20_000
    vae.likelihood = Gaussian(MLP(1 + C, D, ()), scale=NOISE).double()
    weight, bias = (p.detach().numpy() for p in vae.likelihood.net.parameters())
    centres = bias + weight[:, 1:].T
    share = np.full(C, 1 / C) if label is None else np.eye(C)[label]
    mean = share @ centres
    variance = weight[:, 0] ** 2 + NOISE**2 + share @ (centres - mean) ** 2
    drawn = [vae.sample(count, None if label is None else torch.full((count,), label))]
    if label is not None:
        drawn += [vae.sample(count, torch.tensor(label)), vae.sample(count, torch.tensor([label]))]
    for x in drawn:
        assert x.shape == (count, D)
        centred = x.numpy() - mean
        assert (abs(centred.mean(0)) < 5 * np.sqrt(variance / count)).all()
        error = 5 * (centred**2).std(0) / np.sqrt(count)
        assert (abs((centred**2).mean(0) - variance) < error).all()


def blobs(num_labels):
    """Two classes, long and narrow, side by side; labels of the first few."""
    torch.manual_seed(0)
    truth = torch.arange(400) % 2
    x = torch.randn(400, 2) * torch.tensor([2.0, 0.5])
    x[:, 1] += 2.0 * (2.0 * truth - 1)
    label = torch.where(torch.arange(400) < num_labels, truth, -1)
    return x, truth, label


def trained(x, label, alpha):
    vae = SemiSupervisedVAE(
        2,
        MLP(2, 2, (16,)),
        StandardNormal(1),
        DiagonalNormal(MLP(2 + 2, 2, (16,))),
        Gaussian(MLP(1 + 2, 2, (16,)), scale=0.5),
        label_weight=alpha,
    )
    objective = Penalised(TraceEnum_ELBO(max_plate_nesting=1))
    options = {"epochs": 25, "learning_rate": 0.03, "seed": 0, "progress": False}
    fit(vae.model, vae.guide, x, label, objective=objective, **options)
    return vae


def test_training_on_few_labels_finds_the_classes():
    x, truth, label = blobs(10)
    vae = trained(x, label, alpha=40.0)
    assert (vae.classify(x) == truth).double().mean() > 0.95
    swapped = trained(x, torch.where(label >= 0, 1 - label, label), alpha=40.0)
    assert (swapped.classify(x) == truth).double().mean() < 0.05
    drawn = vae.sample(1000, torch.arange(1000) % 2)
    assert ((drawn[:, 1] > 0) == torch.arange(1000) % 2).double().mean() > 0.95


# --- refusals ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("label", "kind", "message"),
    [
        (torch.tensor([0, 1, 2, 3, 0, 0]), ValueError, "between 0 and 2, or -1 .* from 0 to 3"),
        (torch.tensor([0, 1, -2, 0, 0, 0]), ValueError, "between 0 and 2, or -1 .* from -2 to 1"),
        (torch.zeros(3, dtype=torch.long), ValueError, r"label must be .*\(6,\).*of shape \(3,\)"),
        (torch.zeros(N, dtype=torch.bool), ValueError, "label must be .* but is torch.bool"),
        ([0, 1, 2, 0, 1, 2], TypeError, "label must be a tensor, but is a list"),
    ],
)
def test_labels_of_no_class_are_refused(label, kind, message):
    vae, x = build(), data()
    for call in (vae.model, vae.guide, vae.reconstruct):
        with pytest.raises(kind, match=message):
            call(x, label)


@pytest.mark.parametrize(
    ("count", "label", "kind", "message"),
    [
        (0, None, ValueError, "num_samples must be at least 1, but is 0"),
        (5, torch.tensor([0, 1]), ValueError, r"label must have one entry for each of num_samples"),
        (1, torch.tensor([0, 1]), ValueError, r"num_samples = 1, or one for all.*shape \(2,\)"),
        (2, torch.tensor([[0], [1]]), ValueError, r"label must have .* but has shape \(2, 1\)"),
        (2, torch.tensor([0, -1]), ValueError, "between 0 and 2, but go from -1 to 0"),
        (2, [0, 1], TypeError, "labels must be a tensor, but are a list"),
    ],
)
def test_samples_of_no_class_are_refused(count, label, kind, message):
    with pytest.raises(kind, match=message):
        build().sample(count, label)


@pytest.mark.parametrize("classes", [1, C - 1, C + 1])
def test_a_classifier_of_other_classes_is_refused(classes, kind):
    """One of fewer would leave the rest out of the sum."""
    vae, x = build(classes=classes), data()
    message = f"classifier must return 3 logits, one for each class, but returns {classes}"
    for call in (lambda: vae.guide(x, *given(kind)), lambda: vae.classify(x)):
        with pytest.raises(ValueError, match=message):
            call()


@pytest.mark.parametrize(
    ("changed", "kind", "message"),
    [
        ({"num_classes": 0}, ValueError, "num_classes must be at least 1, but is 0"),
        ({"label_weight": -0.1}, ValueError, "label_weight must be at least 0 .* but is -0.1"),
        ({"label_weight": float("nan")}, ValueError, "label_weight must be .* but is nan"),
        ({"label_weight": float("inf")}, ValueError, "label_weight must be .* but is inf"),
        ({"label_weight": "1"}, TypeError, "label_weight must be a number, but is '1'"),
        ({"classifier": None}, TypeError, "classifier must be a module, but is a NoneType"),
        ({"prior": StandardNormal}, TypeError, "prior must be a module, but is the class Standard"),
        ({"posterior": 1.0}, TypeError, "posterior must be a module, but is a float"),
    ],
)
def test_impossible_arguments_are_refused(changed, kind, message):
    names = ("classifier", "prior", "posterior", "likelihood")
    with pytest.raises(kind, match=message):
        SemiSupervisedVAE(**{"num_classes": C} | dict.fromkeys(names, nn.Identity()) | changed)
