r"""A distribution whose draws are accepted or drawn again.

Of up to T proposals :math:`z \sim \pi`, the first one that is accepted, with probability a(z), is
the draw; the T-th is taken anyway. With :math:`Z = \mathbb{E}_\pi a`,

.. math:: p(z) = \pi(z) \Bigl[ a(z) \, \frac{1 - (1 - Z)^{T-1}}{Z} + (1 - Z)^{T-1} \Bigr].

Bauer and Mnih, *Resampled priors for variational autoencoders*, 2019.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, ClassVar

import torch
from pyro.distributions.torch_distribution import TorchDistribution
from torch import Tensor
from torch.nn.functional import logsigmoid


class Resampled(TorchDistribution):
    """Draws of a proposal, filtered.

    Args:
        proposal: π, of batch shape ``()``.
        logit: of the acceptance a(z), ``(..., *event)`` to ``(...)``.
        log_normaliser: log Z, a scalar.
        num_proposals: T, at least 2.

    Example:
        >>> import pyro.distributions as dist
        >>> normal = dist.Normal(torch.zeros(2), 1.0).to_event(1)
        >>> never_minds = lambda z: torch.zeros(z.shape[:-1])  # accepts half, wherever it is
        >>> one = Resampled(normal, never_minds, torch.tensor(0.5).log(), num_proposals=100)
        >>> z = torch.randn(3, 2)
        >>> torch.allclose(one.log_prob(z), normal.log_prob(z))
        True
    """

    arg_constraints: ClassVar[dict[str, Any]] = {}

    def __init__(
        self,
        proposal: TorchDistribution,
        logit: Callable[[Tensor], Tensor],
        log_normaliser: Tensor,
        num_proposals: int,
        validate_args: bool | None = None,
    ) -> None:
        self.proposal, self.logit = proposal, logit
        self.log_normaliser, self.num_proposals = log_normaliser, num_proposals
        super().__init__(torch.Size(), proposal.event_shape, validate_args=validate_args)

    @property
    def support(self) -> torch.distributions.constraints.Constraint:
        return self.proposal.support

    def sample(self, sample_shape: torch.Size = torch.Size()) -> Tensor:  # noqa: B008
        with torch.no_grad():
            z = self.proposal.sample(sample_shape)
            wide = (..., *[None] * len(self.event_shape))
            waiting = torch.ones(torch.Size(sample_shape), dtype=torch.bool, device=z.device)
            for _ in range(self.num_proposals - 1):
                chance = self.logit(z).sigmoid()
                waiting = waiting & (torch.rand_like(chance) >= chance)
                if not bool(waiting.any()):
                    break
                z = torch.where(waiting[wide], self.proposal.sample(sample_shape), z)
            return z

    def log_prob(self, value: Tensor) -> Tensor:
        if self._validate_args:
            self._validate_sample(value)
        # of Z, and of 1 - Z, something is left in any precision
        log_z = self.log_normaliser.clamp(-80.0, -torch.finfo(value.dtype).eps)
        log_never = (self.num_proposals - 1) * _log1mexp(log_z)
        log_sooner = _log1mexp(log_never) - log_z
        accepted = logsigmoid(self.logit(value)) + log_sooner
        return self.proposal.log_prob(value) + torch.logaddexp(accepted, log_never)


def _log1mexp(x: Tensor) -> Tensor:
    """log(1 - exp(x)) for x < 0, to all places where either term is small."""
    half = -math.log(2.0)
    near = torch.log(-torch.expm1(x.clamp(min=half)))
    return torch.where(x > half, near, torch.log1p(-x.clamp(max=half).exp()))


def log_mean(log_values: Tensor) -> tuple[Tensor, Tensor]:
    """The log of a mean of draws, and its standard error by the delta method; scalars."""
    count = len(log_values)
    log_value = log_values.logsumexp(0) - math.log(count)
    spread = (log_values - log_value).exp().var()
    return log_value, (spread / count).sqrt()
