"""What an estimator is given, a tile of the data, and what it makes of it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from ..compilation import Replays
from ..particles import ParticlePlan
from ..programs import Program, num_data
from .journal import Keeper
from .pareto import pareto_shape
from .tiles import Tiles


@dataclass(frozen=True)
class Tile:
    """A part of the data, with all that is needed to score it.

    Attributes:
        model: the model.
        guide: the guide, its encoder run beforehand where it can be; None where there is none.
        args: ``(x, *context)`` of these data.
        plan: how particles are drawn.
        sizes: how many particles and data are taken at a time.
        rows: which of the data of its batch they are.
        first: how many data the batches before had.
        replays: graphs of what is done for every tile; None where nothing is to be compiled.
        keeper: remembers how far a long computation has come.
        advance: tells the progress bar which share of the tile is done.
    """

    model: Program
    guide: Program | None
    args: tuple
    plan: ParticlePlan
    sizes: Tiles
    rows: slice = field(default_factory=lambda: slice(None))
    first: int = 0
    replays: Replays | None = None
    keeper: Keeper = field(default_factory=Keeper)
    advance: Callable[[float], None] = lambda share: None

    @property
    def num_data(self) -> int:
        return num_data(self.args[0])


@dataclass(frozen=True)
class Scores:
    """What an estimator makes of a tile.

    Attributes:
        fields: per-datum results ``(n,)`` by name; ``log_evidence`` and ``stderr`` at least.
        num_evaluations: how often the model was run, per datum.
        num_gradients: how often its gradient was taken, per datum.
        largest: the largest log-weights, ``(M + 1, n)``, in descending order, for the Pareto fit.
        arrays: larger results by name, data along dimension 0, for what is more than an Estimate.
        seconds: what it took; filled in by the frame.
    """

    fields: dict[str, Tensor]
    num_evaluations: float
    num_gradients: float = 0.0
    largest: Tensor | None = None
    arrays: dict[str, Tensor] = field(default_factory=dict)
    seconds: float = 0.0


@dataclass(frozen=True)
class Scored:
    """What all tiles of some data gave, and the provenance of it."""

    scores: list[Scores]
    khat: list[Tensor]
    provenance: dict[str, Any]


def join(scores: list[Scores], name: str) -> Tensor:
    """A field of all tiles, NaN where a tile has none."""
    parts = [
        one.fields[name].double().cpu()
        if name in one.fields
        else torch.full_like(one.fields["log_evidence"], torch.nan).cpu()
        for one in scores
    ]
    return torch.cat(parts)


def fit_tails(scores: list[Scores]) -> list[Tensor]:
    """k̂ by tile: fitted for all data of a block at once where there are weights to fit to."""
    if "khat" in scores[0].fields:
        return [one.fields["khat"] for one in scores]
    tails = [one.largest for one in scores if one.largest is not None]
    if len(tails) == len(scores):
        return list(pareto_shape(torch.cat(tails, 1)).split([tail.shape[1] for tail in tails]))
    return [torch.full_like(one.fields["log_evidence"], torch.nan) for one in scores]
