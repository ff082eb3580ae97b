"""Small program pairs of both kinds, and every objective that goes with each."""

from __future__ import annotations

import itertools

import pyro
import pyro.distributions as dist
import torch
from torch import nn

from pyrovae.inference import (
    CHIVI,
    CIWAE,
    ELBO,
    IWAE,
    JVI,
    MIWAE,
    NVIL,
    PIWAE,
    REINFORCE,
    RWS,
    STL,
    TVO,
    VIMCO,
    BetaVAE,
    DReG,
    MonteCarloObjective,
    Renyi,
    bounds,
    gradients,
)
from pyrovae.models import VAE
from pyrovae.models.likelihoods import Bernoulli
from pyrovae.models.nets import MLP
from pyrovae.models.posteriors import DiagonalNormal
from pyrovae.models.priors import StandardNormal

DATA_DIM = 6


NUMBERS = itertools.count()


def small_vae():
    return VAE(StandardNormal(2), DiagonalNormal(MLP(DATA_DIM, 4)), Bernoulli(MLP(2, DATA_DIM)))


def binary_data(num_data=7):
    return torch.bernoulli(torch.full((num_data, DATA_DIM), 0.4))


class Discrete(nn.Module):
    """A latent of one of many kinds, and binary data."""

    def __init__(self, kind="OneHotCategorical"):
        super().__init__()
        self.kind, self.name = kind, f"discrete {next(NUMBERS)}"
        self.encoder, self.decoder = nn.Linear(DATA_DIM, 3), nn.Linear(3, DATA_DIM)
        self.prior = nn.Parameter(torch.zeros(3))

    def latent(self, logits):
        if self.kind == "Categorical":
            return dist.Categorical(logits=logits)
        if self.kind == "Bernoulli":
            return dist.Bernoulli(logits=logits).to_event(1)
        return dist.OneHotCategorical(logits=logits)

    def model(self, x):
        pyro.module(self.name, self)
        with pyro.plate("data", len(x)):
            y = pyro.sample("y", self.latent(self.prior.expand(len(x), 3)))
            y = nn.functional.one_hot(y, 3).float() if self.kind == "Categorical" else y
            pyro.sample("x", dist.Bernoulli(logits=self.decoder(y)).to_event(1), obs=x)

    def guide(self, x):
        pyro.module(self.name, self)
        with pyro.plate("data", len(x)):
            pyro.sample("y", self.latent(self.encoder(x)))


CONTINUOUS = {
    "ELBO": ELBO,
    "STL": STL,
    "BetaVAE": BetaVAE,
    "IWAE": IWAE,
    "MIWAE": lambda: MIWAE(2, 3),
    "PIWAE": lambda: PIWAE(2, 3),
    "CIWAE": lambda: CIWAE(num_particles=6),
    "DReG": DReG,
    "Renyi": Renyi,
    "CHIVI": CHIVI,
    "TVO": lambda: TVO(num_particles=6),
    "JVI": JVI,
    "REINFORCE": REINFORCE,
    "RWS": RWS,
    "RWS asleep": lambda: RWS(wake=0.5, sleep=0.5),
}
DISCRETE = {
    "REINFORCE": REINFORCE,
    "NVIL": NVIL,
    "NVIL with a net": lambda: NVIL(nn.Linear(DATA_DIM, 1)),
    "VIMCO": VIMCO,
    "RWS": RWS,
    "RWS asleep": lambda: RWS(wake=0.5, sleep=0.5),
    "TVO": lambda: TVO(num_particles=6),
    "CHIVI": CHIVI,
    "straight through": lambda: MonteCarloObjective(bounds.IWAE(), gradients.StraightThrough(), 3),
    "relaxed": lambda: MonteCarloObjective(bounds.IWAE(), gradients.Relaxed(0.5), 3),
}
EVERY = [(small_vae, name, make) for name, make in CONTINUOUS.items()] + [
    (Discrete, name, make) for name, make in DISCRETE.items()
]
IDS = [f"{make_pair.__name__} {name}" for make_pair, name, _ in EVERY]
