r"""Gradients of a bound's exact expectations, with self-normalised weights in their place.

Of the thermodynamic objective, a sum of expectations under :math:`\pi_\beta \propto q^{1 - \beta}
p^\beta`,

.. math:: \nabla \mathbb{E}_{\pi_\beta}[\log w] = \mathbb{E}_{\pi_\beta}[\nabla \log w]
          + \mathrm{Cov}_{\pi_\beta}\bigl(\nabla \log \tilde\pi_\beta, \log w\bigr), \quad
          \nabla \log \tilde\pi_\beta = (1 - \beta) \nabla \log q + \beta \nabla \log p,

with weights :math:`w_k^\beta`. Of the χ upper bound, with weights :math:`w_k^n`,

.. math:: \nabla_\phi \tfrac1n \log \mathbb{E}_q[w^n] = \frac{1 - n}{n} \;
          \frac{\mathbb{E}_q[w^n \nabla_\phi \log q]}{\mathbb{E}_q[w^n]}.

They hold the draws, so that any latent will do. The ratio of two means has a bias of O(1/K); but
the gradient of the K-particle estimate itself would be of no use for the second, whose mean can be
lowered without end by a guide that misses the posterior.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ..bounds import CUBO, TVO, Bound, weigh
from ..step import Step, hold
from .gradient import Ascent, Gradient, refuse


@dataclass(frozen=True)
class SelfNormalized(Gradient):
    """The covariance gradient of the TVO; the weighted score of CUBO, which moves the guide alone.

    References:
        Masrani, Le and Wood, *The thermodynamic variational objective*, 2019. Dieng, Tran,
        Ranganath, Paisley and Blei, *Variational inference via χ upper bound minimization*, 2017.

    Example:
        >>> from pyrovae.inference import MonteCarloObjective, bounds
        >>> MonteCarloObjective(bounds.CUBO(2), SelfNormalized(), num_particles=5)
        MonteCarloObjective(CUBO(n=2), SelfNormalized(), num_particles=5)
    """

    rescores = True
    reparameterizes = False

    def check(self, bound: Bound, num_particles: int) -> None:
        if not isinstance(bound, TVO | CUBO):
            refuse(self, bound, "it is that of TVO and CUBO; others have an unbiased one")
        check_upper(bound)

    def ascend(self, step: Step, bound: Bound) -> Ascent:
        held = hold(step.sample())
        log_joint, log_guide = step.log_joint(held), step.log_guide(held)
        log_weight = (log_joint - log_guide).detach()
        of_model, of_guide = coefficients(bound, log_weight)
        return Ascent(bound(log_weight), weigh(of_model, log_joint) + weigh(of_guide, log_guide))


def check_upper(bound: Bound) -> None:
    """Raise ValueError for a CUBO whose guide would never move."""
    if isinstance(bound, CUBO) and bound.n == 1:
        raise ValueError(
            "n must be larger than 1 to train a guide, but is 1: E_q[w] is p(x), whatever q"
        )


def coefficients(bound: Bound, log_weight: Tensor) -> tuple[Tensor, Tensor]:
    """What multiplies the gradients of log p and of log q at each draw, ``(K, N)`` both."""
    of_model, of_guide = torch.zeros_like(log_weight), torch.zeros_like(log_weight)
    match bound:
        case CUBO():
            share = (bound.n * log_weight).softmax(0)
            return of_model, (1 - bound.n) / bound.n * share
        case TVO():
            for width, beta, share in bound.intervals(log_weight):
                deviation = log_weight - weigh(share, log_weight)
                of_model = of_model + width * share * (1 + beta * deviation)
                of_guide = of_guide + width * share * ((1 - beta) * deviation - 1)
            return of_model, of_guide
    raise TypeError(f"bound: no self-normalised gradient is known for {type(bound).__name__}")
