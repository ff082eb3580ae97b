"""Real data with normal noise."""

from __future__ import annotations

import pyro.distributions as dist
import torch
from pyro.distributions.torch_distribution import TorchDistributionMixin
from torch import Tensor, nn


class LearnedScale(nn.Module):
    """A positive scale that is learned: one for all dimensions, or one each.

    Args:
        shape: ``()`` for a single scale, the data's shape for one per dimension.
        initial: its start.

    Example:
        >>> LearnedScale((784,), initial=0.5)().shape
        torch.Size([784])
    """

    def __init__(self, shape: tuple[int, ...] = (), initial: float = 1.0) -> None:
        super().__init__()
        if not initial > 0:
            raise ValueError(f"initial must be positive, but is {initial}")
        self.shape, self.initial = tuple(shape), initial
        self.log_scale = nn.Parameter(torch.full(self.shape, initial).log())

    def forward(self) -> Tensor:
        return self.log_scale.exp()


class Gaussian(nn.Module):
    """Real data, N(μ(z), σ²).

    Args:
        net: maps ``(z, *context)`` to the mean, ``(..., *data)``.
        scale: σ: a number, a :class:`LearnedScale`, or None for a network that returns the mean
            and log σ side by side along its last dimension.
        event_dim: dimensions of one datum.

    Raises:
        ValueError: a scale that is not positive; with None, a network whose output cannot be
            halved.
        TypeError: a scale of another kind.

    Example:
        >>> Gaussian(nn.Linear(2, 784), scale=0.1)(torch.zeros(5, 2)).event_shape
        torch.Size([784])
        >>> Gaussian(nn.Linear(2, 2 * 784), scale=None)(torch.zeros(5, 2)).event_shape
        torch.Size([784])
    """

    def __init__(
        self, net: nn.Module, scale: float | LearnedScale | None = 1.0, event_dim: int = 1
    ) -> None:
        super().__init__()
        if not isinstance(scale, int | float | LearnedScale | None):
            raise TypeError(
                f"scale must be a number, a LearnedScale or None, but is a {type(scale).__name__}"
            )
        if isinstance(scale, int | float) and not scale > 0:
            raise ValueError(f"scale must be positive, but is {scale}")
        self.net, self.scale, self.event_dim = net, scale, event_dim

    def forward(self, z: Tensor, *context: Tensor) -> TorchDistributionMixin:
        loc = self.net(z, *context)
        if self.scale is None:
            if loc.shape[-1] % 2:
                raise ValueError(
                    "net must return 2 D features (mean and log scale), "
                    f"but returns {loc.shape[-1]}"
                )
            loc, log_scale = loc.chunk(2, -1)
            scale = log_scale.exp()
        elif isinstance(self.scale, LearnedScale):
            scale = self.scale()
        else:
            scale = loc.new_tensor(self.scale)
        return dist.Normal(loc, scale).to_event(self.event_dim)
