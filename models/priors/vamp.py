"""Mixtures of posteriors as priors: components that an encoder makes of inputs."""

from __future__ import annotations

from contextlib import suppress
from typing import Any

import pyro.distributions as dist
import torch
from pyro.distributions.torch_distribution import TorchDistributionMixin
from torch import Tensor, nn

from ..distributions import DiagonalNormalMixture


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


def _check_inputs(name: str, inputs: Tensor) -> None:
    if not isinstance(inputs, Tensor):
        raise TypeError(f"{name} must be a tensor, but is a {type(inputs).__name__}")
    is_filled = inputs.dim() > 1 and inputs.numel() > 0
    if not is_filled or not inputs.is_floating_point():
        raise ValueError(
            f"{name} must be floating and of shape (M, ...), none of it 0, but are "
            f"{inputs.dtype} of shape {tuple(inputs.shape)}"
        )


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
        _check_inputs("pseudo_inputs", pseudo_inputs)
        if bounds is not None and not bounds[0] < bounds[1]:
            raise ValueError(f"bounds must be (low, high) with low < high, but are {bounds}")
        self.posterior, self.bounds = posterior, bounds
        self.pseudo_inputs = nn.Parameter(pseudo_inputs.detach().clone())

    @classmethod
    def from_data(
        cls,
        posterior: nn.Module,
        data: Tensor,
        num_pseudo_inputs: int,
        bounds: tuple[float, float] | None = None,
    ) -> VampPrior:
        """Pseudo-inputs that start as data, drawn without replacement by torch's generator.

        Raises:
            ValueError: there are fewer data.
        """
        if not 1 <= num_pseudo_inputs <= len(data):
            raise ValueError(
                f"num_pseudo_inputs must be between 1 and {len(data)}, the number of data they are "
                f"drawn from, but is {num_pseudo_inputs}"
            )
        rows = torch.randperm(len(data))[:num_pseudo_inputs].to(data.device)
        return cls(posterior, data[rows], bounds)

    def forward(self) -> TorchDistributionMixin:
        inputs: Tensor = self.pseudo_inputs
        if self.bounds is not None:
            inputs = _Clamp.apply(inputs, *self.bounds)
        return _mixture_of(self.posterior(inputs), inputs)


class ExemplarPrior(nn.Module):
    r"""A normal around the code of each of M exemplars, :math:`\frac1M \sum_m N(z; \mu(x_m), s^2)`.

    The means are the posterior's, held by reference; the scale s, one for all, is learned.
    Exemplars are training data, and stay as they are. At each step of training a random
    ``num_used`` of them stand for all; what is scored, in evaluation mode or without gradients,
    sees all. The exemplar that a training datum is itself is not left out.

    Args:
        posterior: the VAE's own.
        exemplars: ``(M, ...)`` like data.
        num_used: of them, at each step of training; None for all.

    Raises:
        TypeError: the posterior's distributions have no mean.
        ValueError: exemplars that are not floating, or too few.

    References:
        Norouzi, Fleet and Norouzi, *Exemplar VAE: linking generative models, nearest neighbor
        retrieval, and data augmentation*, 2020.

    Example:
        >>> from pyrovae.models.nets import MLP
        >>> from pyrovae.models.posteriors import DiagonalNormal
        >>> prior = ExemplarPrior(DiagonalNormal(MLP(6, 2 * 2)), torch.rand(50, 6), num_used=20)
        >>> prior().log_prob(torch.zeros(3, 2)).shape
        torch.Size([3])
    """

    exemplars: Tensor

    def __init__(
        self, posterior: nn.Module, exemplars: Tensor, num_used: int | None = None
    ) -> None:
        super().__init__()
        _check_inputs("exemplars", exemplars)
        if num_used is not None and not 1 <= num_used <= len(exemplars):
            raise ValueError(
                f"num_used must be between 1 and {len(exemplars)}, the number of exemplars, but is "
                f"{num_used}"
            )
        self.posterior, self.num_used = posterior, num_used
        self.register_buffer("exemplars", exemplars.detach().clone())
        self.log_scale = nn.Parameter(torch.zeros(()))

    def forward(self) -> TorchDistributionMixin:
        inputs = self.exemplars
        if self.num_used is not None and self.training and torch.is_grad_enabled():
            rows = torch.randperm(len(inputs), device=inputs.device)[: self.num_used]
            inputs = inputs[rows]
        components = self.posterior(inputs)
        loc: Any = None
        with suppress(NotImplementedError):
            loc = components.mean
        if not isinstance(loc, Tensor):  # of a tensor, the mean is a method
            raise TypeError(
                "posterior must give distributions that have a mean, but gives a "
                f"{type(components).__name__}"
            )
        scale = self.log_scale.exp().expand_as(loc)
        return DiagonalNormalMixture(loc.new_zeros(len(loc)), loc, scale)


def _mixture_of(components: TorchDistributionMixin, inputs: Tensor) -> TorchDistributionMixin:
    """The mixture, in equal parts, of the distributions that inputs led to."""
    logits = inputs.new_zeros(len(inputs))
    base: Any = getattr(components, "base_dist", None)
    if type(base) is dist.Normal and components.event_dim == 1:
        return DiagonalNormalMixture(logits, base.loc, base.scale)
    return dist.MixtureSameFamily(dist.Categorical(logits=logits), components)
