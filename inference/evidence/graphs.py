"""Graphs of what estimators do for every tile, shared by all tiles and all batches of a call."""

from __future__ import annotations

from dataclasses import replace

import torch

from ..compilation import Gain, Replays
from ..particles import ParticlePlan


class Graphs:
    """The graphs of one call, by how particles are drawn: another plan is another function.

    Attributes:
        gain: what they all took to make, and what they save.
    """

    def __init__(self) -> None:
        self.gain = Gain()
        self._known: dict[str, Replays] = {}

    def settle(self) -> None:
        """Compare graphs and programs once more.

        Raises:
            Doubtful: they differ.
        """
        for replays in self._known.values():
            replays.settle()

    def of(self, plan: ParticlePlan) -> Replays | None:
        """Those of a plan; None, and a warning, for programs that no graph can stand for."""
        if not plan.reproducible:
            self.gain.give_up("model or guide draw random numbers of their own (dropout?)")
            return None
        name = repr(replace(plan, rejected=()))
        if name not in self._known:
            self._known[name] = Replays(plan.layout.device or torch.device("cpu"), self.gain)
        return self._known[name]
