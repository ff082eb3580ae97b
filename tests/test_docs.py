"""What the pages in docs/ say can be done: code runs, studies read, commands parse, links lead."""

from __future__ import annotations

import importlib.util
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
import torch
from documents import ROOT, blocks, can_be_typed, commands

from pyrovae import inference
from pyrovae.benchmarks.bench import Bench, check, read_study, run
from pyrovae.benchmarks.bench.reading import AXES, PUBLISHED, SMALL, TOP, TRAINING
from pyrovae.benchmarks.scoring import ESTIMATORS
from pyrovae.inference.objectives import named

DOCS = ROOT / "docs"
PAGES = {page.relative_to(DOCS).as_posix(): page.read_text() for page in DOCS.rglob("*.md")}
GUIDES = {name: text for name, text in PAGES.items() if "/" not in name}
# Blocks that hold such a word are compiled, which finds errors of syntax, and not run.
COMPILED = {
    "dask_jobqueue": "needs Slurm",
    "dask_kubernetes": "needs Kubernetes",
}
COMMANDS = [
    line
    for text in GUIDES.values()
    for line in commands(text)
    if line.startswith(("pyrovae", "torchrun"))
]
STUDIES = [
    (name, block)
    for name, text in GUIDES.items()
    for block in blocks(text, "toml")
    if "data" in tomllib.loads(block)
]


@pytest.mark.parametrize("page", [name for name, text in GUIDES.items() if "```python" in text])
def test_its_code_runs(page: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    names: dict = {"__name__": page}
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        for block in blocks(GUIDES[page], "python"):
            code = compile(block, page, "exec")
            if not any(word in block for word in COMPILED):
                exec(code, names)
    finally:
        torch.set_num_threads(threads)


def test_few_blocks_are_not_run() -> None:
    code = [block for text in GUIDES.values() for block in blocks(text, "python")]
    assert len(code) > 20
    assert sum(any(word in block for word in COMPILED) for block in code) == len(COMPILED)


@pytest.mark.parametrize(("page", "text"), STUDIES)
def test_its_studies_can_be_read(page: str, text: str, tmp_path: Path) -> None:
    file = tmp_path / "study.toml"
    file.write_text(text)
    study = read_study(file)
    assert list(study.points())
    if {one.name for one in study.data} == {"digits"}:
        assert check(study)
    if "small" in tomllib.loads(text):
        assert read_study(file, small=True) != study


def test_the_page_on_studies_counts_its_cells(tmp_path: Path) -> None:
    file = tmp_path / "study.toml"
    file.write_text(blocks(PAGES["studies.md"], "toml")[0])
    cells = check(read_study(file))
    estimates = sum(len(cell.estimations) for cell in cells)
    assert f"{len(cells)} cells, {estimates} estimates" in PAGES["studies.md"]


def test_the_page_on_studies_names_every_key() -> None:
    axes = {key for keys in AXES.values() for key in keys}
    keys = {*TOP, *TRAINING, *SMALL, *PUBLISHED, *axes, "name", "options"}
    table = PAGES["studies.md"].partition("### All tables and keys")[2].partition("\n##")[0]
    assert {key for key in keys if not re.search(rf"\b{key}\b", table)} == set()


def test_every_estimator_and_objective_is_told_of() -> None:
    for factory in ESTIMATORS.values():
        assert f"| `{factory.__name__}` |" in PAGES["choose-an-estimator.md"]
    for name in named.NAMES:
        assert f"| `{name}` |" in PAGES["choose-a-bound.md"]


def test_the_api_lists_all_that_is_public() -> None:
    listed = set(re.findall(r"auto\w+:: pyrovae\.inference\.(\w+)\n", PAGES["api/inference.md"]))
    of_objectives = {*inference.objectives.__all__, "bounds", "gradients"}
    assert listed == set(inference.__all__) - of_objectives


@pytest.mark.parametrize("line", COMMANDS)
def test_a_command_can_be_typed(line: str) -> None:
    assert can_be_typed(line)


def test_names_in_code_marks_exist() -> None:
    """`Name` in prose that looks like a class of ours is one."""
    known = {
        name
        for module in list(sys.modules.values())
        if getattr(module, "__name__", "").startswith("pyrovae")
        for name in vars(module)
    }
    foreign = {"Delta", "DataLoader", "TraceEnum_ELBO"}
    for page, text in GUIDES.items():
        prose = re.sub(r"```.*?```", "", text, flags=re.DOTALL)
        for name in re.findall(r"`([A-Z]\w*[a-z]\w*)(?:\([^`]*\))?`", prose):
            assert name in known | foreign, f"{page}: {name}"


def _anchors(text: str) -> set[str]:
    """The anchors of a page's headings, as GitHub and MyST make them."""
    headings = re.findall(r"^#+ (.*)$", re.sub(r"```.*?```", "", text, flags=re.DOTALL), re.M)
    return {re.sub(r"[^\w\- ]", "", one.lower()).strip().replace(" ", "-") for one in headings}


def test_links_between_pages_lead_somewhere() -> None:
    found = 0
    for page, text in PAGES.items():
        for link in re.findall(r"\]\((?!https?:)([^)]+)\)", text):
            path, _, anchor = link.partition("#")
            target = (DOCS / page).parent / path if path else DOCS / page
            assert target.is_file(), f"{page}: {link}"
            assert not anchor or anchor in _anchors(target.read_text()), f"{page}: {link}"
            found += 1
    assert found > 10


def test_every_page_is_in_the_table_of_contents() -> None:
    listed = set()
    for page in ("index.md", "api/index.md"):
        for tree in blocks(PAGES[page], r"\{toctree\}"):
            entries = [line for line in tree.splitlines() if line and not line.startswith(":")]
            listed |= {
                ((DOCS / page).parent / f"{one}.md").relative_to(DOCS).as_posix() for one in entries
            }
    assert listed == PAGES.keys() - {"index.md"}


def test_files_that_pages_name_exist() -> None:
    for page, text in GUIDES.items():
        for path in re.findall(r"`((?:benchmarks|docs)/[\w./-]+)`", text):
            assert (ROOT / path).exists(), f"{page}: {path}"


@pytest.mark.skipif(importlib.util.find_spec("myst_parser") is None, reason="needs Sphinx")
def test_sphinx_builds_them_without_a_warning(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "sphinx", "-q", "-W", "--keep-going", str(DOCS), str(tmp_path)],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "index.html").is_file()


def test_a_cluster_that_runs_already_does_a_study(tmp_path: Path) -> None:
    """The option ``--scheduler`` of cluster.md, with a Dask cluster on this machine."""
    distributed = pytest.importorskip("distributed")
    file = tmp_path / "tiny.toml"
    file.write_text(re.findall(r'"""\n(.*?)"""', PAGES["studies.md"], re.DOTALL)[0])
    with distributed.LocalCluster(
        n_workers=1, threads_per_worker=1, dashboard_address=":0"
    ) as cluster:
        asked = Bench(str(file), tmp_path / "tiny", scheduler=cluster.scheduler_address)
        assert not run(asked, say=lambda text: None)
    assert len(list((tmp_path / "tiny").glob("trainings/*/evidence-*.nc"))) == 1
