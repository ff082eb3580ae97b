r"""From levels to real numbers by uniform noise, and from nats to bits per dimension.

A density p of data on L levels can be made as large as one likes by narrowing it about them. Noise
:math:`u` in [0, 1) takes the level k to :math:`y = (k + u) / L`; the mass that p gives a bin,
:math:`P(k) = \int_{k/L}^{(k+1)/L} p(y) \, dy`, is a probability of levels. By Jensen's inequality,

.. math:: \mathbb{E}_u \log p(y) - D \log L \le \log P(k)

for D dimensions, with equality where p is constant on the bin. So what is subtracted makes a
density comparable with a discrete likelihood, to the density's disadvantage.

Theis, van den Oord and Bethge, *A note on the evaluation of generative models*, 2016.
"""

from __future__ import annotations

import math
from typing import TypeVar

import torch
from torch import Tensor

from .distributions.grid import UnitGrid, check_num_levels, nearest_level

Nats = TypeVar("Nats", float, Tensor)


def dequantise(x: Tensor, num_levels: int, generator: torch.Generator | None = None) -> Tensor:
    """Levels k / (L - 1) to (k + u) / L in [0, 1), with noise u that is uniform on [0, 1).

    Args:
        x: data on the levels, floating, of any shape.
        num_levels: L.
        generator: draws the noise; torch's own by default. On the device of ``x``.

    Raises:
        ValueError: fewer than two levels, or data that are not on them.
        TypeError: data that are not a floating tensor.

    Example:
        >>> x = torch.tensor([0.0, 1 / 3, 1.0])
        >>> y = dequantise(x, 4)
        >>> bool((y >= torch.tensor([0.0, 0.25, 0.75])).all() and (y < 1).all())
        True
        >>> torch.equal(quantise(y, 4), x)
        True
    """
    grid = UnitGrid(num_levels)
    if not isinstance(x, Tensor) or not x.is_floating_point():
        raise TypeError(
            f"x must be a floating tensor, k / {num_levels - 1} for the level k, but is "
            f"{x.dtype if isinstance(x, Tensor) else type(x).__name__}"
        )
    inside = grid.check(x)
    if not inside.all():
        raise ValueError(
            f"x must hold levels k / {num_levels - 1} for k = 0 ... {num_levels - 1}, "
            f"but holds {x[~inside].reshape(-1)[0].item():g}"
        )
    level = nearest_level(x, num_levels)
    noise = torch.rand(x.shape, dtype=x.dtype, device=x.device, generator=generator)
    upper = (level + 1) / num_levels
    # rounding may carry the sum into the bin above, whose lower edge is this bin's upper one
    return ((level + noise) / num_levels).minimum(upper.nextafter(torch.zeros_like(upper)))


def quantise(y: Tensor, num_levels: int) -> Tensor:
    """The level k / (L - 1) of the bin [k / L, (k + 1) / L) that holds y: undoes the noise.

    Args:
        y: numbers in [0, 1], floating, of the dtype they were dequantised in; 1 is in the last bin.
        num_levels: L.

    Raises:
        ValueError: fewer than two levels, or numbers outside [0, 1].

    Example:
        >>> quantise(torch.tensor([0.1, 0.3, 1.0]), 4)
        tensor([0.0000, 0.3333, 1.0000])
    """
    check_num_levels(num_levels)
    outside = ~((y >= 0) & (y <= 1))
    if outside.any():
        raise ValueError(f"y must be in [0, 1], but holds {y[outside].reshape(-1)[0].item():g}")
    level = (y * num_levels).floor()
    # rounding may have carried the product over an edge
    level = level - (y < level / num_levels).to(y.dtype) + (y >= (level + 1) / num_levels)
    return level.clamp(0, num_levels - 1) / (num_levels - 1)


def bits_per_dimension(log_evidence: Nats, num_dims: int, num_levels: int | None = None) -> Nats:
    r"""Bits per dimension, :math:`-\log p(x) / (D \ln 2)`: fewer are better.

    Args:
        log_evidence: log p(x) of each datum, or a mean of them, in nats.
        num_dims: D, the dimensions of one datum.
        num_levels: None where p is a probability of levels, from a discrete likelihood. For a
            density of dequantised data on [0, 1) the number of levels L: :math:`\log_2 L` is then
            added, and the mean over the noise is an upper bound on the bits of the discrete model
            whose probabilities are the masses of the bins.

    Raises:
        ValueError: a number of dimensions below 1, or of levels below 2.

    Example:
        >>> bits_per_dimension(-784 * 8 * math.log(2), 784)  # 256 levels, alike in probability
        8.0
        >>> bits_per_dimension(torch.zeros(2), 784, num_levels=256)  # and as a density of 1
        tensor([8., 8.])
    """
    if num_dims < 1:
        raise ValueError(f"num_dims must be at least 1, but is {num_dims}")
    bits = -log_evidence / (num_dims * math.log(2))
    if num_levels is None:
        return bits
    check_num_levels(num_levels)
    return bits + math.log2(num_levels)
