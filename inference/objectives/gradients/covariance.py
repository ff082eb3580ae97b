r"""The thermodynamic objective's own gradient: covariances under each :math:`\pi_\beta`.

.. math:: \nabla \mathbb{E}_{\pi_\beta}[\log w] = \mathbb{E}_{\pi_\beta}[\nabla \log w]
          + \mathrm{Cov}_{\pi_\beta}\bigl(\nabla \log \tilde\pi_\beta, \log w\bigr), \quad
          \nabla \log \tilde\pi_\beta = (1 - \beta) \nabla \log q + \beta \nabla \log p,

each under the self-normalised weights :math:`w_k^\beta`. It holds the draws, so that any latent
will do, and is the gradient of the exact expectations' sum but for a bias of O(1/K); that of the
K-particle estimate is :class:`Pathwise`'s.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from ..bounds import TVO, Bound
from ..step import Step, hold
from .gradient import Ascent, Gradient, refuse


@dataclass(frozen=True)
class Covariance(Gradient):
    """The covariance gradient of the TVO.

    References:
        Masrani, Le and Wood, *The thermodynamic variational objective*, 2019.
    """

    rescores = True
    reparameterizes = False

    def check(self, bound: Bound, num_particles: int) -> None:
        if not isinstance(bound, TVO):
            refuse(self, bound, "it is the TVO's")

    def ascend(self, step: Step, bound: Bound) -> Ascent:
        assert isinstance(bound, TVO)
        held = hold(step.sample())
        log_joint, log_guide = step.log_joint(held), step.log_guide(held)
        log_weight = (log_joint - log_guide).detach()
        of_model, of_guide = torch.zeros_like(log_weight), torch.zeros_like(log_weight)
        for width, beta, share in bound.intervals(log_weight):
            deviation = log_weight - (share * log_weight).sum(0)
            of_model = of_model + width * share * (1 + beta * deviation)
            of_guide = of_guide + width * share * ((1 - beta) * deviation - 1)
        return Ascent(bound(log_weight), (of_model * log_joint + of_guide * log_guide).sum())
