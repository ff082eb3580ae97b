"""Files that are whole or not there, whatever ends the process that writes them."""

from __future__ import annotations

import contextlib
import os
import threading
import time
from pathlib import Path
from typing import BinaryIO

ABANDONED = 600.0  # seconds after which nobody is still writing a file


def write_atomically(path: Path, content: bytes) -> None:
    """Replace the file at ``path`` in one step; on failure the old one stays and nothing is left.

    The name of the file on the way is the same each time, so that a killed process leaves at most
    one, which a later write takes over. Of processes that write at once, each has its own.
    """
    temporary, file = _on_the_way(path)
    try:
        with file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    if hasattr(os, "O_DIRECTORY"):  # make the move itself last through a power cut
        folder = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)


def _on_the_way(path: Path) -> tuple[Path, BinaryIO]:
    """A file beside ``path`` that no other process writes."""
    usual = path.with_name(f".{path.name}.tmp")
    own = path.with_name(f".{path.name}.{os.getpid()}-{threading.get_ident()}.tmp")
    with contextlib.suppress(FileNotFoundError):
        if time.time() - usual.stat().st_mtime > ABANDONED:
            usual.unlink()
    try:
        return usual, open(usual, "xb")
    except FileExistsError:
        return own, open(own, "wb")


def write_new(path: Path, content: bytes) -> Path:
    """Write a file where none is: at ``path``, or beside it where another process was faster.

    Returns where. An hour's result is not lost to a name that was free when the hour began.

    Example:
        >>> import tempfile
        >>> path = Path(tempfile.mkdtemp()) / "result.nc"
        >>> write_new(path, b"one").name, write_new(path, b"two").name, path.read_bytes()
        ('result.nc', 'result-2.nc', b'one')
    """
    number, free = 1, path
    while True:
        try:
            free.touch(exist_ok=False)
            break
        except FileExistsError:
            number += 1
            free = path.with_stem(f"{path.stem}-{number}")
    try:
        write_atomically(free, content)
    except BaseException:
        free.unlink(missing_ok=True)
        raise
    return free
