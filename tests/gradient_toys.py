"""Program pairs whose expected gradients are known, and a way to measure them.

Their parameters are two vectors, theta and phi, as the oracles take them.
"""

from __future__ import annotations

import numpy as np
import pyro
import pyro.distributions as dist
import torch
from torch import nn


class Pair(nn.Module):
    """A model with parameters theta and a guide with parameters phi, in double precision."""

    def __init__(self, theta, phi):
        super().__init__()
        self.theta = nn.Parameter(torch.tensor(theta, dtype=torch.float64))
        self.phi = nn.Parameter(torch.tensor(phi, dtype=torch.float64))


class Chain(Pair):
    """gradient_oracles.GaussianChain as a program pair."""

    def __init__(self, theta, phi, noise):
        super().__init__(theta, phi)
        self.noise, self.levels = noise, len(phi) // 3

    def model(self, x):
        with pyro.plate("data", len(x)):
            loc = torch.zeros((), dtype=x.dtype)
            for level in reversed(range(self.levels)):
                z = pyro.sample(f"z{level}", dist.Normal(loc, 1.0))
                loc = (self.theta[1 + level] if level else self.theta[0]) * z
            pyro.sample("x", dist.Normal(loc + self.theta[1], self.noise), obs=x)

    def guide(self, x):
        with pyro.plate("data", len(x)):
            given = x
            for level in range(self.levels):
                slope, shift, log_scale = self.phi[3 * level : 3 * level + 3]
                fn = dist.Normal(slope * given + shift, log_scale.exp())
                given = pyro.sample(f"z{level}", fn)


class Code(Pair):
    """gradient_oracles.BinaryCode as a program pair; one site, of D Bernoullis or one-hot pairs."""

    def __init__(self, theta, phi, noise, one_hot=False):
        super().__init__(theta, phi)
        self.noise, self.size, self.one_hot = noise, len(phi) // 2, one_hot

    def _code(self, logits):
        if not self.one_hot:
            return dist.Bernoulli(logits=logits).to_event(1)
        both = torch.stack([torch.zeros_like(logits), logits], -1)
        return dist.OneHotCategorical(logits=both).to_event(1)

    def model(self, x):
        size = self.size
        with pyro.plate("data", len(x)):
            code = pyro.sample("c", self._code(self.theta[:size]))
            code = code[..., 1] if self.one_hot else code
            loc = code @ self.theta[size:-1] + self.theta[-1]
            pyro.sample("x", dist.Normal(loc, self.noise), obs=x)

    def guide(self, x):
        with pyro.plate("data", len(x)):
            logits = x[:, None] * self.phi[: self.size] + self.phi[self.size :]
            pyro.sample("c", self._code(logits))


class Mixed(Pair):
    """c ~ Bernoulli, z | c ~ N(mean_c, 1), x ~ N(weight z, noise^2); q(c | x) q(z | c, x)."""

    def __init__(self, noise):
        super().__init__([0.3, -0.8, 0.9, 1.1], [0.8, -0.2, 0.5, 0.4, 0.1, -0.3])
        self.noise = noise

    def model(self, x):
        logit, low, high, weight = self.theta
        with pyro.plate("data", len(x)):
            c = pyro.sample("c", dist.Bernoulli(logits=logit))
            z = pyro.sample("z", dist.Normal(low + (high - low) * c, 1.0))
            pyro.sample("x", dist.Normal(weight * z, self.noise), obs=x)

    def guide(self, x):
        slope, shift, of_x, of_c, mean, log_scale = self.phi
        with pyro.plate("data", len(x)):
            c = pyro.sample("c", dist.Bernoulli(logits=slope * x + shift))
            pyro.sample("z", dist.Normal(of_x * x + of_c * c + mean, log_scale.exp()))


def measure(objective, pair, x, repeats=120, tiled=300):
    """Mean and standard error of the direction of ascent, (theta, phi), summed over the data x."""
    batch = torch.tensor(x, dtype=torch.float64).repeat(tiled)
    rows = []
    for _ in range(repeats):
        pair.zero_grad()
        (objective.differentiable_loss(pair.model, pair.guide, batch) / -tiled).backward()
        rows.append(torch.cat([pair.theta.grad, pair.phi.grad]).numpy().copy())
    rows = np.array(rows)
    return rows.mean(0), rows.std(0, ddof=1) / np.sqrt(repeats)


def assert_is_expected(found, expected, errors=5.0):
    """A z-test of every component at so many standard errors."""
    mean, stderr = found
    z = (mean - expected) / np.maximum(stderr, 1e-9)
    assert np.abs(z).max() < errors, f"{z=}, {mean=}, {expected=}"
