"""What a user of the command line may bring: models, data sets, objectives, estimators, mistakes.

Named by import path, ``cli_toys:attribute``. A datum is 8 numbers, bits where not said otherwise.
"""

from __future__ import annotations

from dataclasses import dataclass

import pyro
import pyro.distributions as dist
import torch
from pyro.infer import Trace_ELBO
from torch import Tensor, nn

from pyrovae.benchmarks import Dataset
from pyrovae.inference import ImportanceSampling
from pyrovae.models import VAE
from pyrovae.models.likelihoods import Bernoulli, Gaussian
from pyrovae.models.nets import MLP
from pyrovae.models.posteriors import DiagonalNormal, PerDatum
from pyrovae.models.priors import StandardNormal


def _bits(num_data: int) -> Tensor:
    generator = torch.Generator().manual_seed(5)
    return (torch.rand(num_data, 8, generator=generator) < 0.3).float()


# data sets


def bits() -> tuple[Tensor, Tensor, Tensor]:
    return _bits(60)[:40], _bits(70)[60:], _bits(85)[70:]


def few_bits() -> tuple[Tensor, Tensor, Tensor]:
    return _bits(30), _bits(10), _bits(12)


def real() -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(6)
    train, validation, test = torch.randn(60, 8, generator=generator).split((40, 10, 10))
    return train, validation, test


def grey() -> tuple[Tensor, Tensor, Tensor]:
    train, validation, test = torch.rand(60, 8).split((40, 10, 10))
    return train, validation, test


def grey_once() -> tuple[Tensor, Tensor, Tensor]:
    """Bits but for one pixel that is met in the second batch at the earliest."""
    train, validation, test = bits()
    test = test.clone()
    test[3, 2] = 0.5
    return train, validation, test


def with_nan() -> tuple[Tensor, Tensor, Tensor]:
    train, validation, test = bits()
    train[7, 3] = float("nan")
    return train, validation, test


def whole_numbers() -> tuple[Tensor, Tensor, Tensor]:
    train, validation, test = bits()
    return train.long(), validation.long(), test.long()


def double() -> tuple[Tensor, Tensor, Tensor]:
    train, validation, test = bits()
    return train.double(), validation.double(), test.double()


def nothing() -> tuple[Tensor, Tensor, Tensor]:
    return torch.zeros(0, 8), _bits(3), _bits(3)


def wrong_labels() -> Dataset:
    train, validation, test = bits()
    return Dataset("wrong", train, validation, test, (8,), test_labels=torch.zeros(3).long())


def breaks() -> None:
    raise KeyError("no such thing")


# models


def functions(x_train: Tensor, *, start: float = 0.0):
    """Plain functions whose parameters live in Pyro's store."""

    def model(x: Tensor) -> None:
        logits = pyro.param("logits", torch.full((8,), start))
        slope = pyro.param("slope", torch.ones(8))
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            rate = dist.Bernoulli(logits=logits + slope * z[..., None])
            pyro.sample("x", rate.to_event(1), obs=x)

    def guide(x: Tensor) -> None:
        weight = pyro.param("weight", torch.zeros(8))
        scale = pyro.param("scale", torch.tensor(1.0), constraint=dist.constraints.positive)
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(x @ weight, scale))

    return model, guide


class Moody(nn.Module):
    """A net of a class of the user's own, which behaves otherwise in training."""

    def __init__(self, in_features: int, out_features: int) -> None:
        super().__init__()
        self.norm = nn.BatchNorm1d(in_features)
        self.layers = nn.Sequential(
            nn.Linear(in_features, 6), nn.Tanh(), nn.Dropout(0.2), nn.Linear(6, out_features)
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.layers(self.norm(x.reshape(-1, x.shape[-1])).reshape(x.shape))


def moody(x_train: Tensor) -> VAE:
    return VAE(StandardNormal(2), DiagonalNormal(Moody(8, 4)), Bernoulli(MLP(2, 8, (6,))))


def ours(x_train: Tensor, latent_dim: int = 2) -> VAE:
    """Nothing but parts of the package: a file alone brings it back."""
    posterior = DiagonalNormal(MLP(8, 2 * latent_dim, (6,)))
    return VAE(StandardNormal(latent_dim), posterior, Bernoulli(MLP(latent_dim, 8, (6,))))


def gaussian(x_train: Tensor) -> VAE:
    return VAE(StandardNormal(2), DiagonalNormal(MLP(8, 4, (6,))), Gaussian(MLP(2, 8, (6,))))


def shaped(x_train: Tensor, *, shape: list[int]) -> VAE:
    """Asks for the shape of a datum."""
    assert list(shape) == [8], shape
    return ours(x_train)


def not_amortised(x_train: Tensor) -> VAE:
    return VAE(StandardNormal(2), PerDatum(len(x_train), 2), Bernoulli(MLP(2, 8, (6,))))


def global_latent(x_train: Tensor):
    def model(x: Tensor) -> None:
        rate = pyro.sample("rate", dist.Normal(0.0, 1.0))
        with pyro.plate("data", len(x)):
            pyro.sample("x", dist.Bernoulli(logits=rate.expand(8)).to_event(1), obs=x)

    def guide(x: Tensor) -> None:
        pyro.sample("rate", dist.Normal(pyro.param("loc", torch.tensor(0.0)), 1.0))

    return model, guide


class Exploding(VAE):
    """Fine at first, and infinite from the thirtieth step on."""

    def __init__(self) -> None:
        super().__init__(*(ours(torch.zeros(1)).get_submodule(p) for p in PARTS))
        self.steps = 0

    def guide(self, x: Tensor) -> None:
        self.steps += self.training
        with pyro.plate("data", len(x)):
            loc = self.posterior(x).mean
            scale = 1.0 if self.steps < 30 else 1e38 * torch.ones_like(loc)
            pyro.sample("z", dist.Normal(loc, scale).to_event(1))


PARTS = ("prior", "posterior", "likelihood")


def exploding(x_train: Tensor) -> VAE:
    return Exploding()


def buggy(x_train: Tensor) -> VAE:
    class Buggy(VAE):
        def model(self, x: Tensor) -> None:
            raise RuntimeError("a bug in the user's model")

    vae = ours(x_train)
    return Buggy(vae.prior, vae.posterior, vae.likelihood)


def number(x_train: Tensor) -> int:
    return 3


def raises(x_train: Tensor) -> None:
    raise ZeroDivisionError("by design")


# objectives and estimators


def two_particles(**options: int) -> Trace_ELBO:
    return Trace_ELBO(num_particles=2, **options)


@dataclass(frozen=True)
class Doubled:
    """Importance sampling with twice the samples asked for."""

    num_samples: int
    seed: int
    factor: int = 2

    def __call__(self, model, guide, x):
        return ImportanceSampling(self.factor * self.num_samples, seed=self.seed)(model, guide, x)


def no_estimate(num_samples: int, seed: int):
    return lambda model, guide, x: 3.0
