"""Files that are whole or not there, whatever ends the process that writes them."""

from __future__ import annotations

import os
import threading
from pathlib import Path
from typing import BinaryIO

try:
    import fcntl
except ImportError:  # not on Windows
    fcntl = None  # type: ignore[assignment]


def write_atomically(path: Path, content: bytes) -> None:
    """Replace the file at ``path`` in one step; on failure the old one stays and nothing is left.

    The name of the file on the way is the same each time, so that a killed process leaves at most
    one, which a later write takes over. Of processes that write at once, each has its own.
    """
    temporary, file = _on_the_way(path)
    with file:  # whose lock keeps others off it until it is where it belongs
        try:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
            if fcntl is None:  # Windows moves no open file
                file.close()
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
    """A file beside ``path``, empty, that no other process writes."""
    usual = path.with_name(f".{path.name}.tmp")
    if (file := _taken(usual)) is not None:
        return usual, file
    own = path.with_name(f".{path.name}.{os.getpid()}-{threading.get_ident()}.tmp")
    return own, open(own, "wb")


def _taken(path: Path) -> BinaryIO | None:
    """The file at ``path``, new or left behind, under a lock; None where another process has it."""
    if fcntl is None:
        return None
    file = open(path, "ab")  # noqa: SIM115 - whoever writes closes it
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        # between opening and locking, another may have moved it to where it belongs
        if path.stat().st_ino == os.fstat(file.fileno()).st_ino:
            file.truncate(0)
            return file
    except OSError:
        pass  # locked, moved, or of a file system without locks: a file of another name will do
    file.close()
    return None


def write_new(path: Path, content: bytes) -> Path:
    """Write a file where none is: at ``path``, or beside it where another process was faster.

    Returns where. An hour's result is not lost to a name that was free when the hour began.

    Example:
        >>> import tempfile
        >>> path = Path(tempfile.mkdtemp()) / "result.nc"
        >>> write_new(path, b"one").name, write_new(path, b"two").name, path.read_bytes()
        ('result.nc', 'result-2.nc', b'one')
    """
    own = path.with_name(f".{path.name}.{os.getpid()}-{threading.get_ident()}.new")
    write_atomically(own, content)
    number, free = 1, path
    try:
        while not _moved(own, free):
            number += 1
            free = path.with_stem(f"{path.stem}-{number}")
    finally:
        own.unlink(missing_ok=True)
    return free


def _moved(file: Path, to: Path) -> bool:
    """Give a whole file a name that is free, in one step; False where it is not free."""
    try:
        os.link(file, to)
    except FileExistsError:
        return False
    except OSError:  # a file system without links: others may see it empty for a moment
        try:
            to.touch(exist_ok=False)
        except FileExistsError:
            return False
        os.replace(file, to)
    return True
