"""What layers are given as, and what draws their codes: shared by all that has layers."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from pyro.distributions.torch_distribution import TorchDistributionMixin
from torch import Tensor, nn

Modules = Sequence[nn.Module] | nn.ModuleList
Codes = dict[str, Tensor]  # by site
Draw = Callable[[str, TorchDistributionMixin], Tensor]  # of a site, as pyro.sample is one


def listed(name: str, modules: Modules, size: int | None = None) -> nn.ModuleList:
    """The modules as one; ``size`` of them, where it is given.

    Raises:
        TypeError: there is no list, or something else in it; names the argument.
        ValueError: another number of modules.

    Example:
        >>> listed("posteriors", nn.Linear(2, 3))
        Traceback (most recent call last):
        ...
        TypeError: posteriors must be a list of modules, but is a Linear
    """
    if not isinstance(modules, list | tuple | nn.ModuleList):
        raise TypeError(f"{name} must be a list of modules, but is a {type(modules).__name__}")
    for index, module in enumerate(modules):
        if not isinstance(module, nn.Module):
            raise TypeError(f"{name}[{index}] must be a module, but is a {type(module).__name__}")
    if size is not None and len(modules) != size:
        raise ValueError(
            f"{name} must be a list of {size}, to fit posteriors, but is one of {len(modules)}"
        )
    return nn.ModuleList(modules)


def drawing(rows: torch.Size) -> Draw:
    """Draws for each row, as in a plate: what does not depend on the row is drawn for each."""
    return lambda _, p: p.sample(rows[: len(rows) - len(p.batch_shape)])
