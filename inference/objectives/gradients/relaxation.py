r"""Relaxations: discrete latents drawn as a differentiable function of their logits and of noise.

With Gumbel noise g and a temperature τ,

.. math:: \tilde z = \mathrm{softmax}\bigl((\mathrm{logits} + g) / \tau\bigr), \quad
          z = \text{one-hot}(\arg\max \tilde z),

so that z is a draw of the categorical distribution and :math:`\tilde z` tends to it as τ falls; for
a Bernoulli latent the same with a logistic variable and a sigmoid. The mass functions of guide and
prior are extended linearly to what lies between, :math:`\log m(\tilde z) = \sum_c \tilde z_c \log
m_c`.

:class:`StraightThrough` runs the programs at z and takes the gradient as if z were
:math:`\tilde z`: the value is a bound, its gradient is biased. :class:`Relaxed` runs them at
:math:`\tilde z`: the gradient is right for the relaxed objective, whose value is no bound. In both,
the programs themselves stay as they are, so whatever is scored is scored with hard draws.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import pyro.distributions as dist
import torch
from pyro.distributions.torch_distribution import TorchDistribution
from pyro.poutine.messenger import Messenger
from pyro.poutine.runtime import Message
from torch import Tensor
from torch.distributions import constraints

from ...layout import Layout
from ...programs import Program, ProgramError, check_number
from ..bounds import Bound
from ..step import Step
from .gradient import Ascent, Gradient, refuse_upper

_RELAXED = (dist.OneHotCategorical, dist.Bernoulli)


class RelaxedMass(TorchDistribution):
    """A discrete distribution drawn by a relaxation, its mass extended linearly.

    Args:
        exact: a OneHotCategorical or a Bernoulli.
        temperature: τ.
        hard: whether a draw is rounded, and only its gradient relaxed.

    Example:
        >>> exact = dist.OneHotCategorical(logits=torch.zeros(3))
        >>> draw = RelaxedMass(exact, temperature=0.5, hard=True).rsample()
        >>> sorted(draw.tolist())
        [0.0, 0.0, 1.0]
    """

    arg_constraints: ClassVar[dict] = {}
    has_rsample = True

    def __init__(
        self, exact: Any, temperature: float, hard: bool, validate_args: bool | None = None
    ) -> None:
        self.exact, self.temperature, self.hard = exact, temperature, hard
        super().__init__(exact.batch_shape, exact.event_shape, validate_args=False)

    @property
    def support(self) -> Any:
        return constraints.independent(constraints.real, len(self.event_shape))

    def expand(self, batch_shape: Any, _instance: Any = None) -> RelaxedMass:
        return RelaxedMass(self.exact.expand(batch_shape), self.temperature, self.hard)

    def rsample(self, sample_shape: torch.Size = torch.Size()) -> Tensor:  # noqa: B008
        logits = self.exact.logits
        shape = self._extended_shape(sample_shape)
        if self.event_shape:
            zero = torch.zeros((), dtype=logits.dtype, device=logits.device)
            noise = torch.distributions.Gumbel(zero, zero + 1).sample(shape)
            soft = ((logits + noise) / self.temperature).softmax(-1)
            hard = torch.zeros_like(soft).scatter(-1, soft.argmax(-1, keepdim=True), 1.0)
        else:
            uniform = torch.rand(shape, dtype=logits.dtype, device=logits.device)
            uniform = uniform.clamp(torch.finfo(logits.dtype).tiny, 1 - torch.finfo().eps)
            soft = ((logits + torch.logit(uniform)) / self.temperature).sigmoid()
            hard = (soft > 0.5).to(soft.dtype)
        return soft + (hard - soft).detach() if self.hard else soft

    def log_prob(self, value: Tensor) -> Tensor:
        logits = self.exact.logits
        if self.event_shape:
            return (value * logits.log_softmax(-1)).sum(-1)
        return value * logits - torch.nn.functional.softplus(logits)


class _Relax(Messenger):
    """Replaces the distributions of discrete latents as the program runs."""

    def __init__(self, temperature: float, hard: bool) -> None:
        super().__init__()
        self.temperature, self.hard = temperature, hard

    def _pyro_sample(self, msg: Message) -> None:
        if not msg["is_observed"] and msg["infer"].get("enumerate") != "parallel":
            msg["fn"] = self._relax(msg["fn"])

    def _relax(self, fn: Any) -> Any:
        if isinstance(fn, torch.distributions.Independent):
            base = self._relax(fn.base_dist)
            return fn if base is fn.base_dist else base.to_event(fn.reinterpreted_batch_ndims)
        if isinstance(fn, dist.torch_distribution.ExpandedDistribution):
            base = self._relax(fn.base_dist)
            return fn if base is fn.base_dist else base.expand(fn.batch_shape)
        return RelaxedMass(fn, self.temperature, self.hard) if isinstance(fn, _RELAXED) else fn


@dataclass(frozen=True)
class Relaxation(Gradient):
    temperature: float = 1.0

    hard: ClassVar[bool]

    def __post_init__(self) -> None:
        check_number("temperature", self.temperature, 0, strict=True)

    def check(self, bound: Bound, num_particles: int) -> None:
        refuse_upper(self, bound)

    def check_latents(self, layout: Layout) -> None:
        for name, latent in layout.latents.items():
            if latent.distribution in ("Categorical", "Binomial", "Poisson", "Geometric"):
                raise ProgramError(
                    f"guide site '{name}' ({latent.distribution}) has no relaxation: draw a "
                    "OneHotCategorical or a Bernoulli, or use ScoreFunction or VIMCO"
                )
        super().check_latents(layout)
        if not any(one.distribution == RelaxedMass.__name__ for one in layout.latents.values()):
            raise ProgramError(
                f"no latent ({', '.join(layout.latents)}) is a OneHotCategorical or a Bernoulli, "
                "which leaves nothing to relax: use Pathwise"
            )

    def wrap(self, model: Program, guide: Program) -> tuple[Program, Program]:
        relax = _Relax(self.temperature, self.hard)
        return relax(model), relax(guide)

    def ascend(self, step: Step, bound: Bound) -> Ascent:
        value = bound(step.joint().log_weight)
        return Ascent(value, value)


@dataclass(frozen=True)
class StraightThrough(Relaxation):
    """Hard draws, and the gradient of relaxed ones: biased, and low in variance.

    Args:
        temperature: τ of the relaxation whose gradient it is.

    References:
        Bengio, Léonard and Courville, *Estimating or propagating gradients through stochastic
        neurons for conditional computation*, 2013. Jang, Gu and Poole, *Categorical
        reparameterization with Gumbel-softmax*, 2017.

    Example:
        >>> import pyro
        >>> from pyrovae.inference import MonteCarloObjective, bounds
        >>> logit = torch.zeros((), requires_grad=True)
        >>> def model(x):
        ...     with pyro.plate("data", len(x)):
        ...         c = pyro.sample("c", dist.Bernoulli(0.5))
        ...         pyro.sample("x", dist.Normal(c, 1.0), obs=x)
        >>> def guide(x):
        ...     with pyro.plate("data", len(x)):
        ...         pyro.sample("c", dist.Bernoulli(logits=logit))
        >>> objective = MonteCarloObjective(bounds.ELBO(), StraightThrough(temperature=0.5))
        >>> objective.differentiable_loss(model, guide, torch.ones(3)).backward()
        >>> bool(logit.grad != 0)
        True
    """

    hard = True


@dataclass(frozen=True)
class Relaxed(Relaxation):
    """Relaxed draws, also called concrete or Gumbel-softmax: right for the relaxed objective.

    Args:
        temperature: τ.

    References:
        Maddison, Mnih and Teh, *The concrete distribution: a continuous relaxation of discrete
        random variables*, 2017. Jang, Gu and Poole, *Categorical reparameterization with
        Gumbel-softmax*, 2017.

    Example:
        >>> from pyrovae.inference import MonteCarloObjective, bounds
        >>> MonteCarloObjective(bounds.IWAE(), Relaxed(temperature=0.5), num_particles=8)
        MonteCarloObjective(IWAE(), Relaxed(temperature=0.5), num_particles=8)
    """

    hard = False
