"""Programs whose numbers are known, and VAEs of digits, which are trained once.

Toy T: z ~ N(0, I_d), x | z ~ N(z, σ² I), so that p(x) = N(0, (1 + σ²) I).
"""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass

import pyro
import pyro.distributions as dist
import torch
from torch import Tensor, nn

from ...inference import fit
from ...models import VAE
from ..datasets import Dataset, load
from ..zoo import MODELS


@dataclass(frozen=True)
class Toy:
    """Its programs, the prior and the posterior as guides."""

    dim: int
    scale: float

    def model(self, x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(x.new_zeros(self.dim), 1.0).to_event(1))
            pyro.sample("x", dist.Normal(z, self.scale).to_event(1), obs=x)

    def prior(self, x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(x.new_zeros(self.dim), 1.0).to_event(1))

    def posterior(self, x: Tensor) -> None:
        shrunk = 1 / (1 + self.scale**2)
        with pyro.plate("data", len(x)):
            width = self.scale * math.sqrt(shrunk)
            pyro.sample("z", dist.Normal(x * shrunk, width).to_event(1))

    def log_evidence(self, x: Tensor) -> Tensor:
        variance = 1 + self.scale**2
        return -0.5 * (x.square() / variance + math.log(2 * math.pi * variance)).sum(-1)


class Curved(nn.Module):
    """Two latents through a fixed net that is not linear: no closed form, but a quadrature."""

    def __init__(self) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(3)
        self.register_buffer("weight", torch.randn(6, 2, generator=generator).double())

    def mean(self, z: Tensor) -> Tensor:
        return torch.tanh(z @ self.get_buffer("weight").T)

    def model(self, x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(x.new_zeros(2), 1.0).to_event(1))
            pyro.sample("x", dist.Normal(self.mean(z), 0.5).to_event(1), obs=x)

    def guide(self, x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(x.new_zeros(2), 1.2).to_event(1))

    def log_evidence(self, x: Tensor, reach: float = 7.0, points: int = 561) -> Tensor:
        """By the trapezium rule on a square grid, exact to rounding for so smooth a function."""
        line = torch.linspace(-reach, reach, points, dtype=torch.float64)
        z = torch.cartesian_prod(line, line)
        log_prior = -0.5 * z.square().sum(-1) - math.log(2 * math.pi)
        away = (x[:, None] - self.mean(z)) / 0.5
        log_noise = -0.5 * away.square().sum(-1) - 6 * (0.5 * math.log(2 * math.pi) + math.log(0.5))
        step = float(line[1] - line[0])
        return (log_prior + log_noise).logsumexp(-1) + 2 * math.log(step)


@functools.cache
def digits() -> Dataset:
    return load("digits")


@functools.cache
def trained(model: str = "vae", **options: int) -> VAE:
    """A VAE on digits, trained until its validation ELBO no longer rises."""
    data = digits()
    torch.manual_seed(0)
    vae = MODELS[model](data.train, latent_dim=16, hidden=(100, 100), **options)
    fit(
        vae.model,
        vae.guide,
        data.train,
        epochs=200,
        learning_rate=2e-3,
        warm_up=10,
        patience=25,
        validation=data.validation,
        transform=data.transform,
        seed=0,
        progress=False,
    )
    vae.eval()
    return vae


def mean_and_error(values: Tensor) -> tuple[float, float]:
    """The mean of independent numbers, and its standard error."""
    values = values.double()
    return float(values.mean()), float(values.std()) / math.sqrt(len(values))
