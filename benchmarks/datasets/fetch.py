"""Where the files of a published data set are: a folder of the user's, our cache, or a server.

A folder is given by argument or by the environment variable PYROVAE_DATA; then nothing is ever
downloaded. Otherwise a file that is not yet in the cache is fetched into a temporary folder beside
its place, checked there, and moved into place whole: whatever has its final name was good once.
Checksums are those of the uncompressed bytes, because mirrors differ in their gzip headers. A file
that fails its check is named, and never deleted.
"""

import os
import re
import sys
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .dataset import DatasetError
from .formats import check_sha256, gunzip

ENVIRONMENT = "PYROVAE_DATA"
TIMEOUT_SECONDS = 30

Parser = Callable[[bytes, str, tuple[int, ...]], NDArray[np.uint8]]


@dataclass(frozen=True)
class File:
    """One file: its name when uncompressed, the SHA-256 of its content, and its array's shape."""

    name: str
    sha256: str
    shape: tuple[int, ...]


@dataclass(frozen=True)
class Published:
    """A data set published as files.

    Args:
        folders: names its folder may have inside the user's folder; the first is the usual one.
        url: what the file names are appended to.
        suffix: ".gz" where the server keeps the files compressed, else "".
        parse: from bytes to an array of unsigned bytes.
        images: files of images, in the order in which they follow one another.
        labels: files of labels, in the same order; none where there are none.
    """

    folders: tuple[str, ...]
    url: str
    suffix: str
    parse: Parser
    images: tuple[File, ...]
    labels: tuple[File, ...] = ()

    def read(
        self, name: str, folder: str | Path | None
    ) -> tuple[NDArray[np.uint8], NDArray[np.uint8] | None]:
        """All images (N, ...) and labels (N,), wherever the files are.

        Raises:
            DatasetError: a file that is missing, unreadable, damaged or cannot be downloaded.
        """
        given = user_folder(folder)
        paths = self._given(name, *given) if given else self._cached(name)
        try:
            arrays = {
                file: self._decode(_read(path), str(path), file) for file, path in paths.items()
            }
        except DatasetError as error:
            if given:
                raise
            raise DatasetError(f"{error}\nMove it away to have it downloaded again.") from error
        images = np.concatenate([arrays[file] for file in self.images])
        labels = [arrays[file] for file in self.labels]
        return images, np.concatenate(labels) if labels else None

    def where(self, folder: str | Path | None) -> str:
        """Where `read` would take the files from, in words; nothing is opened or downloaded."""
        given = user_folder(folder)
        if given:
            found = self._find(self._inside(given[0]))
            missing = ", ".join(self._missing(found))
            if missing:
                return f"not in {given[0] / self.folders[0]}: {missing}"
            return "folder " + ", ".join(
                sorted({str(path.parent) for path in found.values() if path})
            )
        try:
            cache = cache_folder() / self.folders[0]
        except DatasetError as error:
            return str(error)
        if self._missing(self._find([cache])):
            return f"to be downloaded from {self.url}"
        return f"cache {cache}"

    def _inside(self, folder: Path) -> list[Path]:
        return [folder / name for name in self.folders]

    def _find(self, folders: Sequence[Path]) -> dict[File, Path | None]:
        def find(file: File) -> Path | None:
            candidates = (folder / (file.name + end) for folder in folders for end in (".gz", ""))
            return next((path for path in candidates if os.path.isfile(path)), None)

        return {file: find(file) for file in self.images + self.labels}

    def _missing(self, found: dict[File, Path | None]) -> list[str]:
        return [file.name + self.suffix for file, path in found.items() if path is None]

    def _given(self, name: str, folder: Path, option: str) -> dict[File, Path]:
        if not folder.is_dir():
            raise DatasetError(f"{option} should be a folder that exists, found '{folder}'.")
        found = self._find(self._inside(folder))
        missing = self._missing(found)
        if missing:
            raise DatasetError(
                f"data set '{name}': {', '.join(missing)} not in {folder / self.folders[0]} "
                f"({option} is {folder}).\nPut what is missing there (from {self.url}), or leave "
                f"{option} unset to have it downloaded."
            )
        return {file: path for file, path in found.items() if path is not None}

    def _cached(self, name: str) -> dict[File, Path]:
        cache = cache_folder() / self.folders[0]
        paths: dict[File, Path] = {}
        for file, path in self._find([cache]).items():
            paths[file] = path or self._download(name, file, cache)
        return paths

    def _download(self, name: str, file: File, cache: Path) -> Path:
        pooch, requests = _import_pooch()
        target = cache / (file.name + self.suffix)
        url = self.url + target.name
        try:
            cache.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryDirectory(prefix=".download-", dir=cache) as folder:
                part = Path(folder) / target.name
                download = pooch.HTTPDownloader(
                    progressbar=sys.stderr.isatty(), chunk_size=2**16, timeout=TIMEOUT_SECONDS
                )
                download(url, str(part), None)
                self._decode(part.read_bytes(), f"data set '{name}': download of {url}", file)
                os.replace(part, target)
        except DatasetError as error:
            raise DatasetError(f"{error}\n{self._instead(cache)}") from error
        except requests.exceptions.RequestException as error:
            raise DatasetError(
                f"data set '{name}': could not download {url}: {_reason(error)}.\n"
                f"{self._instead(cache)}"
            ) from error
        except OSError as error:
            raise DatasetError(
                f"data set '{name}': cannot write to the cache folder {cache}: "
                f"{error.strerror or error}.\nPut the files of {self.url} into "
                f"DIR/{self.folders[0]} and set {ENVIRONMENT}=DIR."
            ) from error
        return target

    def _instead(self, cache: Path) -> str:
        missing = ", ".join(self._missing(self._find([cache])))
        return (
            f"Or put {missing} into {cache}, or all files into DIR/{self.folders[0]} and set "
            f"{ENVIRONMENT}=DIR."
        )

    def _decode(self, data: bytes, source: str, file: File) -> NDArray[np.uint8]:
        content = gunzip(data, source)
        # Structure first: "cut short" helps more than a checksum that differs.
        array = self.parse(content, source, file.shape)
        check_sha256(content, source, file.sha256)
        return array


def user_folder(folder: str | Path | None) -> tuple[Path, str] | None:
    """The user's data folder and the option that gave it: the argument, else PYROVAE_DATA."""
    if folder is not None:
        return Path(folder).expanduser(), "folder (--data-folder)"
    value = os.environ.get(ENVIRONMENT)
    return (Path(value).expanduser(), ENVIRONMENT) if value else None


def cache_folder() -> Path:
    """Where downloads are kept: the operating system's place for the caches of a user."""
    pooch, _ = _import_pooch()
    return Path(pooch.os_cache("pyrovae"))


def _import_pooch() -> tuple[Any, Any]:
    try:
        import pooch
        import requests
    except ImportError as error:
        raise DatasetError(
            f"downloading needs pooch: pip install 'pyrovae[bench]'; or set {ENVIRONMENT} to a "
            "folder that holds the files."
        ) from error
    return pooch, requests


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise DatasetError(f"{path}: cannot be read: {error.strerror or error}.") from error


def _reason(error: Exception) -> str:
    """The innermost cause: requests wraps what happened in two lines of object addresses."""
    inner = error.args[0] if error.args else error
    text = str(getattr(inner, "reason", inner))
    return re.sub(r"^<?\S*Connection\w*(\(.*?\)| object at \w+)>?: ", "", text).rstrip(".")
