"""Files that are whole or not there, also where several processes write at once."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from pyrovae.inference import files
from pyrovae.inference.files import write_atomically, write_new
from pyrovae.inference.training.checkpoint import check_folder

WRITES = """
import sys
from pathlib import Path
from pyrovae.inference.files import write_atomically
from pyrovae.inference.training.checkpoint import check_folder
for i in range(300):
    check_folder(Path(sys.argv[1]))
    write_atomically(Path(sys.argv[1]), sys.argv[2].encode() * 5000)
"""


def test_processes_that_write_at_once_do_not_meet(tmp_path: Path) -> None:
    path = tmp_path / "file"
    words = [[sys.executable, "-c", WRITES, str(path), letter] for letter in "ab"]
    both = [subprocess.Popen(one, stderr=subprocess.PIPE, text=True) for one in words]
    while any(one.poll() is None for one in both):
        if path.exists():
            assert path.read_bytes() in (b"a" * 5000, b"b" * 5000)
    for one in both:
        shown = one.communicate()[1]
        assert one.returncode == 0, shown
    assert os.listdir(tmp_path) == ["file"]


def test_a_new_file_is_whole_when_it_gets_its_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file, link = tmp_path / "result.nc", os.link

    def looked(source: Path, to: Path) -> None:
        assert not Path(to).exists()
        assert Path(source).read_bytes() == b"whole"
        link(source, to)

    monkeypatch.setattr(files.os, "link", looked)
    assert write_new(file, b"whole") == file
    monkeypatch.setattr(files.os, "link", link)
    assert write_new(file, b"other").name == "result-2.nc"
    assert file.read_bytes() == b"whole"

    def refuse(source: Path, to: Path) -> None:
        raise OSError("no links here")

    monkeypatch.setattr(files.os, "link", refuse)
    assert write_new(file, b"third").read_bytes() == b"third"
    assert sorted(one.name for one in tmp_path.iterdir()) == [
        "result-2.nc",
        "result-3.nc",
        "result.nc",
    ]


def test_a_killed_process_leaves_what_the_next_write_takes_over(tmp_path: Path) -> None:
    (tmp_path / ".file.tmp").write_bytes(b"half of something longer")
    write_atomically(tmp_path / "file", b"one")
    assert os.listdir(tmp_path) == ["file"]
    assert (tmp_path / "file").read_bytes() == b"one"


def test_what_another_process_writes_is_left_to_it(tmp_path: Path) -> None:
    other = files._taken(tmp_path / ".file.tmp")
    assert other is not None
    with other:
        other.write(b"theirs")
        write_atomically(tmp_path / "file", b"ours")
        assert sorted(os.listdir(tmp_path)) == [".file.tmp", "file"]
    assert (tmp_path / "file").read_bytes() == b"ours"
    assert (tmp_path / ".file.tmp").read_bytes() == b"theirs"


def test_a_write_that_fails_leaves_the_old_file_and_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_atomically(tmp_path / "file", b"old")

    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space"):
        write_atomically(tmp_path / "file", b"new")
    assert os.listdir(tmp_path) == ["file"]
    assert (tmp_path / "file").read_bytes() == b"old"


def test_looking_at_a_folder_leaves_nothing(tmp_path: Path) -> None:
    check_folder(tmp_path / "checkpoint")
    assert os.listdir(tmp_path) == []
