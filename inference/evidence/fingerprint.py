"""What a number depends on, as one word: settings, data and parameters."""

from __future__ import annotations

import hashlib
from typing import Any

import pyro
import torch
from torch import Tensor

from ..modules import Modules
from ..programs import Program


def fingerprint(
    name: str, settings: Any, model: Program, guide: Program | None, args: tuple
) -> str:
    """SHA-256 of an estimator's name and settings, of the data, and of what the programs hold.

    Parameters and buffers of the modules that the programs refer to count, and Pyro's store. A
    tensor that a plain function encloses does not.
    """
    digest = hashlib.sha256(repr((name, settings)).encode())
    roots = Modules(model, model if guide is None else guide).roots()
    held = {f"{i}.{key}": v for i, root in enumerate(roots) for key, v in root.state_dict().items()}
    held |= {f"store.{key}": value for key, value in pyro.get_param_store().items()}
    for key, value in held.items():
        digest.update(key.encode())
        if isinstance(value, Tensor):
            _add(digest, value)
    for arg in args:
        for part in arg if isinstance(arg, tuple) else (arg,):
            if isinstance(part, Tensor):
                _add(digest, part)
            else:
                digest.update(_word(part).encode())
    return digest.hexdigest()


def _word(context: object) -> str:
    """A context that is no tensor, in a word that is the same in every process."""
    word = repr(context)
    return type(context).__qualname__ if " at 0x" in word else word


def _add(digest: Any, value: Tensor) -> None:
    digest.update(f"{tuple(value.shape)} {value.dtype}".encode())
    flat = value.detach().cpu().contiguous().reshape(-1)
    digest.update(flat.view(torch.uint8).numpy().tobytes())
