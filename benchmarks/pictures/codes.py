"""Codes: where data lie in them, and which of a codebook are used."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor

from .figures import GREY, blank_figure, cycle, of_ten, save_figure


def latent_space(
    means: Mapping[str, Tensor],
    labels: Tensor,
    path: Path,
    what: str = "test images",
    names: Sequence[str] | None = None,
) -> None:
    """Posterior means on their first two principal axes, coloured by label.

    Args:
        means: by model, ``(N, Z)``.
        labels: ``(N,)``, few different ones.
        path: the file to write.
        what: the data are.
        names: of the labels; without them the labels are digits.
    """
    figure = blank_figure(5.2 * len(means) + 0.8, 5.2)
    panels = figure.subplots(1, len(means), squeeze=False)[0]
    classes = labels.unique().tolist()
    for axes, (name, points) in zip(panels, means.items(), strict=True):
        plane, share = principal_axes(points)
        for label in classes:
            mine = plane[(labels == label).to(plane.device)].cpu()
            axes.scatter(
                *mine.T.numpy(),
                s=16,
                color=of_ten(label),
                label=str(label) if names is None else names[label],
                alpha=0.85,
                lw=0,
            )
        axes.set_xlabel(f"first principal axis ({share[0]:.0%} of the variance)")
        axes.set_ylabel(f"second ({share[1]:.0%})")
        axes.set_title(name)
        axes.set_aspect("equal", "datalim")
        axes.grid(alpha=0.2)
    handles, names = panels[0].get_legend_handles_labels()
    figure.legend(
        handles,
        names,
        loc="outside right center",
        title="digit" if names is None else None,
        frameon=False,
    )
    kind = "digit" if names is None else "kind"
    figure.suptitle(f"Latent space: posterior means of the {what}, by {kind}")
    save_figure(figure, path)


def codebook_use(numbers: Mapping[str, Tensor], num_codes: int, path: Path) -> None:
    """How often each code of a VQ-VAE is chosen, most used first, and the perplexity of that.

    Args:
        numbers: by model, codes of data, whole numbers of any shape.
        num_codes: M.
        path: the file to write.
    """
    figure = blank_figure(7.5, 4.5)
    axes = figure.subplots()
    for colour, (name, chosen) in zip(cycle(len(numbers)), numbers.items(), strict=True):
        share, perplexity = usage(chosen, num_codes)
        label = f"{name}: perplexity {perplexity:.1f} of {num_codes}"
        rank = torch.arange(1, num_codes + 1)
        axes.step(rank, share.sort(descending=True).values, where="mid", color=colour, label=label)
    axes.axhline(1 / num_codes, color=GREY, lw=0.8, ls=":", label="all alike")
    axes.set_ylim(bottom=0)
    axes.set_xlabel("code, by how often it is used")
    axes.set_ylabel("share of all places")
    axes.set_title("Codebook: how often each code is chosen")
    axes.grid(alpha=0.25)
    axes.legend(frameon=False)
    save_figure(figure, path)


def usage(numbers: Tensor, num_codes: int) -> tuple[Tensor, float]:
    r"""The share of each code, ``(M,)``, and its perplexity :math:`\exp H`.

    >>> usage(torch.tensor([0, 0, 1, 1]), 4)
    (tensor([0.5000, 0.5000, 0.0000, 0.0000], dtype=torch.float64), 2.0)
    """
    share = torch.bincount(numbers.flatten().cpu(), minlength=num_codes).double()
    share /= share.sum()
    return share, float(torch.special.entr(share).sum().exp())


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
