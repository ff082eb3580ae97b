"""A data set of the user's own, named by import path: ``package.module:function``.

The function takes nothing, or the folder of data files as ``folder``, and returns a `Dataset`, or
three tensors (train, validation, test), or one tensor, which is shuffled (seed 777) and split
80/10/10. Tensors are (N, ...) and floating; each datum is flattened to D values. They are taken as
they are: bits redrawn in every epoch need a `Dataset` with ``dynamic=True``.
"""

from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from ..factories import resolve
from ..options import accepts
from .dataset import BINARISATION_SEED, SPLITS, Dataset, DatasetError, check_finite


def load_custom(path: str, folder: str | Path | None = None) -> Dataset:
    """Call the function at an import path and make a `Dataset` of what it returns.

    Raises:
        FactoryError: the path leads to nothing that can be called.
        DatasetError: the function raises, returns something else, or returns unusable data.
    """
    factory = resolve(path)
    try:
        value = factory(folder=folder) if accepts(factory, "folder") else factory()
    except DatasetError:
        raise
    except Exception as error:  # the user's code runs here: say whose fault it was
        raise DatasetError(f"'{path}' raised {type(error).__name__}: {error}") from error
    if isinstance(value, Dataset):
        return value
    if isinstance(value, Tensor):
        return _from_tensors(path, *_split(path, value))
    if isinstance(value, tuple | list):
        if len(value) == 3 and all(isinstance(x, Tensor) for x in value):
            return _from_tensors(path, *value)
        found = f"{type(value).__name__} of ({', '.join(type(x).__name__ for x in value)})"
    else:
        found = type(value).__name__
    raise DatasetError(
        f"'{path}' should return a Dataset, a tensor or (train, validation, test) tensors; "
        f"found {found}."
    )


def _split(path: str, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    total = len(x) if x.ndim else 0
    if total < 3:
        raise DatasetError(
            f"'{path}': one tensor is split in three and needs at least 3 rows, "
            f"found shape {tuple(x.shape)}."
        )
    if x.ndim > 1:
        check_finite(f"'{path}': the tensor", x)  # while its rows are those that the user knows
    held_out = max(1, total // 10)
    order = torch.from_numpy(np.random.RandomState(BINARISATION_SEED).permutation(total))
    shuffled = x[order.to(x.device)]
    sizes = [total - 2 * held_out, held_out, held_out]
    train, validation, test = shuffled.split(sizes)
    return train, validation, test


def _from_tensors(path: str, *splits: Tensor) -> Dataset:
    shape = tuple(splits[0].shape[1:])
    for split, x in zip(SPLITS, splits, strict=True):
        if x.ndim < 2:
            raise DatasetError(
                f"{path}: {split} should be of shape (N, ...), one row per datum; "
                f"found {tuple(x.shape)}."
            )
        if tuple(x.shape[1:]) != shape:
            raise DatasetError(
                f"{path}: {split} should have data of shape {shape} as train has, "
                f"found {tuple(x.shape[1:])}."
            )
    train, validation, test = (x.detach().flatten(1) for x in splits)
    return Dataset(path, train, validation, test, shape=shape)
