"""Whether a graph does what a program does."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor

from .told import Differs

# of the largest value of a tensor; weights exp(l) are rounded by as many more as l is long
_DOUBLE, _SINGLE, _SINGLE_AT_MOST = 1e-10, 2e-5, 1e-4
_BESIDE = 1e-4  # of the largest of all: less is not looked at


def other_rows(tensors: Sequence[Tensor]) -> list[Tensor]:
    """Other data to compare on: half of the rows, each of them twice.

    Tensors of another length than the first are no data, and stay as they are.
    """
    found, lengths = [], [len(value) for value in tensors if value.dim()]
    for value in tensors:
        if value.dim() and len(value) == lengths[0] > 0:
            rows = torch.arange(len(value), device=value.device)
            value = value[(rows // 2 + 1) % len(value)]
        found.append(value)
    return found


def is_exact(tensors: Iterable[Tensor]) -> bool:
    """Whether what is made of tensors is made in double precision."""
    return all(t.dtype == torch.float64 for t in tensors if t.is_floating_point())


def check_equal(found: Sequence[Tensor], expected: Sequence[Tensor], exact: bool) -> None:
    """Check that two results are the same but for rounding.

    Raises:
        Differs: they are not, or not of the same form.
    """
    if [one.shape for one in found] != [one.shape for one in expected]:
        raise Differs("the program returns now what has another form")
    finite = [value[value.isfinite()].abs() for value in expected]
    scales = [float(value.max()) if value.numel() else 0.0 for value in finite]
    largest = max(scales, default=0.0)
    single = min(_SINGLE + 2 * torch.finfo(torch.float32).eps * largest, _SINGLE_AT_MOST)
    for one, other, scale in zip(found, expected, scales, strict=True):
        # what is nearly 0 beside the others is made of the others' rounding
        allowed = (_DOUBLE if exact else single) * max(scale, _BESIDE * largest)
        if not torch.allclose(one, other, rtol=0, atol=allowed, equal_nan=True):
            off = float((one - other).abs().max())
            raise Differs(
                f"the compiled program differs from the program, by {off:.2g}: it depends on more "
                "than its data, its parameters and torch's random numbers"
            )
