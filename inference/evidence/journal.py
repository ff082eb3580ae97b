"""What a long estimate has finished, in a file: after an interruption it goes on from there.

The file holds the results of whole tiles and, for a tile under way, the last state that its
estimator offered. It is replaced in one step, at most every few seconds and whenever the call ends,
however it ends. A process that is killed loses these seconds, and of the tile under way what came
before the first offer: pilot runs and warm-ups, and the fit of a refined proposal.
"""

from __future__ import annotations

import hashlib
import io
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

import torch

from ..files import write_atomically

_INTERVAL = 10.0  # seconds
_VERSION = 1
_DIGEST = hashlib.sha256().digest_size


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
        ValueError: the file is damaged, or no journal.
        OSError: it cannot be read, or is a folder.
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
        if self.path.is_dir():
            raise IsADirectoryError(f"checkpoint must be a file, but {self.path} is a folder")
        if self.path.exists():
            self._content = self._read(self.path)

    @staticmethod
    def _read(path: Path) -> dict[str, Any]:
        content = path.read_bytes()
        digest, payload = content[:_DIGEST], content[_DIGEST:]
        if hashlib.sha256(payload).digest() != digest:
            raise ValueError(f"checkpoint must be a file that an estimator wrote, but is {path}")
        found = torch.load(io.BytesIO(payload), weights_only=True)
        if found["version"] != _VERSION:
            raise ValueError(
                f"checkpoint must be of version {_VERSION}, but {path} is of {found['version']}"
            )
        return found

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

    def batch(self, number: int, sizes: object, identity: Callable[[], str]) -> Batch:
        """The record of a batch of data, cut into tiles of these sizes.

        Raises:
            ValueError: the file is another call's.
        """
        if self.path is None:
            return Batch({"tiles": {}, "state": None, "at": None}, lambda: None, kept=False)
        ours = identity()
        known = self._content["batches"].setdefault(number, {"identity": ours, "plans": {}})
        if known["identity"] != ours:
            raise ValueError(
                f"checkpoint {self.path} belongs to other settings, programs or data: choose "
                "another file, or delete it"
            )
        # other tiles have other random numbers: those of another plan or budget stand beside
        plan = known["plans"].setdefault(str(sizes), {"tiles": {}, "state": None, "at": None})
        self._write()  # a folder that cannot be written to is better known now
        return Batch(plan, self._note)

    def _note(self) -> None:
        self._changed = True
        if time.monotonic() - self._written > _INTERVAL:
            self._write()

    def _write(self) -> None:
        assert self.path is not None
        buffer = io.BytesIO()
        torch.save(self._content, buffer)
        payload = buffer.getvalue()
        write_atomically(self.path, hashlib.sha256(payload).digest() + payload)
        self._written, self._changed = time.monotonic(), False


@dataclass(frozen=True)
class Batch:
    """What a journal knows of one batch of data.

    Args:
        record: finished tiles, and the state of the one under way.
        note: is told of every change.
        kept: whether anything outlives the call.
    """

    record: dict[str, Any]
    note: Callable[[], None]
    kept: bool = True

    def finished(self, tile: int) -> dict[str, Any] | None:
        """What the tile gave, where it is finished; else None."""
        return self.record["tiles"].get(tile)

    def add(self, tile: int, scores: dict[str, Any]) -> None:
        """Keep what a tile gave."""
        if self.kept:
            self.record["tiles"][tile] = scores
            self.record["state"] = self.record["at"] = None
            self.note()

    def keeper(self, tile: int) -> Keeper:
        """For the state of a tile under way."""
        if not self.kept:
            return Keeper()

        def offer(state: dict) -> None:
            self.record["state"], self.record["at"] = state, tile
            self.note()

        return Keeper(self.record["state"] if self.record["at"] == tile else None, offer)


def _capture() -> dict[str, Any]:
    states: dict[str, Any] = {"cpu": torch.get_rng_state()}
    if torch.cuda.is_initialized():
        states["cuda"] = torch.cuda.get_rng_state_all()
    return states


def _restore(states: dict[str, Any]) -> None:
    torch.set_rng_state(states["cpu"])
    if "cuda" in states:
        torch.cuda.set_rng_state_all(states["cuda"])
