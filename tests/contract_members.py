"""Every member of every axis, small: what the contract test runs over. A new one is a line here."""

from __future__ import annotations

import torch
from pyro.infer import Trace_ELBO, TraceEnum_ELBO
from torch import nn

from pyrovae import models
from pyrovae.inference import Penalised
from pyrovae.models import VAE, likelihoods, posteriors, priors
from pyrovae.models.flows import AutoregressiveFlow, CouplingFlow, SplineFlow
from pyrovae.models.nets import MLP, EncodedContext, OneHot, WithoutContext
from pyrovae.models.quantised import Codebook, VectorQuantiser
from pyrovae.models.transitions import GatedTransition

N, D, Z, C = 6, 5, 3, 4


def net(inputs, outputs):
    return MLP(inputs, outputs, hidden=(6,))


def data(seed=0):
    """Bits, as most likelihoods here can score them."""
    return torch.rand(N, D, generator=torch.Generator().manual_seed(seed)).round()


diagonal = lambda: posteriors.DiagonalNormal(net(D, 2 * Z))  # noqa: E731
bernoulli = lambda: likelihoods.Bernoulli(net(Z, D))  # noqa: E731

# of a posterior, which some hold by reference
PRIORS = {
    "StandardNormal": lambda q: priors.StandardNormal(Z),
    "LearnedNormal": lambda q: priors.LearnedNormal(Z),
    "Laplace": lambda q: priors.Laplace(Z, learned=True),
    "StudentT": lambda q: priors.StudentT(Z, learned=True),
    "GaussianMixture": lambda q: priors.GaussianMixture(Z, num_components=3),
    "VampPrior": lambda q: priors.VampPrior.from_data(q, data(1), 3),
    "ExemplarPrior": lambda q: priors.ExemplarPrior(q, data(1)),
    "FlowPrior": lambda q: priors.FlowPrior(AutoregressiveFlow(Z, 2, (6,))),
    "ResampledPrior": lambda q: priors.ResampledPrior(priors.StandardNormal(Z), net(Z, 1)),
}
POSTERIORS = {
    "DiagonalNormal": diagonal,
    "FullRankNormal": lambda: posteriors.FullRankNormal(net(D, Z + Z * (Z + 1) // 2)),
    "LowRankNormal": lambda: posteriors.LowRankNormal(net(D, Z * 4), rank=2),
    "MixturePosterior": lambda: posteriors.MixturePosterior(net(D, 2 * (2 * Z + 1)), 2),
    "IAF": lambda: posteriors.FlowPosterior(
        net(D, 2 * Z + 2), AutoregressiveFlow(Z, 2, (6,), context_dim=2)
    ),
    "CouplingPosterior": lambda: posteriors.FlowPosterior(net(D, 2 * Z), CouplingFlow(Z, 2, (6,))),
    "SplinePosterior": lambda: posteriors.FlowPosterior(net(D, 2 * Z), SplineFlow(Z, 1, (6,))),
    "PerDatum": lambda: posteriors.PerDatum(N, Z),
}
LIKELIHOODS = {
    "Bernoulli": bernoulli,
    "ContinuousBernoulli": lambda: likelihoods.ContinuousBernoulli(net(Z, D)),
    "Gaussian": lambda: likelihoods.Gaussian(net(Z, 2 * D), scale=None),
    "StudentT": lambda: likelihoods.StudentT(net(Z, D), likelihoods.LearnedDegrees()),
    "DiscretizedLogistic": lambda: likelihoods.DiscretizedLogistic(net(Z, 2 * D), num_levels=2),
    "DiscretizedLogisticMixture": lambda: likelihoods.DiscretizedLogisticMixture(
        net(Z, 6 * D), num_components=2, num_levels=2
    ),
    "Categorical": lambda: likelihoods.Categorical(net(Z, 3 * D), num_classes=3),
    "BetaBinomial": lambda: likelihoods.BetaBinomial(net(Z, D), total_count=4),
    "NegativeBinomial": lambda: likelihoods.NegativeBinomial(net(Z, 2 * D), dispersion=None),
    "ZeroInflatedNegativeBinomial": lambda: likelihoods.ZeroInflatedNegativeBinomial(
        net(Z, 3 * D), dispersion=None
    ),
}


def sphere():
    return VAE(
        priors.UniformSphere(Z), posteriors.VonMisesFisherPosterior(net(D, Z + 1)), bernoulli()
    )


def semi_amortised():
    prior, likelihood = priors.LearnedNormal(Z), bernoulli()
    return VAE(prior, posteriors.SemiAmortised(diagonal(), prior, likelihood, 2), likelihood)


def conditional():
    def told(inputs, outputs, **options):
        return EncodedContext(net(inputs + C, outputs), [OneHot(C)], **options)

    return models.ConditionalVAE(
        posteriors.DiagonalNormal(told(0, 2 * Z, alone=True)),
        posteriors.DiagonalNormal(told(D, 2 * Z)),
        likelihoods.Bernoulli(told(Z, D)),
        conditional_prior=True,
    )


def hierarchical(**options):
    return models.HierarchicalVAE(
        priors.StandardNormal(2), [posteriors.DiagonalNormal(net(2, 2 * Z))], **options
    )


def bottom_up():
    above = posteriors.DiagonalNormal(net(Z, 2 * 2))
    return hierarchical(posteriors=[diagonal(), above], likelihood=bernoulli())


def ladder():
    return hierarchical(
        posteriors=[
            posteriors.DiagonalNormal(net(6, 2 * Z)),
            posteriors.DiagonalNormal(net(4, 2 * 2)),
        ],
        likelihood=bernoulli(),
        encoders=[net(D, 6), net(6, 4)],
        ladder=True,
    )


def mixture(classifier=False):
    inputs = D + C if classifier else D
    return models.MixtureVAE(
        priors.GaussianMixture(Z, num_components=C),
        posteriors.DiagonalNormal(net(inputs, 2 * Z)),
        bernoulli(),
        net(D, C) if classifier else None,
    )


def semi_supervised():
    return models.SemiSupervisedVAE(
        C,
        net(D, C),
        priors.StandardNormal(Z),
        posteriors.DiagonalNormal(net(D + C, 2 * Z)),
        likelihoods.Bernoulli(net(Z + C, D)),
    )


def quantised(prior):
    encoder = nn.Sequential(net(D, 2 * 2), nn.Unflatten(-1, (2, 2)))
    quantiser = VectorQuantiser(encoder, Codebook(4, 2, decay=None), grid=(2,), temperature=1.0)
    decoder = nn.Sequential(nn.Flatten(-2), net(2 * 2, D))
    return models.VQVAE(prior((2,), 4), quantiser, likelihoods.Bernoulli(decoder))


def markov():
    return models.DeepMarkovModel(
        priors.LearnedNormal(2),
        GatedTransition(2, 4),
        likelihoods.Bernoulli(net(2, 2)),
        posteriors.BackwardPosterior(2, 2, 4),
    )


LABELS = torch.tensor([0, 1, 2, 3, -1, -1])
SEQUENCES = torch.rand(N, 3, 2, generator=torch.Generator().manual_seed(2)).round()
ENUMERATING = TraceEnum_ELBO(max_plate_nesting=1)

# make, x, context, and what trains it
FAMILIES = {
    "sphere": (sphere, data(), (), Trace_ELBO()),
    "semi-amortised": (semi_amortised, data(), (), Trace_ELBO()),
    "ConditionalVAE": (conditional, data(), (torch.arange(N) % C,), Trace_ELBO()),
    "HierarchicalVAE": (bottom_up, data(), (), Trace_ELBO()),
    "ladder": (ladder, data(), (), Trace_ELBO()),
    "MixtureVAE": (mixture, data(), (), ENUMERATING),
    "MixtureVAE, classified": (lambda: mixture(True), data(), (), ENUMERATING),
    "SemiSupervisedVAE": (semi_supervised, data(), (LABELS,), Penalised(ENUMERATING)),
    "VQVAE": (lambda: quantised(priors.UniformCodes), data(), (), Penalised()),
    "VQVAE, learned prior": (
        lambda: quantised(priors.AutoregressivePrior),
        data(),
        (),
        Penalised(),
    ),
    "DeepMarkovModel": (
        markov,
        SEQUENCES,
        (torch.tensor([1, 2, 3, 3, 2, 1]),),
        Trace_ELBO(),
    ),
    "LinearGaussianVAE": (lambda: models.LinearGaussianVAE(D, 2), data(), (), Trace_ELBO()),
}
for name, prior in PRIORS.items():

    def make(prior=prior):
        posterior = diagonal()
        return VAE(prior(posterior), posterior, bernoulli())

    FAMILIES[f"prior {name}"] = (make, data(), (), Trace_ELBO())
for name, posterior in POSTERIORS.items():
    FAMILIES[f"posterior {name}"] = (
        lambda posterior=posterior: VAE(priors.StandardNormal(Z), posterior(), bernoulli()),
        data(),
        (),
        Trace_ELBO(),
    )
FAMILIES["posterior PerDatum"] = (
    lambda: VAE(
        priors.StandardNormal(Z),
        POSTERIORS["PerDatum"](),
        likelihoods.Bernoulli(WithoutContext(net(Z, D))),
    ),
    data(),
    (torch.arange(N),),
    Trace_ELBO(),
)
for name, likelihood in LIKELIHOODS.items():
    FAMILIES[f"likelihood {name}"] = (
        lambda likelihood=likelihood: VAE(priors.StandardNormal(Z), diagonal(), likelihood()),
        data(),
        (),
        Trace_ELBO(),
    )
