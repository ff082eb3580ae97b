"""What every family of models is: a module whose ``model`` and ``guide`` are Pyro programs.

A family writes its two programs inside ``with self._data(x):``, the plate of the data, and ends
its model with ``self._observe(x, likelihood)``.
"""

from __future__ import annotations

import itertools
from typing import Any

import pyro
from pyro.distributions.torch_distribution import TorchDistributionMixin
from torch import Tensor, nn

_instances = itertools.count()


class GenerativeModel(nn.Module):
    """A model and its guide, which share parameters, under one name in Pyro's parameter store.

    Args:
        name: under which the store knows the parameters; by default one of its own for each
            instance, copies and unpickled ones included, so that two of them stay two.
    """

    def __init__(self, name: str | None = None) -> None:
        super().__init__()
        self._is_named = name is not None
        self.name = self._own_name() if name is None else name

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        # under its original's name, a copy would train the parameters in the store: the original's
        if not self._is_named:
            self.name = self._own_name()

    def _own_name(self) -> str:
        return f"{type(self).__name__.lower()}_{next(_instances)}"

    def _data(self, x: Tensor) -> pyro.plate:
        """The plate of the data; what is trained becomes known to Pyro."""
        # Pyro's own switch for modules that keep their parameters to themselves; fit and the
        # estimators, which find them there, set it and save this call a tenth of their time
        if not pyro.settings.get("module_local_params"):
            pyro.module(self.name, self)
        return pyro.plate("data", len(x), dim=-1)

    def _observe(self, x: Tensor, likelihood: TorchDistributionMixin) -> Tensor:
        """Observe x under the likelihood.

        Raises:
            ValueError: the likelihood's data have another shape than those of ``x``.
        """
        if likelihood.event_shape != x.shape[1:]:  # a density would broadcast, and be wrong
            raise ValueError(
                f"x must hold data of shape {tuple(likelihood.event_shape)}, as the likelihood "
                f"does, but holds {tuple(x.shape[1:])}"
            )
        return pyro.sample("x", likelihood, obs=x)


def check_parts(**parts: object) -> None:
    """Raise TypeError unless each part can be called, and is no class.

    Example:
        >>> check_parts(prior=nn.Linear)
        Traceback (most recent call last):
        ...
        TypeError: prior must be a module, but is the class Linear
    """
    for name, part in parts.items():
        if isinstance(part, type):
            raise TypeError(f"{name} must be a module, but is the class {part.__name__}")
        if not callable(part):
            raise TypeError(f"{name} must be a module, but is a {type(part).__name__}")


def draw(num_samples: int, likelihood: TorchDistributionMixin) -> Tensor:
    """Draw one datum for each code.

    Raises:
        ValueError: the context, to which the likelihood's batch broadcast, is of another number.
    """
    if likelihood.batch_shape != (num_samples,):
        raise ValueError(
            f"context must have one entry for each of num_samples = {num_samples}, or one for "
            f"all, but the likelihood has batch shape {tuple(likelihood.batch_shape)}"
        )
    return likelihood.sample()
