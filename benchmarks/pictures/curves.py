"""Curves: how training went, and how a number depends on another."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from matplotlib.ticker import MaxNLocator

from ...inference import History
from .figures import GREY, blank_figure, cycle, save_figure


def learning_curve(histories: Mapping[str, History], path: Path) -> None:
    """Training and validation bound over epochs; a dot marks the best epoch.

    During KL warm-up what is trained on is no bound and not drawn. The axis begins where the last
    nine tenths of the epochs lie: the first few, far below, would flatten the rest.
    """
    figure = blank_figure(7.5, 4.5)
    axes = figure.subplots()
    seen: list[np.ndarray] = []
    warm: set[int] = set()  # the epochs in which a warm-up has reached its end
    for colour, (name, history) in zip(cycle(len(histories)), histories.items(), strict=True):
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
    for colour, (name, points) in zip(cycle(len(curves)), curves.items(), strict=True):
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
