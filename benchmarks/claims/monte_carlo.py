r"""The likelihood as an integral, and estimating it.

.. math:: p(x) = \int p(x \mid z) p(z) \, dz = \mathbb{E}_q w, \quad w = p(x, z) / q(z \mid x)
"""

from __future__ import annotations

import math

import pyro
import pyro.distributions as dist
import torch
from torch import Tensor

from ...inference import (
    AnnealedImportanceSampling,
    BridgeSampling,
    ImportanceSampling,
    JackknifeImportanceSampling,
    PriorMonteCarlo,
    RefinedImportanceSampling,
    SequentialMonteCarlo,
    log_weights,
)
from ...models import LinearGaussianVAE
from .toys import Curved, Toy, mean_and_error
from .verdict import Verdict, exactly, near

ESTIMATORS = {
    "prior Monte Carlo": PriorMonteCarlo(num_samples=20_000, seed=1),
    "importance sampling": ImportanceSampling(num_samples=20_000, seed=2),
    "refined": RefinedImportanceSampling(num_samples=2000, num_steps=100, seed=3),
    "jackknife": JackknifeImportanceSampling(num_samples=5000, seed=4),
    "AIS": AnnealedImportanceSampling(num_temperatures=50, num_chains=32, seed=5),
    "SMC": SequentialMonteCarlo(num_temperatures=50, num_chains=64, seed=6),
    "bridge": BridgeSampling(seed=7),
}


def marginal() -> list[Verdict]:
    """Every estimator against a closed form, and against a quadrature over two latents."""
    torch.manual_seed(0)
    linear = LinearGaussianVAE(data_dim=5, latent_dim=2).double()
    curved = Curved()
    x = linear.sample(20).detach()
    y = curved.mean(torch.randn(20, 2).double()) + 0.5 * torch.randn(20, 6)

    def wide(x: Tensor) -> None:
        """Wrong, but wide enough to cover the posterior."""
        exact = linear.posterior(x)
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(exact.mean, 1.3 * exact.variance.sqrt()).to_event(1))

    found = []
    for name, estimator in ESTIMATORS.items():
        for what, model, guide, data, exact in (
            ("linear", linear.model, wide, x, linear.log_evidence(x).detach()),
            ("quadrature", curved.model, curved.guide, y, curved.log_evidence(y)),
        ):
            estimate = estimator(model, guide, data)
            # the leading bias, −stderr² / 2, is known and taken out
            away = (estimate.log_evidence - estimate.bias - exact).mean()
            error = estimate.mean().monte_carlo_stderr
            found.append(near(f"{name} less {what}", float(away), error, 0.0))
    return found


def prior_variance() -> list[Verdict]:
    r"""T with σ = 0.1, d = 10, x = 0: :math:`E w^2 / p^2 = ((1 + σ²) / (σ \sqrt{2 + σ²}))^d`.

    The ten dimensions are independent, so that the moment is a product of ten, each measured.
    """
    scale, dim, draws = 0.1, 10, 1_000_000
    toy = Toy(1, scale)
    x = torch.zeros(dim, 1, dtype=torch.float64)
    torch.manual_seed(0)
    weights = log_weights(toy.model, toy.prior, x, num_particles=draws).log_weight
    ratio = (weights - toy.log_evidence(x)).exp()
    moments, errors = ratio.square().mean(0), ratio.square().std(0) / math.sqrt(draws)
    value = float(moments.log().sum())
    error = float((errors / moments).square().sum().sqrt())
    exact = dim * math.log((1 + scale**2) / (scale * math.sqrt(2 + scale**2)))
    # as many samples make the mean's error as large as the mean: 3.4e8, says the derivation
    needed = math.exp(value) / 1e8
    torch.manual_seed(1)
    drawn = log_weights(
        Toy(2, scale).model, Toy(2, scale).prior, x.new_zeros(20_000, 2), num_particles=100
    ).log_weight
    means = (drawn - toy.log_evidence(x[:2]).sum()).exp().mean(0)
    spread, noise = mean_and_error((means - 1).square())
    return [
        near("log of E w² / p²", value, error, exact, 5),
        near("10⁸ samples for an error of 1", needed, needed * error, 3.4),
        near("d = 2: variance of a mean of 100", spread, noise, (math.exp(exact / 5) - 1) / 100),
    ]


def perfect_proposal() -> list[Verdict]:
    """Weights under the posterior are constant; under the prior the variance falls as 1/n."""
    toy = Toy(10, 0.1)
    x = torch.randn(50, 10, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    weights = log_weights(toy.model, toy.posterior, x, num_particles=100).log_weight
    one = ImportanceSampling(num_samples=1, seed=0)(toy.model, toy.posterior, x)
    away = float((one.log_evidence - toy.log_evidence(x)).abs().max())
    flat = Toy(1, 1.0)
    zeros = torch.zeros(20_000, 1, dtype=torch.float64)
    logs, sizes = [], (10, 30, 100, 300)
    for n in sizes:
        torch.manual_seed(n)
        drawn = log_weights(flat.model, flat.prior, zeros, num_particles=n).log_weight
        average = (drawn.logsumexp(0) - math.log(n)).exp()
        logs.append(math.log(float(average.var())))
    # the variance of 20,000 replicates is known to sqrt(2 / 20,000) or so
    slope, error = _slope([math.log(n) for n in sizes], logs, [0.015] * len(sizes))
    return [
        exactly("sd of log w under the posterior", float(weights.std(0).max()), 1e-10),
        exactly("K = 1, less exact", away, 1e-10),
        near("slope of log Var I_n in log n", slope, error, -1.0),
    ]


def bounds() -> list[Verdict]:
    """T with σ = 1, d = 1, x = 0, q the prior: the gap of L_K, and of the jackknife."""
    toy = Toy(1, 1.0)
    x = torch.zeros(2_000_000, 1, dtype=torch.float64)
    exact = toy.log_evidence(x[:1])
    elbo = ImportanceSampling(num_samples=1, seed=0)(toy.model, toy.prior, x).log_evidence
    gap, error = mean_and_error(exact - elbo)
    found = [near("gap of the ELBO", gap, error, 0.5 - 0.5 * math.log(2))]
    for name, estimator, sizes, power, size in (
        ("L_K", ImportanceSampling, (16, 32, 64), 1, 400_000),
        ("jackknife", JackknifeImportanceSampling, (4, 6, 9), 2, 2_000_000),
    ):
        gaps = []
        for k in sizes:
            values = estimator(num_samples=k, seed=k)(toy.model, toy.prior, x[:size]).log_evidence
            gaps.append(mean_and_error(exact - values))
        logs = [math.log(abs(value)) for value, _ in gaps]
        slope, wide = _slope([math.log(k) for k in sizes], logs, [e / abs(v) for v, e in gaps])
        # the next order of the expansion bends the line: by its size at the smallest K
        bend = 0.15 if power == 1 else 0.5
        found.append(
            Verdict(
                f"slope of the gap of {name}",
                f"-{power}, to ± {bend} of the next order",
                f"{slope:.3f} ± {wide:.2g}",
                abs(slope + power) < bend + 4 * wide,
            )
        )
        if power == 1:
            value, wide = gaps[-1]
            found.append(near(f"K times the gap at K = {sizes[-1]}", value * 64, wide * 64, 0.0774))
    return found


def _slope(x: list[float], y: list[float], errors: list[float]) -> tuple[float, float]:
    """Weighted least squares: the slope and its standard error."""
    w = torch.tensor(errors, dtype=torch.float64) ** -2
    u, v = torch.tensor(x, dtype=torch.float64), torch.tensor(y, dtype=torch.float64)
    centre = (w * u).sum() / w.sum()
    spread = (w * (u - centre).square()).sum()
    return float((w * (u - centre) * v).sum() / spread), float(spread**-0.5)
