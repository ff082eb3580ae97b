"""What a long estimate has finished, in a file: after an interruption it goes on from there.

The file holds the results of whole tiles and, for a tile under way, the last state that its
estimator offered. It is replaced in one step, at most every few seconds and whenever the call ends,
however it ends. A process that is killed loses these seconds and nothing else.
"""

from __future__ import annotations

import io
import pickle
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Any

import torch

from ..files import write_atomically

_INTERVAL = 10.0  # seconds
_VERSION = 1


class Keeper:
    """Where an estimator leaves its state, and finds the one to go on from.

    Attributes:
        state: what was offered last before the interruption; None at a fresh start.
    """

    def __init__(
        self, state: dict[str, Any] | None = None, offer: Callable[[dict], None] | None = None
    ) -> None:
        self.state = state
        self._offer = offer

    def offer(self, **state: Any) -> None:
        """Say how far the computation is: tensors that are not changed in place, and numbers."""
        if self._offer is not None:
            self._offer(state | {"_rng": _capture()})

    def resume(self) -> dict[str, Any] | None:
        """The state to go on from, the generators put back to where they were."""
        if self.state is None:
            return None
        _restore(self.state["_rng"])
        return {name: value for name, value in self.state.items() if name != "_rng"}


class Journal:
    """The file, or nothing where none is wanted.

    Raises:
        ValueError: the file belongs to another call, or is no journal.
        OSError: it cannot be read or written.
    """

    def __init__(self, path: str | Path | None) -> None:
        self.path = None if path is None else Path(path)
        self._content: dict[str, Any] = {"version": _VERSION, "seed": None, "batches": {}}
        self._written = time.monotonic()
        self._changed = False
        if self.path is None:
            return
        if not self.path.parent.is_dir():
            raise FileNotFoundError(f"checkpoint: there is no folder {self.path.parent}")
        if self.path.exists():
            self._content = self._read(self.path)

    @staticmethod
    def _read(path: Path) -> dict[str, Any]:
        content: Any = None
        with suppress(RuntimeError, pickle.UnpicklingError, EOFError, ValueError, KeyError):
            content = torch.load(path, weights_only=True)
        if not isinstance(content, dict) or content.get("version") != _VERSION:
            raise ValueError(f"checkpoint must be a file that an estimator wrote, but is {path}")
        return content

    def __enter__(self) -> Journal:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._changed:
            self._write()

    def seed(self, draw: Callable[[], int]) -> int:
        """The seed that the file holds, or a new one."""
        if self._content["seed"] is None:
            self._content["seed"] = draw()
        return int(self._content["seed"])

    def begin_batch(self, number: int, identity: Callable[[], str]) -> None:
        """Refuse to go on with what another call has left."""
        if self.path is None:
            return
        batch = self._content["batches"].setdefault(
            number, {"identity": None, "tiles": {}, "state": None, "at": None}
        )
        ours = identity()
        if batch["identity"] not in (None, ours):
            raise ValueError(
                f"checkpoint {self.path} belongs to other settings, programs or data: choose "
                "another file, or delete it"
            )
        batch["identity"] = ours
        self._write()  # a folder that cannot be written to is better known now

    def finished(self, number: int, tile: int) -> dict[str, Any] | None:
        """What the tile gave, where it is finished; else None."""
        if self.path is None:
            return None
        return self._content["batches"][number]["tiles"].get(tile)

    def add(self, number: int, tile: int, scores: dict[str, Any]) -> None:
        """Keep what a tile gave."""
        if self.path is None:
            return
        batch = self._content["batches"][number]
        batch["tiles"][tile] = scores
        batch["state"] = batch["at"] = None
        self._note()

    def keeper(self, number: int, tile: int) -> Keeper:
        """For the state of a tile under way."""
        if self.path is None:
            return Keeper()
        batch = self._content["batches"][number]

        def offer(state: dict) -> None:
            batch["state"], batch["at"] = state, tile
            self._note()

        return Keeper(batch["state"] if batch["at"] == tile else None, offer)

    def _note(self) -> None:
        self._changed = True
        if time.monotonic() - self._written > _INTERVAL:
            self._write()

    def _write(self) -> None:
        assert self.path is not None
        buffer = io.BytesIO()
        torch.save(self._content, buffer)
        write_atomically(self.path, buffer.getvalue())
        self._written, self._changed = time.monotonic(), False


def _capture() -> dict[str, Any]:
    states: dict[str, Any] = {"cpu": torch.get_rng_state()}
    if torch.cuda.is_initialized():
        states["cuda"] = torch.cuda.get_rng_state_all()
    return states


def _restore(states: dict[str, Any]) -> None:
    torch.set_rng_state(states["cpu"])
    if "cuda" in states:
        torch.cuda.set_rng_state_all(states["cuda"])
