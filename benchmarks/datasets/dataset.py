"""Three splits of one data set, x in R^(N, D), and the binarisation b ~ Bernoulli(x).

Source of the protocol: *VAE with a VampPrior* (Tomczak & Welling, 2018). Training bits are redrawn
in every epoch; validation and test bits are drawn once, one after the other, from NumPy's legacy
generator seeded with 777, whose stream is frozen across NumPy versions.
"""

import hashlib
import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from torch import Tensor

SPLITS = ("train", "validation", "test")
BINARISATION_SEED = 777


class DatasetError(RuntimeError):
    """Data that cannot be had or cannot be used; the message says which, why and what to do."""


@dataclass(frozen=True, eq=False)
class Dataset:
    """Training, validation and test data, each (N, D), with what is needed to score them honestly.

    Args:
        name: what reports call it.
        train, validation, test: tensors (N, D) of one floating dtype, float32 or float64.
        shape: the shape of one datum before it was flattened, prod(shape) = D.
        dynamic: whether ``train`` holds probabilities in [0, 1] of which bits are drawn anew in
            every epoch; ``validation`` and ``test`` are then bits already.
        train_labels, validation_labels, test_labels: int64 tensors (N,), or None.

    Raises:
        DatasetError: an empty split, a dtype that is not floating, a value that is not finite,
            D that differs between splits or from ``shape``, labels that do not fit, or values that
            contradict ``dynamic``.

    >>> grey = torch.tensor([[0.2, 0.9]])
    >>> data = Dataset("tiny", grey, torch.ones(1, 2), torch.zeros(1, 2), shape=(2,), dynamic=True)
    >>> data.transform(torch.tensor([[0.0, 1.0]]), torch.Generator())
    tensor([[0., 1.]])
    """

    name: str
    train: Tensor
    validation: Tensor
    test: Tensor
    shape: tuple[int, ...]
    dynamic: bool = False
    train_labels: Tensor | None = None
    validation_labels: Tensor | None = None
    test_labels: Tensor | None = None

    def __post_init__(self) -> None:
        for split in SPLITS:
            x = self.split(split)
            _check(f"{self.name}: {split}", x, self.train, self.shape)
            labels = self.labels(split)
            if labels is not None and (labels.dtype != torch.int64 or labels.shape != x.shape[:1]):
                raise DatasetError(
                    f"{self.name}: {split}_labels should be int64 of shape ({len(x)},), "
                    f"found {labels.dtype} of shape {tuple(labels.shape)}."
                )
        if self.dynamic:
            if self.train.min() < 0 or self.train.max() > 1:
                raise DatasetError(
                    f"{self.name}: dynamic binarisation needs train in [0, 1], found values from "
                    f"{self.train.min():g} to {self.train.max():g}."
                )
            if not self.binary:
                raise DatasetError(
                    f"{self.name}: with dynamic=True validation and test should be bits, drawn "
                    "once (see binarise_once); found values other than 0 and 1."
                )

    @property
    def sizes(self) -> tuple[int, int, int]:
        """The number of data N in train, validation and test."""
        return len(self.train), len(self.validation), len(self.test)

    @cached_property
    def binary(self) -> bool:
        """Whether everything in validation and test is 0 or 1."""
        return _is_binary(self.validation) and _is_binary(self.test)

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 of what is scored: validation, then test.

        Bits are packed, eight to a byte, each split padded with zeros to whole bytes; other values
        enter as little-endian floats.
        """
        digest = hashlib.sha256()
        for x in (self.validation, self.test):
            array = x.detach().cpu().numpy()
            if self.binary:
                digest.update(np.packbits(array.astype(bool)).tobytes())
            else:
                digest.update(array.astype(array.dtype.newbyteorder("<")).tobytes())
        return digest.hexdigest()

    @property
    def transform(self) -> Callable[[Tensor, torch.Generator], Tensor] | None:
        """What to do to the training data at the start of each epoch: `redraw`, or nothing."""
        return redraw if self.dynamic else None

    def split(self, split: str) -> Tensor:
        """The data (N, D) of ``"train"``, ``"validation"`` or ``"test"``."""
        if split not in SPLITS:
            raise DatasetError(f"split should be one of {', '.join(SPLITS)}, found '{split}'.")
        return {"train": self.train, "validation": self.validation, "test": self.test}[split]

    def labels(self, split: str) -> Tensor | None:
        """The labels (N,) of a split, None where the data set has none."""
        self.split(split)
        return {
            "train": self.train_labels,
            "validation": self.validation_labels,
            "test": self.test_labels,
        }[split]

    def subset_indices(self, split: str, size: int, seed: int) -> Tensor:
        """Rows of a split, (size,) int64, drawn at random without replacement.

        Never the first rows: some test sets are sorted by class. The order is random too, and with
        the same seed a smaller subset is the beginning of a larger one. NumPy's legacy generator is
        used because its stream is frozen: a study can be repeated years later.

        Raises:
            DatasetError: an unknown split, ``size`` not in 1..N, or ``seed`` not in 0..2**32 - 1.
        """
        total = len(self.split(split))
        if not 1 <= size <= total:
            raise DatasetError(
                f"{self.name}: size should be from 1 to {total}, the size of {split}; found {size}."
            )
        if not 0 <= seed < 2**32:
            raise DatasetError(f"seed should be from 0 to 2**32 - 1, found {seed}.")
        return torch.from_numpy(np.random.RandomState(seed).permutation(total)[:size])

    def subset(self, split: str, size: int, seed: int) -> Tensor:
        """The rows (size, D) that `subset_indices` draws."""
        x = self.split(split)
        return x[self.subset_indices(split, size, seed).to(x.device)]


def redraw(x: Tensor, generator: torch.Generator) -> Tensor:
    """Bits b ~ Bernoulli(x), of the shape, dtype and device of x.

    One uniform draw and one comparison, in place: about twice as fast on CPU as `torch.bernoulli`.
    A generator of another device seeds one on the device of x, so that a generator kept on the CPU
    gives reproducible draws on an accelerator.

    >>> redraw(torch.tensor([0.0, 1.0]), torch.Generator().manual_seed(0))
    tensor([0., 1.])
    """
    if generator.device.type != x.device.type:
        seed = torch.randint(2**63 - 1, (), generator=generator, device=generator.device)
        generator = torch.Generator(x.device).manual_seed(int(seed))
    return torch.empty_like(x).uniform_(generator=generator).lt_(x)


def binarise_once(*splits: Tensor) -> tuple[Tensor, ...]:
    """Bits drawn once and for all, ``np.random.seed(777)`` and then split after split.

    Args:
        splits: probabilities in [0, 1]; validation and then test, in the published protocol.

    Raises:
        DatasetError: a value outside [0, 1].

    >>> binarise_once(torch.full((1, 6), 0.5))
    (tensor([[0., 0., 0., 0., 1., 1.]]),)
    """
    for x in splits:
        if not bool(((x >= 0) & (x <= 1)).all()):
            raise DatasetError("only values in [0, 1] can be binarised; found others.")
    random = np.random.RandomState(BINARISATION_SEED)
    draws = [random.binomial(1, x.cpu().numpy()) for x in splits]
    return tuple(torch.from_numpy(b).to(x) for b, x in zip(draws, splits, strict=True))


def _is_binary(x: Tensor) -> bool:
    return bool(((x == 0) | (x == 1)).all())


def _check(what: str, x: Tensor, train: Tensor, shape: tuple[int, ...]) -> None:
    if x.dtype not in (torch.float32, torch.float64):
        raise DatasetError(
            f"{what} should be float32 or float64, found {x.dtype}; convert it, as in x.float()."
        )
    if x.dtype != train.dtype:
        raise DatasetError(f"{what} should be {train.dtype} as train is, found {x.dtype}.")
    if x.numel() == 0:
        raise DatasetError(f"{what} should not be empty, found shape {tuple(x.shape)}.")
    if x.ndim != 2 or x.shape[1] != math.prod(shape):
        raise DatasetError(
            f"{what} should be of shape (N, {math.prod(shape)}), one row of {shape} per datum; "
            f"found {tuple(x.shape)}."
        )
    check_finite(what, x)


def check_finite(what: str, x: Tensor) -> None:
    """Raise a DatasetError that names the first row of x that holds NaN or infinity."""
    rows = x.isfinite().flatten(1).all(dim=1)
    if not bool(rows.all()):
        row = int(rows.int().argmin())
        raise DatasetError(
            f"{what} should be finite, found NaN or infinity in {int((~rows).sum())} of {len(x)} "
            f"rows, first in row {row}."
        )
