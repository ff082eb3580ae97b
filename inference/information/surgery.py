r"""The KL of the ELBO taken apart: what codes say of their data, and how far off the prior is.

With the aggregate posterior :math:`q(z) = \frac1N \sum_n q(z \mid x_n)` of the data given,

.. math:: \frac1N \sum_n \mathrm{KL}(q(z \mid x_n) \,\|\, p(z)) =
          \underbrace{I_q(x; z)}_{\le \log N} + \mathrm{KL}(q(z) \,\|\, p(z)).

The left side is the rate. A better prior can lower the second term, and only that.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from ..frozen import freeze_guide
from ..particles import ParticlePlan
from ..programs import Data, Program, ProgramError, check_count, num_data
from ..target import Target
from .prepared import blocks, mean_and_error, part, prepared

_PAIRS = 2**20  # densities evaluated at a time


@dataclass(frozen=True)
class Surgery:
    """The parts of the mean KL, in nats per datum, each with its Monte Carlo error.

    Attributes:
        rate: the mean KL(q(z | x) ‖ p(z)).
        mutual_information: I_q(x; z) of the data given; at most log N, and near it the number of
            data, not of nats in the codes, is what limits it.
        marginal_kl: KL(q(z) ‖ p(z)).
        num_data: N.
    """

    rate: float
    rate_stderr: float
    mutual_information: float
    mutual_information_stderr: float
    marginal_kl: float
    marginal_kl_stderr: float
    num_data: int

    def __repr__(self) -> str:
        return (
            f"Surgery({self.num_data} data: rate {self.rate:.3f} ± {self.rate_stderr:.3f} = "
            f"I(x; z) {self.mutual_information:.3f} ± {self.mutual_information_stderr:.3f} "
            f"(at most {math.log(self.num_data):.3f}) + KL(q(z) || p(z)) {self.marginal_kl:.3f} ± "
            f"{self.marginal_kl_stderr:.3f})"
        )


def elbo_surgery(
    model: Program,
    guide: Program,
    x: Data,
    *context: object,
    num_samples: int = 10,
    seed: int = 0,
) -> Surgery:
    """Split the KL term of the ELBO into mutual information and marginal KL.

    The density of every draw is asked for under every datum: the cost grows with N².

    Args:
        model: the model.
        guide: the guide.
        x: the data, whose aggregate posterior is meant.
        context: what else both programs take.
        num_samples: draws of each datum's posterior.
        seed: of the draws.

    Raises:
        ProgramError: the pair has no per-datum weights, or masks a latent of some data.
        ValueError: data that are empty or not finite.

    References:
        Hoffman and Johnson, *ELBO surgery: yet another way to carve up the variational evidence
        lower bound*, 2016.

    Example:
        >>> from pyrovae.models import LinearGaussianVAE
        >>> _ = torch.manual_seed(0)
        >>> linear = LinearGaussianVAE(data_dim=10, latent_dim=2)
        >>> surgery = elbo_surgery(linear.model, linear.exact_guide, linear.sample(100))
        >>> sum_of_parts = surgery.mutual_information + surgery.marginal_kl
        >>> abs(surgery.rate - sum_of_parts) < 1e-9
        True
        >>> surgery.mutual_information <= math.log(100)
        True
    """
    check_count("num_samples", num_samples)

    def use(args: tuple, plan: ParticlePlan) -> Surgery:
        masked = sorted(name for name, latent in plan.layout.latents.items() if latent.masked)
        if masked:
            raise ProgramError(
                f"latent {', '.join(masked)} is masked, so that data may have latents of different "
                "dimensions, which share no aggregate posterior: take data of one length, unmasked"
            )
        target = Target(model, freeze_guide(guide, args, plan), args, plan)
        size = num_data(args[0])
        own, prior, mixed = [], [], []
        for _ in range(num_samples):
            u = target.draw("guide", 1)
            found = target.log_densities(u, "guide", "prior")
            own.append(found["guide"][0])
            prior.append(found["prior"][0])
            mixed.append(_aggregate(target, guide, model, args, plan, u))
        conditional, under_prior, marginal = map(torch.stack, (own, prior, mixed))
        rate, rate_error = mean_and_error(conditional - under_prior)
        information, information_error = mean_and_error(conditional - marginal)
        kl, kl_error = mean_and_error(marginal - under_prior)
        return Surgery(rate, rate_error, information, information_error, kl, kl_error, size)

    return prepared(model, guide, (x, *context), seed, use)


def _aggregate(
    target: Target, guide: Program, model: Program, args: tuple, plan: ParticlePlan, u: Tensor
) -> Tensor:
    """log q(z) at each datum's draw, ``(N,)``, volumes included."""
    size = target.num_data
    if target.dim == 0:
        return torch.zeros(size, dtype=torch.float64, device=target.device)
    draws = u[0]  # (N, D)
    values = {name: value[0] for name, value in target.by_datum(target.values(u)).items()}
    volume = target.log_densities(u, "volume")["volume"][0]
    total = torch.full((size,), -torch.inf, dtype=torch.float64, device=draws.device)
    for rows in blocks(args, plan, max(_PAIRS // size, 1)):
        some = part(args, plan, rows)
        few = target
        if num_data(some[0]) < size:
            few = Target(model, freeze_guide(guide, some, plan), some, plan)
        step = max(_PAIRS // few.num_data, 1)
        parts = [
            few.log_guide_across(
                {n: v[i : i + step] for n, v in values.items()}, draws[i : i + step]
            )
            for i in range(0, size, step)
        ]
        total = torch.logaddexp(total, torch.cat(parts).logsumexp(1))
    return total + volume - math.log(size)
