r"""Priors p(z): modules whose call returns a distribution over codes, event shape ``(Z,)``.

The prior decides what the rate of a code costs, :math:`\mathrm{KL}(q(z \mid x) \| p(z))`. The
best one for a given encoder is the aggregate posterior :math:`\frac1N \sum_n q(z \mid x_n)`;
mixtures and the VampPrior move towards it.
"""

from __future__ import annotations

import math
from typing import Any

import pyro.distributions as dist
import torch
from pyro.distributions.torch_distribution import TorchDistributionMixin
from torch import Tensor, nn

from .checks import check_counts
from .independent import NormalVector
from .mixtures import DiagonalNormalMixture


class StandardNormal(nn.Module):
    """N(0, I).

    Example:
        >>> StandardNormal(3)().event_shape
        torch.Size([3])
    """

    loc: Tensor

    def __init__(self, latent_dim: int) -> None:
        super().__init__()
        check_counts(latent_dim=latent_dim)
        self.latent_dim = latent_dim
        # a buffer, so that the prior follows the module's device and dtype
        self.register_buffer("loc", torch.zeros(latent_dim), persistent=False)

    def forward(self) -> TorchDistributionMixin:
        return NormalVector(dist.Normal(self.loc, torch.ones_like(self.loc)), 1)


class GaussianMixture(nn.Module):
    """A learned mixture of M diagonal normals, started on a sphere of unit components.

    Example:
        >>> GaussianMixture(2, num_components=10)().log_prob(torch.zeros(5, 2)).shape
        torch.Size([5])
    """

    def __init__(self, latent_dim: int, num_components: int = 10) -> None:
        super().__init__()
        check_counts(latent_dim=latent_dim, num_components=num_components)
        self.latent_dim, self.num_components = latent_dim, num_components
        start = torch.randn(num_components, latent_dim)
        self.logits = nn.Parameter(torch.zeros(num_components))
        self.loc = nn.Parameter(start * (math.sqrt(latent_dim) / start.norm(dim=-1, keepdim=True)))
        self.log_scale = nn.Parameter(torch.zeros(num_components, latent_dim))

    def forward(self) -> TorchDistributionMixin:
        return DiagonalNormalMixture(self.logits, self.loc, self.log_scale.exp())


class _Clamp(torch.autograd.Function):
    """Clamping whose gradient, outside, is that at the bound where a descent would lead inside.

    That of ``Tensor.clamp`` is zero outside. Pixels that start black or white are carried there by
    the first steps, and half of all would never move again.
    """

    generate_vmap_rule = True

    @staticmethod
    def forward(inputs: Tensor, low: float, high: float) -> Tensor:
        return inputs.clamp(low, high)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, float, float], output: Tensor) -> None:
        ctx.save_for_backward(inputs[0])
        ctx.low, ctx.high = inputs[1:]

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
        (inputs,) = ctx.saved_tensors
        outwards = (inputs < ctx.low) & (gradient > 0) | (inputs > ctx.high) & (gradient < 0)
        return gradient.masked_fill(outwards, 0.0), None, None


class VampPrior(nn.Module):
    r"""The variational mixture of posteriors, :math:`\frac1M \sum_m q(z \mid u_m)`.

    The pseudo-inputs u are learned with the rest. The posterior is held by reference: it is the
    VAE's own, and its parameters count once.

    Args:
        posterior: the VAE's posterior module.
        pseudo_inputs: their start, ``(M, ...)`` like data; training data make a good one.
        bounds: where given, the posterior sees the pseudo-inputs clamped into them, as pixels are.
            An entry that a step carried outside keeps the part of its gradient along which descent
            leads back inside, so that none is stuck at its bound.

    References:
        Tomczak and Welling, *VAE with a VampPrior*, 2018.

    Example:
        >>> from pyrovae.models.nets import MLP
        >>> from pyrovae.models.posteriors import DiagonalNormal
        >>> prior = VampPrior(DiagonalNormal(MLP(6, 2 * 2)), torch.rand(5, 6))
        >>> prior().log_prob(torch.zeros(3, 2)).shape
        torch.Size([3])
    """

    def __init__(
        self,
        posterior: nn.Module,
        pseudo_inputs: Tensor,
        bounds: tuple[float, float] | None = None,
    ) -> None:
        super().__init__()
        is_filled = pseudo_inputs.dim() > 1 and pseudo_inputs.numel() > 0
        if not is_filled or not pseudo_inputs.is_floating_point():
            raise ValueError(
                "pseudo_inputs must be floating and of shape (M, ...), none of it 0, but are "
                f"{pseudo_inputs.dtype} of shape {tuple(pseudo_inputs.shape)}"
            )
        if bounds is not None and not bounds[0] < bounds[1]:
            raise ValueError(f"bounds must be (low, high) with low < high, but are {bounds}")
        self.posterior, self.bounds = posterior, bounds
        self.pseudo_inputs = nn.Parameter(pseudo_inputs.detach().clone())

    def forward(self) -> TorchDistributionMixin:
        inputs: Tensor = self.pseudo_inputs
        if self.bounds is not None:
            inputs = _Clamp.apply(inputs, *self.bounds)
        components = self.posterior(inputs)
        logits = components.mean.new_zeros(len(inputs))
        base = getattr(components, "base_dist", None)
        if isinstance(base, dist.Normal) and components.event_dim == 1:
            return DiagonalNormalMixture(logits, base.loc, base.scale)
        return dist.MixtureSameFamily(dist.Categorical(logits=logits), components)
