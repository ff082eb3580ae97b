"""Networks that posteriors and likelihoods hold: plain torch modules, no probability in them.

Each takes any number of leading dimensions, so that K particles cost one call, and any number of
context tensors. Those are vectors, one per datum; they join the input along its last dimension, and
where the input is an image, the features that were made of it.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn


def _join(x: Tensor, context: Sequence[Tensor]) -> Tensor:
    """Concatenate along the last dimension; context lacks the particle dimensions of x."""
    if not context:
        return x
    for part in context:
        if not part.is_floating_point():  # N labels would pass for one vector of N features
            raise ValueError(
                f"context must be floating like the input, but is {part.dtype} of shape "
                f"{tuple(part.shape)}: encode labels with torch.nn.functional.one_hot"
            )
    return torch.cat([x, *(part.expand(*x.shape[:-1], part.shape[-1]) for part in context)], -1)


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
        return self.layers(_join(x, context))


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
        return self.layers(_join(x, context))


class ConvEncoder(nn.Module):
    """Images ``(..., C, H, W)`` to features: strided convolutions that halve the sides.

    Args:
        shape: ``(C, H, W)`` of one image.
        out_features: size of the output.
        channels: output channels of each convolution.
        context_features: size of the context, where there is one.

    Example:
        >>> ConvEncoder((1, 28, 28), 80)(torch.zeros(3, 2, 1, 28, 28)).shape
        torch.Size([3, 2, 80])
    """

    def __init__(
        self,
        shape: Sequence[int],
        out_features: int,
        channels: Sequence[int] = (32, 64),
        context_features: int = 0,
    ) -> None:
        super().__init__()
        self.shape, self.out_features, self.channels = tuple(shape), out_features, tuple(channels)
        self.context_features = context_features
        layers: list[nn.Module] = []
        for a, b in zip((shape[0], *channels), channels, strict=False):
            layers += [nn.Conv2d(a, b, kernel_size=3, stride=2, padding=1), nn.ReLU()]
        height, width = _halved(self.shape, len(channels))[-1]
        self.layers = nn.Sequential(*layers, nn.Flatten())
        self.head = nn.Linear(channels[-1] * height * width + context_features, out_features)

    def forward(self, x: Tensor, *context: Tensor) -> Tensor:
        leading = x.shape[:-3]
        features = self.layers(x.reshape(-1, *self.shape)).reshape(*leading, -1)
        return self.head(_join(features, context))


class ConvDecoder(nn.Module):
    """Codes ``(..., Z)`` to images ``(..., C, H, W)``: the mirror of :class:`ConvEncoder`.

    Args:
        in_features: size of the code, context included.
        shape: ``(C, H, W)`` of the output.
        channels: as the encoder's; the decoder takes them in reverse.

    Example:
        >>> ConvDecoder(40, (1, 28, 28))(torch.zeros(3, 2, 40)).shape
        torch.Size([3, 2, 1, 28, 28])
    """

    def __init__(
        self, in_features: int, shape: Sequence[int], channels: Sequence[int] = (32, 64)
    ) -> None:
        super().__init__()
        self.in_features, self.shape, self.channels = in_features, tuple(shape), tuple(channels)
        sizes = _halved(self.shape, len(channels))
        self.start = (channels[-1], *sizes[-1])
        self.stem = nn.Linear(in_features, math.prod(self.start))
        layers: list[nn.Module] = []
        outputs = (*reversed(channels[:-1]), shape[0])
        for level, (a, b) in enumerate(zip(reversed(channels), outputs, strict=True), start=1):
            target, source = sizes[-level - 1], sizes[-level]
            extra = (target[0] - (2 * source[0] - 1), target[1] - (2 * source[1] - 1))
            up = nn.ConvTranspose2d(a, b, 3, stride=2, padding=1, output_padding=extra)
            layers += [nn.ReLU(), up]
        self.layers = nn.Sequential(*layers)

    def forward(self, z: Tensor, *context: Tensor) -> Tensor:
        z = _join(z, context)
        maps = self.stem(z).reshape(-1, *self.start)
        return self.layers(maps).reshape(*z.shape[:-1], *self.shape)


def _halved(shape: Sequence[int], times: int) -> list[tuple[int, int]]:
    sizes = [(shape[1], shape[2])]
    for _ in range(times):
        sizes.append(((sizes[-1][0] + 1) // 2, (sizes[-1][1] + 1) // 2))
    return sizes


class WithoutContext(nn.Module):
    """A network that is not told the context its posterior or likelihood was given.

    Where a posterior needs an index of the datum (:class:`~pyrovae.models.posteriors.PerDatum`),
    the likelihood must not see it.

    Example:
        >>> WithoutContext(MLP(2, 4))(torch.zeros(5, 2), torch.arange(5)).shape
        torch.Size([5, 4])
    """

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net

    def forward(self, x: Tensor, *context: Tensor) -> Tensor:
        return self.net(x)
