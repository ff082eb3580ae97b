"""Walks through a latent space: what the decoder makes of the codes on a line.

A walk needs a model of the kind of :class:`~pyrovae.models.VAE`: ``posterior`` and ``likelihood``
that return distributions.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ..diagnostics import mean_of


@torch.no_grad()
def between(model: Any, first: Tensor, second: Tensor, num_steps: int = 9) -> Tensor:
    r"""Interpolation: the decoder's means at :math:`(1 - t) z_1 + t z_2`.

    Args:
        model: a VAE.
        first: where the walks begin, ``(N, *data)``; z1 is the mean of its posterior.
        second: where they end, likewise.
        num_steps: T, both ends included.

    Returns:
        ``(N, T, *data)``.

    Raises:
        ValueError: fewer than two steps; ends of two shapes.
    """
    if num_steps < 2:
        raise ValueError(f"num_steps should be at least 2, both ends included; found {num_steps}")
    if first.shape != second.shape:
        raise ValueError(
            f"second should be of the shape of first, {tuple(first.shape)}; found "
            f"{tuple(second.shape)}"
        )
    start, end = mean_of(model.posterior(first)), mean_of(model.posterior(second))
    share = torch.linspace(0, 1, num_steps, device=start.device, dtype=start.dtype)
    return model.likelihood(torch.lerp(start[:, None], end[:, None], share[:, None])).mean


@torch.no_grad()
def through(
    model: Any, x: Tensor, dimensions: list[int], reach: float = 3.0, num_steps: int = 9
) -> Tensor:
    """Traversals: the decoder's means as one dimension of a code goes from -reach to reach.

    Args:
        model: a VAE.
        x: the datum whose posterior mean the other dimensions keep, ``(*data,)``.
        dimensions: which ones to move, one row for each.
        reach: in the latent's own units, of which a standard normal prior's deviation is 1.
        num_steps: T.

    Returns:
        ``(len(dimensions), T, *data)``.

    Raises:
        ValueError: a dimension that is not there.
    """
    centre = mean_of(model.posterior(x[None]))[0]
    if not dimensions or not all(0 <= d < len(centre) for d in dimensions):
        raise ValueError(
            f"dimensions should be between 0 and {len(centre) - 1}; found {dimensions}"
        )
    rows = torch.arange(len(dimensions), device=centre.device)
    codes = centre.repeat(len(dimensions), num_steps, 1)
    line = torch.linspace(-reach, reach, num_steps, device=centre.device, dtype=centre.dtype)
    codes[rows, :, torch.as_tensor(dimensions, device=centre.device)] = line
    return model.likelihood(codes).mean
