"""Small VQ-VAEs of any grid, and encoders that are the data themselves."""

from __future__ import annotations

import math

import torch
from torch import nn

from pyrovae.models import VQVAE
from pyrovae.models.likelihoods import Bernoulli
from pyrovae.models.nets import MLP
from pyrovae.models.priors import UniformCodes
from pyrovae.models.quantised import Codebook, VectorQuantiser

D = 6  # data
CODE = 3


def codebook(num_codes=5, **settings):
    """Of two numbers each, in double precision."""
    torch.manual_seed(1)
    return Codebook(num_codes, 2, **settings).double()


def encodings(num_data=8, grid=(3,), seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(num_data, 2, *grid, generator=generator, dtype=torch.float64)


def plain(grid=(3,), num_codes=5, temperature=0.0, commitment=0.25, **settings):
    """A quantiser whose encodings are x."""
    return VectorQuantiser(
        nn.Identity(), codebook(num_codes, **settings), grid, commitment, temperature
    ).double()


def small(
    prior=UniformCodes, grid=(2, 2), num_codes=16, norm=False, temperature=0.0, **settings
) -> VQVAE:
    torch.manual_seed(0)
    places = math.prod(grid)
    encoder = nn.Sequential(
        MLP(D, CODE * places, hidden=(8,)),
        nn.BatchNorm1d(CODE * places) if norm else nn.Identity(),
        nn.Unflatten(-1, (CODE, *grid)),
    )
    decoder = nn.Sequential(nn.Flatten(-1 - len(grid)), MLP(CODE * places, D, hidden=(8,)))
    quantiser = VectorQuantiser(
        encoder, Codebook(num_codes, CODE, **settings), grid, temperature=temperature
    )
    return VQVAE(prior(grid, num_codes), quantiser, Bernoulli(decoder))


def bits(num_data=40):
    generator = torch.Generator().manual_seed(4)
    return torch.rand(num_data, D, generator=generator).round()
