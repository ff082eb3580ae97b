"""The settings of a training run, checked before any work is done."""

from __future__ import annotations

import math
import operator
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from pyro import poutine
from pyro.poutine.messenger import Messenger
from torch.utils.data import DataLoader

from .board import check_tensorboard
from .objective import JIT


def _integer(name: str, value: Any, minimum: int) -> int:
    try:
        if isinstance(value, bool):
            raise TypeError
        number = operator.index(value)
    except TypeError:
        raise TypeError(
            f"{name}: must be an integer, but is {value!r} ({type(value).__name__})"
        ) from None
    if number < minimum:
        raise ValueError(f"{name}: must be at least {minimum}, but is {number}")
    return number


def _positive(name: str, value: Any) -> float:
    try:
        number = float(value)
    except (TypeError, ValueError):
        raise TypeError(f"{name}: must be a number, but is {value!r}") from None
    if not (number > 0 and math.isfinite(number)):
        raise ValueError(f"{name}: must be positive and finite, but is {number}")
    return number


def _callable(name: str, value: Any) -> None:
    if value is not None and not callable(value):
        raise TypeError(f"{name}: must be callable, but is a {type(value).__name__}")


def as_path(name: str, value: Any) -> Path | None:
    """The path of a file or folder, or None."""
    if value is None:
        return None
    if not isinstance(value, str | os.PathLike):
        raise TypeError(f"{name}: must be a path, but is {value!r}")
    return Path(value)


def check_objective(objective: Any) -> None:
    """An objective is an instance with ``loss`` and a way to its gradients, like a Pyro ELBO."""
    if isinstance(objective, type):
        raise TypeError(
            f"objective: must be an instance, {objective.__name__}(), but is the class itself"
        )
    gradients = ("differentiable_loss", "loss_and_grads")
    if not callable(getattr(objective, "loss", None)) or not any(
        callable(getattr(objective, name, None)) for name in gradients
    ):
        raise TypeError(
            "objective: must have the methods of a pyro.infer.ELBO (loss, and loss_and_grads or "
            f"differentiable_loss), but is {objective!r}"
        )


@dataclass(frozen=True)
class Settings:
    """How to train: everything but the programs, the data and the objective.

    Raises:
        TypeError: a setting is of the wrong kind.
        ValueError: a setting is out of range. Either message names it, what it must be, and what
            it is.
    """

    epochs: int
    batch_size: int
    learning_rate: float
    optimizer: Any
    schedule: Any
    patience: int | None
    warm_up: int
    clip: float | None
    transform: Any
    seed: int | None
    checkpoint: Path | None
    checkpoint_every: int
    resume: bool
    progress: bool
    compile: bool
    tensorboard: Path | None

    def __post_init__(self) -> None:
        checked: dict[str, Any] = {
            "epochs": _integer("epochs", self.epochs, 1),
            "batch_size": _integer("batch_size", self.batch_size, 1),
            "learning_rate": _positive("learning_rate", self.learning_rate),
            "warm_up": _integer("warm_up", self.warm_up, 0),
            "checkpoint_every": _integer("checkpoint_every", self.checkpoint_every, 1),
        }
        if self.patience is not None:
            checked["patience"] = _integer("patience", self.patience, 1)
        if self.clip is not None:
            checked["clip"] = _positive("clip", self.clip)
        if self.seed is not None:
            checked["seed"] = _integer("seed", self.seed, 0)
        if not isinstance(self.compile, bool):
            raise TypeError(f"compile: must be True or False, but is {self.compile!r}")
        for name in ("optimizer", "schedule", "transform"):
            _callable(name, getattr(self, name))
        if self.resume and self.checkpoint is None:
            raise ValueError("resume: needs the path of a checkpoint, but checkpoint is None")
        if self.tensorboard is not None:
            check_tensorboard(self.tensorboard)
        for name, value in checked.items():
            object.__setattr__(self, name, value)


def check_call(
    settings: Settings, model: Any, guide: Any, x: Any, objective: Any, validation: Any, group: Any
) -> None:
    """What of the arguments cannot go together.

    Raises:
        TypeError, ValueError: naming the argument.
    """
    for name, program in (("model", model), ("guide", guide)):
        if not callable(program):
            raise TypeError(f"{name}: must be callable, but is a {type(program).__name__}")
    check_objective(objective)
    if settings.warm_up and isinstance(objective, JIT):
        raise ValueError("warm_up: must be 0 for a compiled objective, whose scales are frozen")
    if settings.warm_up and isinstance(poutine.unwrap(guide), Messenger):
        raise ValueError("warm_up: must be 0 for an effect-based guide, which runs the model")
    if settings.patience is not None and validation is None:
        raise ValueError("patience: needs validation data, but validation is None")
    if group is not None:
        _check_group(settings, x, objective, validation)
    if settings.transform is not None and isinstance(x, DataLoader):
        raise ValueError("transform: must be None for a DataLoader, which transforms by itself")


def _check_group(settings: Settings, x: Any, objective: Any, validation: Any) -> None:
    """What several processes cannot do yet."""
    if settings.compile or isinstance(objective, JIT):
        raise ValueError(
            "group: must be None for compiled steps, which draw the random numbers of their own "
            "batch alone"
        )
    if isinstance(x, DataLoader) or isinstance(validation, DataLoader):
        raise ValueError("group: must be None for a DataLoader; several processes need tensors")


def find_device(wanted: Any, parameters: torch.device | None, x: Any) -> torch.device:
    """Where the data go: to the parameters, or, while there are none, where x is.

    Raises:
        ValueError: ``wanted`` is no device here, or the parameters are on another one.
    """
    if wanted is None:
        if parameters is not None:
            return parameters
        first = x[0] if isinstance(x, tuple) and x else x
        return first.device if isinstance(first, torch.Tensor) else torch.get_default_device()
    try:
        device = torch.device(wanted)
    except (RuntimeError, TypeError) as error:
        raise ValueError(f"device: must name a device of torch, but is {wanted!r}") from error
    if device.type == "cuda":
        if not torch.cuda.is_available():
            raise ValueError(f"device: must be there, but {wanted!r} is not: torch finds no CUDA")
        device = (
            torch.device("cuda", torch.cuda.current_device()) if device.index is None else device
        )
    if parameters is not None and parameters != device:
        raise ValueError(
            f"device: must be where the parameters are, {parameters}, but is {device}; move the "
            "modules first"
        )
    return device
