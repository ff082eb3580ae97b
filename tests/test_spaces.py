"""Guides that draw a latent elsewhere than the model has it, or not all of it: refused, or told."""

from __future__ import annotations

import pyro.distributions as dist
import pytest
import torch
from pyro.distributions import constraints
from pyro.infer import Trace_ELBO, TraceEnum_ELBO, TraceMeanField_ELBO
from torch import nn
from training_toys import Noisy

from pyrovae.inference import (
    ELBO,
    IWAE,
    AnnealedImportanceSampling,
    ImportanceSampling,
    Penalised,
    PriorMonteCarlo,
    ProgramError,
    compare_evidence,
    elbo_surgery,
    fit,
    gradient_statistics,
    log_weights,
)
from pyrovae.inference.spaces import reaches, refuse_other_space
from pyrovae.models import VAE, VQVAE, DeepMarkovModel, MixtureVAE, SemiSupervisedVAE
from pyrovae.models.likelihoods import Bernoulli
from pyrovae.models.nets import MLP
from pyrovae.models.posteriors import BackwardPosterior, DiagonalNormal, VonMisesFisherPosterior
from pyrovae.models.priors import GaussianMixture, StandardNormal, UniformCodes, UniformSphere
from pyrovae.models.quantised import Codebook, VectorQuantiser
from pyrovae.models.transitions import GatedTransition

pytestmark = pytest.mark.usefixtures("one_thread")

D = 5
QUIET = {"epochs": 1, "seed": 0, "progress": False}


def bits(count=8):
    return torch.rand(count, D, generator=torch.Generator().manual_seed(0)).round()


def decoder(size):
    return Bernoulli(MLP(size, D, (6,)))


class Own(nn.Module):
    """A prior of one's own, of another size than the posterior's."""

    def forward(self):
        return dist.Normal(torch.zeros(3), 1.0).to_event(1)


class Narrow(nn.Module):
    """A guide that draws from a box."""

    def __init__(self):
        super().__init__()
        self.net = MLP(D, 2, (6,))

    def forward(self, x):
        loc = self.net(x)
        return dist.Uniform(loc - 0.5, loc + 0.5).to_event(1)


PAIRS = {
    "sphere in space": (
        lambda: VAE(StandardNormal(3), VonMisesFisherPosterior(MLP(D, 4)), decoder(3)),
        "2 dimensions in the guide .* but of 3 in the model",
    ),
    "space on a sphere": (
        lambda: VAE(UniformSphere(3), DiagonalNormal(MLP(D, 6)), decoder(3)),
        "3 dimensions in the guide .* but of 2 in the model|values in Sphere",
    ),
    "another size": (
        lambda: VAE(Own(), DiagonalNormal(MLP(D, 2)), decoder(1)),
        r"event shape \(1,\) in the guide, but \(3,\) in the model",
    ),
}


@pytest.mark.parametrize("name", PAIRS)
def test_a_latent_in_another_space_is_refused(name):
    make, message = PAIRS[name]
    vae, x = make(), bits()
    tries = (
        lambda: log_weights(vae.model, vae.guide, x),
        lambda: ImportanceSampling(10)(vae.model, vae.guide, x),
        lambda: elbo_surgery(vae.model, vae.guide, x),
        *(
            lambda objective=objective: fit(vae.model, vae.guide, x, objective=objective, **QUIET)
            for objective in (Trace_ELBO(), TraceMeanField_ELBO(), ELBO(), IWAE(3))
        ),
    )
    for refuse in tries:
        with pytest.raises((ProgramError, ValueError), match=message):
            refuse()


def test_discrete_and_continuous_are_no_match():
    with pytest.raises(ProgramError, match="'z' is continuous in the guide, but discrete in the"):
        refuse_other_space("z", dist.Normal(0.0, 1.0), dist.Poisson(torch.tensor(1.0)))
    with pytest.raises(ProgramError, match=r"of 2 dimensions .* but of 3"):
        refuse_other_space(
            "z", dist.Dirichlet(torch.ones(3)), dist.Normal(torch.zeros(3), 1.0).to_event(1)
        )
    refuse_other_space("z", dist.Delta(torch.tensor(1.0)), dist.Poisson(torch.tensor(1.0)))


@pytest.mark.parametrize(
    ("guide", "model", "expected"),
    [
        (dist.Normal(0.0, 1.0), dist.Laplace(0.0, 1.0), True),
        (dist.Gamma(1.0, 1.0), dist.LogNormal(0.0, 1.0), True),
        (dist.Gamma(1.0, 1.0), dist.Normal(0.0, 1.0), False),
        (dist.Uniform(0.1, 0.9), dist.Beta(1.0, 1.0), False),
        (dist.Beta(2.0, 2.0), dist.Uniform(0.0, 1.0), True),
        (dist.Delta(torch.tensor(0.0)), dist.Normal(0.0, 1.0), False),
        (
            dist.Categorical(logits=torch.tensor([0.0, -torch.inf])),
            dist.Categorical(torch.ones(2)),
            False,
        ),
        (dist.Categorical(torch.tensor([0.9, 0.1])), dist.Categorical(torch.ones(2)), True),
    ],
)
def test_what_a_guide_reaches(guide, model, expected):
    assert reaches(guide, model) is expected


def test_a_guide_that_cannot_draw_all_is_told_and_not_believed():
    torch.manual_seed(0)
    vae, x = VAE(StandardNormal(2), Narrow(), decoder(2)), bits()
    narrow = ImportanceSampling(2000)(vae.model, vae.guide, x)
    (warning,) = [line for line in narrow.warnings() if "latent 'z'" in line]
    assert warning.startswith("the guide cannot draw all values")
    prior = PriorMonteCarlo(2000)(vae.model, None, x)
    assert not any("latent" in line for line in prior.warnings())
    comparison = compare_evidence(narrow=narrow, prior=prior)
    assert comparison.best_lower == "prior"
    assert any("cannot draw all values" in line for line in comparison.verdict())
    for reached in (
        ImportanceSampling(50, defensive=0.2)(vae.model, vae.guide, x),
        AnnealedImportanceSampling(4, 5, start="prior")(vae.model, vae.guide, x),
    ):
        assert not any("cannot draw" in line for line in reached.warnings())


def test_a_vq_vae_that_is_sure_of_its_codes_is_told():
    torch.manual_seed(0)
    encoder = nn.Sequential(MLP(D, 4, (6,)), nn.Unflatten(-1, (2, 2)))
    quantiser = VectorQuantiser(encoder, Codebook(4, 2), grid=(2,))
    vq = VQVAE(
        UniformCodes((2,), 4), quantiser, Bernoulli(nn.Sequential(nn.Flatten(-2), MLP(4, D)))
    ).eval()
    x, soft = bits(), vq.softened(1.0)
    sure = ImportanceSampling(50)(vq.model, vq.guide, x)
    assert any("cannot draw all" in line for line in sure.warnings())
    assert not any(
        "cannot draw" in w for w in ImportanceSampling(50)(soft.model, soft.guide, x).warnings()
    )


# --- what else programs say of each other --------------------------------------------------------


@pytest.mark.parametrize("objective", [Trace_ELBO(), TraceMeanField_ELBO()])
def test_an_objective_that_sums_over_no_class_is_refused(objective):
    torch.manual_seed(0)
    mixture = MixtureVAE(GaussianMixture(2, 3), DiagonalNormal(MLP(D, 4)), decoder(2))
    with pytest.raises(ValueError, match="objective: must sum over latent 'y'"):
        fit(mixture.model, mixture.guide, bits(), objective=objective, **QUIET)
    for good in (ELBO(), TraceEnum_ELBO(max_plate_nesting=1)):
        fit(mixture.model, mixture.guide, bits(), objective=good, **QUIET)


def test_what_a_guide_asks_for_and_sums_is_not_left_out():
    torch.manual_seed(0)
    m2 = SemiSupervisedVAE(
        3, MLP(D, 3), StandardNormal(2), DiagonalNormal(MLP(D + 3, 4)), Bernoulli(MLP(2 + 3, D))
    )
    labels = torch.tensor([0, 1, 2, -1, -1, -1, -1, -1])
    with pytest.raises(ValueError, match="must sum over latent 'y'"):
        fit(m2.model, m2.guide, bits(), labels, **QUIET)
    summing = TraceEnum_ELBO(max_plate_nesting=1)
    with pytest.warns(UserWarning, match=r"leaves out what the guide asks for .* at 'y'"):
        fit(m2.model, m2.guide, bits(), labels, objective=summing, **QUIET)
    fit(m2.model, m2.guide, bits(), labels, objective=Penalised(summing), **QUIET)


def test_a_model_that_observes_nothing_is_refused():
    vae = VAE(StandardNormal(2), DiagonalNormal(MLP(D, 4)), decoder(2))
    with pytest.raises(ValueError, match=r"model: must observe data[\s\S]*swapped"):
        fit(vae.guide, vae.guide, bits(), **QUIET)


def test_masked_latents_have_no_aggregate():
    markov = DeepMarkovModel(
        StandardNormal(2), GatedTransition(2, 4), Bernoulli(MLP(2, D)), BackwardPosterior(D, 2, 4)
    )
    x = bits(12).reshape(4, 3, D)
    assert elbo_surgery(markov.model, markov.guide, x).rate > 0
    with pytest.raises(ProgramError, match="latent z_1, z_2, z_3 is masked"):
        elbo_surgery(markov.model, markov.guide, x, torch.tensor([3, 1, 2, 3]))


def test_gradient_statistics_leave_buffers_alone():
    normed = Noisy()
    before = {name: value.clone() for name, value in normed.named_buffers()}
    gradient_statistics(ELBO(), normed.model, normed.guide, bits(), repeats=20)
    for name, value in normed.named_buffers():
        assert torch.equal(value, before[name]), name


def test_constraints_are_those_of_pyro():
    assert VonMisesFisherPosterior(MLP(D, 4))(bits()).support is constraints.sphere
