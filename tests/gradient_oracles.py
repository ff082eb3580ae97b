"""Expected gradients of Monte Carlo objectives, exactly, in numpy alone.

Two program pairs: a chain of normal latents, whose expectations are quadratures over the noise of
all particles, and a binary code, whose expectations are sums over all codes of all particles. Each
tells the guide that draws from the guide whose density is taken, so that the parts of a gradient
can be told apart by differentiating in one of them.
"""

from __future__ import annotations

import itertools

import numpy as np
from oracles import bernoulli_logpmf, logsumexp, normal_logpdf


def gaussian_grid(dim, nodes):
    """Nodes (dim, P) and weights (P,) for the mean over N(0, I) in so many dimensions."""
    node, weight = np.polynomial.hermite_e.hermegauss(nodes)
    weight = weight / weight.sum()
    grids = np.meshgrid(*[node] * dim, indexing="ij")
    weights = np.meshgrid(*[weight] * dim, indexing="ij")
    return np.stack([g.ravel() for g in grids]), np.prod([w.ravel() for w in weights], axis=0)


def derivative(function, at, step=1e-4):
    """The gradient of a function of a vector, by central differences."""
    at = np.asarray(at, dtype=float)
    columns = [step * row for row in np.eye(len(at))]
    return np.array([(function(at + d) - function(at - d)) / (2 * step) for d in columns])


def bound_of(name, log_weight, **setting):
    """The bounds of the literature written out, particles along the first axis."""
    count = len(log_weight)
    if name == "elbo":
        return log_weight.mean(0)
    if name == "iwae":
        return np.log(np.exp(log_weight).mean(0))
    if name == "ciwae":
        share = setting["beta"]
        return share * log_weight.mean(0) + (1 - share) * np.log(np.exp(log_weight).mean(0))
    if name == "renyi":
        power = 1 - setting["alpha"]
        return np.log((np.exp(log_weight) ** power).mean(0)) / power
    if name == "tvo":
        total = 0.0
        for left, right in itertools.pairwise(setting["grid"]):
            weight = np.exp(left * log_weight)
            total = total + (right - left) * (weight * log_weight).sum(0) / weight.sum(0)
        return total
    if name == "jackknife":
        whole = np.log(np.exp(log_weight).mean(0))
        without = [np.log(np.delete(np.exp(log_weight), k, 0).mean(0)) for k in range(count)]
        return count * whole - (count - 1) * np.mean(without, axis=0)
    raise KeyError(name)


class GaussianChain:
    """x <- z_1 <- ... <- z_L, all linear and normal, with a guide that goes the other way.

    theta = (weight, bias, chain weights ...): x ~ N(weight z_1 + bias, noise^2),
    z_l ~ N(chain_l z_{l+1}, 1), z_L ~ N(0, 1). phi holds (slope, shift, log scale) of each z_l
    given the one before it, the first given x.
    """

    def __init__(self, levels, noise):
        self.levels, self.noise = levels, noise

    def draws(self, phi, x, eps):
        """z of every level at noise (L, ...)."""
        values, given = [], x
        for level in range(self.levels):
            slope, shift, log_scale = phi[3 * level : 3 * level + 3]
            given = slope * given + shift + np.exp(log_scale) * eps[level]
            values.append(given)
        return values

    def log_guide(self, phi, x, z):
        total, given = 0.0, x
        for level in range(self.levels):
            slope, shift, log_scale = phi[3 * level : 3 * level + 3]
            total = total + normal_logpdf(z[level], slope * given + shift, np.exp(log_scale))
            given = z[level]
        return total

    def log_joint(self, theta, x, z):
        total = normal_logpdf(x, theta[0] * z[0] + theta[1], self.noise)
        for level in range(self.levels - 1):
            total = total + normal_logpdf(z[level], theta[2 + level] * z[level + 1])
        return total + normal_logpdf(z[-1])

    def mean(self, function, x, count, nodes):
        """The mean of function(datum, noise (K, L, P)) over the noise, summed over data."""
        eps, weight = gaussian_grid(count * self.levels, nodes)
        eps = eps.reshape(count, self.levels, -1)
        return sum((weight * function(datum, eps)).sum() for datum in x)

    def log_weights(self, theta, drawn_by, density_of, datum, eps):
        """(K, P), for draws of one guide under the density of another."""
        rows = [self.draws(drawn_by, datum, particle) for particle in eps]
        return np.stack(
            [self.log_joint(theta, datum, z) - self.log_guide(density_of, datum, z) for z in rows]
        )

    def expected_bound(self, formula, theta, drawn_by, density_of, x, count, nodes):
        return self.mean(
            lambda datum, eps: formula(self.log_weights(theta, drawn_by, density_of, datum, eps)),
            x,
            count,
            nodes,
        )

    def expected_weighted(self, coefficients, at, theta, phi, x, count, nodes):
        """E sum_k (c_k log p_theta + d_k log q_phi), draws and coefficients held at ``at``."""

        def value(datum, eps):
            rows = [self.draws(at[1], datum, particle) for particle in eps]
            of_model, of_guide = coefficients(self.log_weights(*at, at[1], datum, eps))
            joint = np.stack([self.log_joint(theta, datum, z) for z in rows])
            guide = np.stack([self.log_guide(phi, datum, z) for z in rows])
            return (of_model * joint + of_guide * guide).sum(0)

        return self.mean(value, x, count, nodes)


class BinaryCode:
    """x ~ N(weight . c + bias, noise^2), c in {0, 1}^D, with independent Bernoulli's on both sides.

    theta = (prior logits (D), weights (D), bias); phi = (slopes (D), shifts (D)) of the guide's
    logits in x. All expectations are sums over the 2^(D K) codes of K particles.
    """

    def __init__(self, size, noise):
        self.size, self.noise = size, noise
        self.codes = np.array(list(itertools.product([0.0, 1.0], repeat=size)))

    def logits(self, phi, datum):
        return phi[: self.size] * datum + phi[self.size :]

    def log_guide(self, phi, datum, codes):
        return bernoulli_logpmf(codes, self.logits(phi, datum)).sum(-1)

    def log_joint(self, theta, datum, codes):
        prior, weight, bias = theta[: self.size], theta[self.size : -1], theta[-1]
        mass = bernoulli_logpmf(codes, prior).sum(-1)
        return mass + normal_logpdf(datum, codes @ weight + bias, self.noise)

    def log_evidence(self, theta, x):
        return np.array([logsumexp(self.log_joint(theta, d, self.codes), 0) for d in x])

    def _combinations(self, count):
        index = np.array(list(itertools.product(range(len(self.codes)), repeat=count))).T
        return self.codes[index]  # (K, combinations, D)

    def expected_bound(self, formula, theta, drawn_by, density_of, x, count):
        codes, total = self._combinations(count), 0.0
        for datum in x:
            chance = np.exp(self.log_guide(drawn_by, datum, codes).sum(0))
            weight = self.log_joint(theta, datum, codes) - self.log_guide(density_of, datum, codes)
            total += (chance * formula(weight)).sum()
        return total

    def expected_weighted(self, coefficients, at, theta, phi, x, count):
        codes, total = self._combinations(count), 0.0
        for datum in x:
            chance = np.exp(self.log_guide(at[1], datum, codes).sum(0))
            weight = self.log_joint(at[0], datum, codes) - self.log_guide(at[1], datum, codes)
            of_model, of_guide = coefficients(weight)
            terms = of_model * self.log_joint(theta, datum, codes)
            terms = terms + of_guide * self.log_guide(phi, datum, codes)
            total += (chance * terms.sum(0)).sum()
        return total

    def expected_sleep(self, theta, phi, nodes=60):
        """E log q_phi(c | x) over c and x of the model."""
        eps, weight = gaussian_grid(1, nodes)
        total = 0.0
        for code in self.codes:
            mass = np.exp(bernoulli_logpmf(code, theta[: self.size]).sum())
            for e, w in zip(eps[0], weight, strict=True):
                datum = code @ theta[self.size : -1] + theta[-1] + self.noise * e
                total += mass * w * self.log_guide(phi, datum, code)
        return total

    def expected_relaxed(self, formula, theta, phi, x, count, temperature):
        """The bound at relaxed draws, by the trapezoid rule over logistic noise; D K of 1 or 2."""
        node = np.linspace(-34, 34, 1201)
        weight = np.exp(-node - 2 * np.logaddexp(0, -node)) * (node[1] - node[0])
        grids = np.meshgrid(*[node] * (count * self.size), indexing="ij")
        noise = np.stack([g.ravel() for g in grids], -1).reshape(-1, count, self.size)
        weights = np.meshgrid(*[weight] * (count * self.size), indexing="ij")
        chance = np.prod([w.ravel() for w in weights], axis=0)
        total = 0.0
        for datum in x:
            logits = self.logits(phi, datum)
            codes = 1 / (1 + np.exp(-(logits + noise) / temperature))
            joint = self._relaxed_joint(theta, datum, codes)
            guide = (codes * logits - np.logaddexp(0, logits)).sum(-1)
            total += (chance * formula((joint - guide).T)).sum()
        return total

    def _relaxed_joint(self, theta, datum, codes):
        prior, weight, bias = theta[: self.size], theta[self.size : -1], theta[-1]
        mass = (codes * prior - np.logaddexp(0, prior)).sum(-1)
        return mass + normal_logpdf(datum, codes @ weight + bias, self.noise)
