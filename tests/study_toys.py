"""Parts of studies for tests: data, models and estimators that cost nothing, and some that fail.

Named in study files as ``study_toys:NAME``. A study is tried on two data before it runs: what is
counted, or fails, does so on more than two.
"""

from __future__ import annotations

import os
import signal
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyro
import pyro.distributions as dist
import torch
from torch import Tensor, nn

from pyrovae.benchmarks.datasets import Dataset
from pyrovae.inference import Estimate, ImportanceSampling


def data() -> Dataset:
    """Sixty points on a line."""
    x = torch.linspace(-2, 2, 120).reshape(60, 2)
    return Dataset("points", x, x[:20], x[20:40], shape=(2,))


class Normal(nn.Module):
    """z ~ N(0, 1), x ~ N(z + b, 1), with the posterior as guide; ``act`` runs in each batch."""

    def __init__(self, act: Callable[[], Any] | None = None) -> None:
        super().__init__()
        self.b = nn.Parameter(torch.full((2,), 0.5))
        self.act = act

    def model(self, x: Tensor) -> None:
        if len(x) > 2 and self.act is not None and self.training:
            self.act()
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))
            pyro.sample("x", dist.Normal(z + self.b, 1.0).to_event(1), obs=x)

    def guide(self, x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal((x - self.b) / 2, 0.5**0.5).to_event(1))


class Discrete(nn.Module):
    """A latent of two values, of which no gradient can be taken by reparameterising."""

    def model(self, x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Bernoulli(0.5))
            pyro.sample("x", dist.Normal(z[..., None].expand(x.shape), 1.0).to_event(1), obs=x)

    def guide(self, x: Tensor) -> None:
        logit = pyro.param("logit", torch.tensor(0.0))
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Bernoulli(logits=logit))


def discrete(x_train: Tensor) -> Discrete:
    return Discrete()


def note(file: str) -> None:
    """Add a line to a file, whole even where two processes do."""
    with open(file, "ab", buffering=0) as lines:
        lines.write(b"done\n")


def normal(x_train: Tensor) -> Normal:
    return Normal()


def halving(optimizer: torch.optim.Optimizer) -> Any:
    """A schedule of one's own."""
    return torch.optim.lr_scheduler.StepLR(optimizer, 1, 0.5)


def slow(x_train: Tensor, told: str, seconds: float = 0.02) -> Normal:
    """Notes every step in the file ``told``, and takes its time."""

    def act() -> None:
        time.sleep(seconds)
        note(told)

    return Normal(act)


def busy(x_train: Tensor, seconds: float = 0.05) -> Normal:
    """Computes for some time in every step, as a large model does."""

    def act() -> None:
        end = time.process_time() + seconds
        while time.process_time() < end:
            pass

    return Normal(act)


def raising(x_train: Tensor) -> Normal:
    def act() -> None:
        raise RuntimeError("this model is out of order")

    return Normal(act)


def hungry(x_train: Tensor) -> Normal:
    """Wants more memory than there is."""
    return Normal(lambda: torch.empty(2**60, dtype=torch.uint8))


def dying(x_train: Tensor) -> Normal:
    """Gets the signal that a kernel out of memory sends."""
    return Normal(lambda: os.kill(os.getpid(), signal.SIGKILL))


def dying_once(x_train: Tensor, told: str) -> Normal:
    """The same, but for a process that finds the file ``told``."""

    def act() -> None:
        if not Path(told).exists():
            Path(told).touch()
            os.kill(os.getpid(), signal.SIGKILL)

    return Normal(act)


def full_disk(x_train: Tensor, told: str) -> Normal:
    """Meets a full disk as long as the file ``told`` is there."""

    def act() -> None:
        if Path(told).exists():
            with open("/dev/full", "wb", buffering=0) as file:
                file.write(b"one byte too many")

    return Normal(act)


@dataclass(frozen=True)
class Noting:
    """Importance sampling that notes every call of it."""

    num_samples: int = 20
    seed: int = 0
    told: str = ""

    def __call__(self, model: Any, guide: Any, x: Tensor) -> Estimate:
        if self.told:
            note(self.told)
        return ImportanceSampling(num_samples=self.num_samples, seed=self.seed)(model, guide, x)


def broken(seed: int = 0) -> Callable[..., Estimate]:
    def estimate(model: Any, guide: Any, x: Tensor) -> Estimate:
        raise ArithmeticError("this estimator is out of order")

    return estimate


def stubborn(x_train: Tensor, told: str) -> Normal:
    """Raises what a checkpoint that cannot be gone on from raises, while ``told`` is there."""

    def act() -> None:
        note("steps.txt")
        if Path(told).exists() and len(Path("steps.txt").read_bytes().splitlines()) > 4:
            raise ValueError("this model is out of order")

    return Normal(act)


def warning(num_samples: int = 20, seed: int = 0) -> Callable[..., Estimate]:
    """An estimator that warns of what it finds."""

    def estimate(model: Any, guide: Any, x: Tensor) -> Estimate:
        warnings.warn(f"found it odd of {len(x)}", RuntimeWarning, stacklevel=2)
        time.sleep(0.1)
        return ImportanceSampling(num_samples=num_samples, seed=seed)(model, guide, x)

    return estimate


def stopping_once(told: str, num_samples: int = 20, seed: int = 0) -> Callable[..., Estimate]:
    """An estimator in whose midst a scheduler asks its process to end."""

    def estimate(model: Any, guide: Any, x: Tensor) -> Estimate:
        if not Path(told).exists():
            Path(told).touch()
            os.kill(os.getpid(), signal.SIGTERM)
        return ImportanceSampling(num_samples=num_samples, seed=seed)(model, guide, x)

    return estimate


def other_data() -> Dataset:
    """Sixty other points."""
    x = torch.linspace(-1, 3, 120).reshape(60, 2)
    return Dataset("points", x, x[:20], x[20:40], shape=(2,))


def seeding(told: str, seed: int = 0) -> Callable[..., Estimate]:
    """Notes its seed."""
    with open(told, "ab", buffering=0) as lines:
        lines.write(f"{seed}\n".encode())
    return ImportanceSampling(num_samples=20, seed=seed)


def unseeded(told: str) -> Callable[..., Estimate]:
    """Takes no seed, and draws of torch's own generator, which it notes."""

    def estimate(model: Any, guide: Any, x: Tensor) -> Estimate:
        with open(told, "ab", buffering=0) as lines:
            lines.write(f"{float(torch.rand(())):.6f}\n".encode())
        return ImportanceSampling(num_samples=20, seed=0)(model, guide, x)

    return estimate


class Lacking(Normal):
    """Its guide lacks the latent, which Pyro's own objective only warns of."""

    def guide(self, x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            pass


def lacking(x_train: Tensor) -> Lacking:
    return Lacking()


def warned_and_stopped(x_train: Tensor, told: str) -> Normal:
    """Warns in its first step, in which Ctrl-C is pressed."""

    def act() -> None:
        if not Path(told).exists():
            Path(told).touch()
            warnings.warn("seen before the stop", RuntimeWarning, stacklevel=2)
            os.kill(os.getpid(), signal.SIGINT)

    return Normal(act)
