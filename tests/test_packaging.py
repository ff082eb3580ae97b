"""What a user installs: the wheel and the sdist hold every package, its marker and its data."""

from __future__ import annotations

import configparser
import json
import os
import shutil
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
TOPS = ("models", "inference", "benchmarks")
# Besides the packages: what somebody who has only the sdist needs to test it and to read it.
IN_SDIST = ("README.md", "LICENSE", "CHANGELOG.md", "constraints.txt", "Makefile", "setup.cfg")
PAGES = ("docs/conf.py", "docs/index.md", "docs/api/index.md", "docs/examples/rings.toml")
LEFT_BY_TOOLS = shutil.ignore_patterns(
    ".*_cache", ".git", ".venv*", "__pycache__", "build", "dist", "runs", "*.egg-info"
)

# Runs where the copy is installed: which files were imported, and what lies beside them.
IMPORT_ALL = """
import importlib, json, sys
target, names = sys.argv[1], sys.argv[2:]
sys.path.insert(0, target)
print(json.dumps({name: importlib.import_module(name).__file__ for name in names}))
"""


def packages_on_disk(root: Path) -> list[str]:
    """Every folder that holds code, by the name it is installed under: `pyrovae` is command/."""
    folders = {file.parent for top in TOPS for file in (root / top).rglob("*.py")}
    names = (".".join(("pyrovae", *folder.relative_to(root).parts)) for folder in folders)
    return sorted(("pyrovae", *names))


def packages_listed(root: Path) -> list[str]:
    config = configparser.ConfigParser()
    config.read(root / "setup.cfg")
    return sorted(config["options"]["packages"].split())


def contents(root: Path) -> set[str]:
    """Every file of the packages: code, markers and data."""
    return {
        file.relative_to(root).as_posix()
        for top in TOPS
        for file in (root / top).rglob("*")
        if file.is_file() and "__pycache__" not in file.parts
    }


def run(*command: str | Path, cwd: Path) -> str:
    # Neither the checkout nor a name server is in reach: only the copy under test.
    environment = os.environ | {"PIP_NO_INDEX": "1", "PIP_DISABLE_PIP_VERSION_CHECK": "1"}
    environment.pop("PYTHONPATH", None)
    done = subprocess.run(
        [str(word) for word in command], cwd=cwd, env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The two archives, each built from a copy of the repository as it stands."""
    folder = tmp_path_factory.mktemp("build")
    source = shutil.copytree(ROOT, folder / "source", ignore=LEFT_BY_TOOLS)
    run(
        *(sys.executable, "-m", "build", "--no-isolation", "--sdist", "--wheel"),
        *("--outdir", folder / "dist", source),
        cwd=folder,
    )
    (wheel,) = (folder / "dist").glob("*.whl")
    (sdist,) = (folder / "dist").glob("*.tar.gz")
    return {"wheel": wheel, "sdist": sdist}


def test_every_folder_of_code_is_listed() -> None:
    # setuptools finds no packages through package_dir: a folder that setup.cfg forgets works in
    # an editable install and is missing from the wheel.
    assert packages_listed(ROOT) == packages_on_disk(ROOT)


def test_every_folder_of_code_is_a_package() -> None:
    folders = {file.parent for top in TOPS for file in (ROOT / top).rglob("*.py")}
    assert [folder for folder in folders if not (folder / "__init__.py").is_file()] == []


def test_pyrovae_is_a_namespace() -> None:
    assert not (ROOT / "__init__.py").exists()
    assert not (ROOT / "pyrovae").exists()


def test_a_forgotten_folder_is_noticed(tmp_path: Path) -> None:
    shutil.copy(ROOT / "setup.cfg", tmp_path)
    for name in packages_listed(ROOT):
        folder = tmp_path.joinpath(*name.split(".")[1:])
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "__init__.py").touch()
    assert packages_listed(tmp_path) == packages_on_disk(tmp_path)
    (tmp_path / "inference" / "forgotten").mkdir()
    (tmp_path / "inference" / "forgotten" / "__init__.py").touch()
    assert set(packages_on_disk(tmp_path)) - set(packages_listed(tmp_path)) == {
        "pyrovae.inference.forgotten"
    }


@pytest.mark.parametrize("kind", ["wheel", "sdist"])
def test_an_archive_installs_and_imports(built: dict[str, Path], kind: str, tmp_path: Path) -> None:
    target = tmp_path / "target"
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    run(
        *(sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-build-isolation"),
        *("--target", target, built[kind]),
        cwd=elsewhere,
    )
    assert contents(target / "pyrovae") == contents(ROOT)

    names = [name for name in packages_on_disk(ROOT) if name != "pyrovae"]
    printed = run(sys.executable, "-c", IMPORT_ALL, target, *names, cwd=elsewhere)
    imported = {name: Path(file) for name, file in json.loads(printed.splitlines()[-1]).items()}
    assert imported == {name: target.joinpath(*name.split("."), "__init__.py") for name in names}
    for top in TOPS:
        assert (target / "pyrovae" / top / "py.typed").is_file()
    assert not (target / "pyrovae" / "__init__.py").exists()
    assert (target / "pyrovae" / "__main__.py").is_file()  # python -m pyrovae


def test_the_sdist_holds_what_its_tests_need(built: dict[str, Path]) -> None:
    with tarfile.open(built["sdist"]) as archive:
        held = {name.partition("/")[2] for name in archive.getnames()}
    tests = {file.relative_to(ROOT).as_posix() for file in (ROOT / "tests").rglob("*.py")}
    assert (tests | {*IN_SDIST, *PAGES}) - held == set()
    assert [name for name in held if "__pycache__" in name] == []
