"""Import paths lead to callables, and each way of failing says where it failed."""

import sys
from pathlib import Path

import pytest

from pyrovae.benchmarks.factories import FactoryError, resolve


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty working directory that is not on the path, as for a console script."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [entry for entry in sys.path if entry])
    return tmp_path


def test_a_module_in_the_working_directory(here: Path) -> None:
    (here / "factory_a.py").write_text(
        "class Outer:\n    @staticmethod\n    def make():\n        return 7\n\ndef build():\n"
        "    import factory_neighbour\n    return factory_neighbour.VALUE\n"
    )
    (here / "factory_neighbour.py").write_text("VALUE = 41\n")
    assert resolve("factory_a:build")() == 41, "neighbours imported on call are found too"
    assert resolve("factory_a:Outer.make")() == 7
    assert sys.path.count(str(here)) == 1


def test_a_module_in_a_package(here: Path) -> None:
    (here / "factory_package" / "inner").mkdir(parents=True)
    (here / "factory_package" / "inner" / "deep.py").write_text("def build():\n    return 3\n")
    assert resolve("factory_package.inner.deep:build")() == 3


def test_an_installed_module() -> None:
    import torch

    assert resolve("torch.nn:Linear") is torch.nn.Linear


@pytest.mark.parametrize(
    "path", ["", "module", "module:", ":attribute", "a.b.c", "a:b:c", "a b:c", "a/b.py:c", "1a:b"]
)
def test_bad_syntax(path: str) -> None:
    with pytest.raises(FactoryError, match=r"should have the form 'package.module:attribute'"):
        resolve(path)


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("no_such_module_x:build", "no module named 'no_such_module_x', neither installed nor in"),
        ("json.no_such_part:build", "no module named 'json.no_such_part'"),
        ("json:no_such_thing", "module 'json' has no attribute 'no_such_thing'"),
        ("json:JSONDecoder.nothing", "'JSONDecoder' has no attribute 'nothing'"),
        ("math:pi", "should be callable, as a function or a class is; found float"),
    ],
)
def test_each_step_fails_in_its_own_words(here: Path, path: str, message: str) -> None:
    with pytest.raises(FactoryError, match=message) as caught:
        resolve(path)
    assert path in str(caught.value)


def test_a_module_that_fails_to_import(here: Path) -> None:
    (here / "factory_broken.py").write_text("raise RuntimeError('on purpose')\n")
    (here / "factory_lacking.py").write_text("import no_such_module_y\n")
    with pytest.raises(FactoryError, match="importing 'factory_broken' failed: RuntimeError: on"):
        resolve("factory_broken:build")
    with pytest.raises(FactoryError, match="importing 'factory_lacking' failed: No module named"):
        resolve("factory_lacking:build")
