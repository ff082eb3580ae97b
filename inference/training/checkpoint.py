"""One file that holds a whole training state: tensors by safetensors, the rest as JSON inside it.

    state = {"parameters": {name: tensor}, "optimizer": {...}, "epoch": 3, ...}
          -> tensors under flat names + a JSON tree that says where each belongs

The JSON stands in the file's metadata with a checksum of everything. Nothing is pickled, so
reading a checkpoint executes nothing. A file is written beside its place, synced, and moved there
in one step, so at any moment there is either the old one or the new one.
"""

from __future__ import annotations

import json
import os
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save as to_bytes
from torch import Tensor

from ..files import write_atomically

KEY, FORMAT, VERSION = "pyrovae", "pyrovae.training", 2


class CheckpointError(ValueError):
    """There is no going on from a checkpoint: it is damaged, or that of another run."""


def crc32(tensor: Tensor, start: int = 0) -> int:
    """CRC-32 of a tensor's bytes, on whatever device it is.

    Example:
        >>> crc32(torch.arange(3)) == crc32(torch.arange(3)) != crc32(torch.arange(4))
        True
    """
    flat = tensor.detach().cpu().contiguous().reshape(-1)
    return zlib.crc32(flat.view(torch.uint8).numpy().data, start) if flat.numel() else start


def pack(value: Any, name: str, tensors: dict[str, Tensor]) -> Any:
    """``value`` as JSON, its tensors moved to ``tensors`` under names that begin with ``name``.

    Dictionaries (with keys of any kind), lists, tuples, tensors, numbers, strings and None come
    back from :func:`unpack` as they were.

    Raises:
        ValueError: something else is in there; the message says where.

    Example:
        >>> tensors = {}
        >>> tree = pack({0: (torch.ones(2), float("inf"))}, "state", tensors)
        >>> list(tensors), unpack(tree, tensors)
        (['state.0.0'], {0: (tensor([1., 1.]), inf)})
    """
    if isinstance(value, np.generic):
        value = value.item()
    if value is None or isinstance(value, bool | int | str):
        return value
    if isinstance(value, float):
        return value if np.isfinite(value) else {"$float": repr(value)}
    if isinstance(value, Tensor):
        # A clone: safetensors refuses tensors that share memory.
        tensors[name] = value.detach().to("cpu", copy=True).contiguous()
        return {"$tensor": name}
    if isinstance(value, list | tuple):
        items = [pack(item, f"{name}.{i}", tensors) for i, item in enumerate(value)]
        return items if isinstance(value, list) else {"$tuple": items}
    if isinstance(value, Mapping):
        pairs = [
            [pack(k, name, tensors), pack(v, f"{name}.{k}", tensors)] for k, v in value.items()
        ]
        return {"$dict": pairs}
    raise ValueError(
        f"checkpoint: cannot keep {name}, a {type(value).__name__}; it keeps tensors, numbers, "
        "strings, None, and lists, tuples and dictionaries of them"
    )


def unpack(tree: Any, tensors: Mapping[str, Tensor]) -> Any:
    """The value that :func:`pack` turned into ``tree`` and ``tensors``."""
    if isinstance(tree, list):
        return [unpack(item, tensors) for item in tree]
    if isinstance(tree, dict):
        ((kind, content),) = tree.items()
        match kind:
            case "$float":
                return float(content)
            case "$tensor":
                return tensors[content]
            case "$tuple":
                return tuple(unpack(item, tensors) for item in content)
            case "$dict":
                return {unpack(k, tensors): unpack(v, tensors) for k, v in content}
        raise ValueError(f"unknown kind {kind!r}")
    return tree


def _checksum(tree: str, tensors: Mapping[str, Tensor]) -> int:
    value = zlib.crc32(tree.encode())
    for name in sorted(tensors):
        value = crc32(tensors[name], value)
    return value


def check_folder(path: Path) -> None:
    """Find out, before any work, whether a checkpoint can be written at ``path``.

    Raises:
        FileNotFoundError: its folder does not exist.
        IsADirectoryError: ``path`` is a folder.
        OSError: nothing can be written into the folder.
    """
    if path.is_dir():
        raise IsADirectoryError(f"checkpoint: must be a file's path, but {path} is a folder")
    if not path.parent.is_dir():
        raise FileNotFoundError(
            f"checkpoint: the folder {path.parent} of {path.name} does not exist; create it first"
        )
    trial = path.with_name(f".{path.name}.test")
    try:
        write_atomically(trial, b"")
        trial.unlink(missing_ok=True)  # another process may be looking, too
    except OSError as error:
        raise type(error)(
            error.errno, f"checkpoint: cannot write into {path.parent}: {error.strerror}"
        ) from error


def save(path: str | os.PathLike[str], state: Mapping[str, Any]) -> None:
    """Write ``state`` to ``path``, atomically.

    Raises:
        OSError: the file cannot be written; an older one stays as it was.
        ValueError: the state holds something that :func:`pack` does not keep.
    """
    tensors: dict[str, Tensor] = {}
    tree = json.dumps(pack(state, "state", tensors))
    header = {
        "format": FORMAT,
        "version": VERSION,
        "crc32": _checksum(tree, tensors),
        "state": tree,
    }
    write_atomically(Path(path), to_bytes(tensors, {KEY: json.dumps(header)}))


def load(path: str | os.PathLike[str]) -> dict[str, Any]:
    """The state that :func:`save` wrote, its tensors on the CPU.

    Raises:
        CheckpointError: the file is truncated, corrupt, or no training checkpoint. It is left
            alone.

    Example:
        >>> save("run.safetensors", {"epoch": 3, "weight": torch.ones(2)})
        >>> load("run.safetensors")
        {'epoch': 3, 'weight': tensor([1., 1.])}
    """
    try:
        with safe_open(os.fspath(path), framework="pt") as file:
            metadata = file.metadata() or {}
            # Clones: the tensors must outlive the mapped file, which may be replaced meanwhile.
            tensors = {name: file.get_tensor(name).clone() for name in file.keys()}  # noqa: SIM118
    except (SafetensorError, ValueError) as error:
        raise CheckpointError(
            f"checkpoint: {path} is truncated, corrupt, or not a safetensors file ({error})"
        ) from error
    if KEY not in metadata:
        raise CheckpointError(
            f"checkpoint: {path} was not written by fit: it lacks the {KEY!r} entry"
        )
    try:
        header = json.loads(metadata[KEY])
        known = header["format"] == FORMAT
        version, tree, checksum = header["version"], header["state"], header["crc32"]
    except (ValueError, KeyError, TypeError) as error:
        raise CheckpointError(f"checkpoint: {path} is corrupt: its header is unreadable") from error
    if not known or version != VERSION:
        raise CheckpointError(
            f"checkpoint: {path} must be {FORMAT} version {VERSION}, "
            f"but is {header['format']} version {version}"
        )
    if checksum != _checksum(tree, tensors):
        raise CheckpointError(
            f"checkpoint: {path} is corrupt: its content does not match its checksum"
        )
    state = unpack(json.loads(tree), tensors)
    assert isinstance(state, dict)
    return state
