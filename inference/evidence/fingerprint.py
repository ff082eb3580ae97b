"""What a number depends on, as one word: settings, data and parameters."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from typing import Any

import numpy as np
import pyro
import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves

from ..modules import Modules
from ..programs import Program, num_data


def fingerprint(
    name: str, settings: dict, model: Program, guide: Program | None, args: tuple
) -> str:
    """SHA-256 of an estimator's name and settings, of the data, and of what the programs hold.

    Parameters and buffers of the modules that the programs refer to count, and Pyro's store. What a
    plain function does, and what it encloses beside modules, does not: two of them look alike.
    """
    words = {n: getattr(v, "__qualname__", _word(v)) for n, v in settings.items()}
    digest = hashlib.sha256(repr((name, words)).encode())
    programs = [model, guide, *(value for value in settings.values() if callable(value))]
    roots = [r for p in programs if p is not None for r in Modules(p, p).roots()]
    held = {f"{i}.{key}": v for i, root in enumerate(roots) for key, v in root.state_dict().items()}
    held |= {f"store.{key}": value for key, value in pyro.get_param_store().items()}
    for key, value in held.items():
        digest.update(key.encode())
        if isinstance(value, Tensor):
            _add(digest, value)
    _add_all(digest, args)
    return digest.hexdigest()


def digest_of(args: tuple, first: int = 0) -> str:
    """A short word for data and context, of which these are the data from number ``first`` on.

    Words of successive batches add up (:func:`joined`) to that of all their data at once: each
    datum is hashed with its number. What all data share is hashed with the first.
    """
    size = num_data(args[0])
    own: list[Tensor] = []
    shared = hashlib.sha256()
    for leaf in map(_as_tensor, tree_leaves(args)):
        if isinstance(leaf, Tensor) and leaf.dim() and len(leaf) == size:
            own.append(leaf)
            shared.update(f"{tuple(leaf.shape[1:])} {leaf.dtype}".encode())
        elif isinstance(leaf, Tensor):
            _add(shared, leaf)
        else:
            shared.update(_word(leaf).encode())
    total = int.from_bytes(shared.digest()[:8], "big") if first == 0 else 0
    rows = [_bytes(t).reshape(size, -1) for t in own if t.numel()]
    for number in range(size):
        digest = hashlib.blake2b(str(first + number).encode(), digest_size=8)
        for row in rows:
            digest.update(row[number].tobytes())
        total += int.from_bytes(digest.digest(), "big")
    return f"{total % 2**64:016x}"


def joined(words: Iterable[str]) -> str:
    """The word for all data of successive batches."""
    return f"{sum(int(word, 16) for word in words) % 2**64:016x}"


def _add_all(digest: Any, tree: Any) -> None:
    """Every leaf of nested containers: tensors and arrays by content, the rest by their words."""
    for leaf in map(_as_tensor, tree_leaves(tree)):
        if isinstance(leaf, Tensor):
            _add(digest, leaf)
        else:
            digest.update(_word(leaf).encode())


def _as_tensor(leaf: Any) -> Any:
    if isinstance(leaf, np.ndarray):
        return torch.as_tensor(leaf) if leaf.dtype != object else str(leaf.tolist())
    return leaf


def _word(leaf: object) -> str:
    """What is no tensor, in a word that is the same in every process."""
    word = repr(leaf)
    return type(leaf).__qualname__ if " at 0x" in word else word


def _add(digest: Any, value: Tensor) -> None:
    digest.update(f"{tuple(value.shape)} {value.dtype}".encode())
    digest.update(_bytes(value).tobytes())


def _bytes(value: Tensor) -> np.ndarray:
    return value.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy()
