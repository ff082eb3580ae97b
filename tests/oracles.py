"""Exact answers, in numpy alone: this file imports nothing of ours, and no torch."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence

import numpy as np


def normal_logpdf(x, loc=0.0, scale=1.0):
    """log N(x; loc, scale²), elementwise."""
    return -0.5 * ((x - loc) / scale) ** 2 - np.log(scale) - 0.5 * np.log(2 * np.pi)


def logsumexp(a, axis):
    top = a.max(axis, keepdims=True)
    return np.squeeze(top, axis) + np.log(np.exp(a - top).sum(axis))


def mixture_logpdf(x, logits, loc, scale):
    """log of a mixture of diagonal normals: rows of x against components (M,), (M, Z), (M, Z)."""
    parts = normal_logpdf(x[..., None, :], loc, scale).sum(-1)
    return logsumexp(parts + logits - logsumexp(logits, -1), -1)


def bernoulli_logpmf(x, logits):
    """log Ber(x; logits), elementwise: -log(1 + exp(±logits)), whose sign x tells."""
    return -np.logaddexp(0.0, np.where(x == 1, -logits, logits))


def tilted_moments(logit):
    """log-normaliser, mean and variance of the density exp(l x) on [0, 1], by quadrature."""
    node, weight = np.polynomial.legendre.leggauss(400)
    x, tilt = (node + 1) / 2, logit * (node + 1) / 2
    mass = weight / 2 * np.exp(tilt - tilt.max())
    mean = (mass @ x) / mass.sum()
    return tilt.max() + np.log(mass.sum()), mean, (mass @ (x - mean) ** 2) / mass.sum()


def gaussian_logpdf(x, mean, covariance):
    """log N(x; mean, covariance) for rows of x, by a dense factorisation."""
    x = np.atleast_2d(x)
    factor = np.linalg.cholesky(covariance)
    white = np.linalg.solve(factor, (x - mean).T)
    return (
        -0.5 * (white**2).sum(0)
        - np.log(np.diag(factor)).sum()
        - 0.5 * x.shape[1] * np.log(2 * np.pi)
    )


def linear_gaussian_evidence(weight, bias, noise, x):
    """log p(x) of z ~ N(0, I), x | z ~ N(W z + b, noise² I)."""
    covariance = weight @ weight.T + noise**2 * np.eye(len(weight))
    return gaussian_logpdf(x, bias, covariance)


def linear_gaussian_posterior(weight, bias, noise, x):
    """Mean (N, Z) and covariance (Z, Z) of p(z | x) for the same model."""
    precision = np.eye(weight.shape[1]) + weight.T @ weight / noise**2
    covariance = np.linalg.inv(precision)
    return (x - bias) @ weight @ covariance / noise**2, covariance


def gaussian_kl(mean_q, cov_q, mean_p, cov_p):
    """KL(N(mean_q, cov_q) || N(mean_p, cov_p)) in nats."""
    inverse = np.linalg.inv(cov_p)
    difference = mean_p - mean_q
    return 0.5 * (
        np.trace(inverse @ cov_q)
        + difference @ inverse @ difference
        - len(mean_q)
        + np.linalg.slogdet(cov_p)[1]
        - np.linalg.slogdet(cov_q)[1]
    )


def integrate(log_density: Callable, low=-12.0, high=12.0, points=4001):
    """log of the integral of exp(log_density(z)) over a line, by the trapezoid rule."""
    z = np.linspace(low, high, points)
    return logsumexp(log_density(z) + np.log(z[1] - z[0]), -1)


def hidden_markov_evidence(initial, transition, loc, scale, x: Sequence[float]):
    """log p(x_1..T) by adding up every path of states."""
    states = range(len(initial))
    terms = []
    for path in itertools.product(states, repeat=len(x)):
        log_p = np.log(initial[path[0]])
        log_p += sum(np.log(transition[a][b]) for a, b in itertools.pairwise(path))
        log_p += sum(normal_logpdf(value, loc[s], scale) for value, s in zip(x, path, strict=True))
        terms.append(log_p)
    return logsumexp(np.array(terms), 0)
