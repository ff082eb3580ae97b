"""The program pair that a factory returns: ``(model, guide)``, and the object that holds both.

A factory gets the training data and returns either an object with ``model`` and ``guide`` (a VAE),
or a tuple of two Pyro programs.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import pyro
import torch
from torch import Tensor, nn

from ..inference.modules import Modules, mode
from ..inference.programs import Program
from .factories import FactoryError
from .options import accepts, call, look_up
from .zoo import MODELS


@dataclass(frozen=True)
class Pair:
    """Two Pyro programs with one signature.

    Attributes:
        model, guide: the programs.
        whole: the module whose methods both are; None for programs that stand alone.
    """

    model: Program
    guide: Program
    whole: nn.Module | None = None

    @property
    def modules(self) -> list[nn.Module]:
        """The modules that the programs stand on."""
        return Modules(self.model, self.guide).roots()

    def to(self, device: torch.device | None) -> Pair:
        """Move the modules, in place; parameters in Pyro's store stay where their program is."""
        if device is not None:
            for module in self.modules:
                module.to(device)
        return self

    @contextmanager
    def evaluating(self) -> Iterator[None]:
        """Inside, dropout and batch norm are still."""
        with mode(self.modules, False):
            yield


def as_pair(value: Any, name: str = "factory") -> Pair:
    """What a factory returned, as a pair.

    >>> as_pair((print, print)).whole is None
    True

    Raises:
        FactoryError: it is neither an object with model and guide nor a tuple of two programs.
    """
    if isinstance(value, tuple):
        if len(value) == 2 and all(callable(program) for program in value):
            return Pair(*value)
        found = f"a tuple of ({', '.join(type(item).__name__ for item in value)})"
    else:
        model, guide = getattr(value, "model", None), getattr(value, "guide", None)
        if callable(model) and callable(guide):
            return Pair(model, guide, value if isinstance(value, nn.Module) else None)
        found = type(value).__name__
    raise FactoryError(
        f"'{name}' should return an object with model and guide, or a tuple of the two programs; "
        f"found {found}."
    )


def model_options(name: str, options: dict[str, Any], shape: tuple[int, ...]) -> dict[str, Any]:
    """The options with the shape of a datum among them, where the factory asks for ``shape``."""
    factory = look_up("model", name, MODELS)
    if accepts(factory, "shape") and "shape" not in options:
        return {**options, "shape": list(shape)}
    return dict(options)


def build(name: str, options: dict[str, Any], x_train: Tensor, seed: int) -> Pair:
    """Call a model factory, from an empty parameter store and a seed for every generator.

    Raises:
        ValueError: a seed that not every generator takes.
        FactoryError: an unknown name or option, a factory that raised or returned something else.
    """
    if not 0 <= seed < 2**32:
        raise ValueError(f"seed should be from 0 to 2**32 - 1; found {seed}")
    factory = look_up("model", name, MODELS)
    pyro.clear_param_store()
    pyro.set_rng_seed(seed)
    return as_pair(call(name, factory, x_train, options=options), name)


def find_device(wanted: str) -> torch.device | None:
    """``auto`` is CUDA where there is some, and None (leave things where they are) elsewhere.

    >>> find_device("cpu")
    device(type='cpu')

    Raises:
        ValueError: no device of that name here.
    """
    if wanted == "auto":
        return torch.device("cuda") if torch.cuda.is_available() else None
    try:
        device = torch.device(wanted)
    except RuntimeError as error:
        raise ValueError(f"device should be auto, cpu or cuda; found '{wanted}'") from error
    try:
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        reason = str(error).splitlines()[0]
        raise ValueError(f"device '{wanted}' is not to be had here: {reason}") from error
    return device
