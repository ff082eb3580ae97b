"""Counts of single cells: how often each of 765 genes was read in each of 700 blood cells.

The file that lies beside this one holds the counts behind ``scanpy.datasets.pbmc68k_reduced`` of
scanpy 1.11.5 (BSD-3-Clause, Wolf, Angerer and Theis, *SCANPY: large-scale single-cell gene
expression data analysis*, 2018), a part of the 68,000 blood cells of Zheng and others, *Massively
parallel digital transcriptional profiling of single cells*, 2017 (10x Genomics). There they are
normalised and logarithmed; the counts were recovered from that, each within 0.08 of a whole number.
"""

from __future__ import annotations

import hashlib
import io
from dataclasses import dataclass
from importlib.resources import files

import numpy as np
import torch
from torch import Tensor

from .dataset import BINARISATION_SEED, Dataset, DatasetError

SIZES = (500, 100, 100)
_SHA256 = "8b1e2d4d5e90fd2d63923fcec3a528c6bf57f63fdb2ec4842c42e0a8ec7a2cf9"


@dataclass(frozen=True)
class Counts:
    """Cells by genes.

    Attributes:
        data: the counts, and as labels the kinds of cells.
        totals: what was read in each cell over all of its genes, also those that are left out,
            ``(N, 1)`` by split: a context for likelihoods that take a size.
        genes: their names.
        kinds: names of the labels.
    """

    data: Dataset
    totals: dict[str, Tensor]
    genes: tuple[str, ...]
    kinds: tuple[str, ...]


def load_counts() -> Counts:
    """The 700 cells, shuffled with seed 777 and split 500/100/100.

    Raises:
        DatasetError: the file is damaged.

    >>> cells = load_counts()
    >>> cells.data.sizes, cells.data.shape, len(cells.kinds)
    ((500, 100, 100), (765,), 10)
    """
    content = files(__package__).joinpath("pbmc68k.npz").read_bytes()
    if hashlib.sha256(content).hexdigest() != _SHA256:
        raise DatasetError("data set 'pbmc68k': its file is damaged: install pyrovae again.")
    with np.load(io.BytesIO(content)) as archive:
        held = {name: archive[name] for name in archive.files}
    order = np.random.RandomState(BINARISATION_SEED).permutation(len(held["counts"]))

    def split(name: str, dtype: torch.dtype) -> tuple[Tensor, ...]:
        values = torch.from_numpy(held[name][order].astype(np.int64)).to(dtype)
        return values.split(SIZES)

    train, validation, test = split("counts", torch.float32)
    kinds = split("cell_type", torch.int64)
    totals = split("total_counts", torch.float32)
    return Counts(
        Dataset("pbmc68k", train, validation, test, (train.shape[1],), False, *kinds),
        {n: t[:, None] for n, t in zip(("train", "validation", "test"), totals, strict=True)},
        tuple(map(str, held["genes"])),
        tuple(map(str, held["cell_type_names"])),
    )
