r"""Distributions on the unit sphere :math:`S^{d-1}` of :math:`\mathbb{R}^d`, with draws that move.

Densities are taken with respect to area, of which the sphere has
:math:`|S^{d-1}| = 2 \pi^{d/2} / \Gamma(d/2)`. The von Mises-Fisher law of direction :math:`\mu` and
concentration :math:`\kappa` is

.. math:: \log p(z) = \kappa (\mu^\top z - 1) - \log |S^{d-2}| - \log I(\kappa).

A draw is :math:`z = \mu \cos\theta + t \sin\theta`: :math:`\theta` and :math:`I` are those of
:class:`~pyrovae.models.distributions.polar_angle.PolarAngle`, and t is uniform among the unit
vectors orthogonal to :math:`\mu`. Where :math:`\mu` moves, t follows by the smallest rotation,

.. math:: t(\mu') = t - \frac{t^\top \mu'}{1 + \mu^\top \mu'} (\mu + \mu').

A frame that is fixed over the whole sphere, as that of a Householder reflection of :math:`e_1`,
would have a pole, near which gradients have no bound.
"""

from __future__ import annotations

import math
from typing import Any, ClassVar

import torch
from pyro.distributions import constraints
from pyro.distributions.torch_distribution import TorchDistribution
from torch import Tensor
from torch.distributions.kl import register_kl

from .polar_angle import PolarAngle


def _log_area(dim: int) -> float:
    """log of the area of the unit sphere of R^dim."""
    return math.log(2) + dim / 2 * math.log(math.pi) - math.lgamma(dim / 2)


def _uniform(shape: torch.Size, like: Tensor) -> Tensor:
    draw = torch.randn(shape, dtype=like.dtype, device=like.device)
    # in single precision one number of 2²⁴ is exactly 0, which by itself has no direction
    draw = draw.masked_fill(draw == 0, torch.finfo(like.dtype).eps)
    return draw / draw.norm(dim=-1, keepdim=True)


def _check_dim(name: str, vector: Tensor) -> None:
    if vector.dim() < 1 or vector.shape[-1] < 2:
        raise ValueError(
            f"{name} must have at least 2 components, but is of shape {tuple(vector.shape)}"
        )


class _OnSphere(TorchDistribution):
    support = constraints.sphere
    has_rsample = True

    def _check_value(self, value: Tensor) -> None:
        if value.shape[-1:] != self.event_shape:  # a single component would broadcast
            raise ValueError(
                f"value must end in the event shape {tuple(self.event_shape)}, "
                f"but has shape {tuple(value.shape)}"
            )
        if self._validate_args:
            self._validate_sample(value)


class VonMisesFisher(_OnSphere):
    r"""Directions around a mean direction: density proportional to :math:`e^{\kappa \mu^\top z}`.

    Draws carry gradients of any order in both arguments. Densities keep their precision where κ is
    large, as :math:`\mu^\top z - 1 = -\|z - \mu\|^2 / 2`.

    Args:
        direction: the unit vector μ, ``(..., d)``, d at least 2.
        concentration: κ, not negative, ``(...)``; at 0 the law is uniform.

    Raises:
        ValueError: a direction in fewer than 2 dimensions.

    References:
        Davidson, Falorsi, De Cao, Kipf and Tomczak, *Hyperspherical variational auto-encoders*,
        2018.

    Example:
        >>> north = torch.tensor([0.0, 0.0, 1.0])
        >>> VonMisesFisher(north, torch.tensor(2.0)).mean
        tensor([0.0000, 0.0000, 0.5373])
        >>> round(1 / math.tanh(2) - 1 / 2, 4)  # its length in three dimensions
        0.5373
    """

    arg_constraints = {  # noqa: RUF012 - the torch.distributions convention
        "direction": constraints.sphere,
        "concentration": constraints.nonnegative,
    }

    def __init__(
        self, direction: Tensor, concentration: Tensor, validate_args: bool | None = None
    ) -> None:
        _check_dim("direction", direction)
        batch = torch.broadcast_shapes(direction.shape[:-1], concentration.shape)
        self.direction = direction.expand(*batch, -1)
        self.concentration = concentration.expand(batch)
        super().__init__(batch, direction.shape[-1:], validate_args=validate_args)
        self._angle = PolarAngle(concentration, direction.shape[-1])

    def expand(self, batch_shape: torch.Size, _instance: Any = None) -> VonMisesFisher:
        new = self._get_checked_instance(VonMisesFisher, _instance)
        batch = torch.Size(batch_shape)
        new.direction = self.direction.expand(*batch, -1)
        new.concentration = self.concentration.expand(batch)
        new._angle = self._angle  # one table for all copies
        super(VonMisesFisher, new).__init__(batch, self.event_shape, validate_args=False)
        new._validate_args = self._validate_args
        return new

    def rsample(self, sample_shape: torch.Size = torch.Size()) -> Tensor:  # noqa: B008
        mean = self.direction
        shape = self._extended_shape(sample_shape)
        theta = self._angle.rsample(shape[:-1])[..., None]
        with torch.no_grad():
            # the reflection that takes e₁ or -e₁ to μ, whichever is further from it, of (0, v)
            v = _uniform(torch.Size((*shape[:-1], shape[-1] - 1)), mean)
            first, rest = mean[..., :1], mean[..., 1:]
            along = (rest * v).sum(-1, keepdim=True)
            start = torch.where(first < 0, along, -along)
            tangent = torch.cat((start, v - rest * along / (1 + first.abs())), -1)
            here = mean.detach()
        lean = (tangent * mean).sum(-1, keepdim=True) / (1 + (here * mean).sum(-1, keepdim=True))
        tangent = tangent - lean * (here + mean)
        return theta.cos().to(mean.dtype) * mean + theta.sin().to(mean.dtype) * tangent

    def log_prob(self, value: Tensor) -> Tensor:
        self._check_value(value)
        square = (value - self.direction).square().sum(-1)
        return -0.5 * self.concentration * square - self._log_volume().to(square.dtype)

    def _log_volume(self) -> Tensor:
        return _log_area(self.event_shape[0] - 1) + self._angle.log_normaliser

    @property
    def mean(self) -> Tensor:
        """The mean of z in space, which is shorter than 1: ``(..., d)``."""
        return self._angle.mean_cosine[..., None].to(self.direction.dtype) * self.direction

    def entropy(self) -> Tensor:
        """In nats, ``(...)``."""
        entropy = self._log_volume() + self.concentration.double() * self._angle.mean_fall
        return entropy.to(self.direction.dtype)


class SphereUniform(_OnSphere):
    """The uniform law on the sphere.

    Args:
        like: ``(..., d)``, d at least 2: the shape, dtype and device of draws; of no other use.

    Raises:
        ValueError: fewer than 2 dimensions.

    Example:
        >>> z = torch.tensor([0.6, 0.0, 0.8])
        >>> SphereUniform(torch.zeros(3)).log_prob(z).exp() * 4 * math.pi
        tensor(1.0000)
    """

    arg_constraints: ClassVar[dict[str, Any]] = {}

    def __init__(self, like: Tensor, validate_args: bool | None = None) -> None:
        _check_dim("like", like)
        self.like = like
        super().__init__(like.shape[:-1], like.shape[-1:], validate_args=validate_args)

    def expand(self, batch_shape: torch.Size, _instance: Any = None) -> SphereUniform:
        new = self._get_checked_instance(SphereUniform, _instance)
        batch = torch.Size(batch_shape)
        new.like = self.like.expand(*batch, -1)
        super(SphereUniform, new).__init__(batch, self.event_shape, validate_args=False)
        new._validate_args = self._validate_args
        return new

    def rsample(self, sample_shape: torch.Size = torch.Size()) -> Tensor:  # noqa: B008
        return _uniform(self._extended_shape(sample_shape), self.like)

    def log_prob(self, value: Tensor) -> Tensor:
        self._check_value(value)
        shape = torch.broadcast_shapes(self.batch_shape, value.shape[:-1])
        return value.new_full(shape, -_log_area(self.event_shape[0]))

    @property
    def mean(self) -> Tensor:
        return torch.zeros_like(self.like)

    def entropy(self) -> Tensor:
        return self.like.new_full(self.batch_shape, _log_area(self.event_shape[0]))


@register_kl(VonMisesFisher, SphereUniform)
def _kl_to_uniform(p: VonMisesFisher, q: SphereUniform) -> Tensor:
    if p.event_shape != q.event_shape:
        raise ValueError(
            f"both must lie on one sphere, but have event shapes {tuple(p.event_shape)} and "
            f"{tuple(q.event_shape)}"
        )
    return q.entropy() - p.entropy()
