"""Files that are whole or not there, whatever ends the process that writes them."""

from __future__ import annotations

import os
from pathlib import Path


def write_atomically(path: Path, content: bytes) -> None:
    """Replace the file at ``path`` in one step; on failure the old one stays and nothing is left.

    The name of the file on the way is always the same, so that a killed process leaves at most
    one, which the next write takes over.
    """
    temporary = path.with_name(f".{path.name}.tmp")
    try:
        with open(temporary, "wb") as file:
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
