"""Pictures of a training run and of what a VAE has learned, as PNG files.

Figures are drawn on canvases of their own: no window opens, and matplotlib's global state, backend
included, stays as the caller has it.
"""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import torch
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from torch import Tensor

from ..inference import History
from ..inference.files import write_atomically

COLOURS = ("#1b6ca8", "#d1495b", "#2e8b57", "#8d5a97", "#c7862b")
GREY = "#555555"


def learning_curve(histories: Mapping[str, History], path: Path) -> None:
    """Training and validation bound over epochs; a dot marks the best epoch.

    During KL warm-up what is trained on is no bound and not drawn. The axis begins where the last
    nine tenths of the epochs lie: the first few, far below, would flatten the rest.
    """
    figure = blank_figure(7.5, 4.5)
    axes = figure.subplots()
    seen: list[np.ndarray] = []
    warm: set[int] = set()  # the epochs in which a warm-up has reached its end
    for colour, (name, history) in zip(_cycle(len(histories)), histories.items(), strict=True):
        validation = history.validation_elbo
        training = np.where(history.beta < 1, np.nan, -history.loss)
        axes.plot(history.epoch, training, color=colour, lw=1, alpha=0.55)
        axes.plot(history.epoch, validation, color=colour, lw=2, label=name)
        if (best := history.best_epoch) is not None:
            axes.plot(best, validation[best - 1], "o", color=colour, ms=8, mec="white", mew=1.5)
        if len(rising := np.flatnonzero(history.beta < 1)):
            warm |= {int(rising[-1]) + 2}
        skip = len(history) // 10
        seen += [training[skip:], validation[skip:]]
    for number, epoch in enumerate(sorted(warm)):
        label = None if number else "KL warm-up ends"
        axes.axvline(epoch, color=GREY, lw=0.8, ls=":", label=label)
    values = np.concatenate(seen)
    values = values[np.isfinite(values)]
    if len(values):
        low, high = np.quantile(values, 0.01), values.max()
        margin = 0.08 * (high - low) or 1.0
        axes.set_ylim(low - margin, high + margin)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.set_xlabel("epoch")
    axes.set_ylabel("bound, nats per datum (higher is better)")
    axes.set_title("Learning curve (thick: validation, thin: training, dot: best epoch)")
    axes.grid(alpha=0.25)
    axes.legend(frameon=False, loc="lower right")
    save_figure(figure, path)


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
    rows = {"original": originals, **reconstructed}
    count = len(originals)
    figure = blank_figure(1.7 + 0.72 * count, 0.85 * len(rows) + 0.75)
    grid = figure.subplots(len(rows), count, squeeze=False)
    for line, (name, images) in zip(grid, rows.items(), strict=True):
        for axes, image in zip(line, images, strict=True):
            _show(axes, image, shape)
        line[0].set_ylabel(name, rotation=0, ha="right", va="center", fontsize=11)
    figure.suptitle(
        "Held-out images, and the pixels' probabilities given a code drawn from q(z | x)",
        fontsize=12,
    )
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
    figure.suptitle("The pixels' probabilities given codes drawn from the prior")
    save_figure(figure, path)


def latent_space(means: Mapping[str, Tensor], labels: Tensor, path: Path) -> None:
    """Posterior means on their first two principal axes, coloured by label.

    Args:
        means: by model, ``(N, Z)``.
        labels: ``(N,)``, few different ones.
        path: the file to write.
    """
    figure = blank_figure(5.2 * len(means) + 0.8, 5.2)
    panels = figure.subplots(1, len(means), squeeze=False)[0]
    classes = labels.unique().tolist()
    for axes, (name, points) in zip(panels, means.items(), strict=True):
        plane, share = principal_axes(points)
        for label in classes:
            mine = plane[(labels == label).to(plane.device)].cpu()
            axes.scatter(
                *mine.T.numpy(), s=16, color=_of_ten(label), label=str(label), alpha=0.85, lw=0
            )
        axes.set_xlabel(f"first principal axis ({share[0]:.0%} of the variance)")
        axes.set_ylabel(f"second ({share[1]:.0%})")
        axes.set_title(name)
        axes.set_aspect("equal", "datalim")
        axes.grid(alpha=0.2)
    handles, names = panels[0].get_legend_handles_labels()
    figure.legend(handles, names, loc="outside right center", title="digit", frameon=False)
    figure.suptitle("Latent space: posterior means of the test images, by digit")
    save_figure(figure, path)


def power_laws(
    curves: Mapping[str, Sequence[tuple[float, float, float]]],
    path: Path,
    x: str,
    y: str,
    title: str,
) -> None:
    """Curves on logarithmic axes, where a power of x is a straight line.

    Args:
        curves: by name, points ``(x, y, error of y)``.
        path: the file to write.
        x: what stands on the horizontal axis.
        y: and on the other.
        title: of the picture.
    """
    figure = blank_figure(7.5, 4.8)
    axes = figure.subplots()
    for colour, (name, points) in zip(_cycle(len(curves)), curves.items(), strict=True):
        where, value, error = np.array(points).T
        axes.errorbar(where, value, error, color=colour, marker="o", ms=5, capsize=3, label=name)
    axes.set_xscale("log")
    axes.set_yscale("log")
    axes.set_xlabel(x)
    axes.set_ylabel(y)
    axes.set_title(title)
    axes.grid(alpha=0.25, which="both")
    axes.legend(frameon=False)
    save_figure(figure, path)


def principal_axes(points: Tensor) -> tuple[Tensor, list[float]]:
    """Points ``(N, Z)`` on their first two principal axes, ``(N, 2)``, and each one's share.

    An axis points to where its largest loading is positive, so that a picture does not depend on
    the sign that a decomposition happens to choose.

    >>> plane, share = principal_axes(torch.tensor([[0.0, 0.0], [3.0, 0.0], [6.0, 0.0]]))
    >>> plane[:, 0].tolist(), share
    ([-3.0, 0.0, 3.0], [1.0, 0.0])
    """
    centred = points.double() - points.double().mean(0)
    if centred.shape[1] < 2:
        centred = torch.cat([centred, torch.zeros_like(centred)], 1)
    _, scale, axes = torch.linalg.svd(centred, full_matrices=False)
    axes = axes[:2]
    axes = axes * axes.gather(1, axes.abs().argmax(1, keepdim=True)).sign()
    variance = scale.square()
    share = variance[:2] / variance.sum().clamp_min(torch.finfo(variance.dtype).tiny)
    return centred @ axes.T, share.tolist()


def blank_figure(width: float, height: float) -> Figure:
    """A figure in inches, on a canvas of its own."""
    figure = Figure(figsize=(width, height), dpi=130, layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def save_figure(figure: Figure, path: Path) -> None:
    """Write a figure as a PNG file, whole or not at all."""
    content = io.BytesIO()
    figure.savefig(content, format="png")
    write_atomically(Path(path), content.getvalue())


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


def _cycle(count: int) -> list[str]:
    return [COLOURS[i % len(COLOURS)] for i in range(count)]


def _of_ten(label: int) -> Any:
    return matplotlib.colormaps["tab10"](label % 10)
