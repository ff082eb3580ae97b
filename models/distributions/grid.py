"""The numbers k / (L - 1) for k = 0 ... L - 1: L levels spread evenly over [0, 1].

A pixel of one byte is such a number, for L = 256. Stored in single precision it is off its level by
a few units in the last place, which double precision can tell: what counts as being on a level is
therefore a matter of single precision whatever the dtype.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.distributions import constraints

MAX_LEVELS = 65536  # two bytes; with many more, single precision cannot tell them apart


def check_num_levels(num_levels: int) -> None:
    """Raise ValueError unless there are from 2 to 65536 levels.

    Example:
        >>> check_num_levels(1)
        Traceback (most recent call last):
        ...
        ValueError: num_levels must be from 2 to 65536, but is 1
    """
    if not 2 <= num_levels <= MAX_LEVELS:
        raise ValueError(f"num_levels must be from 2 to {MAX_LEVELS}, but is {num_levels}")


def nearest_level(x: Tensor, num_levels: int) -> Tensor:
    """The level k, a whole number of the dtype of ``x``, that is nearest to ``x``.

    Example:
        >>> nearest_level(torch.tensor([0.0, 0.34, 1.0]), 4)
        tensor([0., 1., 3.])
    """
    return (x * (num_levels - 1)).round()


class UnitGrid(constraints.Constraint):
    """The levels k / (L - 1), up to rounding in single precision.

    Example:
        >>> UnitGrid(256).check(torch.tensor([0.0, 77 / 255, 0.5, 1.0, 256 / 255, -1 / 255]))
        tensor([ True,  True, False,  True, False, False])
    """

    is_discrete = True
    event_dim = 0

    def __init__(self, num_levels: int) -> None:
        check_num_levels(num_levels)
        self.num_levels = num_levels
        super().__init__()

    def check(self, value: Tensor) -> Tensor:
        if not value.is_floating_point():  # of bytes, products would overflow
            value = value.to(torch.get_default_dtype())
        last = self.num_levels - 1
        scaled, few = value * last, 4 * torch.finfo(torch.float32).eps * last
        off = (scaled - scaled.round()).abs()
        return (off <= few) & (scaled >= -few) & (scaled <= last + few)

    def __repr__(self) -> str:
        return f"UnitGrid(num_levels={self.num_levels})"
