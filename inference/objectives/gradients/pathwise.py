r"""Gradients through the draws, :math:`z_k = T(\varepsilon_k; \phi)`.

With :math:`a_k = \partial L / \partial \log w_k` the slope of a bound, its gradient is

.. math:: \sum_k a_k \Bigl( \nabla_\theta \log p_\theta(x, z_k)
          + \frac{\partial \log w_k}{\partial z_k} \frac{\partial z_k}{\partial \phi}
          - \partial_\phi \log q_\phi(z_k \mid x) \big|_{z_k} \Bigr).

:class:`Pathwise` takes it as it is. The last term is a score, of mean zero for the ELBO, that does
not vanish at the posterior: :class:`StickingTheLanding` drops it. For other bounds that leaves a
bias, since :math:`a_k` depends on :math:`z_k`: :class:`DoublyReparameterized` turns the score into
another path term, which changes the weight of the second one from :math:`a_k` to

.. math:: c_k = a_k - \frac{\partial a_k}{\partial \log w_k},

for the IWAE :math:`\tilde w_k^2`. The draws of a hierarchy are one z here, and T its whole sampling
path: the guide's densities are evaluated anew at the draws, so that what conditions a latent on
another counts as a part of :math:`\partial \log w_k / \partial z_k` (the first generalisation of
Bauer and Mnih).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from ..bounds import CIWAE, ELBO, IWAE, MIWAE, Bound, Renyi
from ..step import Step, hold, hooked
from .gradient import Ascent, Gradient, refuse, refuse_upper


@dataclass(frozen=True)
class Pathwise(Gradient):
    """The reparameterisation gradient: unbiased for the mean of the K-particle bound.

    For TVO and Renyi that is a target of its own, off the exact expectations' by O(1/K).

    References:
        Kingma and Welling, *Auto-encoding variational Bayes*, 2014. Burda, Grosse and
        Salakhutdinov, *Importance weighted autoencoders*, 2016.

    Example:
        >>> from pyrovae.inference import MonteCarloObjective, bounds
        >>> from pyrovae.models import LinearGaussianVAE
        >>> linear = LinearGaussianVAE(data_dim=4, latent_dim=2).double()
        >>> x = linear.sample(5)
        >>> objective = MonteCarloObjective(bounds.IWAE(), Pathwise(), num_particles=5)
        >>> objective.differentiable_loss(linear.model, linear.guide, x).backward()
        >>> bool((linear.decoder.weight.grad != 0).any())
        True
    """

    def check(self, bound: Bound, num_particles: int) -> None:
        refuse_upper(self, bound)

    def ascend(self, step: Step, bound: Bound) -> Ascent:
        value = bound(step.joint().log_weight)
        return Ascent(value, value)


@dataclass(frozen=True)
class StickingTheLanding(Gradient):
    """Without the score term: no variance where the guide is the posterior.

    Unbiased for the ELBO; for the other bounds biased for φ at K > 1 (not for θ), most where the
    guide is far off.

    References:
        Roeder, Wu and Duvenaud, *Sticking the landing: simple, lower-variance gradient estimators
        for variational inference*, 2017.

    Example:
        >>> import pyro, pyro.distributions as dist
        >>> from pyrovae.inference import MonteCarloObjective, bounds
        >>> loc = torch.tensor(0.5, dtype=torch.float64, requires_grad=True)
        >>> def model(x):
        ...     with pyro.plate("data", len(x)):
        ...         z = pyro.sample("z", dist.Normal(torch.zeros_like(x), 1.0))
        ...         pyro.sample("x", dist.Normal(z, 1.0), obs=x)
        >>> def posterior(x):  # at loc = 1/2
        ...     with pyro.plate("data", len(x)):
        ...         pyro.sample("z", dist.Normal(loc * x, 0.5**0.5))
        >>> objective = MonteCarloObjective(bounds.ELBO(), StickingTheLanding(), num_particles=5)
        >>> objective.differentiable_loss(model, posterior, torch.ones(3).double()).backward()
        >>> bool(loc.grad.abs() < 1e-12)  # whatever was drawn
        True
    """

    rescores = True

    def check(self, bound: Bound, num_particles: int) -> None:
        refuse_upper(self, bound)
        if not isinstance(bound, ELBO | IWAE | MIWAE | CIWAE | Renyi):
            refuse(self, bound, "the score that it drops is a part of this bound's gradient")

    def ascend(self, step: Step, bound: Bound) -> Ascent:
        value = bound(through_draws(step))
        return Ascent(value, value)


@dataclass(frozen=True)
class DoublyReparameterized(Gradient):
    """The score term reparameterised once more: unbiased, and no variance at the posterior.

    References:
        Tucker, Lawson, Gu and Maddison, *Doubly reparameterized gradient estimators for Monte Carlo
        objectives*, 2019. Bauer and Mnih, *Generalized doubly reparameterized gradient estimators*,
        2021.

    Example:
        >>> from pyrovae.inference import MonteCarloObjective, bounds
        >>> MonteCarloObjective(bounds.MIWAE(4), DoublyReparameterized(), num_particles=8)
        MonteCarloObjective(MIWAE(num_groups=4), DoublyReparameterized(), num_particles=8)
    """

    rescores = True

    def check(self, bound: Bound, num_particles: int) -> None:
        refuse_upper(self, bound)
        if not isinstance(bound, ELBO | IWAE | MIWAE | CIWAE | Renyi):
            refuse(self, bound, "its slopes change sign, and the path's weight has no closed form")

    def ascend(self, step: Step, bound: Bound) -> Ascent:
        value = bound(through_draws(step, lambda log_weight: path_share(bound, log_weight)))
        return Ascent(value, value)


def path_share(bound: Bound, log_weight: Tensor) -> Tensor:
    r""":math:`c_k / a_k`: what is left of a slope when the score is reparameterised, ``(K, N)``.

    Example:
        >>> path_share(IWAE(), torch.zeros(4, 1)).flatten()  # the self-normalised weights
        tensor([0.2500, 0.2500, 0.2500, 0.2500])
    """
    match bound:
        case ELBO():
            return torch.ones_like(log_weight)
        case IWAE():
            return log_weight.softmax(0)
        case MIWAE():
            return bound.groups(log_weight).softmax(0).transpose(0, 1).reshape(log_weight.shape)
        case CIWAE():
            if bound.beta == 0:
                return log_weight.softmax(0)
            even, weight = bound.beta / len(log_weight), log_weight.softmax(0)
            rest = (1 - bound.beta) * weight
            return (even + rest * weight) / (even + rest)
        case Renyi():
            return bound.alpha + (1 - bound.alpha) * ((1 - bound.alpha) * log_weight).softmax(0)
    raise TypeError(f"bound: no path share is known for {type(bound).__name__}")


def through_draws(step: Step, share: Callable[[Tensor], Tensor] | None = None) -> Tensor:
    """Log-weights, ``(K, N)``, with log q's own gradient at fixed draws taken out.

    What flows back into each draw is multiplied by ``share(log_weight)``, ``(K, N)``.
    """
    values = step.sample()
    known: list[Tensor] = []

    def scale(name: str, gradient: Tensor) -> Tensor:
        return gradient * step.align(known[0], name, gradient)

    seen = values if share is None else hooked(values, scale)
    score = step.log_guide(hold(values))
    log_guide = step.log_guide(seen) - (score - score.detach())
    log_weight = step.log_joint(seen) - step.beta * log_guide
    if share is not None:
        known.append(share(log_weight.detach()))
    return log_weight
