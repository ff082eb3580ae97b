"""Likelihoods of data on L levels in [0, 1]: pixels of one byte, as k / 255.

Each level has a probability, so log p(x) is comparable between models as a density of pixels that
are taken for real numbers is not, and no noise is needed; see
:func:`~pyrovae.models.dequantisation.bits_per_dimension`.
"""

from __future__ import annotations

import pyro.distributions as dist
from pyro.distributions.torch_distribution import TorchDistributionMixin
from torch import Tensor, nn

from ..checks import check_counts
from ..distributions import RoundedLogistic
from ..distributions.grid import check_num_levels
from .features import check_positive, group_features, positive_like, split_features
from .gaussian import LearnedScale


class DiscretizedLogistic(nn.Module):
    """Levels k / (L - 1), k = 0 ... L - 1: a logistic variable, rounded.

    Args:
        net: maps ``(z, *context)`` to the mean before rounding, ``(..., *data)``, in the units of
            the data and not bounded by them.
        num_levels: L.
        scale: of the logistic, in the units of the data: a number, a
            :class:`~pyrovae.models.likelihoods.LearnedScale`, or None for a network that returns
            the mean and the log scale side by side along its last dimension.
        event_dim: dimensions of one datum.

    Raises:
        ValueError: fewer than two levels; a scale that is not positive; with None, a network whose
            output cannot be halved.
        TypeError: a scale of another kind.

    References:
        Kingma, Salimans, Jozefowicz, Chen, Sutskever and Welling, *Improved variational inference
        with inverse autoregressive flow*, 2016.

    Example:
        >>> import torch
        >>> likelihood = DiscretizedLogistic(nn.Linear(2, 2 * 784))
        >>> pixels = torch.randint(256, (5, 784)) / 255
        >>> likelihood(torch.zeros(5, 2)).log_prob(pixels).shape
        torch.Size([5])
    """

    def __init__(
        self,
        net: nn.Module,
        num_levels: int = 256,
        scale: float | LearnedScale | None = None,
        event_dim: int = 1,
    ) -> None:
        super().__init__()
        check_num_levels(num_levels)
        check_positive("scale", scale)
        self.net, self.num_levels, self.scale, self.event_dim = net, num_levels, scale, event_dim

    def forward(self, z: Tensor, *context: Tensor) -> TorchDistributionMixin:
        loc = self.net(z, *context)
        if self.scale is None:
            loc, log_scale = split_features(loc, "mean", "log scale")
            scale = log_scale.exp()
        else:
            scale = positive_like(loc, self.scale)
        return RoundedLogistic(loc, scale, self.num_levels).to_event(self.event_dim)


class DiscretizedLogisticMixture(nn.Module):
    """Levels k / (L - 1), each from its own mixture of M rounded logistics.

    Args:
        net: maps ``(z, *context)`` to 3 M features for each number of the datum, one number after
            another along the last dimension: its M logits, M means and M log scales. For vectors
            that is ``(..., D * 3 M)``, for images ``(..., C, H, W * 3 M)``, for single numbers
            ``(..., 3 M)``.
        num_components: M.
        num_levels: L.
        event_dim: dimensions of one datum.

    Raises:
        ValueError: no component; fewer than two levels; a network of another size.

    References:
        Salimans, Karpathy, Chen and Kingma, *PixelCNN++: improving the PixelCNN with discretized
        logistic mixture likelihood and other modifications*, 2017 (there with means that depend on
        the channels before; here channels are independent given z).

    Example:
        >>> import torch
        >>> likelihood = DiscretizedLogisticMixture(nn.Linear(2, 784 * 3 * 5), num_components=5)
        >>> likelihood(torch.zeros(7, 2)).event_shape
        torch.Size([784])
    """

    def __init__(
        self, net: nn.Module, num_components: int, num_levels: int = 256, event_dim: int = 1
    ) -> None:
        super().__init__()
        check_counts(num_components=num_components)
        check_num_levels(num_levels)
        self.net, self.num_components = net, num_components
        self.num_levels, self.event_dim = num_levels, event_dim

    def forward(self, z: Tensor, *context: Tensor) -> TorchDistributionMixin:
        features = group_features(
            self.net(z, *context),
            3 * self.num_components,
            self.event_dim,
            f"{self.num_components} logits, means and log scales each",
        )
        logits, loc, log_scale = features.chunk(3, -1)
        components = RoundedLogistic(loc, log_scale.exp(), self.num_levels)
        mixture = dist.MixtureSameFamily(dist.Categorical(logits=logits), components)
        return mixture.to_event(self.event_dim)
