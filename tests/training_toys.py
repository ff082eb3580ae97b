"""Small program pairs whose best parameters are known, in every style that Pyro knows.

    z ~ N(mu, 1),  x | z ~ N(z, 1),  q(z | x) = N(slope x + shift, scale^2)

The likelihood is highest at mu = mean(x), where p(x) = N(mu, 2); the exact posterior has
slope = 1/2, shift = mu / 2, scale = sqrt(1/2).
"""

from __future__ import annotations

import math
import signal
from collections.abc import Callable
from typing import Any

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.nn import PyroModule, PyroParam
from torch import Tensor, nn
from torch.distributions import constraints
from torch.optim import lr_scheduler

from pyrovae.inference.training import History

Pair = tuple[Callable[..., Any], Callable[..., Any]]


def toy_data(num_data: int = 200) -> Tensor:
    generator = torch.Generator().manual_seed(1)
    return 0.7 + 1.5 * torch.randn(num_data, generator=generator)


def best_elbo(x: Tensor, held_out: Tensor | None = None) -> float:
    """Nats per datum at the parameters that fit x best, on x or on held-out data."""
    data = x if held_out is None else held_out
    return dist.Normal(x.mean(), math.sqrt(2)).log_prob(data).mean().item()


def best_parameters(x: Tensor) -> dict[str, float]:
    mu = x.mean().item()
    return {"mu": mu, "slope": 0.5, "shift": mu / 2, "scale": math.sqrt(0.5)}


def model_sites(x: Tensor, mu: Tensor) -> None:
    with pyro.plate("data", x.shape[0]):
        z = pyro.sample("z", dist.Normal(mu, 1.0))
        pyro.sample("x", dist.Normal(z, 1.0), obs=x)


def guide_sites(x: Tensor, slope: Tensor, shift: Tensor, scale: Tensor) -> None:
    with pyro.plate("data", x.shape[0]):
        pyro.sample("z", dist.Normal(slope * x + shift, scale))


def function_pair() -> Pair:
    """Parameters in Pyro's store."""

    def model(x: Tensor) -> None:
        model_sites(x, pyro.param("mu", torch.tensor(0.0)))

    def guide(x: Tensor) -> None:
        scale = pyro.param("scale", torch.tensor(1.0), constraint=constraints.positive)
        slope = pyro.param("slope", torch.tensor(0.0))
        guide_sites(x, slope, pyro.param("shift", torch.tensor(0.0)), scale)

    return model, guide


class Toy(nn.Module):
    """Parameters in a module, whose methods are the programs. No Pyro statement names them."""

    def __init__(self) -> None:
        super().__init__()
        self.mu = nn.Parameter(torch.tensor(0.0))
        self.slope = nn.Parameter(torch.tensor(0.0))
        self.shift = nn.Parameter(torch.tensor(0.0))
        self.log_scale = nn.Parameter(torch.tensor(0.0))

    def model(self, x: Tensor) -> None:
        model_sites(x, self.mu)

    def guide(self, x: Tensor) -> None:
        guide_sites(x, self.slope, self.shift, self.log_scale.exp())

    def values(self) -> dict[str, float]:
        named = {"mu": self.mu, "slope": self.slope, "shift": self.shift}
        return {k: v.item() for k, v in named.items()} | {"scale": self.log_scale.exp().item()}


class NamedToy(Toy):
    """The same, registered with Pyro under a name that others have too."""

    def model(self, x: Tensor) -> None:
        pyro.module("toy", self)
        super().model(x)

    def guide(self, x: Tensor) -> None:
        pyro.module("toy", self)
        super().guide(x)


class PyroModel(PyroModule):
    def __init__(self) -> None:
        super().__init__()
        self.mu = PyroParam(torch.tensor(0.0))

    def forward(self, x: Tensor) -> None:
        model_sites(x, self.mu)


class PyroGuide(PyroModule):
    def __init__(self) -> None:
        super().__init__()
        self.slope = nn.Parameter(torch.tensor(0.0))
        self.shift = nn.Parameter(torch.tensor(0.0))
        self.scale = PyroParam(torch.tensor(1.0), constraint=constraints.positive)

    def forward(self, x: Tensor) -> None:
        guide_sites(x, self.slope, self.shift, self.scale)


class Net(nn.Module):
    """A small VAE with everything that makes resuming hard: batch norm, dropout, many tensors."""

    def __init__(self, data_dim: int = 4, latent_dim: int = 2, binary: bool = False) -> None:
        super().__init__()
        self.latent_dim, self.binary = latent_dim, binary
        self.encoder = nn.Sequential(
            nn.Linear(data_dim, 8), nn.BatchNorm1d(8), nn.Tanh(), nn.Dropout(0.1)
        )
        self.head = nn.Linear(8, 2 * latent_dim)
        self.decoder = nn.Linear(latent_dim, data_dim)

    def model(self, x: Tensor) -> None:
        with pyro.plate("data", x.shape[0]):
            prior = dist.Normal(torch.zeros(self.latent_dim), 1.0).to_event(1)
            out = self.decoder(pyro.sample("z", prior))
            fn = dist.Bernoulli(logits=out) if self.binary else dist.Normal(out, 1.0)
            pyro.sample("x", fn.to_event(1), obs=x)

    def guide(self, x: Tensor) -> None:
        with pyro.plate("data", x.shape[0]):
            loc, log_scale = self.head(self.encoder(x)).chunk(2, -1)
            pyro.sample("z", dist.Normal(loc, log_scale.exp()).to_event(1))


def net_data(num_data: int = 130) -> Tensor:
    generator = torch.Generator().manual_seed(2)
    return torch.randn(num_data, 2, generator=generator) @ torch.randn(2, 4, generator=generator)


def fresh_net(binary: bool = False) -> Net:
    """The same initial weights each time."""
    with torch.random.fork_rng():
        torch.manual_seed(3)
        return Net(binary=binary)


EXACT = ("loss", "validation_elbo", "beta", "learning_rate", "gradient_norm")


def assert_same(a: History, b: History) -> None:
    for column in EXACT:
        np.testing.assert_array_equal(getattr(a, column), getattr(b, column), err_msg=column)
    assert (a.best_epoch, a.stopped_early) == (b.best_epoch, b.stopped_early)
    assert np.isfinite(a.seconds).all()


def assert_same_values(a: dict[str, Tensor], b: dict[str, Tensor]) -> None:
    assert a.keys() == b.keys()
    for name, value in a.items():
        assert torch.equal(value, b[name]), name


def interrupting(
    guide: Callable[..., Any], at: int, grad: bool = True, number: int = signal.SIGINT
) -> Callable[..., Any]:
    """The guide, pressing Ctrl-C in its call number ``at`` with (or without) gradients."""
    calls = [0]

    def run(*args: Any) -> Any:
        if torch.is_grad_enabled() == grad:
            calls[0] += 1
            if calls[0] == at:
                signal.raise_signal(number)
        return guide(*args)

    return run


INSPECTIONS = 1  # runs with gradients before the first step


def as_functions(net: Net) -> tuple[Callable[..., Any], Callable[..., Any]]:
    """The network in plain functions, which name it by ``pyro.module``."""

    def model(x: Tensor) -> None:
        pyro.module("net", net)
        net.model(x)

    def guide(x: Tensor) -> None:
        net.guide(x)

    return model, guide


QUIET: dict[str, Any] = {"progress": False, "seed": 0}


def decay(optimizer: torch.optim.Optimizer) -> lr_scheduler.LRScheduler:
    return lr_scheduler.ExponentialLR(optimizer, 0.9)


TO_OPTIMUM: dict[str, Any] = {
    "epochs": 50,
    "batch_size": 50,
    "learning_rate": 0.1,
    "schedule": decay,
    **QUIET,
}


def assert_optimal(found: dict[str, float], x: Tensor) -> None:
    for name, value in best_parameters(x).items():
        assert found[name] == pytest.approx(value, abs=0.03), name


class Noisy(nn.Module):
    """Dropout and batch norm, whose buffers move with every step."""

    def __init__(self):
        super().__init__()
        self.encoder = nn.Sequential(
            nn.Linear(5, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Dropout(0.3), nn.Linear(8, 4)
        )
        self.decoder = nn.Linear(2, 5)

    def model(self, x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(x.new_zeros(2), 1.0).to_event(1))
            pyro.sample("x", dist.Bernoulli(logits=self.decoder(z)).to_event(1), obs=x)

    def guide(self, x):
        loc, log_scale = self.encoder(x).chunk(2, -1)
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(loc, log_scale.exp()).to_event(1))
