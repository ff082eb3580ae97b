r"""The ELBO as (likelihood) minus (distance), what amortising costs, and gradients through draws.

.. math:: \mathrm{ELBO}(q) = \log p(x) - \mathrm{KL}(q \,\|\, p(z \mid x))
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pyro
import pyro.distributions as dist
import torch
from torch import Tensor

from ...inference import (
    AnnealedImportanceSampling,
    MonteCarloObjective,
    RefinedImportanceSampling,
    bounds,
    gradient_statistics,
    inference_gaps,
    log_joint,
)
from ...inference import gradients as rules
from ...models import LinearGaussianVAE
from .toys import digits, mean_and_error, trained
from .verdict import Verdict, above, exactly, near


def identity() -> list[Verdict]:
    """For a wrong q: E_q log w by a quadrature that is exact for quadratics, KL in closed form."""
    torch.manual_seed(0)
    linear = LinearGaussianVAE(data_dim=6, latent_dim=3, scale=0.7).double()
    x = linear.sample(10).detach()
    q = dist.Normal(torch.randn(10, 3).double(), torch.rand(10, 3).double() + 0.2)
    nodes, weights = np.polynomial.hermite_e.hermegauss(3)
    grid = torch.cartesian_prod(*[torch.tensor(nodes)] * 3)
    weight = torch.cartesian_prod(*[torch.tensor(weights / weights.sum())] * 3).prod(-1)
    z = q.loc + q.scale * grid[:, None]
    with torch.no_grad():
        joint = log_joint(linear.model, {"z": z}, x)
        elbo = (weight[:, None] * (joint - q.log_prob(z).sum(-1))).sum(0)
        kl = torch.distributions.kl_divergence(
            torch.distributions.MultivariateNormal(q.loc, torch.diag_embed(q.scale.square())),
            _plain(linear.posterior(x)),
        )
        away = elbo - (linear.log_evidence(x) - kl)
    return [exactly("ELBO less (log p − KL)", float(away.abs().max()), 1e-10)]


def _plain(posterior: object) -> torch.distributions.MultivariateNormal:
    assert isinstance(posterior, torch.distributions.MultivariateNormal)
    return torch.distributions.MultivariateNormal(
        posterior.loc, precision_matrix=posterior.precision_matrix
    )


def amortisation() -> list[Verdict]:
    """No gap where the posterior is a diagonal normal and the guide is it; gaps on digits."""
    torch.manual_seed(0)
    linear = LinearGaussianVAE(data_dim=8, latent_dim=3).double()
    with torch.no_grad():  # orthogonal columns make WᵀW diagonal
        q, _ = torch.linalg.qr(torch.randn(8, 3).double())
        linear.decoder.weight.copy_(q * torch.tensor([0.5, 1.0, 2.0]))
    x = linear.sample(20).detach()
    optimal = _diagonal(linear)
    refined = RefinedImportanceSampling(num_samples=500, num_steps=50, seed=0)
    gaps = inference_gaps(refined(linear.model, optimal, x))
    zero = max(float(gaps.approximation.abs().max()), float(gaps.amortisation.abs().max()))
    vae, x = trained(), digits().subset("test", 50, seed=0)
    annealed = AnnealedImportanceSampling(num_temperatures=200, num_chains=32, seed=0)
    fitted = RefinedImportanceSampling(num_samples=2000, num_steps=300, seed=0)
    pair = vae.model, vae.guide
    found = inference_gaps(fitted(*pair, x), annealed(*pair, x))
    verdicts = [
        Verdict("both gaps, linear with diagonal WᵀW", "0 (under 0.05)", f"{zero:.2g}", zero < 0.05)
    ]
    for name in ("approximation", "amortisation"):
        value, noise, spread = found.mean(name)
        verdicts.append(above(f"{name} gap, digits", value, math.hypot(noise, spread)))
    return verdicts


def _diagonal(linear: LinearGaussianVAE) -> Callable[[Tensor], None]:
    """The posterior as the diagonal normal that it is."""

    def guide(x: Tensor) -> None:
        exact = linear.posterior(x)
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(exact.mean, exact.variance.sqrt()).to_event(1))

    return guide


def gradients() -> list[Verdict]:
    r"""The gradient of :math:`E \|z\|^2` by the mean, z ~ N(1, I_d), in both ways."""
    draws = 1_000_000
    found, ratios = [], {}
    for dim in (1, 10):
        torch.manual_seed(dim)
        loc = torch.ones(draws, dim, dtype=torch.float64, requires_grad=True)
        q = dist.Normal(loc, 1.0)
        z = q.rsample()
        (pathwise,) = torch.autograd.grad(z.square().sum(), loc)
        z = z.detach()
        score = z.square().sum(-1, keepdim=True) * torch.autograd.grad(q.log_prob(z).sum(), loc)[0]
        ratios[dim] = float(score[:, 0].var() / pathwise[:, 0].var())
        if dim == 1:
            for name, values, variance in (("pathwise", pathwise, 4.0), ("score", score, 30.0)):
                found.append(near(f"{name}: mean", *mean_and_error(values[:, 0]), 2.0))
                squares = (values[:, 0] - 2).square()
                found.append(near(f"{name}: variance", *mean_and_error(squares), variance))
    found.append(
        Verdict(
            "score's variance over pathwise's, d = 1 and 10",
            "7.5, and more with d",
            f"{ratios[1]:.2f} and {ratios[10]:.1f}",
            ratios[10] > 2 * ratios[1] > 10,
        )
    )
    return found + _rules()


def _rules() -> list[Verdict]:
    r"""The same of objectives: q = N(μ, 1) and p(z) = N(0, 1), so that -ELBO's gradient is μ = 1.

    By the path it is :math:`z`, of variance 1.
    """

    def model(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(x.new_zeros(1), 1.0).to_event(1))
            pyro.sample("x", dist.Normal(x.new_zeros(1), 1.0).to_event(1), obs=x)

    def guide(x: Tensor) -> None:
        loc = pyro.param("loc", x.new_ones(1))
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(loc, 1.0).to_event(1))

    found, spreads = [], {}
    repeats = 2000
    x = torch.zeros(1, 1, dtype=torch.float64)
    both = (rules.Pathwise(), rules.ScoreFunction(everywhere=True))
    with pyro.get_param_store().scope():
        for rule in both:
            objective = MonteCarloObjective(bounds.ELBO(), rule, 1)
            told = gradient_statistics(objective, model, guide, x, repeats=repeats)
            mean, spreads[rule] = float(told["mean"].item()), float(told["std"].item())
            name = type(rule).__name__
            found.append(near(f"{name}: gradient", mean, spreads[rule] / repeats**0.5, 1.0))
    path, score = (spreads[rule] ** 2 for rule in both)
    error = (2 / repeats) ** 0.5  # of a normal's variance
    found.append(near("Pathwise: its variance", path, error, 1.0))
    found.append(Verdict("ScoreFunction: its variance", "above 1", f"{score:.3g}", score > 1.2))
    return found
