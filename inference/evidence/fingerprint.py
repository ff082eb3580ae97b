"""What a number depends on, as one word: settings, data and parameters."""

from __future__ import annotations

import hashlib
from typing import Any

import numpy as np
import pyro
import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves

from ..modules import Modules
from ..programs import Program


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


def digest_of(args: tuple) -> str:
    """A short word for data and context."""
    digest = hashlib.sha256()
    _add_all(digest, args)
    return digest.hexdigest()[:16]


def _add_all(digest: Any, tree: Any) -> None:
    """Every leaf of nested containers: tensors and arrays by content, the rest by their words."""
    for leaf in tree_leaves(tree):
        if isinstance(leaf, np.ndarray):
            leaf = torch.as_tensor(leaf) if leaf.dtype != object else str(leaf.tolist())
        if isinstance(leaf, Tensor):
            _add(digest, leaf)
        else:
            digest.update(_word(leaf).encode())


def _word(leaf: object) -> str:
    """What is no tensor, in a word that is the same in every process."""
    word = repr(leaf)
    return type(leaf).__qualname__ if " at 0x" in word else word


def _add(digest: Any, value: Tensor) -> None:
    digest.update(f"{tuple(value.shape)} {value.dtype}".encode())
    flat = value.detach().cpu().contiguous().reshape(-1)
    digest.update(flat.view(torch.uint8).numpy().tobytes())
