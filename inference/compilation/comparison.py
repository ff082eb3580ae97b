"""Whether a graph does what a program does."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor

_DOUBLE, _SINGLE = 1e-9, 1e-4  # of the largest value of a tensor
_BESIDE = 1e-3  # of the largest of all: less is not looked at


def is_exact(tensors: Iterable[Tensor]) -> bool:
    """Whether what is made of tensors is made in double precision."""
    return all(t.dtype == torch.float64 for t in tensors if t.is_floating_point())


def check_equal(found: Sequence[Tensor], expected: Sequence[Tensor], exact: bool) -> None:
    """Raise ArithmeticError unless two results are the same but for rounding."""
    finite = [value[value.isfinite()].abs() for value in expected]
    scales = [float(value.max()) if value.numel() else 0.0 for value in finite]
    # what is nearly 0 beside the others is made of the others' rounding
    least = _BESIDE * max(scales, default=0.0)
    for one, other, scale in zip(found, expected, scales, strict=True):
        allowed = (_DOUBLE if exact else _SINGLE) * max(scale, least)
        if not torch.allclose(one, other, rtol=0, atol=allowed, equal_nan=True):
            off = float((one - other).abs().max())
            raise ArithmeticError(
                f"the compiled program differs from the program, by {off:.2g}: it depends on more "
                "than its data, its parameters and torch's random numbers"
            )
