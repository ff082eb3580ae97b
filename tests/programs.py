"""Program pairs of other people's structure, each with its exact log p(x) from ``oracles``.

Guides are exact posteriors where those have a form, so that every log-weight must equal log p(x);
``exact_guide`` says so. Everything is float64.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import oracles
import pyro
import pyro.distributions as dist
import torch
from pyro import poutine
from torch import nn

ALL = ("plate", "tile", "loop")


@dataclass(frozen=True)
class Case:
    name: str
    model: Callable[..., Any]
    guide: Callable[..., Any]
    args: tuple
    exact: np.ndarray
    exact_guide: bool
    chosen: tuple[str, str] = ("plate", "plate")  # what "auto" is expected to settle on
    ways: tuple[str, ...] = ALL


def _rng():
    return torch.Generator().manual_seed(3)


def _randn(*shape):
    return torch.randn(*shape, generator=_rng(), dtype=torch.float64)


def _posterior(weight, bias, noise, x):
    """The exact posterior of a linear-Gaussian program as a distribution, from the oracle."""
    mean, cov = oracles.linear_gaussian_posterior(weight.numpy(), bias.numpy(), noise, x.numpy())
    return dist.MultivariateNormal(torch.as_tensor(mean), torch.as_tensor(cov))


def function_style() -> Case:
    """Plain functions whose parameters live in Pyro's store."""
    x = 2 * _randn(6)
    start = {
        "slope": torch.tensor(1.5, dtype=torch.float64),
        "noise": torch.tensor(0.8, dtype=torch.float64),
    }

    def parameters():
        slope = pyro.param("slope", start["slope"])
        return slope, pyro.param("noise", start["noise"], constraint=dist.constraints.positive)

    def model(x):
        slope, noise = parameters()
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros((), dtype=x.dtype), 1.0))
            pyro.sample("x", dist.Normal(slope * z, noise), obs=x)

    def guide(x):
        slope, noise = parameters()
        precision = 1 + slope**2 / noise**2
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(slope * x / noise**2 / precision, precision**-0.5))

    exact = oracles.normal_logpdf(x.numpy(), 0.0, np.hypot(1.5, 0.8))
    return Case("function_style", model, guide, (x,), exact, True)


def enumerated_mixture() -> Case:
    """A mixture whose component is summed out of the model."""
    x = 3 * _randn(5)
    weight, loc = np.array([0.2, 0.3, 0.5]), np.array([-2.0, 0.0, 3.0])

    def model(x):
        with pyro.plate("data", len(x)):
            y = pyro.sample(
                "y", dist.Categorical(torch.as_tensor(weight)), infer={"enumerate": "parallel"}
            )
            z = pyro.sample("z", dist.Normal(torch.as_tensor(loc)[y], 1.0))
            pyro.sample("x", dist.Normal(z, 1.0), obs=x)

    def guide(x):
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(x / 2, 1.2))

    exact = oracles.logsumexp(
        np.log(weight) + oracles.normal_logpdf(x.numpy()[:, None], loc, 2**0.5), -1
    )
    return Case("enumerated_mixture", model, guide, (x,), exact, False)


def enumerated_guide() -> Case:
    """The same, enumerated in the guide, which draws z given each component."""
    case = enumerated_mixture()
    loc = torch.tensor([-2.0, 0.0, 3.0], dtype=torch.float64)

    def guide(x):
        with pyro.plate("data", len(x)):
            y = pyro.sample(
                "y",
                dist.Categorical(torch.ones(3, dtype=x.dtype)),
                infer={"enumerate": "parallel"},
            )
            pyro.sample("z", dist.Normal((x + loc[y]) / 2, 0.5**0.5))

    return Case("enumerated_guide", case.model, guide, case.args, case.exact, True)


def enumerated_per_pixel() -> Case:
    """A binary switch per pixel, in a plate inside the data plate, summed out pixel by pixel."""
    x = _randn(4, 7)

    def model(x):
        with pyro.plate("data", len(x), dim=-1):
            z = pyro.sample("z", dist.Normal(torch.zeros((), dtype=x.dtype), 1.0))
            with pyro.plate("pixels", x.shape[1], dim=-2):
                on = pyro.sample(
                    "on",
                    dist.Bernoulli(torch.tensor(0.3, dtype=x.dtype)),
                    infer={"enumerate": "parallel"},
                )
                pyro.sample("x", dist.Normal(z + 2 * on, 0.7), obs=x.T)

    def guide(x):
        with pyro.plate("data", len(x), dim=-1):
            pyro.sample("z", dist.Normal(x.mean(1) - 0.6, 0.5))

    def log_joint(row, z):
        pixels = [
            np.logaddexp(
                np.log(0.7) + oracles.normal_logpdf(value, z, 0.7),
                np.log(0.3) + oracles.normal_logpdf(value, z + 2, 0.7),
            )
            for value in row
        ]
        return oracles.normal_logpdf(z) + sum(pixels)

    exact = [oracles.integrate(lambda z, row=row: log_joint(row, z)) for row in x.numpy()]
    return Case("enumerated_per_pixel", model, guide, (x,), np.array(exact), False)


def hidden_markov() -> Case:
    """Sequences of unequal length: masks, ``pyro.markov``, every state summed out; empty guide."""
    x, lengths = _randn(4, 5), torch.tensor([5, 2, 1, 4])
    initial, loc, scale = np.array([0.6, 0.4]), np.array([-1.0, 1.5]), 0.8
    transition = np.array([[0.9, 0.1], [0.3, 0.7]])

    def model(x, lengths):
        with pyro.plate("data", len(x), dim=-1):
            state = None
            for t in pyro.markov(range(x.shape[1])):
                with poutine.mask(mask=t < lengths):
                    probs = initial if state is None else transition
                    probs = torch.as_tensor(probs)
                    state = pyro.sample(
                        f"state_{t}",
                        dist.Categorical(probs if state is None else probs[state]),
                        infer={"enumerate": "parallel"},
                    )
                    emission = dist.Normal(torch.as_tensor(loc)[state], scale)
                    pyro.sample(f"x_{t}", emission, obs=x[:, t])

    def guide(x, lengths):
        pass

    exact = np.array(
        [
            oracles.hidden_markov_evidence(initial, transition, loc, scale, row[:length])
            for row, length in zip(x.numpy(), lengths.tolist(), strict=True)
        ]
    )
    return Case("hidden_markov", model, guide, (x, lengths), exact, True)


def masked_sequence() -> Case:
    """A continuous latent chain with masks in model and guide."""
    x, lengths = _randn(4, 3), torch.tensor([3, 1, 2, 3])

    def model(x, lengths):
        with pyro.plate("data", len(x), dim=-1):
            z = torch.zeros(len(x), dtype=x.dtype)
            for t in pyro.markov(range(x.shape[1])):
                with poutine.mask(mask=t < lengths):
                    z = pyro.sample(f"z_{t}", dist.Normal(0.5 * z, 1.0))
                    pyro.sample(f"x_{t}", dist.Normal(z, 1.0), obs=x[:, t])

    def guide(x, lengths):
        with pyro.plate("data", len(x), dim=-1):
            z = torch.zeros(len(x), dtype=x.dtype)
            for t in pyro.markov(range(x.shape[1])):
                with poutine.mask(mask=t < lengths):
                    z = pyro.sample(f"z_{t}", dist.Normal((0.5 * z + x[:, t]) / 2, 0.8))

    exact = []
    for row, length in zip(x.numpy(), lengths.tolist(), strict=True):
        chain = np.tril(0.5 ** np.abs(np.subtract.outer(np.arange(length), np.arange(length))))
        cov = chain @ chain.T + np.eye(length)
        exact.append(oracles.gaussian_logpdf(row[:length], np.zeros(length), cov)[0])
    return Case("masked_sequence", model, guide, (x, lengths), np.array(exact), False)


class SemiSupervised(nn.Module):
    """Kingma's M2 with linear nets: a plate without a size, labels seen or enumerated."""

    def __init__(self) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(5)
        self.weight = nn.Parameter(torch.randn(4, 2, generator=generator, dtype=torch.float64))
        self.shift = nn.Parameter(torch.randn(3, 4, generator=generator, dtype=torch.float64))

    def model(self, x, y=None):
        pyro.module("ss", self)
        with pyro.plate("data"):
            prior = torch.tensor([0.5, 0.3, 0.2], dtype=x.dtype).expand(len(x), 3)
            y = pyro.sample("y", dist.OneHotCategorical(prior), obs=y)
            z = pyro.sample("z", dist.Normal(x.new_zeros(len(x), 2), 1.0).to_event(1))
            loc = z @ self.weight.T + y @ self.shift
            pyro.sample("x", dist.Normal(loc, 0.5).to_event(1), obs=x)

    def guide(self, x, y=None):
        with pyro.plate("data"):
            if y is None:
                flat = x.new_ones(len(x), 3)
                y = pyro.sample("y", dist.OneHotCategorical(flat), infer={"enumerate": "parallel"})
            precision = torch.eye(2, dtype=x.dtype) + self.weight.T @ self.weight / 0.25
            cov = precision.inverse()
            mean = (x - y @ self.shift) @ self.weight @ cov / 0.25
            pyro.sample("z", dist.MultivariateNormal(mean, cov))

    def log_joint(self, x):
        weight, shift = self.weight.detach().numpy(), self.shift.detach().numpy()
        prior = np.array([0.5, 0.3, 0.2])
        return np.stack(
            [
                np.log(p) + oracles.linear_gaussian_evidence(weight, b, 0.5, x)
                for p, b in zip(prior, shift, strict=True)
            ],
            -1,
        )


def semi_supervised_unlabelled() -> Case:
    program, x = SemiSupervised(), _randn(5, 4)
    exact = oracles.logsumexp(program.log_joint(x.numpy()), -1)
    return Case("semi_supervised_unlabelled", program.model, program.guide, (x,), exact, True)


def semi_supervised_labelled() -> Case:
    program, x = SemiSupervised(), _randn(5, 4)
    label = torch.tensor([0, 2, 1, 1, 0])
    y = nn.functional.one_hot(label, 3).double()
    exact = program.log_joint(x.numpy())[np.arange(5), label.numpy()]
    return Case("semi_supervised_labelled", program.model, program.guide, (x, y), exact, True)


def conditional() -> Case:
    """p(x | y) with y, a second tensor per datum, and a switch that is no tensor as context."""
    weight, slope = _randn(4, 2), _randn(3, 4)
    x, y = _randn(6, 4), _randn(6, 3)

    def model(x, y, flip):
        sign = -1.0 if flip else 1.0
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(x.new_zeros(2), 1.0).to_event(1))
            loc = z @ weight.T + sign * y @ slope
            pyro.sample("x", dist.Normal(loc, 0.5).to_event(1), obs=x)

    def guide(x, y, flip):
        sign = -1.0 if flip else 1.0
        with pyro.plate("data", len(x)):
            pyro.sample("z", _posterior(weight, torch.zeros(()), 0.5, x - sign * y @ slope))

    exact = oracles.linear_gaussian_evidence(weight.numpy(), 0.0, 0.5, (x + y @ slope).numpy())
    return Case("conditional", model, guide, (x, y, True), exact, True)


def nested_plates() -> Case:
    """A latent per datum and one per datum and replicate."""
    x = _randn(5, 3)

    def model(x):
        with pyro.plate("data", len(x), dim=-1):
            z = pyro.sample("z", dist.Normal(x.new_zeros(()), 1.0))
            with pyro.plate("replicates", x.shape[1], dim=-2):
                u = pyro.sample("u", dist.Normal(z, 1.0))
                pyro.sample("x", dist.Normal(u, 1.0), obs=x.T)

    def guide(x):
        with pyro.plate("data", len(x), dim=-1):
            total, count = x.sum(1), x.shape[1]
            precision = 1 + count / 2
            z = pyro.sample("z", dist.Normal(total / 2 / precision, precision**-0.5))
            with pyro.plate("replicates", count, dim=-2):
                pyro.sample("u", dist.Normal((z + x.T) / 2, 0.5**0.5))

    cov = 2 * np.eye(3) + np.ones((3, 3))
    exact = oracles.gaussian_logpdf(x.numpy(), np.zeros(3), cov)
    return Case("nested_plates", model, guide, (x,), exact, True)


class Convolutional(nn.Module):
    """Nets that take exactly one batch dimension."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(2)
        self.stem = nn.Linear(2, 4 * 3 * 3)
        self.up = nn.ConvTranspose2d(4, 1, 4, stride=2, padding=1)
        self.down = nn.Sequential(nn.Conv2d(1, 3, 3), nn.Flatten(), nn.Linear(48, 4))
        self.double()

    def decode(self, z):
        return self.up(self.stem(z).view(z.shape[0], 4, 3, 3))

    def model(self, x):
        with pyro.plate("images", len(x)):
            z = pyro.sample("z", dist.Normal(x.new_zeros(len(x), 2), 1.0).to_event(1))
            pyro.sample("x", dist.Normal(self.decode(z), 0.5).to_event(3), obs=x)

    def guide(self, x):
        with pyro.plate("images", len(x)):
            loc, log_scale = self.down(x).chunk(2, -1)
            pyro.sample("z", dist.Normal(loc, (0.1 * log_scale).exp()).to_event(1))


def _affine(decode, latent_dim):
    """An affine decoder's weight and bias, read off at the origin and the unit vectors."""
    with torch.no_grad():
        bias = decode(torch.zeros(1, latent_dim, dtype=torch.float64)).flatten()
        points = decode(torch.eye(latent_dim, dtype=torch.float64)).flatten(1)
    return (points - bias).T.numpy(), bias.numpy()


def convolutional() -> Case:
    program, x = Convolutional(), _randn(4, 1, 6, 6)
    exact = oracles.linear_gaussian_evidence(*_affine(program.decode, 2), 0.5, x.flatten(1).numpy())
    return Case(
        "convolutional",
        program.model,
        program.guide,
        (x,),
        exact,
        False,
        chosen=("plate", "tile"),
        ways=("tile", "loop"),
    )


class Normalised(nn.Module):
    """Batch normalisation in eval mode; its three channels equal the number of data."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(4)
        self.net = nn.Sequential(nn.Linear(2, 3), nn.BatchNorm1d(3), nn.Linear(3, 5)).double()
        with torch.no_grad():
            self.net(torch.randn(50, 2, dtype=torch.float64) * 2 + 1)
        self.eval()

    def model(self, x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(x.new_zeros(2), 1.0).to_event(1))
            pyro.sample("x", dist.Normal(self.net(z), 0.5).to_event(1), obs=x)

    def guide(self, x):
        weight, bias = _affine(self.net, 2)
        with pyro.plate("data", len(x)):
            pyro.sample("z", _posterior(torch.as_tensor(weight), torch.as_tensor(bias), 0.5, x))


def batch_norm() -> Case:
    program, x = Normalised(), _randn(3, 5)
    exact = oracles.linear_gaussian_evidence(*_affine(program.net, 2), 0.5, x.numpy())
    return Case(
        "batch_norm",
        program.model,
        program.guide,
        (x,),
        exact,
        True,
        chosen=("plate", "tile"),
        ways=("tile", "loop"),
    )


def tuple_of_tensors() -> Case:
    """x is a pair of modalities with one latent; two observed sites."""
    a, b = _randn(5), _randn(5, 2)

    def model(x):
        a, b = x
        with pyro.plate("data", len(a)):
            z = pyro.sample("z", dist.Normal(a.new_zeros(()), 1.0))
            pyro.sample("a", dist.Normal(z, 1.0), obs=a)
            pyro.sample("b", dist.Normal(z.unsqueeze(-1), 1.0).expand(b.shape).to_event(1), obs=b)

    def guide(x):
        a, b = x
        with pyro.plate("data", len(a)):
            pyro.sample("z", dist.Normal((a + b.sum(-1)) / 4, 0.5))

    both = np.concatenate([a.numpy()[:, None], b.numpy()], -1)
    exact = oracles.gaussian_logpdf(both, np.zeros(3), np.eye(3) + 1)
    return Case(
        "tuple_of_tensors",
        model,
        guide,
        ((a, b),),
        exact,
        True,
        chosen=("plate", "tile"),
        ways=("tile", "loop"),
    )


def scaled_and_subsampled() -> Case:
    """``poutine.scale`` and a plate that says 100,000 data: neither may reach a weight."""
    x = _randn(5)

    def model(x):
        with pyro.plate("data", 100_000, subsample_size=len(x)), poutine.scale(scale=7.0):
            z = pyro.sample("z", dist.Normal(x.new_zeros(()), 1.0))
            pyro.sample("x", dist.Normal(z, 1.0), obs=x)

    def guide(x):
        with pyro.plate("data", 100_000, subsample_size=len(x)), poutine.scale(scale=7.0):
            pyro.sample("z", dist.Normal(x / 2, 0.5**0.5))

    exact = oracles.normal_logpdf(x.numpy(), 0.0, 2**0.5)
    return Case("scaled_and_subsampled", model, guide, (x,), exact, True)


def per_row_loop() -> Case:
    """Python code that indexes its data one by one, for exactly the data it was written for."""
    x = _randn(4)

    def model(x):
        with pyro.plate("data", 4):
            z = pyro.sample("z", dist.Normal(x.new_zeros(()), 1.0))
            loc = torch.stack([2 * z[i] for i in range(4)])
            pyro.sample("x", dist.Normal(loc, 1.0), obs=x)

    def guide(x):
        with pyro.plate("data", 4):
            pyro.sample("z", dist.Normal(0.4 * x, 0.2**0.5))

    exact = oracles.normal_logpdf(x.numpy(), 0.0, 5**0.5)
    return Case(
        "per_row_loop",
        model,
        guide,
        (x,),
        exact,
        True,
        chosen=("loop", "loop"),
        ways=("loop",),
    )


def autoguide() -> Case:
    """Pyro's AutoNormal over the local latents of a fixed set of data."""
    x = _randn(5)

    def model(x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(x.new_zeros(()), 1.0))
            pyro.sample("x", dist.Normal(z, 1.0), obs=x)

    guide = pyro.infer.autoguide.AutoNormal(
        model, init_loc_fn=pyro.infer.autoguide.init_to_value(values={"z": x / 2}), init_scale=0.6
    )
    guide(x)
    exact = oracles.normal_logpdf(x.numpy(), 0.0, 2**0.5)
    return Case("autoguide", model, guide, (x,), exact, False, ways=("plate", "loop"))


CASES = (
    function_style,
    enumerated_mixture,
    enumerated_guide,
    enumerated_per_pixel,
    hidden_markov,
    masked_sequence,
    semi_supervised_unlabelled,
    semi_supervised_labelled,
    conditional,
    nested_plates,
    convolutional,
    batch_norm,
    tuple_of_tensors,
    scaled_and_subsampled,
    per_row_loop,
    autoguide,
)
