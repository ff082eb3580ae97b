"""Files of a data set: read from a folder, downloaded once, and never trusted unchecked."""

import dataclasses
import gzip
import hashlib
import http.server
import os
import socket
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from real_data import MNIST_MD5, REAL, packed_sha256, real, real_set

from pyrovae.benchmarks import datasets
from pyrovae.benchmarks.datasets import Dataset, DatasetError, available, catalogue, fetch, load
from pyrovae.benchmarks.datasets.formats import parse_amat, parse_idx

pytestmark = pytest.mark.usefixtures("isolated")


# -------------------- a tiny published set, made of bytes


def idx(array: np.ndarray) -> bytes:
    header = bytes([0, 0, 8, array.ndim])
    return header + b"".join(int(n).to_bytes(4, "big") for n in array.shape) + array.tobytes()


_RANDOM = np.random.default_rng(0)
IMAGES = _RANDOM.integers(0, 256, (9, 2, 2), dtype=np.uint8)
LABELS = np.arange(9, dtype=np.uint8)
CONTENT = {
    "train-images": idx(IMAGES[:6]),
    "test-images": idx(IMAGES[6:]),
    "train-labels": idx(LABELS[:6]),
    "test-labels": idx(LABELS[6:]),
}


def make_tiny(monkeypatch: pytest.MonkeyPatch, url: str = "http://127.0.0.1:9/") -> None:
    """Put a set of 4 + 2 + 3 images of 2x2 pixels into the catalogue."""

    def file(name: str, array: np.ndarray) -> fetch.File:
        return fetch.File(name, hashlib.sha256(CONTENT[name]).hexdigest(), array.shape)

    origin = fetch.Published(
        folders=("tiny", "small"),
        url=url,
        suffix=".gz",
        parse=parse_idx,
        images=(file("train-images", IMAGES[:6]), file("test-images", IMAGES[6:])),
        labels=(file("train-labels", LABELS[:6]), file("test-labels", LABELS[6:])),
    )
    random = np.random.RandomState(777)
    p = (IMAGES.reshape(9, 4) / np.float32(255)).astype("float32")
    fingerprint = packed_sha256(random.binomial(1, p[4:6]), random.binomial(1, p[6:]))
    tiny = catalogue.Images("tiny", (1, 2, 2), (4, 2, 3), 255, fingerprint, origin)
    monkeypatch.setitem(catalogue.CATALOGUE, "tiny", tiny)


def write_tiny(folder: Path, compressed: bool = True) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in CONTENT.items():
        path = folder / (name + ".gz" if compressed else name)
        path.write_bytes(gzip.compress(content) if compressed else content)
    return folder


def assert_tiny(data: Dataset) -> None:
    assert data.sizes == (4, 2, 3)
    assert torch.equal(data.train, torch.from_numpy(IMAGES[:4].reshape(4, 4)) / 255)
    labels = [data.labels(split).tolist() for split in datasets.SPLITS]
    assert labels == [[0, 1, 2, 3], [4, 5], [6, 7, 8]]


@pytest.mark.parametrize("subfolder", ["tiny", "small"])
@pytest.mark.parametrize("compressed", [True, False])
def test_a_local_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, subfolder: str, compressed: bool
) -> None:
    make_tiny(monkeypatch)
    write_tiny(tmp_path / "data" / subfolder, compressed)
    assert_tiny(load("tiny", folder=tmp_path / "data"))
    assert_tiny(load("tiny", folder=str(tmp_path / "data")))
    monkeypatch.setenv("PYROVAE_DATA", str(tmp_path / "data"))
    assert_tiny(load("tiny"))
    assert where("tiny") == f"folder {tmp_path / 'data' / subfolder}"
    with pytest.raises(DatasetError, match=r"folder \(--data-folder\) should be a folder that"):
        load("tiny", folder=tmp_path / "elsewhere")  # the argument wins over the environment


def test_missing_files_are_named_with_their_place(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_tiny(monkeypatch)
    folder = write_tiny(tmp_path / "data" / "tiny")
    (folder / "test-images.gz").unlink()
    monkeypatch.setenv("PYROVAE_DATA", str(tmp_path / "data"))
    with pytest.raises(DatasetError) as caught:
        load("tiny")
    message = str(caught.value)
    assert (
        f"'tiny': test-images.gz not in {folder} (PYROVAE_DATA is {tmp_path / 'data'})" in message
    )
    assert "train-images" not in message
    assert "http://127.0.0.1:9/" in message
    assert "leave PYROVAE_DATA unset" in message
    assert message.count("\n") == 1
    assert where("tiny") == f"not in {folder}: test-images.gz"


def where(name: str) -> str:
    return {listing.name: listing.where for listing in available()}[name]


HTML = b"<html><body>Please log in</body></html>"
ZIPPED = gzip.compress(CONTENT["test-images"], mtime=0)
CORRUPTIONS = [
    (ZIPPED[:-12], "expected a whole gzip file, found one of .* bytes that is damaged or cut sho"),
    (ZIPPED[:20] + b"\xff\xff\xff" + ZIPPED[23:], "expected a whole gzip file"),
    (ZIPPED[:-8] + bytes(8), "expected a whole gzip file, .*CRC"),
    (HTML, r"expected an idx file that starts with 00000803, found 3c68746d \(b'<htm'\)"),
    (gzip.compress(CONTENT["test-labels"], mtime=0), "starts with 00000803, found 00000801"),
    (b"", "found an empty file"),
    (CONTENT["test-images"][:9], "expected an idx header of 16 bytes, found 9: cut short"),
    (CONTENT["test-images"][:-1], "expected 28 bytes for dimensions .*, found 27: cut short"),
    (CONTENT["test-images"] + b"\0", "expected 28 bytes .*, found 29: too long"),
    (CONTENT["train-images"], r"expected dimensions \(3, 2, 2\), found \(6, 2, 2\)"),
    (CONTENT["test-images"][:-1] + b"\x01", "expected content with SHA-256 .{64}, found .{64}"),
]


@pytest.mark.parametrize(("content", "message"), CORRUPTIONS)
def test_a_corrupt_file_is_named_and_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, content: bytes, message: str
) -> None:
    make_tiny(monkeypatch)
    path = write_tiny(tmp_path / "data" / "tiny") / "test-images.gz"
    path.write_bytes(content)
    with pytest.raises(DatasetError, match=message) as caught:
        load("tiny", folder=tmp_path / "data")
    assert str(caught.value).startswith(f"{path}: ")
    assert path.read_bytes() == content


def test_an_unreadable_file_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make_tiny(monkeypatch)
    folder = write_tiny(tmp_path / "data" / "tiny")

    def refuse(path: Path) -> bytes:
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(Path, "read_bytes", refuse)
    with pytest.raises(DatasetError, match=r"train-images.gz: cannot be read: Permission denied"):
        load("tiny", folder=folder.parent)


def test_amat_text() -> None:
    bits = _RANDOM.integers(0, 2, (50, 30), dtype=np.uint8)
    rows = [" ".join(map(str, row)) for row in bits.tolist()]
    for end in ("\n", " \n", "\r\n"):
        assert np.array_equal(parse_amat(end.join(rows).encode(), "rows", (50, 30)), bits)
    text = "\n".join(rows).encode()
    for damaged, message in (
        (text[:-4], "expected 50 rows of 30 values = 1,500, found 1,498: cut short"),
        (text + b" 1", "found 1,501: too long"),
        (text[:100] + b"2" + text[101:], "expected a text of 0 and 1, found b'2.*' at byte 100"),
        (HTML, "found b'<htm' at byte 0"),
        (b"", "found 0: cut short"),
    ):
        with pytest.raises(DatasetError, match=f"rows: .*{message}"):
            parse_amat(damaged, "rows", (50, 30))


# -------------------- download


class Server(http.server.ThreadingHTTPServer):
    """Serves ``bodies`` by path on 127.0.0.1, and counts what was asked for."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.url = f"http://127.0.0.1:{self.server_port}/"
        self.bodies: dict[str, bytes | Path] = {}
        self.headers: dict[str, str] = {}
        self.asked: list[str] = []


class _Handler(http.server.BaseHTTPRequestHandler):
    server: Server

    def do_GET(self) -> None:
        name = self.path.lstrip("/")
        self.server.asked.append(name)
        body = self.server.bodies.get(name)
        if body is None:
            self.send_error(404)
            return
        content = body.read_bytes() if isinstance(body, Path) else body
        self.send_response(200)
        for key, value in ({"Content-Length": str(len(content))} | self.server.headers).items():
            self.send_header(key, value)
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, format: str, *args: object) -> None:
        """Keep the test's output quiet."""


@pytest.fixture
def server() -> Iterator[Server]:
    with Server() as running:
        running.bodies = {f"{name}.gz": gzip.compress(c) for name, c in CONTENT.items()}
        thread = threading.Thread(target=running.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield running
        running.shutdown()
        thread.join()


def files_under(folder: Path) -> list[Path]:
    return [path for path in folder.rglob("*") if path.is_file()]


def test_download_fills_the_cache_once(
    server: Server, isolated: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_tiny(monkeypatch, server.url)
    assert where("tiny") == f"to be downloaded from {server.url}"
    assert server.asked == []
    assert not isolated.exists()

    assert_tiny(load("tiny"))
    assert sorted(server.asked) == sorted(server.bodies)
    assert sorted(p.name for p in isolated.rglob("*")) == sorted([*server.bodies, "tiny"])
    for name, body in server.bodies.items():
        assert (isolated / "tiny" / name).read_bytes() == body
    assert where("tiny") == f"cache {isolated / 'tiny'}"

    assert_tiny(load("tiny"))
    assert len(server.asked) == 4, "the second load asks for nothing"
    (isolated / "tiny" / "test-labels.gz").unlink()
    assert_tiny(load("tiny"))
    assert server.asked[4:] == ["test-labels.gz"], "only what is missing is fetched"


def test_download_unpacked_on_the_way(
    server: Server, isolated: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_tiny(monkeypatch, server.url)
    server.headers = {"Content-Encoding": "gzip"}
    assert_tiny(load("tiny"))
    assert (isolated / "tiny" / "test-labels.gz").read_bytes() == CONTENT["test-labels"]
    assert_tiny(load("tiny"))


@pytest.mark.parametrize(("content", "message"), CORRUPTIONS)
def test_a_bad_download_is_rejected_and_leaves_nothing(
    server: Server, isolated: Path, monkeypatch: pytest.MonkeyPatch, content: bytes, message: str
) -> None:
    make_tiny(monkeypatch, server.url)
    server.bodies["test-images.gz"] = content
    with pytest.raises(DatasetError, match=message) as caught:
        load("tiny")
    assert f"'tiny': download of {server.url}test-images.gz: " in str(caught.value)
    assert "\nOr put test-images.gz, train-labels.gz, test-labels.gz into " in str(caught.value)
    assert [p.name for p in files_under(isolated)] == ["train-images.gz"]


def test_a_download_cut_short_leaves_nothing(
    server: Server, isolated: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_tiny(monkeypatch, server.url)
    server.headers = {"Content-Length": "100000"}
    with pytest.raises(DatasetError, match=r"data set 'tiny': could not download http://127.0.0.1"):
        load("tiny")
    assert files_under(isolated) == []


def test_an_interrupted_download_leaves_nothing(
    server: Server, isolated: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import pooch

    class Interrupted:
        def __init__(self, **kwargs: object) -> None: ...

        def __call__(self, url: str, output_file: str, pooch: object) -> None:
            Path(output_file).write_bytes(ZIPPED[:20])
            raise KeyboardInterrupt

    make_tiny(monkeypatch, server.url)
    monkeypatch.setattr(pooch, "HTTPDownloader", Interrupted)
    with pytest.raises(KeyboardInterrupt):
        load("tiny")
    assert files_under(isolated) == []


def closed_port() -> str:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return f"http://127.0.0.1:{probe.getsockname()[1]}/"


def test_offline_says_why_and_where_to_put_what(
    isolated: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    url = closed_port()
    make_tiny(monkeypatch, url)
    with pytest.raises(DatasetError) as caught:
        load("tiny")
    first, second = str(caught.value).split("\n")
    assert first.startswith(f"data set 'tiny': could not download {url}train-images.gz: ")
    assert "refused" in first
    assert "Connection(" not in first
    assert "object at" not in first
    assert second == (
        "Or put train-images.gz, test-images.gz, train-labels.gz, test-labels.gz into "
        f"{isolated / 'tiny'}, or all files into DIR/tiny and set PYROVAE_DATA=DIR."
    )
    assert files_under(isolated) == []


def test_not_found_on_the_server(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    make_tiny(monkeypatch, server.url + "moved/")
    with pytest.raises(DatasetError, match=r"could not download .*moved/train-images.gz: 404"):
        load("tiny")


def test_a_corrupt_file_in_the_cache_is_named_and_kept(
    server: Server, isolated: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_tiny(monkeypatch, server.url)
    path = write_tiny(isolated / "tiny") / "train-labels.gz"
    path.write_bytes(b"half")
    with pytest.raises(DatasetError, match=r"train-labels.gz: expected an idx file .*\nMove it"):
        load("tiny")
    assert path.read_bytes() == b"half"
    assert server.asked == []


def test_a_cache_that_cannot_be_written(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_tiny(monkeypatch, server.url)
    (tmp_path / "file").write_text("not a folder")
    monkeypatch.setattr(fetch, "cache_folder", lambda: tmp_path / "file" / "cache")
    with pytest.raises(DatasetError, match=r"cannot write to the cache folder .*: Not a directory"):
        load("tiny")
    assert server.asked == [], "found out before anything is downloaded"


def test_a_read_only_cache(server: Server, isolated: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make_tiny(monkeypatch, server.url)
    isolated.mkdir(mode=0o500)
    if os.access(isolated, os.W_OK):
        pytest.skip("root may write anywhere")
    with pytest.raises(DatasetError, match=r"cannot write to the cache folder .*Permission denied"):
        load("tiny")


@real
def test_mnist_downloads_end_to_end(
    server: Server, isolated: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = real_set("mnist")
    if not all((REAL / "mnist" / name).exists() for name in MNIST_MD5):
        pytest.skip("the folder holds the files uncompressed")
    mnist = catalogue.CATALOGUE["mnist"]
    origin = dataclasses.replace(mnist.origin, url=server.url)
    monkeypatch.setitem(catalogue.CATALOGUE, "mnist", dataclasses.replace(mnist, origin=origin))
    server.bodies = {name: REAL / "mnist" / name for name in MNIST_MD5}
    data = load("mnist")
    assert torch.equal(data.train, expected.train)
    assert data.fingerprint == mnist.fingerprint
    for name, md5 in MNIST_MD5.items():
        assert hashlib.md5((isolated / "mnist" / name).read_bytes()).hexdigest() == md5


def test_what_is_not_installed_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()
    monkeypatch.delenv("PYROVAE_DATA", raising=False)
    monkeypatch.setitem(sys.modules, "pooch", None)
    monkeypatch.setitem(sys.modules, "sklearn.datasets", None)
    with pytest.raises(DatasetError, match=r"needs pooch: pip install 'pyrovae\[bench\]'"):
        load("mnist")
    assert "needs pooch" in where("mnist")
    with pytest.raises(DatasetError, match=r"scikit-learn: pip install 'pyrovae\[bench\]'"):
        load("digits")


def test_available_lists_every_name_with_its_size() -> None:
    listings = available()
    assert [listing.name for listing in listings] == list(datasets.NAMES)
    assert listings[0] == datasets.Listing(
        "digits", (1197, 300, 300), (1, 8, 8), True, "bundled with scikit-learn"
    )
    assert [listing.dynamic for listing in listings] == [True, True, True, False, False]
