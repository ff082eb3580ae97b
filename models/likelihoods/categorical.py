"""A likelihood of data that are the numbers of classes."""

from __future__ import annotations

from pyro.distributions.torch_distribution import TorchDistributionMixin
from torch import Tensor, nn

from ..checks import check_counts
from ..distributions import FloatCategorical
from .features import group_features


class Categorical(nn.Module):
    """Classes 0 ... C - 1, as whole numbers of any dtype; draws are floating.

    The distribution's mean, which ``VAE.reconstruct`` shows, is that of the class's number: it
    means something where the classes are in order. An encoder is handed the numbers too; where they
    are only names, let it begin with ``torch.nn.functional.one_hot(x.long(), C)``.

    Args:
        net: maps ``(z, *context)`` to C logits for each number of the datum, one number after
            another along the last dimension. For vectors that is ``(..., D * C)``, for images
            ``(..., C', H, W * C)``, for single numbers ``(..., C)``.
        num_classes: C.
        event_dim: dimensions of one datum.

    Raises:
        ValueError: no class; a network of another size.

    Example:
        >>> import torch
        >>> likelihood = Categorical(nn.Linear(2, 20 * 4), num_classes=4)
        >>> x = torch.randint(4, (5, 20))
        >>> likelihood(torch.zeros(5, 2)).log_prob(x).shape
        torch.Size([5])
    """

    def __init__(self, net: nn.Module, num_classes: int, event_dim: int = 1) -> None:
        super().__init__()
        check_counts(num_classes=num_classes)
        self.net, self.num_classes, self.event_dim = net, num_classes, event_dim

    def forward(self, z: Tensor, *context: Tensor) -> TorchDistributionMixin:
        logits = group_features(self.net(z, *context), self.num_classes, self.event_dim, "logits")
        return FloatCategorical(logits=logits).to_event(self.event_dim)
