"""The page and what lies beside it: whole, valid, alone, whatever the study's names are."""

from __future__ import annotations

import math
import re
import shutil
import xml.etree.ElementTree as ET
from html.parser import HTMLParser
from pathlib import Path

import pytest
from command_line import invoke
from report_toys import Folder, nothing_finished

from pyrovae.benchmarks.bench import Bench, run
from pyrovae.benchmarks.report import report

VOID = {"meta", "img", "br", "hr", "link", "input"}
HARD = "<b> $x_1$ | 100% `a` & \\{^~#"  # something of HTML, LaTeX, Markdown and mathtext each


class Page(HTMLParser):
    """A page, read strictly: every tag is closed by its own, and what it holds is noted."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text: list[str] = []
        self.feed(text)
        self.close()
        assert self.open == [], "all is closed"

    def handle_starttag(self, tag, attrs) -> None:
        self.tags.append((tag, dict(attrs)))
        assert len(attrs) == len(dict(attrs)), f"an attribute of {tag} stands twice"
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data) -> None:
        if not self.open or self.open[-1] not in ("style", "script"):
            self.text.append(data)

    def all(self, tag: str) -> list[dict[str, str | None]]:
        return [attrs for name, attrs in self.tags if name == tag]

    def words(self) -> str:
        return " ".join(" ".join(self.text).split())


def check(written: list[Path]) -> Page:
    """All that holds for every report; returns its page."""
    by_suffix: dict[str, list[Path]] = {}
    for file in written:
        assert file.stat().st_size > 0
        by_suffix.setdefault(file.suffix, []).append(file)
    text = written[0].read_text()
    page = Page(text)
    check_alone(page, text)
    for file in by_suffix.get(".svg", []):
        check_drawing(file)
    assert {f.stem for f in by_suffix.get(".svg", [])} == {
        f.stem for f in by_suffix.get(".pdf", [])
    }
    for file in by_suffix.get(".pdf", []):
        assert file.read_bytes().startswith(b"%PDF")
    for file in by_suffix.get(".tex", []):
        check_latex(file.read_text())
    check_markdown(written[1], by_suffix.get(".svg", []))
    return page


def check_alone(page: Page, text: str) -> None:
    """Nothing is fetched, ids are unique, and what refers to one finds it."""
    for tag, attrs in page.tags:
        for name in ("src", "href", "xlink:href", "srcset", "data", "poster"):
            value = attrs.get(name) or ""
            if tag != "a":
                assert not re.match(r"(https?:)?//", value), (tag, value)
    assert "@import" not in text
    assert not re.search(r"url\((?!#)", text)
    ids = [attrs["id"] for _, attrs in page.tags if "id" in attrs]
    assert len(ids) == len(set(ids))
    used = re.findall(r'(?:url\(#|xlink:href="#)([^")]+)', text)
    assert set(used) <= set(ids)
    for svg in page.all("svg"):
        assert svg["role"] == "img"
        assert svg["aria-label"]


def check_drawing(file: Path) -> None:
    """It stands alone: dark text on white, no colour that a page would have to give."""
    text = file.read_text()
    root = ET.fromstring(text)
    assert root.tag.endswith("svg")
    assert "currentColor" not in text
    patch = root.find(".//*[@id='patch_1']/{http://www.w3.org/2000/svg}path")
    assert patch is not None
    assert "fill: #ffffff" in patch.attrib["style"]


def check_latex(text: str) -> None:
    """Braces and mathematics are closed, and every line has as many cells."""
    bare = re.sub(r"\\.", "", re.sub(r"(?m)^%.*$", "", text.replace("\\\\", "")))
    depth = 0
    for sign in bare:
        depth += {"{": 1, "}": -1}.get(sign, 0)
        assert depth >= 0
    assert depth == 0
    assert bare.count("$") % 2 == 0
    assert not set(bare) & set("#^~%_")
    columns = re.search(r"\\begin\{tabular\}\{([lr]+)\}", text)
    assert columns is not None
    lines = [line for line in text.splitlines() if line.endswith("\\\\")]
    assert {len(re.findall(r"(?<!\\)&", line)) for line in lines} == {len(columns[1]) - 1}
    assert text.count("\\begin") == text.count("\\end")


def check_markdown(file: Path, drawings: list[Path]) -> None:
    """Tables are as wide as their heads, and pictures are there."""
    text = file.read_text()
    body, _, listing = text.partition("The study:")
    width = 0
    for line in body.splitlines():
        bars = len(re.findall(r"(?<!\\)\|", line))
        if line.startswith("|"):
            assert bars == (width or bars), line
        width = bars if line.startswith("|") else 0
    pictures = set(re.findall(r"\]\((figures/[^)]*)\)", body))
    assert pictures == {f"figures/{one.name}" for one in drawings}
    fences = re.findall(r"(?m)^(`{3,})(?:toml)?$", listing)
    assert fences[0] == fences[-1]


@pytest.fixture(scope="session")
def studied(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A study that was really run: two seeds of a model, and one that fails."""
    path = tmp_path_factory.mktemp("studied")
    (path / "real.toml").write_text(
        """
        title = "A real one"
        seeds = [0, 1]
        [training]
        epochs = 3
        batch_size = 20
        [data.points]
        name = "study_toys:data"
        [model.normal]
        name = "study_toys:normal"
        [model.raising]
        name = "study_toys:raising"
        [objective.ELBO]
        [estimator.L_50]
        name = "importance-sampling"
        options = {num_samples = 50}
        """
    )
    assert run(Bench(str(path / "real.toml"), path / "out", processes=2), print), "one has failed"
    return path / "out"


def test_a_real_study(studied: Path, tmp_path: Path) -> None:
    page = check(report(studied, tmp_path))
    words = page.words()
    assert "A real one" in words
    assert "believed: L_50" in words
    assert "2 of 4 cells are finished, 2 have failed." in words
    assert words.count("this model is out of order") >= 2
    assert "Damaged" not in words
    assert "± binarisation" not in words, "these data are no bits"
    figures = {file.stem for file in (tmp_path / "figures").iterdir()}
    assert figures == {"scores", "training"}, "k̂ of equal weights is not known"
    assert {file.stem for file in (tmp_path / "tables").iterdir()} == {"scores", "trainings"}
    for what in ("commands", "study file, SHA-256", "versions", "report written by"):
        assert what in words


def test_a_real_study_that_is_damaged_still_has_a_report(studied: Path, tmp_path: Path) -> None:
    folder = tmp_path / "copy"
    shutil.copytree(studied, folder)
    first, second = sorted(folder.glob("trainings/*/evidence-*.nc"))[:2]
    first.write_bytes(b"")
    second.unlink()
    for name in ("history.csv", "samples.png", "run.json"):
        (file,) = sorted(folder.glob(f"trainings/*/{name}"))[:1] or [folder / "cells" / name]
        file.write_bytes(b"\0")
    words = check(report(folder)).words()
    assert "Damaged or missing" in words
    for name in (first.name, second.name, "history.csv", "run.json"):
        assert name in words


def test_the_same_results_give_the_same_page(studied: Path, tmp_path: Path) -> None:
    one, other = (report(studied, tmp_path / name) for name in "ab")
    for mine, its in zip(one, other, strict=True):
        assert mine.read_bytes() == its.read_bytes(), mine.name


def test_hard_names(tmp_path: Path) -> None:
    folder = Folder(
        tmp_path, title=f"title {HARD}", question=HARD, name=HARD, toml="x = '''\n````\n'''\n"
    )
    for model in (f"model {HARD}", "_x", "[1] *"):
        folder.estimate([-1.0, -2.0], "_L $\\frac$", model=model, seed=0)
        folder.estimate([-1.5, -2.5], f"few {HARD}", model=model, seed=0, attrs={"num_samples": 10})
        folder.cell(model=model)["warnings"] = [HARD]
    folder.fail(f"message {HARD}\n</pre>", model="_x", seed=1)
    written = report(folder.write())
    page = check(written)
    assert page.words().count(HARD) > 5
    assert not page.all("b")
    legend = (tmp_path / "figures" / "khat.svg").read_text()
    assert "_x, _L $\\frac$" in legend, "as it stands, and not left out"
    tex = (tmp_path / "tables" / "scores.tex").read_text()
    assert r"\$x\_1\$ \textbar{} 100\% \textasciigrave{}a\textasciigrave{}" in tex
    assert "\n{[}1] {*} & " in tex, "or it would be an argument of the line's end"
    assert "`````toml\n" in written[1].read_text()


def test_ticks_and_thresholds_are_readable(tmp_path: Path) -> None:
    folder = Folder(tmp_path)
    for k, limit in ((10, -0.0), (100, 0.5), (1000, 0.667)):
        attrs = {"num_samples": k, "khat_threshold": limit}
        folder.estimate([-2.0 + k / 1000, -3.0], f"L_{k}", attrs=attrs, khat=[-0.2, -0.1])
    report(folder.write())
    for file in tmp_path.glob("figures/*.svg"):
        assert "mathdefault" not in file.read_text()
    tails = (tmp_path / "figures" / "khat.svg").read_text()
    assert "0.50 (K = 100)<" in tails
    assert "0.67 (K = 1,000)<" in tails
    budgets = (tmp_path / "figures" / "bound-against-samples.svg").read_text()
    assert all(f">{k}</text>" in budgets for k in ("10", "100", "1,000"))
    costs = (tmp_path / "figures" / "error-against-cost.svg").read_text()
    assert ">0.1</text>" in costs


def test_the_command_says_what_it_wrote(tmp_path: Path) -> None:
    folder = Folder(tmp_path / "study")
    folder.estimate([-1.0, -2.0])
    said = invoke("report", str(folder.write()), "--output", str(tmp_path / "there")).output
    assert "report.html" in said
    assert (tmp_path / "there" / "report.html").exists()
    assert not (tmp_path / "study" / "report.html").exists()


def test_odd_values(tmp_path: Path) -> None:
    folder = Folder(tmp_path)
    for model, value in (("a", -math.inf), ("b", math.nan), ("c", -1.0)):
        folder.estimate([-1.0, value], model=model, khat=math.nan if value != -1.0 else 0.2)
    folder.estimate([-math.inf, math.nan], "BDMC", columns={"upper_log_evidence": math.nan})
    words = check(report(folder.write())).words()
    assert "−∞" in words
    assert "nan" not in words
    (scores,) = tmp_path.glob("figures/scores.svg")
    assert scores.read_text().count("no finite number") == 3


def test_nothing_finished_still_has_a_page(tmp_path: Path) -> None:
    written = report(nothing_finished(tmp_path / "study"))
    assert [file.name for file in written] == ["report.html", "report.md"]
    words = check(written).words()
    assert "Nothing is finished yet." in words
    assert "1 are not finished" in words


def test_all_failed_still_has_a_page(tmp_path: Path) -> None:
    folder = Folder(tmp_path)
    folder.fail("out of order")
    words = check(report(folder.write())).words()
    assert "There is no estimate yet" in words
    assert "d, m, o, seed 0 : training: Boom: out of order" in words


def test_two_data_sets_have_a_section_each(tmp_path: Path) -> None:
    folder = Folder(tmp_path)
    for data in ("small", "large"):
        for model in "mn":
            folder.estimate([-1.0, -2.0], data=data, model=model)
    page = check(report(folder.write()))
    words = page.words()
    for title in ("small: Scores", "large: Scores", "small: Training", "large: Samples"):
        assert title in words
    assert (tmp_path / "tables" / "scores-1-small.tex").exists()
    assert len(page.all("img")) == 4


def test_tables_can_be_sorted(tmp_path: Path) -> None:
    folder = Folder(tmp_path)
    folder.estimate([-1.0, -2.0], model="a")
    folder.estimate([-10.0, -2.0], model="b")
    written = report(folder.write())
    page = Page(written[0].read_text())
    assert {table["class"] for table in page.all("table")} == {"sortable"}
    assert all(head["scope"] == "col" for head in page.all("th"))
    assert len(page.all("button")) == len(page.all("th"))
    numbers = [cell["data-number"] for cell in page.all("td") if "data-number" in cell]
    assert {float(number or "x") for number in numbers} >= {-1.5, -6.0, -math.inf}
    assert "aria-sort" in written[0].read_text()


def test_the_mean_of_seeds_is_thicker_than_a_seed(tmp_path: Path) -> None:
    folder = Folder(tmp_path)
    for seed in (0, 1):
        folder.estimate([-1.0, -2.0], seed=seed)
    report(folder.write())
    text = (tmp_path / "figures" / "training.svg").read_text()
    widths = re.findall(
        r"stroke: #3b82c4;(?: stroke-opacity: [\d.]+;)? stroke-width: ([\d.]+)", text
    )
    assert sorted(map(float, widths))[0] < 1 < 2 < sorted(map(float, widths))[-1]
