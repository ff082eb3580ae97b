"""Real data with noise of heavy tails."""

from __future__ import annotations

import math

import torch
from pyro.distributions.torch_distribution import TorchDistributionMixin
from torch import Tensor, nn

from ..distributions import StableStudentT
from .features import check_positive, positive_like, split_features
from .gaussian import LearnedScale


class LearnedDegrees(nn.Module):
    """Degrees of freedom that are learned, above a floor: one for all dimensions, or one each.

    Args:
        shape: ``()`` for a single number, the data's shape for one per dimension.
        initial: their start.
        floor: what they stay above: at 1 the mean exists, at 2 the variance.

    Raises:
        ValueError: a negative floor, or a start that is not above it.

    Example:
        >>> LearnedDegrees((784,), initial=5.0)().shape
        torch.Size([784])
    """

    def __init__(
        self, shape: tuple[int, ...] = (), initial: float = 5.0, floor: float = 2.0
    ) -> None:
        super().__init__()
        if not floor >= 0:
            raise ValueError(f"floor must be at least 0, but is {floor}")
        if not initial > floor:
            raise ValueError(f"initial must be above the floor {floor}, but is {initial}")
        self.shape, self.initial, self.floor = tuple(shape), initial, floor
        self.log_excess = nn.Parameter(torch.full(self.shape, initial - floor).log())

    def forward(self) -> Tensor:
        return self.floor + self.log_excess.exp()


class StudentT(nn.Module):
    """Real data, Student's t with ν degrees of freedom about μ(z).

    Args:
        net: maps ``(z, *context)`` to the location μ, ``(..., *data)``.
        df: ν: a number or a :class:`LearnedDegrees`. At 1 or less there is no mean, and
            ``VAE.reconstruct`` shows NaN.
        scale: a number, a :class:`~pyrovae.models.likelihoods.LearnedScale`, or None for a network
            that returns the location and the log scale side by side along its last dimension. The
            standard deviation is ``scale * sqrt(ν / (ν - 2))``.
        event_dim: dimensions of one datum.

    Raises:
        ValueError: degrees that are not positive and finite, or a scale that is not positive; with
            a scale of None, a network whose output cannot be halved.
        TypeError: degrees or a scale of another kind.

    References:
        Takahashi, Iwata, Yamanaka, Yamada and Yagi, *Student-t variational autoencoder for robust
        density estimation*, 2018.

    Example:
        >>> StudentT(nn.Linear(2, 784), df=LearnedDegrees())(torch.zeros(5, 2)).event_shape
        torch.Size([784])
    """

    def __init__(
        self,
        net: nn.Module,
        df: float | LearnedDegrees = 5.0,
        scale: float | LearnedScale | None = 1.0,
        event_dim: int = 1,
    ) -> None:
        super().__init__()
        if not isinstance(df, int | float | LearnedDegrees):
            raise TypeError(
                f"df must be a number or a LearnedDegrees, but is a {type(df).__name__}"
            )
        if isinstance(df, int | float) and not 0 < df < math.inf:
            raise ValueError(f"df must be positive and finite, but is {df}")
        check_positive("scale", scale)
        self.net, self.df, self.scale, self.event_dim = net, df, scale, event_dim

    def forward(self, z: Tensor, *context: Tensor) -> TorchDistributionMixin:
        loc = self.net(z, *context)
        if self.scale is None:
            loc, log_scale = split_features(loc, "location", "log scale")
            scale = log_scale.exp()
        else:
            scale = positive_like(loc, self.scale)
        df = self.df() if isinstance(self.df, LearnedDegrees) else loc.new_tensor(self.df)
        return StableStudentT(df, loc, scale).to_event(self.event_dim)
