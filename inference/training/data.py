"""The data of a training run, from whatever kind they come in."""

from __future__ import annotations

from typing import Any

import torch
from torch.utils.data import DataLoader

from .loader import LoaderData
from .tensors import TensorData, parts_of

Data = TensorData | LoaderData


def make_data(
    name: str, x: Any, context: tuple[Any, ...], batch_size: int, device: torch.device
) -> Data:
    """Tensors or a DataLoader, checked."""
    if isinstance(x, DataLoader):
        return LoaderData(x, context, device, name)
    return TensorData(x, context, batch_size, device, name)


def make_validation(validation: Any, train: Data, batch_size: int, device: torch.device) -> Data:
    """The validation data: x alone, or a tuple ``(x, *context)`` where training has a context.

    Raises:
        TypeError, ValueError: they are no data, or unlike the training data.
    """
    if isinstance(validation, DataLoader):
        context = train.context if isinstance(train, LoaderData) else ()
        return LoaderData(validation, context, device, "validation")
    if isinstance(train, LoaderData):
        parts = validation if isinstance(validation, tuple) else (validation,)
        return TensorData(parts[0], (*parts[1:], *train.context), batch_size, device, "validation")
    if not train.context:
        x, context = validation, ()
    elif isinstance(validation, tuple) and len(validation) == 1 + len(train.context):
        x, *rest = validation
        context = tuple(rest)
    else:
        got = (
            f"of {len(validation)}" if isinstance(validation, tuple) else type(validation).__name__
        )
        raise ValueError(
            f"validation: must be a tuple (x, *context) of {1 + len(train.context)}, because "
            f"training has {len(train.context)} context arguments, but is a {got}"
        )
    data = TensorData(x, context, batch_size, device, "validation")
    ours, theirs = parts_of("validation", data.x), parts_of("x", train.x)
    if len(ours) != len(theirs):
        raise ValueError(f"validation: must have {len(theirs)} parts like x, but has {len(ours)}")
    for part, other in zip(ours, theirs, strict=True):
        if part.shape[1:] != other.shape[1:]:
            raise ValueError(
                f"validation: its data must have shape {tuple(other.shape[1:])} like those of x, "
                f"but have {tuple(part.shape[1:])}"
            )
    for i, (a, b) in enumerate(zip(data.batched, train.batched, strict=True)):
        if b and not a:
            raise ValueError(
                f"validation: its context[{i}] must hold {data.num_data} data like its x, "
                f"but has shape {tuple(getattr(context[i], 'shape', ()))}"
            )
    return data
