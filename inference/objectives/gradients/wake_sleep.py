r"""Wake and sleep: each program follows a target of its own.

With self-normalised weights :math:`\tilde w_k`, per datum,

.. math:: \text{wake-}\theta: \; \sum_k \tilde w_k \nabla_\theta \log p_\theta(x, z_k), \qquad
          \text{wake-}\phi: \; \sum_k \tilde w_k \nabla_\phi \log q_\phi(z_k \mid x), \qquad
          \text{sleep-}\phi: \; \nabla_\phi \log q_\phi(z' \mid x'), \; (x', z') \sim p_\theta.

The first raises the IWAE. The second estimates, with a bias of O(1/K), the gradient of
:math:`\mathbb{E}_{p(z \mid x)} \log q_\phi(z \mid x)`, which the third takes exactly, on data that
the model dreams: so both draw the guide over the posterior and not, as the ELBO does, into it.
Nothing is reparameterised, and any latent will do. The wake-φ update of latents that can be
reparameterised also has a doubly reparameterised form, with weights
:math:`\tilde w_k - \tilde w_k^2` on the path.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ...layout import Layout
from ...programs import ProgramError, check_number
from ...ways import evaluate
from ...weights import simulate
from ..bounds import IWAE, Bound, weigh
from ..step import Step, hold
from .gradient import Ascent, Gradient, refuse
from .pathwise import through_draws


@dataclass(frozen=True)
class WakeSleep(Gradient):
    """Reweighted wake-sleep.

    Args:
        wake: weight of the wake update of the guide.
        sleep: weight of its sleep update.
        doubly_reparameterized: take the wake update of the guide through the draws.

    References:
        Bornschein and Bengio, *Reweighted wake-sleep*, 2015. Le, Kosiorek, Siddharth, Teh and
        Wood, *Revisiting reweighted wake-sleep for models with stochastic control flow*, 2019.
        Tucker and others, *Doubly reparameterized gradient estimators for Monte Carlo objectives*,
        2019.

    Example:
        >>> from pyrovae.inference import MonteCarloObjective, bounds
        >>> MonteCarloObjective(bounds.IWAE(), WakeSleep(sleep=0.5), num_particles=5).bound
        IWAE()
    """

    rescores = True

    wake: float = 1.0
    sleep: float = 0.0
    doubly_reparameterized: bool = False

    def __post_init__(self) -> None:
        for name in ("wake", "sleep"):
            check_number(name, getattr(self, name), 0)
        if self.wake == self.sleep == 0:
            raise ValueError("wake or sleep must be positive, but both are 0: no update is left")
        if self.doubly_reparameterized and self.wake != 1:
            raise ValueError(
                f"wake must be 1 where it is doubly reparameterised, but is {self.wake}"
            )

    @property
    def reparameterizes(self) -> bool:
        return self.doubly_reparameterized

    def check(self, bound: Bound, num_particles: int) -> None:
        if not isinstance(bound, IWAE):
            refuse(self, bound, "its wake update of the model is the gradient of the IWAE")

    def check_latents(self, layout: Layout) -> None:
        super().check_latents(layout)
        if self.sleep and layout.enumerated:
            raise ProgramError(
                f"latent {min(layout.enumerated)!r} is summed out: the sleep update needs its draws"
            )

    def ascend(self, step: Step, bound: Bound) -> Ascent:
        if self.doubly_reparameterized:
            log_weight = through_draws(step, lambda log_weight: 1 - log_weight.softmax(0))
            surrogate = weigh(log_weight.detach().softmax(0), log_weight)
        else:
            held = hold(step.sample())
            log_joint, log_guide = step.log_joint(held), step.log_guide(held)
            log_weight = (log_joint - log_guide).detach()
            share = log_weight.softmax(0)
            surrogate = weigh(share, log_joint) + self.wake * weigh(share, log_guide)
        if self.sleep:
            surrogate = surrogate + self.sleep * _dream(step)
        return Ascent(bound(log_weight.detach()), surrogate)


def _dream(step: Step) -> Tensor:
    """log q of the latents that the model dreamt, given the data that it made of them: ``(N,)``."""
    dream = simulate(step.model, step.args[0], *step.args[1:])
    args = (dream.as_data(step.args[0]), *step.args[1:])
    values = {name: value[None] for name, value in dream.latents.items()}
    run = evaluate("loop", None, step.guide, args, step.plan.layout, 1, values)
    return torch.stack(list(run.guide_sites.values())).sum((0, 1))
