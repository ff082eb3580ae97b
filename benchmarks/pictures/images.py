"""Images side by side: what models draw, rebuild and predict."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from .figures import blank_figure, save_figure


def reconstructions(
    originals: Tensor, reconstructed: Mapping[str, Tensor], shape: Sequence[int], path: Path
) -> None:
    """Originals in the first row, and below each what every model makes of it.

    Args:
        originals: ``(N, D)``, values in [0, 1].
        reconstructed: by model, ``(N, D)``.
        shape: of one image, ``(C, H, W)``.
        path: the file to write.
    """
    title = "Held-out images, and the pixels' probabilities given a code drawn from q(z | x)"
    image_grid({"original": originals, **reconstructed}, shape, path, title)


def image_grid(
    rows: Mapping[str, Tensor],
    shape: Sequence[int],
    path: Path,
    title: str,
    columns: Sequence[str] = (),
) -> None:
    """Rows of images under each other: interpolations, traversals, draws by class or by context.

    Args:
        rows: by name, ``(T, *data)``, values in [0, 1], T the same in all.
        shape: of one image, ``(C, H, W)``.
        path: the file to write.
        title: of the picture.
        columns: what stands above each, T names, or nothing.

    Raises:
        ValueError: no row, rows of several lengths, or another number of columns.
    """
    lengths = {name: len(images) for name, images in rows.items()}
    if len(set(lengths.values())) != 1 or (columns and len(columns) not in lengths.values()):
        raise ValueError(
            f"rows should be as many images each, one for each of {len(columns) or 'T'} columns; "
            f"found {lengths}"
        )
    count = next(iter(lengths.values()))
    figure = blank_figure(1.4 + 0.66 * count, 0.68 * len(rows) + 0.8)
    grid = figure.subplots(len(rows), count, squeeze=False)
    for line, (name, images) in zip(grid, rows.items(), strict=True):
        for axes, image in zip(line, images, strict=True):
            _show(axes, image, shape)
        line[0].set_ylabel(name, rotation=0, ha="right", va="center", fontsize=10)
    for axes, name in zip(grid[0], columns, strict=False):
        axes.set_title(name, fontsize=10)
    figure.suptitle(title, fontsize=12)
    save_figure(figure, path)


def samples(drawn: Mapping[str, Tensor], shape: Sequence[int], path: Path) -> None:
    """Squares of images drawn from each model, side by side.

    Args:
        drawn: by model, ``(N, D)`` with N a square number, values in [0, 1].
        shape: of one image, ``(C, H, W)``.
        path: the file to write.
    """
    figure = blank_figure(4.4 * len(drawn), 4.9)
    panels = figure.subplots(1, len(drawn), squeeze=False)[0]
    for axes, (name, images) in zip(panels, drawn.items(), strict=True):
        side = round(len(images) ** 0.5)
        _show(axes, _tiled(images[: side * side], side, shape), None)
        axes.set_title(name, fontsize=12)
    title = "The pixels' probabilities given codes drawn from the prior"
    figure.suptitle(textwrap.fill(title, 40 * len(drawn)))
    save_figure(figure, path)


def _show(axes: Any, image: Tensor, shape: Sequence[int] | None) -> None:
    if shape is not None:
        image = image.reshape(tuple(shape)).movedim(0, -1)
    array = image.detach().cpu().numpy()
    if array.ndim == 3 and array.shape[-1] == 1:
        array = array[..., 0]
    axes.imshow(array, cmap="gray_r", vmin=0, vmax=1, interpolation="nearest")
    axes.set_xticks([])
    axes.set_yticks([])
    for spine in axes.spines.values():
        spine.set_edgecolor("#bbbbbb")


def _tiled(images: Tensor, side: int, shape: Sequence[int]) -> Tensor:
    """Images as one image of ``side`` by ``side``, ``(H, W, C)``, a pixel between them."""
    channels, height, width = shape
    padded = torch.nn.functional.pad(images.reshape(-1, channels, height, width), (0, 1, 0, 1))
    rows = padded.reshape(side, side, channels, height + 1, width + 1)
    return rows.permute(0, 3, 1, 4, 2).reshape(side * (height + 1), side * (width + 1), channels)
