"""Program pairs in float64 whose log p(x), and upper bounds on it, are known exactly."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import oracles
import pyro
import pyro.distributions as dist
import torch
from sklearn.datasets import load_digits

WIDER = 1.2  # a guide's standard deviation, in those of the posterior


@dataclass(frozen=True)
class Toy:
    """A pair and its exact numbers, ``(N,)`` each.

    Attributes:
        exact: log p(x).
        eubo: the mean log-weight under the posterior.
        cubo: half the log of the mean squared weight under the guide.
    """

    model: Callable[..., Any]
    guide: Callable[..., Any]
    args: tuple
    exact: np.ndarray
    eubo: np.ndarray
    cubo: np.ndarray


def moments_guide(x, loc, scale):
    """A diagonal normal whose moments stand in the context, one row for each datum."""
    with pyro.plate("data", len(x), dim=-1):
        pyro.sample("z", dist.Normal(loc, scale).to_event(1))


def gaussian_bounds(exact, mean, cov, guide_mean, guide_std):
    """Both upper bounds where posterior and guide are normal."""
    diagonal = np.diag(guide_std**2)
    pairs = list(zip(mean, guide_mean, strict=True))
    kl = np.array([oracles.gaussian_kl(m, cov, g, diagonal) for m, g in pairs])
    renyi = np.array([oracles.gaussian_renyi(m, cov, g, diagonal) for m, g in pairs])
    return exact + kl, exact + 0.5 * renyi


def linear_numbers(latent_dim, num_data, noise=2.0, seed=0, data_dim=None):
    """W, b and data of a linear-Gaussian model."""
    rng = np.random.default_rng((latent_dim, seed))
    data_dim = data_dim or latent_dim + 4
    weight = rng.standard_normal((data_dim, latent_dim)) / np.sqrt(latent_dim)
    bias = rng.standard_normal(data_dim)
    codes = rng.standard_normal((num_data, latent_dim))
    x = codes @ weight.T + bias + noise * rng.standard_normal((num_data, data_dim))
    return weight, bias, x


def linear_model(weight, bias, noise):
    """z ~ N(0, I), x | z ~ N(W z + b, noise² I) as a program."""
    weight, bias = torch.as_tensor(weight), torch.as_tensor(bias)

    def model(x, *context):
        with pyro.plate("data", len(x), dim=-1):
            z = pyro.sample("z", dist.Normal(x.new_zeros(weight.shape[1]), 1.0).to_event(1))
            pyro.sample("x", dist.Normal(z @ weight.T + bias, noise).to_event(1), obs=x)

    return model


@functools.cache
def linear_gaussian(latent_dim, num_data=4, noise=2.0, shift=0.05) -> Toy:
    """The guide is the posterior, a little off its mean, diagonal and wider."""
    weight, bias, x = linear_numbers(latent_dim, num_data, noise)
    exact = oracles.linear_gaussian_evidence(weight, bias, noise, x)
    mean, cov = oracles.linear_gaussian_posterior(weight, bias, noise, x)
    std = WIDER * np.sqrt(np.diag(cov))
    off = mean + shift * std
    eubo, cubo = gaussian_bounds(exact, mean, cov, off, std)
    args = tuple(torch.as_tensor(v) for v in (x, off, np.broadcast_to(std, off.shape).copy()))
    return Toy(linear_model(weight, bias, noise), moments_guide, args, exact, eubo, cubo)


@functools.cache
def exact_posterior_of(latent_dim, num_data=4, noise=2.0) -> Callable[..., Any]:
    """The exact posterior of :func:`linear_gaussian`, as a program with its signature."""
    weight, bias, _ = linear_numbers(latent_dim, num_data, noise)
    gain = weight / noise**2
    cov = np.linalg.inv(np.eye(latent_dim) + weight.T @ gain)
    gain, cov, bias = (torch.as_tensor(v) for v in (gain @ cov, cov, bias))

    def posterior(x, *context):
        with pyro.plate("data", len(x), dim=-1):
            pyro.sample("z", dist.MultivariateNormal((x - bias) @ gain, cov))

    return posterior


def real_digits(num_data):
    """Digits that people wrote, 64 pixels each, black or white."""
    images = load_digits().data
    return (images[:: len(images) // num_data][:num_data] > 7).astype(float)


@functools.cache
def digits(num_data=4) -> Toy:
    """Two latent dimensions behind a net of random weights, black and white pixels.

    Far out the net is flat and the posterior falls like the prior, the guide faster: the mean
    squared weight is infinite there, though no sample shows it.
    """
    rng = np.random.default_rng(5)
    first, second = rng.standard_normal((2, 12)), 0.5 * rng.standard_normal((12, 64))
    offset, bias = rng.standard_normal(12), rng.standard_normal(64) - 0.5
    x = real_digits(num_data)
    nodes, log_volume = oracles.grid(2, -7.0, 7.0, 281)
    logits = np.tanh(nodes @ first + offset) @ second + bias
    likelihood = logits @ x.T - np.logaddexp(0.0, logits).sum(-1, keepdims=True)
    log_joint = likelihood + oracles.normal_logpdf(nodes).sum(-1)[:, None]
    tensors = [torch.as_tensor(v) for v in (first, offset, second, bias)]

    def model(x, *context):
        first, offset, second, bias = tensors
        with pyro.plate("data", len(x), dim=-1):
            z = pyro.sample("z", dist.Normal(x.new_zeros(2), 1.0).to_event(1))
            logits = torch.tanh(z @ first + offset) @ second + bias
            pyro.sample("x", dist.Bernoulli(logits=logits).to_event(1), obs=x)

    return replace(
        on_a_grid(model, x, nodes, log_joint, log_volume), cubo=np.full(num_data, np.inf)
    )


def on_a_grid(model, x, nodes, log_joint, log_volume) -> Toy:
    """A toy whose exact numbers, and whose guide's moments, are sums over a grid."""
    mean, std = oracles.moments_on_a_grid(nodes, log_joint)
    std = WIDER * std
    guide = oracles.normal_logpdf(nodes[:, None], mean, std).sum(-1)
    numbers = oracles.bounds_on_a_grid(log_joint, guide, log_volume)
    args = tuple(torch.as_tensor(v) for v in (x, mean, std))
    return Toy(model, moments_guide, args, *numbers)


def draw_codes(tables):
    """The codes of a grid's cells, each summed out, and what they add up to."""
    total = 0.0
    for cell, table in enumerate(tables):
        logits = torch.linspace(-0.5, 0.5, len(table), dtype=table.dtype)
        code = pyro.sample(
            f"code_{cell}", dist.Categorical(logits=logits), infer={"enumerate": "parallel"}
        )
        total = total + table[code]
    return total


def code_numbers(num_codes, num_data=3, data_dim=4):
    """Tables (cells, codes, D), data, and log-prior and mean of all assignments of codes."""
    rng = np.random.default_rng(num_codes)
    tables = rng.standard_normal((4, num_codes, data_dim))
    x = rng.standard_normal((num_data, data_dim))
    codes = oracles.enumerated_codes(4, num_codes)
    logits = np.linspace(-0.5, 0.5, num_codes)
    log_prior = (logits - oracles.logsumexp(logits, 0))[codes].sum(-1)
    mean = np.tanh(sum(tables[cell][codes[:, cell]] for cell in range(4)))
    return torch.as_tensor(tables), x, log_prior, mean


@functools.cache
def codes(num_codes) -> Toy:
    """A 2x2 grid of discrete codes, which a net that is not linear binds together."""
    tables, x, log_prior, mean = code_numbers(num_codes)

    def model(x):
        with pyro.plate("data", len(x), dim=-1):
            loc = torch.tanh(draw_codes(tables))
            pyro.sample("x", dist.Normal(loc, 0.5).to_event(1), obs=x)

    def guide(x):
        pass

    terms = oracles.normal_logpdf(x, mean[:, None], 0.5).sum(-1) + log_prior[:, None]
    exact = oracles.logsumexp(terms, 0)
    return Toy(model, guide, (torch.as_tensor(x),), exact, exact, exact)


@functools.cache
def codes_and_scale(num_codes=3, num_data=2) -> Toy:
    """The same with a continuous latent beside the codes, normal given their assignment."""
    tables, x, log_prior, mean = code_numbers(num_codes, num_data)
    noise, weight = 1.0, np.array([1.0, -1.0, 0.5, 0.8])
    direction = torch.as_tensor(weight)

    def model(x, *context):
        with pyro.plate("data", len(x), dim=-1):
            z = pyro.sample("z", dist.Normal(x.new_zeros(1), 1.0).to_event(1))
            loc = torch.tanh(draw_codes(tables)) + z * direction
            pyro.sample("x", dist.Normal(loc, noise).to_event(1), obs=x)

    nodes, log_volume = oracles.grid(1, -8.0, 8.0, 801)
    log_joint = np.stack(
        [
            oracles.logsumexp(
                log_prior + oracles.normal_logpdf(x, mean[:, None] + z * weight, noise).sum(-1).T, 1
            )
            + oracles.normal_logpdf(z[0])
            for z in nodes
        ]
    )
    toy = on_a_grid(model, x, nodes, log_joint, log_volume)
    given = [oracles.linear_gaussian_evidence(weight[:, None], m, noise, x) for m in mean]
    exact = oracles.logsumexp(np.stack(given) + log_prior[:, None], 0)
    assert np.abs(exact - toy.exact).max() < 1e-9  # closed form and quadrature
    return toy


@functools.cache
def mixture(num_data=4) -> Toy:
    """A latent from a mixture of three normals, whose component is summed out."""
    rng = np.random.default_rng(1)
    log_share, scale = np.log([0.2, 0.3, 0.5]), np.array([0.7, 1.0, 0.5])
    centre = np.array([[-1.0, 0.5], [0.0, -1.0], [1.0, 1.0]])
    weight, x = rng.standard_normal((5, 2)), 2 * rng.standard_normal((num_data, 5))
    shares, scales, centres, matrix = map(torch.as_tensor, (log_share, scale, centre, weight))

    def model(x, *context):
        with pyro.plate("data", len(x), dim=-1):
            y = pyro.sample("y", dist.Categorical(logits=shares), infer={"enumerate": "parallel"})
            z = pyro.sample("z", dist.Normal(centres[y], scales[y][..., None]).to_event(1))
            pyro.sample("x", dist.Normal(z @ matrix.T, 1.5).to_event(1), obs=x)

    nodes, log_volume = oracles.grid(2, -7.0, 7.0, 281)
    prior = oracles.mixture_logpdf(nodes, log_share, centre, scale[:, None])
    likelihood = oracles.normal_logpdf(x, (nodes @ weight.T)[:, None], 1.5).sum(-1)
    toy = on_a_grid(model, x, nodes, likelihood + prior[:, None], log_volume)
    parts = [
        share + oracles.linear_gaussian_evidence(s * weight, weight @ c, 1.5, x)
        for share, c, s in zip(log_share, centre, scale, strict=True)
    ]
    assert np.abs(oracles.logsumexp(np.stack(parts), 0) - toy.exact).max() < 1e-9
    return toy


@functools.cache
def state_space(num_data=4, length=4) -> Toy:
    """A linear-Gaussian chain of states; the guide draws each by itself."""
    decay, process, noise = 0.7, 1.0, 1.0
    x = 1.5 * np.random.default_rng(2).standard_normal((num_data, length))

    def model(x, *context):
        with pyro.plate("data", len(x), dim=-1):
            z = x.new_zeros(())
            for t in pyro.markov(range(length)):
                z = pyro.sample(f"z_{t}", dist.Normal(decay * z, process))
                pyro.sample(f"x_{t}", dist.Normal(z, noise), obs=x[:, t])

    def guide(x, loc, scale):
        with pyro.plate("data", len(x), dim=-1):
            for t in pyro.markov(range(length)):
                pyro.sample(f"z_{t}", dist.Normal(loc[:, t], scale[:, t]))

    exact = oracles.kalman_evidence(decay, process, noise, x)
    mean, cov = oracles.state_space_posterior(decay, process, noise, x)
    std = WIDER * np.sqrt(np.diag(cov))
    eubo, cubo = gaussian_bounds(exact, mean, cov, mean, std)
    args = tuple(torch.as_tensor(v) for v in (x, mean, np.broadcast_to(std, mean.shape).copy()))
    return Toy(model, guide, args, exact, eubo, cubo)
