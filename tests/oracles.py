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


def gaussian_renyi(mean_p, cov_p, mean_q, cov_q):
    """log E_p[p / q], the Rényi divergence of order 2, of p from q; infinite where 2 C_q < C_p."""
    wide = 2 * cov_q - cov_p
    if np.linalg.eigvalsh(wide).min() <= 0:
        return np.inf
    difference = mean_p - mean_q
    dets = [np.linalg.slogdet(c)[1] for c in (wide, cov_p, cov_q)]
    return difference @ np.linalg.solve(wide, difference) - 0.5 * (dets[0] + dets[1] - 2 * dets[2])


def grid(dim, low, high, points):
    """Points of a regular grid, (points^dim, dim), and the log-volume that each stands for."""
    line = np.linspace(low, high, points)
    nodes = np.stack(np.meshgrid(*[line] * dim, indexing="ij"), -1).reshape(-1, dim)
    return nodes, dim * np.log(line[1] - line[0])


def bounds_on_a_grid(log_joint, log_guide, log_volume):
    """log p, E_posterior log w and ½ log E_q w², by adding up over a grid's first axis."""
    evidence = logsumexp(log_joint, 0) + log_volume
    share = np.exp(log_joint - evidence + log_volume)
    log_weight = log_joint - log_guide
    upper = (share * np.where(share > 0, log_weight, 0.0)).sum(0)
    return evidence, upper, 0.5 * (logsumexp(log_joint + log_weight, 0) + log_volume)


def moments_on_a_grid(nodes, log_joint):
    """Mean and standard deviation (N, Z) of the posterior on the nodes (G, Z) of a grid."""
    share = np.exp(log_joint - logsumexp(log_joint, 0))
    mean = share.T @ nodes
    return mean, np.sqrt(share.T @ nodes**2 - mean**2)


def enumerated_codes(num_cells, num_codes):
    """Every assignment of codes to cells, (num_codes^num_cells, num_cells)."""
    return np.array(list(itertools.product(range(num_codes), repeat=num_cells)))


def kalman_evidence(decay, process, noise, x):
    """log p(x_1..T) of z_t ~ N(a z_{t-1}, q²), x_t ~ N(z_t, r²), z_0 = 0, by a filter; x (N, T)."""
    mean, variance, total = np.zeros(len(x)), 0.0, np.zeros(len(x))
    for value in x.T:
        mean, variance = decay * mean, decay**2 * variance + process**2
        innovation = variance + noise**2
        total += normal_logpdf(value, mean, np.sqrt(innovation))
        gain = variance / innovation
        mean, variance = mean + gain * (value - mean), (1 - gain) * variance
    return total


def state_space_posterior(decay, process, noise, x):
    """Mean (N, T) and covariance (T, T) of the states given x, by a dense covariance matrix."""
    steps = np.arange(x.shape[1])
    lag = np.subtract.outer(steps, steps)
    chain = np.where(lag >= 0, float(decay) ** np.abs(lag), 0.0)
    prior = process**2 * chain @ chain.T
    gain = np.linalg.solve(prior + noise**2 * np.eye(len(steps)), prior).T
    return x @ gain.T, prior - gain @ prior


def jackknife_by_subsets(log_weight, order):
    """The generalised jackknife of log mean w for one datum, every subset written out."""
    size, total = len(log_weight), 0.0
    factorial = [1, 1, 2]
    for out in range(order + 1):
        kept = [list(chosen) for chosen in itertools.combinations(range(size), size - out)]
        parts = log_weight[np.array(kept)]
        mean = (logsumexp(parts, 1) - np.log(size - out)).mean()
        sign = (-1) ** out * (size - out) ** order
        total += sign * mean / (factorial[order - out] * factorial[out])
    return total


def expected_log_sum(weight, probability, counts: Sequence[int]):
    """E log of a sum of K draws of a weight with these probabilities, for each K >= 2.

    E log S = ∫ (exp(-t) - φ(t)^K) dt / t with φ(t) = E exp(-t w), over s = log t.
    """
    s = np.linspace(-45.0, 45.0, 6001)
    phi = np.concatenate(
        [np.exp(-np.exp(part)[:, None] * weight) @ probability for part in np.array_split(s, 20)]
    )
    return [float(((np.exp(-np.exp(s)) - phi**k) * (s[1] - s[0])).sum()) for k in counts]
