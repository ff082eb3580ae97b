"""Linear-Gaussian state-space models: the deep Markov model that a Kalman filter solves.

The exact answers are numpy's, of the matrices alone; the exact posterior is a module that stands
where a learned one would.
"""

from __future__ import annotations

from functools import partial

import numpy as np
import pyro.distributions as dist
import torch
from torch import nn

from pyrovae.models import DeepMarkovModel
from pyrovae.models.likelihoods import Bernoulli, Gaussian
from pyrovae.models.nets import MLP
from pyrovae.models.posteriors import BackwardPosterior
from pyrovae.models.priors import StandardNormal
from pyrovae.models.transitions import GatedTransition

N, T, D, Z = 5, 5, 3, 2
PROCESS, NOISE = 0.6, 0.8
LENGTHS = torch.tensor([5, 1, 3, 4, 2])


class ExactPosterior(nn.Module):
    """p(z_t | z_{t-1}, x_{t:L}) of a linear-Gaussian chain, by messages from the end backwards."""

    def __init__(self, transition, likelihood):
        super().__init__()
        self.transition, self.likelihood = transition, likelihood

    def forward(self, x, lengths=None):
        a, b = self.transition.net.weight, self.transition.net.bias
        c, d = self.likelihood.net.weight, self.likelihood.net.bias
        eye, process = torch.eye(len(a), dtype=x.dtype), self.transition.scale**2
        noise = self.likelihood.scale**2
        if lengths is None:
            lengths = torch.full((len(x),), x.shape[1])
        precision, shift = x.new_zeros(len(x), len(a), len(a)), x.new_zeros(len(x), len(a))
        messages = []
        for t in reversed(range(x.shape[1])):
            # through the transition: (J⁻¹ + Q)⁻¹ = (I + J Q)⁻¹ J
            inverse = torch.linalg.inv(eye + process * precision)
            through = inverse @ precision
            shift = ((inverse @ shift[..., None])[..., 0] - through @ b) @ a
            precision = a.T @ through @ a + c.T @ c / noise
            shift = shift + (x[:, t] - d) @ c / noise
            there = (t < lengths)[:, None]
            shift = torch.where(there, shift, 0.0)
            precision = torch.where(there[..., None], precision, 0.0)
            messages.append((precision, shift))
        return partial(self._conditional, messages[::-1])

    def _conditional(self, messages, t, z):
        precision, shift = messages[t]
        eye = torch.eye(precision.shape[-1], dtype=precision.dtype)
        if z is None:
            loc, process = shift.new_zeros(()), 1.0
        else:
            loc, process = self.transition.net(z), self.transition.scale**2
        covariance = torch.linalg.inv(eye / process + precision)
        mean = (covariance @ (loc / process + shift)[..., None])[..., 0]
        return dist.MultivariateNormal(mean, covariance)


def linear(posterior=None, latent_dim=Z, seed=1):
    """A linear-Gaussian chain in double precision; with its exact posterior, unless given one."""
    torch.manual_seed(seed)
    transition = Gaussian(nn.Linear(latent_dim, latent_dim), PROCESS)
    likelihood = Gaussian(nn.Linear(latent_dim, D), NOISE)
    nn.init.normal_(likelihood.net.weight)
    if posterior is None:
        posterior = ExactPosterior(transition, likelihood)
    return DeepMarkovModel(StandardNormal(latent_dim), transition, likelihood, posterior).double()


def recurrent(latent_dim=Z, **settings):
    """The same chain with a learned posterior, as it starts."""
    torch.manual_seed(2)
    posterior = BackwardPosterior(D, latent_dim, **{"hidden_dim": 8, **settings})
    return linear(posterior, latent_dim)


def notes(seed=3):
    """A chain with every net in place, for binary data."""
    torch.manual_seed(seed)
    return DeepMarkovModel(
        StandardNormal(Z),
        GatedTransition(Z, hidden_dim=5),
        Bernoulli(MLP(Z, D, hidden=(5,))),
        BackwardPosterior(D, Z, hidden_dim=6),
    )


def sequences(markov, num_data=N, seed=4):
    torch.manual_seed(seed)
    return markov.sample(num_data, T)


def matrices(markov):
    """A, b, C, d in numpy."""
    layers = (markov.transition.net, markov.likelihood.net)
    return [p.detach().numpy() for layer in layers for p in (layer.weight, layer.bias)]


def kalman(markov, x, lengths=None):
    """log p(x_1..L) for each sequence, by the filter."""
    a, b, c, d = matrices(markov)
    steps = [x.shape[1]] * len(x) if lengths is None else lengths.tolist()
    found = []
    for sequence, length in zip(x.numpy(), steps, strict=True):
        mean, covariance, total = np.zeros(len(a)), np.eye(len(a)), 0.0
        for t in range(length):
            if t:
                mean, covariance = a @ mean + b, a @ covariance @ a.T + PROCESS**2 * np.eye(len(a))
            innovation = sequence[t] - c @ mean - d
            spread = c @ covariance @ c.T + NOISE**2 * np.eye(len(c))
            total -= 0.5 * innovation @ np.linalg.solve(spread, innovation)
            total -= 0.5 * np.linalg.slogdet(2 * np.pi * spread)[1]
            gain = covariance @ c.T @ np.linalg.inv(spread)
            mean, covariance = mean + gain @ innovation, covariance - gain @ c @ covariance
        found.append(total)
    return np.array(found)


def joint(markov, num_steps):
    """Mean (T D,) and covariance (T D, T D) of x_1..T, by writing all of z as noise at work."""
    a, b, c, d = matrices(markov)
    size = len(a)
    effect = np.zeros((num_steps * size, num_steps * size))  # of the noise at s on z at t
    mean, means = np.zeros(size), []
    for t in range(num_steps):
        row = slice(t * size, (t + 1) * size)
        if t:
            mean = a @ mean + b
            effect[row] = a @ effect[(t - 1) * size : t * size]
        effect[row, row] = (PROCESS if t else 1.0) * np.eye(size)
        means.append(c @ mean + d)
    emit = np.kron(np.eye(num_steps), c)
    covariance = emit @ effect @ effect.T @ emit.T + NOISE**2 * np.eye(num_steps * len(c))
    return np.concatenate(means), covariance
