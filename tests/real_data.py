"""The data that people publish on, where a folder of them is given, and how to read them."""

from __future__ import annotations

import functools
import gzip
import hashlib
import os
from pathlib import Path

import numpy as np
import pytest

from pyrovae.benchmarks.datasets import Dataset, available, load

FOLDER = os.environ.get("PYROVAE_DATA")
REAL = Path(FOLDER or "missing")
real = pytest.mark.skipif(not FOLDER, reason="no folder of real data (PYROVAE_DATA)")

MNIST_MD5 = {  # of the .gz files, as published
    "train-images-idx3-ubyte.gz": "f68b3c2dcbeaaa9fbdd348bbdeb94873",
    "train-labels-idx1-ubyte.gz": "d53e105ee54ea40749a09fcbcd1e9432",
    "t10k-images-idx3-ubyte.gz": "9fb629c4189551a2d022fa330f9573f3",
    "t10k-labels-idx1-ubyte.gz": "ec29112dd5afa0611ce80d1b7f02629c",
}


@functools.cache
def real_set(name: str) -> Dataset:
    where = {listing.name: listing.where for listing in available(REAL)}[name]
    if where.startswith("not in"):
        pytest.skip(where)
    return load(name, folder=REAL)


def real_bytes(pattern: str) -> bytes:
    """What is in a file of the real data, compressed or not."""
    path = next(iter(sorted(REAL.glob(pattern + "*"))))
    return gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()


def packed_sha256(*bits: np.ndarray) -> str:
    return hashlib.sha256(b"".join(np.packbits(b.astype(bool)).tobytes() for b in bits)).hexdigest()
