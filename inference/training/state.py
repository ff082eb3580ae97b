"""A training run's state: everything that decides what the next step will be.

    parameters, buffers, optimizer, schedule, generators, position, history, best

and the fingerprint of settings and data, without which a state cannot be gone on from.
"""

from __future__ import annotations

import re
import warnings
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import pyro
import torch
from torch import Tensor

from ..modules import Buffers
from ..rng import capture, restore
from . import checkpoint
from .checkpoint import CheckpointError
from .data import Data
from .history import History
from .objective import Loss
from .optimization import Optimization
from .parameters import Parameters
from .settings import Settings


@dataclass
class Position:
    """Where a run stands: ``batch`` batches into ``epoch``, with the sums over them.

    Attributes:
        epoch: number of the epoch, from 1.
        batch: batches of it that are done.
        loss: their summed loss, nats.
        norm: their summed gradient norms.
        data: number of data in them.
        seconds: time spent on them.
    """

    epoch: int = 1
    batch: int = 0
    loss: float = 0.0
    norm: float = 0.0
    data: int = 0
    seconds: float = 0.0


class State:
    """The parts of a run, and how they go into a checkpoint and come back.

    Attributes:
        position: where the run stands.
        best: parameters and buffers at the best epoch, by name; empty where none is kept.
        best_elbo: the validation ELBO there.
    """

    def __init__(
        self,
        parameters: Parameters,
        buffers: Buffers,
        optimization: Optimization,
        data: Data,
        history: History,
        loss: Loss,
    ) -> None:
        self.parameters, self.buffers, self.loss = parameters, buffers, loss
        self.optimization, self.data = optimization, data
        self.history, self.device = history, loss.device
        self.position = Position()
        self.best: dict[str, Tensor] = {}
        self.best_elbo = float("-inf")

    def values(self) -> dict[str, Tensor]:
        """Parameters and buffers by name, as they are, not copied."""
        return {**self.parameters.tensors(), **self._buffers()}

    def _buffers(self) -> dict[str, Tensor]:
        return {f"buffer.{name}": value for name, value in self.buffers.current().items()}

    def note_best(self, elbo: float, keep: bool) -> None:
        """Note this epoch as the best one, and ``keep`` its values to return to."""
        self.best_elbo = elbo
        self.history.best_epoch = self.position.epoch
        if keep:
            self.best = {name: v.detach().clone() for name, v in self.values().items()}

    def assign(self, values: Mapping[str, Tensor]) -> None:
        """Give parameters and buffers these values, in place."""
        tensors = self.parameters.tensors()
        for name, value in values.items():
            if name.startswith("buffer."):
                self.buffers.assign(name.removeprefix("buffer."), value)
            elif name in tensors:
                with torch.no_grad():
                    tensors[name].copy_(value)
            else:
                self.parameters.pending[name] = value

    def save(self, path: Path, fingerprint: Mapping[str, Any]) -> None:
        """Write the checkpoint."""
        checkpoint.save(
            path,
            {
                "fingerprint": dict(fingerprint),
                "values": {**self.values(), **self.parameters.pending},
                "optimization": self.optimization.state(),
                "objective": self.loss.state(),
                "generators": capture(self.device),
                "loader": self.data.loader_state(),
                "position": asdict(self.position),
                "history": self.history.state(),
                "best": self.best,
                "best_elbo": self.best_elbo,
            },
        )

    def try_save(self, path: Path, fingerprint: Mapping[str, Any]) -> OSError | None:
        """Write the checkpoint; a full disk is a warning, and the older one stays."""
        try:
            self.save(path, fingerprint)
        except OSError as error:
            warnings.warn(
                f"checkpoint: {path} could not be written ({error}); the one before it stays, "
                "training goes on, and the next one is tried again",
                RuntimeWarning,
                stacklevel=4,
            )
            return error
        return None

    def load(self, path: Path, saved: Mapping[str, Any]) -> None:
        """Go on from a checkpoint's content.

        Raises:
            CheckpointError: its parameters are not those of this program pair.
        """
        known, values = self.values(), saved["values"]
        for name, value in known.items():
            if name not in values:
                raise CheckpointError(f"resume: {path} lacks {name}, which model and guide have")
            if values[name].shape != value.shape:
                raise CheckpointError(
                    f"resume: {name} must have shape {tuple(value.shape)} as in model and guide, "
                    f"but has {tuple(values[name].shape)} in {path}"
                )
        for name in values.keys() - known.keys():
            if not name.startswith(("store.", "module.")):  # these may yet be created
                raise CheckpointError(f"resume: {path} holds {name}, which model and guide lack")
        self.assign(values)
        self.parameters.pending = {
            name: value.to(self.device) for name, value in self.parameters.pending.items()
        }
        self.optimization.load(saved["optimization"])
        self.loss.load_state(saved["objective"])
        restore(saved["generators"], self.device)
        self.data.set_loader_state(saved["loader"])
        self.position = Position(**saved["position"])
        self.history = History.from_state(saved["history"])
        self.best = {name: value.to(self.device) for name, value in saved["best"].items()}
        self.best_elbo = saved["best_elbo"]


def compare(path: Path, saved: Mapping[str, Any], present: Mapping[str, Any]) -> None:
    """Refuse to go on with other settings or data than the checkpoint's.

    Raises:
        CheckpointError: naming the setting and both of its values.
    """
    for name, value in present.items():
        if name not in saved or saved[name] != value:
            raise CheckpointError(
                f"resume: {name} is {value!r}, but {saved.get(name)!r} in {path}. Go on with the "
                "same settings and data (only epochs may differ), or start afresh elsewhere"
            )


def describe(
    settings: Settings,
    seed: int,
    data: Data,
    validation: Data | None,
    loss: Loss,
    optimization: Optimization,
) -> dict[str, Any]:
    """The fingerprint of a run: whatever decides its numbers, as plain values."""
    objective = loss.objective
    public = {
        name: value
        for name, value in sorted(vars(objective).items())
        # Pyro's objectives overwrite max_plate_nesting by what they find
        if isinstance(value, bool | int | float | str) and name != "max_plate_nesting"
    }
    listed = ", ".join(f"{name}={value}" for name, value in public.items())
    result: dict[str, Any] = {
        "seed": seed,
        "objective": _plainly(objective) if loss.ours else f"{type(objective).__name__}({listed})",
        "batch_size": settings.batch_size,
        "learning_rate": settings.learning_rate,
        **optimization.fingerprint(),
        "patience": settings.patience,
        "warm_up": settings.warm_up,
        "clip": settings.clip,
        "transform": _name(settings.transform),
    }
    for prefix, part in (("data", data), ("validation", validation)):
        content = part.fingerprint(checksum=settings.checkpoint is not None) if part else {}
        result |= {f"{prefix}_{name}": value for name, value in content.items()}
    return result


def _name(function: Any) -> str | None:
    if function is None:
        return None
    return getattr(function, "__qualname__", type(function).__qualname__)


def _plainly(value: Any) -> str:
    """Its repr, without where in memory parts are that have none of their own."""
    return re.sub(r" at 0x[0-9a-fA-F]+", "", repr(value))


def versions() -> dict[str, str]:
    """The libraries a run was made with."""
    return {"torch": torch.__version__, "pyro": pyro.__version__}
