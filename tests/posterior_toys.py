"""Linear-Gaussian models for posteriors of every kind, with their exact answers."""

from __future__ import annotations

import math

import oracles
import torch
from torch import nn

from pyrovae.models.likelihoods import Gaussian
from pyrovae.models.priors import StandardNormal

D, Z, NOISE = 4, 2, 0.8
DOUBLE = torch.float64
# the parameters of the distribution are the datum itself, so that each draw can have its own
GIVEN = nn.Identity()


def smooth(z):
    """Bounded, so that tails beyond a grid do not matter."""
    return (1.3 * z.cumsum(-1)).sin().sum(-1) + (-0.5 * (z - 0.5).square()).exp().sum(-1)


def on_a_grid(dim, low, high, points):
    nodes, log_volume = oracles.grid(dim, low, high, points)
    return torch.as_tensor(nodes), math.exp(log_volume)


def randomised(module, spread):
    """Parameters far from where they begin."""
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.normal_(0, spread)
    return module


def linear_gaussian(loadings=(2.0, 1.0), num_data=5):
    """Prior, likelihood and data of a linear decoder with orthogonal loadings of these lengths."""
    decoder = nn.Linear(len(loadings), D).double()
    with torch.no_grad():
        directions = torch.linalg.qr(torch.randn(D, len(loadings), dtype=DOUBLE))[0]
        decoder.weight.copy_(directions * torch.tensor(loadings, dtype=DOUBLE))
        z = torch.randn(num_data, len(loadings), dtype=DOUBLE)
        x = decoder(z) + NOISE * torch.randn(num_data, D, dtype=DOUBLE)
    return StandardNormal(len(loadings)).double(), Gaussian(decoder, NOISE), x


def exact_evidence(likelihood, x):
    weight, bias = (p.detach().numpy() for p in likelihood.net.parameters())
    return torch.as_tensor(oracles.linear_gaussian_evidence(weight, bias, NOISE, x.numpy()))


def exact_posterior(likelihood, x):
    """Means and standard deviations, which are all where loadings are orthogonal."""
    weight, bias = (p.detach().numpy() for p in likelihood.net.parameters())
    mean, covariance = oracles.linear_gaussian_posterior(weight, bias, NOISE, x.numpy())
    return torch.as_tensor(mean), torch.as_tensor(covariance).diagonal().sqrt().expand(len(x), -1)


def posterior_gap(q, likelihood, x):
    """KL(q(z | x) || p(z | x)) of each datum, for independent normals and orthogonal loadings."""
    exact = torch.distributions.Normal(*exact_posterior(likelihood, x))
    found = torch.distributions.Normal(q.mean, q.stddev)
    return torch.distributions.kl_divergence(found, exact).sum(-1).detach()


def assert_mean(draws, expected, level=5, error_of_expected=1e-12):
    """The mean over the first dimension is the expected one within so many standard errors."""
    error = (draws.mean(0) - expected).abs()
    assert (error <= level * draws.std(0) / math.sqrt(len(draws)) + error_of_expected).all()
