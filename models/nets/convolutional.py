"""Convolutional networks for images."""

from __future__ import annotations

import math
from collections.abc import Sequence

from torch import Tensor, nn

from .context import join


class ConvEncoder(nn.Module):
    """Images ``(..., C, H, W)`` to features: strided convolutions that halve the sides.

    Args:
        shape: ``(C, H, W)`` of one image.
        out_features: size of the output.
        channels: output channels of each convolution.
        context_features: size of the context, where there is one.

    Example:
        >>> import torch
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
        height, width = _halved(self.shape, len(channels))[-1]
        self.layers = nn.Sequential(*_down(self.shape[0], self.channels), nn.Flatten())
        self.head = nn.Linear(channels[-1] * height * width + context_features, out_features)

    def forward(self, x: Tensor, *context: Tensor) -> Tensor:
        leading = x.shape[:-3]
        features = self.layers(x.reshape(-1, *self.shape)).reshape(*leading, -1)
        return self.head(join(features, context))


class ConvDecoder(nn.Module):
    """Codes ``(..., Z)`` to images ``(..., C, H, W)``: the mirror of :class:`ConvEncoder`.

    Args:
        in_features: size of the code, context included.
        shape: ``(C, H, W)`` of the output.
        channels: as the encoder's; the decoder takes them in reverse.

    Example:
        >>> import torch
        >>> ConvDecoder(40, (1, 28, 28))(torch.zeros(3, 2, 40)).shape
        torch.Size([3, 2, 1, 28, 28])
    """

    def __init__(
        self, in_features: int, shape: Sequence[int], channels: Sequence[int] = (32, 64)
    ) -> None:
        super().__init__()
        self.in_features, self.shape, self.channels = in_features, tuple(shape), tuple(channels)
        self.start = (channels[-1], *_halved(self.shape, len(channels))[-1])
        self.stem = nn.Linear(in_features, math.prod(self.start))
        self.layers = nn.Sequential(*_up(self.shape, self.channels))

    def forward(self, z: Tensor, *context: Tensor) -> Tensor:
        z = join(z, context)
        maps = self.stem(z).reshape(-1, *self.start)
        return self.layers(maps).reshape(*z.shape[:-1], *self.shape)


class GridEncoder(nn.Module):
    """Images ``(..., C, H, W)`` to a grid of vectors, ``(..., D, h, w)``, each of its own part.

    Args:
        shape: ``(C, H, W)`` of one image.
        code_dim: D.
        channels: output channels of each convolution, which halves the sides.

    Example:
        >>> import torch
        >>> GridEncoder((1, 28, 28), code_dim=16)(torch.zeros(3, 2, 1, 28, 28)).shape
        torch.Size([3, 2, 16, 7, 7])
    """

    def __init__(
        self, shape: Sequence[int], code_dim: int, channels: Sequence[int] = (32, 64)
    ) -> None:
        super().__init__()
        self.shape, self.code_dim, self.channels = tuple(shape), code_dim, tuple(channels)
        self.grid = _halved(self.shape, len(channels))[-1]
        last = nn.Conv2d(channels[-1], code_dim, kernel_size=1)
        self.layers = nn.Sequential(*_down(self.shape[0], self.channels), last)

    def forward(self, x: Tensor) -> Tensor:
        grids = self.layers(x.reshape(-1, *self.shape))
        return grids.reshape(*x.shape[:-3], *grids.shape[1:])


class GridDecoder(nn.Module):
    """A grid of vectors, ``(..., D, h, w)``, to images: the mirror of :class:`GridEncoder`.

    Example:
        >>> import torch
        >>> GridDecoder(16, (1, 28, 28))(torch.zeros(3, 2, 16, 7, 7)).shape
        torch.Size([3, 2, 1, 28, 28])
    """

    def __init__(
        self, code_dim: int, shape: Sequence[int], channels: Sequence[int] = (32, 64)
    ) -> None:
        super().__init__()
        self.shape, self.code_dim, self.channels = tuple(shape), code_dim, tuple(channels)
        first = nn.Conv2d(code_dim, channels[-1], kernel_size=3, padding=1)
        self.layers = nn.Sequential(first, *_up(self.shape, self.channels))

    def forward(self, grids: Tensor) -> Tensor:
        images = self.layers(grids.reshape(-1, *grids.shape[-3:]))
        return images.reshape(*grids.shape[:-3], *self.shape)


def _down(channels_in: int, channels: Sequence[int]) -> list[nn.Module]:
    """Convolutions that halve the sides, each with its activation."""
    layers: list[nn.Module] = []
    for a, b in zip((channels_in, *channels), channels, strict=False):
        layers += [nn.Conv2d(a, b, kernel_size=3, stride=2, padding=1), nn.ReLU()]
    return layers


def _up(shape: Sequence[int], channels: Sequence[int]) -> list[nn.Module]:
    """The way back, to the very sides that were halved; activations come before."""
    sizes = _halved(shape, len(channels))
    layers: list[nn.Module] = []
    outputs = (*reversed(channels[:-1]), shape[0])
    for level, (a, b) in enumerate(zip(reversed(channels), outputs, strict=True), start=1):
        target, source = sizes[-level - 1], sizes[-level]
        extra = (target[0] - (2 * source[0] - 1), target[1] - (2 * source[1] - 1))
        up = nn.ConvTranspose2d(a, b, 3, stride=2, padding=1, output_padding=extra)
        layers += [nn.ReLU(), up]
    return layers


def _halved(shape: Sequence[int], times: int) -> list[tuple[int, int]]:
    sizes = [(shape[1], shape[2])]
    for _ in range(times):
        sizes.append(((sizes[-1][0] + 1) // 2, (sizes[-1][1] + 1) // 2))
    return sizes
