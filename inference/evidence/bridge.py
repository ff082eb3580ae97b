r"""Bridge sampling: log p(x) from draws of the posterior and of a proposal that overlaps it.

.. math:: p(x) = \frac{\mathbb{E}_{q}[h(u) \, p(x, u)]}{\mathbb{E}_{p(u \mid x)}[h(u) \, q(u)]},
          \quad h(u) \propto \frac{1}{s_1 p(x, u) + s_2 \, p(x) \, q(u)},

whose best h holds p(x) itself, so that it is found by iteration. Neither tails of q that are too
light nor ones that are too heavy have infinite variance here.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from .parts import Scores, Tile
from .posterior import Sampling, mixing, of_chains
from .proposals import fit

_ITERATIONS = 1000
_TOLERANCE = 1e-10


@dataclass(frozen=True)
class BridgeSampling(Sampling):
    r"""log p(x) by iterative bridge sampling: consistent, on no known side.

    The proposal is a normal fitted to the first half of the posterior's draws, full-rank, in
    unconstrained space; the second half is used for the estimate. The standard error is the
    relative error of the estimate, from the variance of both means and the autocorrelation of the
    chains. Where R̂ of the log-weights is above 1.05 the chains have not mixed.

    Args:
        num_chains: see :class:`Sampling`, for this and the further settings.

    References:
        Meng and Wong, *Simulating ratios of normalizing constants via a simple identity*, 1996.
        Frühwirth-Schnatter, *Estimating marginal likelihoods for mixture and Markov switching
        models using bridge sampling techniques*, 2004. Gronau and others, *A tutorial on bridge
        sampling*, 2017.

    Example:
        >>> from pyrovae.models import LinearGaussianVAE
        >>> _ = torch.manual_seed(0)
        >>> linear = LinearGaussianVAE(data_dim=10, latent_dim=3)
        >>> x = linear.sample(4)
        >>> estimate = BridgeSampling(num_draws=50)(linear.model, linear.guide, x)
        >>> error = (estimate.log_evidence - linear.log_evidence(x)).abs()
        >>> bool((error < 5 * estimate.stderr + 0.01).all())
        True
    """

    direction = "consistent"
    bias_weight = 0.0

    def _score(self, tile: Tile) -> Scores:
        path, drawn = self._draw(tile)
        target = path.target
        half = self.num_draws // 2
        u = drawn["u"]
        used = self.num_draws - half
        proposal = fit(u[:half].flatten(0, 1))
        at_posterior = drawn["log_joint"][half:] - proposal.log_density(
            u[half:].flatten(0, 1)
        ).unflatten(0, (used, self.num_chains))
        at_proposal = torch.cat(
            [
                target.log_densities(v, "joint")["joint"] - proposal.log_density(v)
                for v in (proposal.draw(self.num_chains) for _ in range(used))
            ]
        ).nan_to_num(nan=-torch.inf)
        found = mixing(at_posterior)
        fields = bridge(at_posterior, at_proposal, found["posterior_ess"].to(u.device))
        fields |= of_chains(drawn) | found
        return Scores(fields, target.num_evaluations, target.num_gradients)


def bridge(at_posterior: Tensor, at_proposal: Tensor, ess: Tensor) -> dict[str, Tensor]:
    """The iterative estimate from log-weights at draws of both.

    Args:
        at_posterior: log p(x, u) − log q(u) at draws of the posterior, ``(S, C, N)``.
        at_proposal: the same at draws of q, ``(M, N)``.
        ess: how many independent draws the first are worth, ``(N,)``.

    Returns:
        ``log_evidence``, ``stderr``, ``ess``, ``iterations`` per datum.
    """
    first, second = at_posterior.flatten(0, 1), at_proposal
    count = len(second)
    worth = ess.clamp(min=1.0)
    log_s1, log_s2 = (worth / (worth + count)).log(), (count / (worth + count)).log()
    # the mean weight is a first guess that nothing can make infinite
    value = second.logsumexp(0) - math.log(count)
    value = torch.where(value.isfinite(), value, first.mean(0))
    iterations = torch.zeros_like(value)
    for _ in range(_ITERATIONS):
        above = second - torch.logaddexp(log_s1 + second, log_s2 + value)
        below = -torch.logaddexp(log_s1 + first, log_s2 + value)
        new = above.logsumexp(0) - math.log(count) - (below.logsumexp(0) - math.log(len(first)))
        moving = (new - value).abs() > _TOLERANCE * (1 + value.abs())
        value, iterations = new, iterations + moving
        if not bool(moving.any()):
            break
    # relative variances of f1 = p / (s1 p + s2 q) under q and f2 = q / (s1 p + s2 q) under p
    f1 = (second - value - torch.logaddexp(log_s1 + second - value, log_s2)).exp()
    f2 = (-torch.logaddexp(log_s1 + first - value, log_s2)).exp()
    worth_f2 = mixing(f2.reshape(at_posterior.shape))["posterior_ess"].to(f2).clamp(min=1.0)
    error = f1.var(0) / f1.mean(0).square() / count + f2.var(0) / f2.mean(0).square() / worth_f2
    return {
        "log_evidence": value,
        "stderr": error.sqrt(),
        "ess": ess,
        "iterations": iterations,
    }
