"""Program pairs over bounded supports, masks and plates, with the evidence of each."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import oracles
import pyro
import pyro.distributions as dist
import torch

from pyrovae.inference.particles import plan_particles
from pyrovae.inference.target import Target

WAYS = ("plate", "tile", "loop")


def log_beta(a, b):
    return math.lgamma(a) + math.lgamma(b) - math.lgamma(a + b)


@dataclass(frozen=True)
class Pair:
    """A pair whose guide is the exact posterior, log p(x), and what the volume is the volume of."""

    model: Callable[..., Any]
    guide: Callable[..., Any]
    args: tuple
    exact: np.ndarray
    free: Callable[[dict], torch.Tensor]  # as many numbers as coordinates, from a single draw


def gamma_poisson():
    a, b, x = 2.5, 1.3, torch.tensor([0.0, 2.0, 5.0], dtype=torch.float64)

    def model(x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Gamma(x.new_tensor(a), x.new_tensor(b)))
            pyro.sample("x", dist.Poisson(z), obs=x)

    def guide(x):
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Gamma(a + x, b + 1))

    def evidence(k):
        value = math.lgamma(a + k) - math.lgamma(a) - math.lgamma(k + 1)
        return value + a * math.log(b / (b + 1)) - k * math.log(b + 1)

    exact = np.array([evidence(k) for k in x.tolist()])
    return Pair(model, guide, (x,), exact, lambda z: z["z"].reshape(-1))


def beta_binomial():
    a, b, n, x = 2.0, 3.0, 10, torch.tensor([0.0, 4.0, 10.0], dtype=torch.float64)

    def model(x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Beta(x.new_tensor(a), x.new_tensor(b)))
            pyro.sample("x", dist.Binomial(n, z), obs=x)

    def guide(x):
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Beta(a + x, b + n - x))

    def evidence(k):
        choose = math.log(math.comb(n, int(k)))
        return choose + log_beta(a + k, b + n - k) - log_beta(a, b)

    exact = np.array([evidence(k) for k in x.tolist()])
    return Pair(model, guide, (x,), exact, lambda z: z["z"].reshape(-1))


def log_normal():
    x = torch.tensor([0.4, 1.0, 3.0], dtype=torch.float64)

    def model(x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.LogNormal(x.new_tensor(0.3), x.new_tensor(0.7)))
            pyro.sample("x", dist.LogNormal(z.log(), 0.5), obs=x)

    def guide(x):
        precision = 1 / 0.49 + 1 / 0.25
        mean = (0.3 / 0.49 + x.log() / 0.25) / precision
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.LogNormal(mean, precision**-0.5))

    log_x = np.log(x.numpy())
    exact = oracles.normal_logpdf(log_x, 0.3, math.sqrt(0.74)) - log_x
    return Pair(model, guide, (x,), exact, lambda z: z["z"].reshape(-1))


def dirichlet_multinomial():
    alpha = torch.tensor([1.5, 2.0, 0.7], dtype=torch.float64)
    x = torch.tensor([[3.0, 2.0, 1.0], [0.0, 6.0, 0.0]], dtype=torch.float64)

    def model(x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Dirichlet(alpha))
            pyro.sample("x", dist.Multinomial(6, z), obs=x)

    def guide(x):
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Dirichlet(alpha + x))

    def evidence(row):
        value = math.lgamma(7) + math.lgamma(4.2) - math.lgamma(10.2)
        for a, k in zip(alpha.tolist(), row, strict=True):
            value += math.lgamma(a + k) - math.lgamma(a) - math.lgamma(k + 1)
        return value

    exact = np.array([evidence(row) for row in x.tolist()])
    return Pair(model, guide, (x,), exact, lambda z: z["z"].reshape(-1)[:-1])


def mask_and_plates():
    """A latent per datum and one per replicate, of which some are masked."""
    a, b = 2.0, 1.0
    x = torch.tensor([[1.0, 0.0, 4.0], [2.0, 1.0, 3.0]], dtype=torch.float64)
    seen = torch.tensor([[True, True, True], [True, True, False]])  # the first is the datum's own

    def model(x, seen):
        with pyro.plate("data", len(x), dim=-1):
            z = pyro.sample("z", dist.Gamma(x.new_tensor(a), x.new_tensor(b)))
            pyro.sample("y", dist.Poisson(z), obs=x[:, 0])
            inside = pyro.poutine.mask(mask=seen[:, 1:].T)
            with pyro.plate("replicates", 2, dim=-2), inside:
                u = pyro.sample("u", dist.Gamma(x.new_tensor(a), x.new_tensor(b)))
                pyro.sample("x", dist.Poisson(u), obs=x[:, 1:].T)

    def guide(x, seen):
        with pyro.plate("data", len(x), dim=-1):
            pyro.sample("z", dist.Gamma(a + x[:, 0], b + 1))
            inside = pyro.poutine.mask(mask=seen[:, 1:].T)
            with pyro.plate("replicates", 2, dim=-2), inside:
                pyro.sample("u", dist.Gamma(a + x[:, 1:].T, b + 1))

    def evidence(k):
        value = math.lgamma(a + k) - math.lgamma(a) - math.lgamma(k + 1)
        return value + a * math.log(b / (b + 1)) - k * math.log(b + 1)

    exact = np.array(
        [
            sum(evidence(k) for k, on in zip(row, mask, strict=True) if on)
            for row, mask in zip(x.tolist(), seen.tolist(), strict=True)
        ]
    )
    return Pair(
        model, guide, (x, seen), exact, lambda z: torch.cat([z["z"].flatten(), z["u"].flatten()])
    )


def dependent_bounds():
    """Uniform on [0, a] with a latent a; the guide is no posterior, only something inside."""
    x = torch.tensor([0.2, 1.4], dtype=torch.float64)

    def model(x):
        with pyro.plate("data", len(x)):
            a = pyro.sample("a", dist.Uniform(x.new_tensor(0.5), x.new_tensor(2.0)))
            b = pyro.sample("b", dist.Uniform(torch.zeros_like(a), a))
            pyro.sample("x", dist.Normal(b, 0.5), obs=x)

    def guide(x):
        with pyro.plate("data", len(x)):
            a = pyro.sample("a", dist.Uniform(x.new_tensor(0.5), x.new_tensor(2.0)))
            share = dist.Beta(1 + 0 * x, 1.5 + 0 * x)
            scaled = dist.transforms.AffineTransform(torch.zeros_like(a), a)
            pyro.sample("b", dist.TransformedDistribution(share, [scaled]))

    def log_density(a, v):
        phi = np.vectorize(lambda t: 0.5 * math.erfc(-t / math.sqrt(2)))
        return np.log((phi((a - v) / 0.5) - phi(-v / 0.5)) / a / 1.5)

    exact = [
        oracles.integrate(lambda a, v=v: log_density(a, v), 0.5, 2.0, 20_001) for v in x.tolist()
    ]
    return Pair(
        model,
        guide,
        (x,),
        np.array(exact),
        lambda z: torch.cat([z["a"].flatten(), z["b"].flatten()]),
    )


def correlation():
    """A Cholesky factor of a correlation matrix, two by two: a single correlation r."""
    eta, x = 1.5, torch.tensor([-0.5, 0.9], dtype=torch.float64)

    def model(x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.LKJCholesky(2, x.new_tensor(eta)))
            pyro.sample("x", dist.Normal(z[..., 1, 0], 0.5), obs=x)

    def guide(x):
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.LKJCholesky(2, x.new_tensor(1.0)))

    constant = log_beta(eta, eta) + (2 * eta - 1) * math.log(2)

    def log_density(r, v):
        return (eta - 1) * np.log1p(-(r**2)) - constant + oracles.normal_logpdf(v, r, 0.5)

    exact = [
        oracles.integrate(lambda r, v=v: log_density(r, v), -1 + 1e-9, 1 - 1e-9, 200_001)
        for v in x.tolist()
    ]
    return Pair(model, guide, (x,), np.array(exact), lambda z: z["z"][..., 1, 0].reshape(-1))


CONJUGATE = [gamma_poisson, beta_binomial, log_normal, dirichlet_multinomial, mask_and_plates]
ALL = [*CONJUGATE, dependent_bounds, correlation]


def named(cases):
    return {"argvalues": cases, "ids": [case.__name__ for case in cases]}


def target_of(pair, way="auto", guided=True):
    guide = pair.guide if guided else None
    with torch.no_grad():
        return Target(
            pair.model, guide, pair.args, plan_particles(pair.model, guide, pair.args, way)
        )


def points(target, count=4, scale=1.0):
    return scale * torch.randn(count, target.num_data, target.dim, dtype=target.dtype)
