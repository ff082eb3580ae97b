"""What it takes to compile, and what it saves."""

from __future__ import annotations

import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import torch

from .told import outside, tell

_LOSS = 1.0  # seconds; a smaller one is not worth a word


class NoGain(UserWarning):
    """Compiling took longer than it saved; the message says how long a run would have to be."""


@dataclass
class Gain:
    """Seconds that graphs took to make, and that a run by them takes less than one without.

    Attributes:
        cost: seconds that it took to make them.
        runs: how often one was run.
        waited: runs without, before there was one.
        before: seconds of runs without.
        after: and of runs by graphs.
        reasons: why something is not compiled, each told once.
    """

    cost: float = 0.0
    runs: int = 0
    waited: int = 0
    before: list[float] = field(default_factory=list)
    after: list[float] = field(default_factory=list)
    reasons: set[str] = field(default_factory=set)

    def give_up(self, reason: str) -> None:
        """Say why something is not compiled."""
        self.waited = 0
        if reason not in self.reasons:
            self.reasons.add(reason)
            tell(reason)

    @contextmanager
    def making(self) -> Iterator[None]:
        """Take the time of what makes a graph."""
        began = time.perf_counter()
        try:
            yield
        finally:
            self.cost += time.perf_counter() - began

    @contextmanager
    def timed(self, which: list[float], device: torch.device) -> Iterator[None]:
        """Take the time of a run, and note it in one of the lists."""
        began = time.perf_counter()
        yield
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        which.append(time.perf_counter() - began)

    @property
    def each(self) -> float:
        """Seconds that a run saves: the fastest of either kind are compared."""
        return min(self.before) - min(self.after) if self.before and self.after else 0.0

    def tell(self) -> None:
        """Warn where it was not worth it."""
        if self.waited and not self.cost:
            warnings.warn(
                f"compile: nothing was: in {self.waited:,} step{'s' * (self.waited > 1)} nothing "
                "came often enough to be worth it",
                NoGain,
                stacklevel=outside(),
            )
        saved = self.each * self.runs
        if not self.cost or self.cost - saved < _LOSS:
            return
        pays = f"it pays from {self.cost / self.each:,.0f} on" if self.each > 0 else "it never pays"
        warnings.warn(
            f"compile: took {self.cost:.1f} s, and saved {max(saved, 0.0):.1f} s in {self.runs:,} "
            f"steps: {pays}",
            NoGain,
            stacklevel=outside(),
        )
