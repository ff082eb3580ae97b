"""Bytes to pixels: gzip (RFC 1952), the idx format of MNIST, and the text of binarised MNIST.

An idx file is two zero bytes, a type code (8 for unsigned bytes), the number of dimensions, each
dimension as a big-endian 32-bit integer, and the values in row-major order. An .amat file is text,
one row per line, values 0 and 1 separated by blanks.

Every parser takes the name of its source, so that an error says which file is at fault.
"""

import gzip
import hashlib
import math
import struct
import zlib

import numpy as np
from numpy.typing import NDArray

from .dataset import DatasetError

_UNSIGNED_BYTE = 8
_ZERO, _ONE = b"01"


def gunzip(data: bytes, source: str) -> bytes:
    """The content of gzipped bytes; bytes that are not gzipped come back as they are.

    The first two bytes decide, not the file's name: some servers and browsers unpack on the way.

    Raises:
        DatasetError: a gzip stream that is damaged or cut short.
    """
    if not data.startswith(b"\x1f\x8b"):
        return data
    try:
        return gzip.decompress(data)
    except (OSError, EOFError, zlib.error) as error:
        raise DatasetError(
            f"{source}: expected a whole gzip file, found one of {len(data):,} bytes that is "
            f"damaged or cut short ({error})."
        ) from error


def parse_idx(data: bytes, source: str, shape: tuple[int, ...]) -> NDArray[np.uint8]:
    """The unsigned bytes of an idx file, which should hold an array of ``shape``.

    Raises:
        DatasetError: another magic number, other dimensions, or too few or too many bytes.

    >>> parse_idx(bytes([0, 0, 8, 1, 0, 0, 0, 3, 5, 6, 7]), "labels", (3,))
    array([5, 6, 7], dtype=uint8)
    """
    magic = struct.pack(">HBB", 0, _UNSIGNED_BYTE, len(shape))
    if data[:4] != magic:
        raise DatasetError(
            f"{source}: expected an idx file that starts with {magic.hex()}, "
            f"found {_first_bytes(data)}."
        )
    start = 4 + 4 * len(shape)
    if len(data) < start:
        raise DatasetError(
            f"{source}: expected an idx header of {start} bytes, found {len(data)}: cut short."
        )
    found = struct.unpack(f">{len(shape)}I", data[4:start])
    if found != shape:
        raise DatasetError(f"{source}: expected dimensions {shape}, found {found}.")
    expected = start + math.prod(shape)
    if len(data) != expected:
        raise DatasetError(
            f"{source}: expected {expected:,} bytes for dimensions {shape}, found {len(data):,}: "
            f"{'cut short' if len(data) < expected else 'too long'}."
        )
    return np.frombuffer(data, np.uint8, offset=start).reshape(shape)


def parse_amat(data: bytes, source: str, shape: tuple[int, ...]) -> NDArray[np.uint8]:
    """The bits of an .amat text, which should hold an array of ``shape`` = (N, D).

    One pass over the bytes: every "0" or "1" is a value and anything else must be white space.

    Raises:
        DatasetError: a character that is neither, or too few or too many values.

    >>> parse_amat(b"0 1 1\\n1 0 1\\n", "rows", (2, 3))
    array([[0, 1, 1],
           [1, 0, 1]], dtype=uint8)
    """
    text = np.frombuffer(data, np.uint8)
    is_bit = (text == _ZERO) | (text == _ONE)
    is_other = ~is_bit
    for blank in b" \n\r\t":
        is_other &= text != blank
    if is_other.any():
        at = int(is_other.argmax())
        raise DatasetError(
            f"{source}: expected a text of 0 and 1, found {bytes(text[at : at + 4])!r} at byte "
            f"{at:,}."
        )
    bits = text[is_bit]
    if bits.size != math.prod(shape):
        raise DatasetError(
            f"{source}: expected {shape[0]:,} rows of {shape[1]:,} values = {math.prod(shape):,}, "
            f"found {bits.size:,}: {'cut short' if bits.size < math.prod(shape) else 'too long'}."
        )
    return (bits - _ZERO).reshape(shape)


def check_sha256(data: bytes, source: str, expected: str) -> None:
    """Raise a `DatasetError` unless the (uncompressed) bytes have the expected SHA-256."""
    found = hashlib.sha256(data).hexdigest()
    if found != expected:
        raise DatasetError(
            f"{source}: expected content with SHA-256 {expected}, found {found}: "
            "not the published file, or damaged."
        )


def _first_bytes(data: bytes) -> str:
    start = data[:4]
    if not start:
        return "an empty file"
    return f"{start.hex()} ({start!r})"
