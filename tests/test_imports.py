"""The arrows between the packages: models and inference know nothing of one another.

    benchmarks ──> inference ──> torch, pyro, numpy, arviz, xarray, tqdm, safetensors
         │
         └───────> models    ──> torch, pyro, safetensors

The files are read with `ast`, not imported, so an import inside a function counts as much as one
at the top. Inside the packages, imports of our own code are relative, and never run in a circle.
"""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterator
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
ANYTHING = None
ALLOWED: dict[str, set[str] | None] = {
    "models": {"torch", "pyro", "safetensors"},
    "inference": {"torch", "pyro", "numpy", "arviz", "xarray", "tqdm", "safetensors"},
    "benchmarks": ANYTHING,
}
OURS = {"models": {"models"}, "inference": {"inference"}, "benchmarks": set(ALLOWED)}


def module_name(root: Path, file: Path) -> tuple[str, ...]:
    """``inference/training/loop.py`` is ``("inference", "training", "loop")``."""
    parts = file.relative_to(root).with_suffix("").parts
    return parts[:-1] if parts[-1] == "__init__" else parts


def imports(root: Path, file: Path) -> Iterator[tuple[int, bool, tuple[str, ...], list[str]]]:
    """``(line, relative, module, names)`` of every import in a file, wherever it stands.

    ``module`` of a relative import counts from the root of the repository. The call
    ``import_module("name")``, or ``__import__``, is an import like any other.
    """
    package = module_name(root, file.with_name("__init__.py"))
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"), str(file))):
        match node:
            case ast.Import(names=names):
                for name in names:
                    yield node.lineno, False, tuple(name.name.split(".")), []
            case ast.ImportFrom(module=module, names=names, level=level):
                base = package[: max(len(package) - level + 1, 0)] if level else ()
                below = tuple(module.split(".")) if module else ()
                yield node.lineno, level > 0, base + below, [name.name for name in names]
            case ast.Call(
                func=ast.Name(id="import_module" | "__import__")
                | ast.Attribute(attr="import_module"),
                args=[ast.Constant(value=str(name)), *_],
            ):
                base = package[: len(package) - (len(name) - len(name.lstrip("."))) + 1]
                below = tuple(part for part in name.split(".") if part)
                relative = name.startswith(".")
                yield node.lineno, relative, (base if relative else ()) + below, []


def arrow_faults(root: Path) -> list[str]:
    """Each import that points where its package may not, as ``file:line: reason``."""
    faults = []
    for top, allowed in ALLOWED.items():
        for file in sorted((root / top).rglob("*.py")):
            for line, relative, module, names in imports(root, file):
                where = f"{file.relative_to(root)}:{line}"
                # `from .. import models` names its packages after the import
                reached = [module] if module else [(name,) for name in names]
                for target in reached:
                    if relative:
                        if target[0] not in OURS[top]:
                            faults.append(f"{where}: {top} imports {target[0]}")
                    elif target[0] == "pyrovae":
                        faults.append(f"{where}: imports pyrovae by name, not relatively")
                    elif target[0] in ALLOWED:
                        faults.append(f"{where}: {target[0]} is no package of that name")
                    elif allowed is not ANYTHING and target[0] not in (
                        allowed | sys.stdlib_module_names
                    ):
                        faults.append(f"{where}: {top} imports {target[0]}")
    return faults


def import_graph(root: Path) -> dict[tuple[str, ...], set[tuple[str, ...]]]:
    """Which of our modules each of our modules runs when it is imported."""
    files = {
        module_name(root, file): file for top in ALLOWED for file in (root / top).rglob("*.py")
    }
    graph: dict[tuple[str, ...], set[tuple[str, ...]]] = {}
    for source, file in files.items():
        graph[source] = set()
        for _, relative, module, names in imports(root, file):
            if not relative:
                continue
            targets = {(*module, name) for name in names} & files.keys()
            if len(targets) < len(names) or not names:
                targets.add(module)  # a name that is no file lives in the package itself
            for target in targets:
                # Importing a.b.c runs a and a.b first; the folders this file lies in already run.
                prefixes = {target[:depth] for depth in range(1, len(target))}
                around = {source[:depth] for depth in range(1, len(source))}
                graph[source] |= ({target} | (prefixes - around - {source})) & files.keys()
        if file.name == "__init__.py":
            graph[source].discard(source)  # a package that names what it holds itself
    return graph


def cycle(root: Path) -> str | None:
    """One circle of imports, written out, or None."""
    try:
        TopologicalSorter(import_graph(root)).prepare()
    except CycleError as error:
        return " <- ".join(".".join(module) for module in error.args[1])
    return None


def oracle_faults(file: Path) -> list[str]:
    """Imports of our own code, of which the exact answers must be independent."""
    return [
        f"{file.name}:{line}: imports {'.'.join(module) or names}"
        for line, relative, module, names in imports(file.parent, file)
        if relative or module[0] in {"pyrovae", *ALLOWED}
    ]


def test_arrows_hold() -> None:
    assert arrow_faults(ROOT) == []


def test_imports_run_in_no_circle() -> None:
    assert len(import_graph(ROOT)) > len(ALLOWED)
    assert cycle(ROOT) is None


def test_oracles_import_nothing_of_ours() -> None:
    assert oracle_faults(ROOT / "tests" / "oracles.py") == []


def write(root: Path, files: dict[str, str]) -> Path:
    for name, text in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)
    return root


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("models/bad.py", "import numpy as np"),
        ("models/bad.py", "from scipy.stats import norm"),
        ("models/bad.py", "from ..inference import fit"),
        ("models/bad.py", "from .. import inference"),
        ("models/deep/bad.py", "from ...inference.weights import log_weights"),
        ("models/deep/bad.py", "from ... import benchmarks"),
        ("models/bad.py", "def lazy():\n    from ..inference import fit\n    return fit"),
        ("models/bad.py", "class A:\n    def f(self):\n        import arviz"),
        ("models/bad.py", "if TYPE_CHECKING:\n    from ..benchmarks import datasets"),
        ("models/bad.py", "from pyrovae.models import VAE"),
        ("models/bad.py", "import models.nets"),
        ("models/bad.py", "import importlib\nimportlib.import_module('numpy')"),
        ("models/bad.py", "__import__('pyrovae.inference')"),
        ("models/bad.py", "from importlib import import_module\nimport_module('..inference', p)"),
        ("inference/bad.py", "from ..models.priors import VampPrior"),
        ("inference/bad.py", "from ..benchmarks.datasets import digits"),
        ("inference/bad.py", "import matplotlib.pyplot as plt"),
        ("inference/bad.py", "import torch, sklearn"),
        ("benchmarks/bad.py", "from inference import fit"),
        ("benchmarks/bad.py", "from pyrovae.inference import fit"),
    ],
)
def test_a_forbidden_import_is_caught(tmp_path: Path, name: str, text: str) -> None:
    assert len(arrow_faults(write(tmp_path, {name: text}))) == 1


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("models/good.py", "import math, torch.nn as nn\nfrom pyro.nn import PyroModule"),
        ("models/deep/good.py", "from ..nets import MLP\nfrom . import other\nfrom .. import nets"),
        ("inference/good.py", "import numpy, arviz, xarray\nfrom tqdm.auto import tqdm"),
        (
            "benchmarks/good.py",
            "import sklearn\nfrom ..models import VAE\nfrom .. import inference",
        ),
    ],
)
def test_an_allowed_import_passes(tmp_path: Path, name: str, text: str) -> None:
    assert arrow_faults(write(tmp_path, {name: text})) == []


@pytest.mark.parametrize(
    "files",
    [
        {"a.py": "from .b import f", "b.py": "from .a import g"},
        {"a.py": "from .b import f", "b.py": "from .c import g", "c.py": "from . import a"},
        {"a.py": "from .b import f", "b.py": "def lazy():\n    from .a import g"},
        {"__init__.py": "from .a import f", "a.py": "from . import f"},
        {"a.py": "from .sub.c import f", "sub/__init__.py": "from ..a import g", "sub/c.py": ""},
        {
            "sub/__init__.py": "from .c import f",
            "sub/c.py": "from ..a import g",
            "a.py": "from .sub import f",
        },
        {"a.py": "from .a import f"},
    ],
)
def test_a_circle_is_caught(tmp_path: Path, files: dict[str, str]) -> None:
    empty = {"inference/__init__.py": "", "inference/sub/__init__.py": ""}
    named = {f"inference/{name}": text for name, text in files.items()}
    assert cycle(write(tmp_path, empty | named)) is not None


def test_a_tree_is_no_circle(tmp_path: Path) -> None:
    files = {
        "__init__.py": "from .a import f\nfrom .sub import g",
        "a.py": "from .b import f",
        "b.py": "",
        "sub/__init__.py": "from .c import g",
        "sub/c.py": "from ..a import f\nfrom . import d\nfrom .. import b",
        "sub/d.py": "from ..b import f",
    }
    assert (
        cycle(write(tmp_path, {f"inference/{name}": text for name, text in files.items()})) is None
    )


@pytest.mark.parametrize(
    "text", ["import pyrovae.models", "from .x import y", "from pyrovae import inference"]
)
def test_an_oracle_of_ours_is_caught(tmp_path: Path, text: str) -> None:
    (tmp_path / "oracles.py").write_text(text)
    assert len(oracle_faults(tmp_path / "oracles.py")) == 1
