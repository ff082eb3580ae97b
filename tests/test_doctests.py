"""Every example in a docstring of the packages runs and prints what it says.

``pytest --doctest-modules models`` would import the folders under the names they have in the
repository (``models``, not ``pyrovae.models``), where relative imports between packages fail. So
each file is imported by its installed name and handed to `doctest`.
"""

from __future__ import annotations

import doctest
import importlib
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).resolve().parents[1]
PACKAGES = ("models", "inference", "benchmarks")
FLAGS = doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE


def module_names() -> list[str]:
    """The name of every module, read off the files: collecting tests imports nothing."""
    files = (file for package in PACKAGES for file in (ROOT / package).rglob("*.py"))
    return sorted(
        ".".join(("pyrovae", *file.relative_to(ROOT).with_suffix("").parts)).removesuffix(
            ".__init__"
        )
        for file in files
    )


@pytest.mark.parametrize("name", module_names())
def test_examples_run(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    module = importlib.import_module(name)
    monkeypatch.chdir(tmp_path)  # an example that writes a file must not write into the repository
    failed, _ = doctest.testmod(module, optionflags=FLAGS)
    assert failed == 0, capsys.readouterr().out


def test_a_wrong_example_is_caught() -> None:
    module = ModuleType("wrong", ">>> 1 + 1\n3\n")
    failed, attempted = doctest.testmod(module, optionflags=FLAGS, report=False)
    assert (failed, attempted) == (1, 1)
