"""A posterior on a sphere, from an encoder."""

from __future__ import annotations

import torch
from pyro.distributions.torch_distribution import TorchDistributionMixin
from torch import Tensor, nn
from torch.nn.functional import softplus

from ..distributions.von_mises_fisher import VonMisesFisher


class VonMisesFisherPosterior(nn.Module):
    r"""vMF(μ(x), κ(x)) on the sphere, from a network that returns a vector and a number.

    The direction μ is the vector at length 1, the concentration is softplus of the number. A
    vector of zeros, which points nowhere, is read as the first axis.

    Args:
        net: maps ``(x, *context)`` to ``(..., Z + 1)``, Z at least 2.

    Raises:
        ValueError: the network returns fewer than 3 features.

    References:
        Davidson, Falorsi, De Cao, Kipf and Tomczak, *Hyperspherical variational auto-encoders*,
        2018.

    Example:
        >>> q = VonMisesFisherPosterior(nn.Linear(784, 40 + 1))(torch.zeros(5, 784))
        >>> q.batch_shape, q.event_shape
        (torch.Size([5]), torch.Size([40]))
    """

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net

    def forward(self, x: Tensor, *context: Tensor) -> TorchDistributionMixin:
        output = self.net(x, *context)
        if output.shape[-1] < 3:
            raise ValueError(
                "net must return Z + 1 features (direction and concentration) with Z at least 2, "
                f"but returns {output.shape[-1]}"
            )
        vector, number = output[..., :-1], output[..., -1]
        # nets whose biases begin at 0 give zeros for a datum of zeros
        pole = torch.zeros_like(vector)
        pole[..., 0] = 1.0
        vector = torch.where((vector == 0).all(-1, keepdim=True), pole, vector)
        direction = vector / vector.norm(dim=-1, keepdim=True)
        return VonMisesFisher(direction, softplus(number))
