"""Fully connected networks."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

from torch import Tensor, nn

from .context import join


def _glorot(layer: nn.Linear) -> nn.Linear:
    nn.init.xavier_uniform_(layer.weight)
    nn.init.zeros_(layer.bias)
    return layer


class MLP(nn.Module):
    """A fully connected network, Glorot-initialised, with a linear output.

    Args:
        in_features: size of the input, context included.
        out_features: size of the output.
        hidden: sizes of the hidden layers; empty for a linear map.
        activation: module class between the layers.

    Example:
        >>> import torch
        >>> MLP(784, 2 * 40)(torch.zeros(3, 5, 784)).shape
        torch.Size([3, 5, 80])
        >>> MLP(2 + 10, 784)(torch.zeros(3, 5, 2), torch.zeros(5, 10)).shape  # with a context
        torch.Size([3, 5, 784])
    """

    def __init__(
        self,
        in_features: int,
        out_features: int,
        hidden: Sequence[int] = (200, 200),
        activation: type[nn.Module] = nn.Tanh,
    ) -> None:
        super().__init__()
        self.in_features, self.out_features = in_features, out_features
        self.hidden, self.activation = tuple(hidden), activation
        sizes = (in_features, *self.hidden)
        layers: list[nn.Module] = []
        for a, b in itertools.pairwise(sizes):
            layers += [_glorot(nn.Linear(a, b)), activation()]
        self.layers = nn.Sequential(*layers, _glorot(nn.Linear(sizes[-1], out_features)))

    def forward(self, x: Tensor, *context: Tensor) -> Tensor:
        return self.layers(join(x, context))


class GatedLinear(nn.Module):
    """``(A x + a) * sigmoid(B x + b)``: a layer that opens and shuts its own units.

    Dauphin, Fan, Auli and Grangier, *Language modeling with gated convolutional networks*, 2017.
    """

    def __init__(self, in_features: int, out_features: int) -> None:
        super().__init__()
        self.in_features, self.out_features = in_features, out_features
        # one matrix product for value and gate
        self.both = nn.Linear(in_features, 2 * out_features)
        for half in self.both.weight.chunk(2):
            nn.init.xavier_uniform_(half.data)
        nn.init.zeros_(self.both.bias)

    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.glu(self.both(x), -1)


class GatedMLP(nn.Module):
    """:class:`MLP` with gated hidden layers.

    Tomczak and Welling, *VAE with a VampPrior*, 2018.

    Example:
        >>> import torch
        >>> GatedMLP(784, 80, hidden=(300, 300))(torch.zeros(2, 784)).shape
        torch.Size([2, 80])
    """

    def __init__(
        self, in_features: int, out_features: int, hidden: Sequence[int] = (300, 300)
    ) -> None:
        super().__init__()
        self.in_features, self.out_features, self.hidden = in_features, out_features, tuple(hidden)
        sizes = (in_features, *self.hidden)
        gates = [GatedLinear(a, b) for a, b in itertools.pairwise(sizes)]
        self.layers = nn.Sequential(*gates, _glorot(nn.Linear(sizes[-1], out_features)))

    def forward(self, x: Tensor, *context: Tensor) -> Tensor:
        return self.layers(join(x, context))
