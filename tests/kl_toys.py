"""Program pairs whose KL is known, and what is held against it."""

from __future__ import annotations

import numpy as np
import oracles
import pyro
import pyro.distributions as dist
import torch
from pyro import poutine
from torch import nn

from pyrovae.inference import (
    KL,
    MonteCarloObjective,
    bounds,
)

NUM_DATA, DATA_DIM, LATENT_DIM = 8, 5, 2


def objective(num_particles=1, particles="auto", **kl):
    return MonteCarloObjective(
        bounds.ELBO(), num_particles=num_particles, kl=KL(**kl), particles=particles
    )


class Normals(nn.Module):
    """z ~ N(m, s²), x | z ~ N(W z + b, 1); q(z | x) = N(A x, t²). Remembers its draws."""

    def __init__(self):
        super().__init__()
        generator = torch.Generator().manual_seed(11)

        def parameter(*shape, scale=1.0):
            start = torch.randn(*shape, generator=generator, dtype=torch.float64)
            return nn.Parameter(scale * start)

        self.weight, self.bias = parameter(DATA_DIM, LATENT_DIM), parameter(DATA_DIM)
        self.prior_loc, self.prior_log_scale = parameter(LATENT_DIM), parameter(LATENT_DIM)
        self.encoder = parameter(LATENT_DIM, DATA_DIM, scale=0.3)
        self.log_scale = parameter(LATENT_DIM, scale=0.5)
        self.x = torch.randn(NUM_DATA, DATA_DIM, generator=generator, dtype=torch.float64)
        self.drawn = []

    def prior(self):
        return dist.Normal(self.prior_loc, self.prior_log_scale.exp())

    def posterior(self, x):
        return dist.Normal(x @ self.encoder.T, self.log_scale.exp())

    def model(self, x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", self.prior().to_event(1))
            loc = z @ self.weight.T + self.bias
            pyro.sample("x", dist.Normal(loc, 1.0).to_event(1), obs=x)
        if torch.is_grad_enabled():  # not where the programs are only looked at
            self.drawn.append(z.detach())

    def guide(self, x):
        with pyro.plate("data", len(x)):
            pyro.sample("z", self.posterior(x).to_event(1))

    # --- in numpy, of the draws that were made ---

    def values(self):
        return {name: p.detach().numpy() for name, p in self.named_parameters()}

    def draws(self):
        """Those of the last call, ``(K, N, Z)``, whichever way they were made."""
        return torch.cat([z.reshape(-1, NUM_DATA, LATENT_DIM) for z in self.drawn]).numpy()

    def log_likelihood(self):
        """log p(x | z), ``(K, N)``."""
        v = self.values()
        loc = self.draws() @ v["weight"].T + v["bias"]
        return oracles.normal_logpdf(self.x.numpy(), loc).sum(-1)

    def posterior_values(self):
        v = self.values()
        return self.x.numpy() @ v["encoder"].T, np.exp(v["log_scale"])

    def sampled_kl(self):
        """log q - log p of each draw and dimension, ``(K, N, Z)``."""
        v, (loc, scale) = self.values(), self.posterior_values()
        z = self.draws()
        prior = oracles.normal_logpdf(z, v["prior_loc"], np.exp(v["prior_log_scale"]))
        return oracles.normal_logpdf(z, loc, scale) - prior

    def exact_kl(self):
        """KL of each datum and dimension, ``(N, Z)``."""
        v, (loc, scale) = self.values(), self.posterior_values()
        ratio = scale / np.exp(v["prior_log_scale"])
        apart = (loc - v["prior_loc"]) / np.exp(v["prior_log_scale"])
        return 0.5 * (ratio**2 + apart**2 - 1) - np.log(ratio)


def loss_of(pair, objective, seed=0):
    pair.drawn.clear()
    pyro.set_rng_seed(seed)
    return objective.differentiable_loss(pair.model, pair.guide, pair.x)


def watched(program, *names):
    """The program, and the values of its sites in the calls that take a gradient."""
    seen = {name: [] for name in names}

    def run(*args):
        nodes = poutine.trace(program).get_trace(*args).nodes
        if torch.is_grad_enabled():
            for name in names:
                seen[name].append(nodes[name]["value"].detach().numpy())

    return run, seen


def gradients_of(module, loss):
    found = torch.autograd.grad(loss, list(module.parameters()), allow_unused=True)
    return [
        torch.zeros_like(p) if g is None else g
        for p, g in zip(module.parameters(), found, strict=True)
    ]


def held_by_hand(divergence, free):
    """The summed KL of all data: ``(N, Z)`` to a number."""
    if free is None:
        return divergence.sum()
    if free.per == "site":
        divergence = divergence.sum(-1, keepdims=True)
    if free.over == "datum":
        return np.maximum(divergence, free.nats).sum()
    return len(divergence) * np.maximum(divergence.mean(0), free.nats).sum()
