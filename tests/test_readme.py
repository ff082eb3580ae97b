"""What the README says can be done: its examples run and its commands can be typed."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch
from documents import ROOT, blocks, can_be_typed, commands

from pyrovae.benchmarks import demo, training
from pyrovae.benchmarks.claims import CLAIMS
from pyrovae.benchmarks.runs import Settings
from pyrovae.inference.tables import width

TEXT = (ROOT / "README.md").read_text(encoding="utf-8")
EXAMPLES = blocks(TEXT, "python")
COMMANDS = commands(TEXT)


@pytest.fixture(autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def test_a_model_of_ones_own_takes_25_lines() -> None:
    assert len(EXAMPLES) == 4
    assert len([line for line in EXAMPLES[0].splitlines() if line.strip()]) <= 25


def test_the_model_of_ones_own_trains_and_is_scored(capsys: pytest.CaptureFixture[str]) -> None:
    exec(compile(EXAMPLES[0], "README.md", "exec"), {"__name__": "__main__"})
    shown = capsys.readouterr().out
    match = re.search(r"Estimate\(300 data, K=1000, lower: mean log p\(x\) = (-\d+\.\d+)", shown)
    assert match, shown
    # independent pixels, each with its mean over the training images, have -27.4 nats
    assert -26 < float(match[1]) < -20


def test_the_model_from_parts_draws_images_and_trains_under_each_objective() -> None:
    names: dict = {}
    exec(compile(EXAMPLES[1], "README.md", "exec"), names)
    assert names["images"].shape == (10, 64)
    before = [value.detach().clone() for value in names["vae"].parameters()]
    exec(compile(EXAMPLES[2], "README.md", "exec"), names)
    moved = zip(before, names["vae"].parameters(), strict=True)
    assert not any(torch.equal(one, other) for one, other in moved)


def test_estimates_are_compared(capsys: pytest.CaptureFixture[str]) -> None:
    names: dict = {}
    for example in (EXAMPLES[1], EXAMPLES[3]):
        exec(compile(example, "README.md", "exec"), names)
    shown = capsys.readouterr().out
    assert "- believe " in shown
    for result in ("InferenceGaps(8 data", "Surgery(8 data", "Sandwich(8 data"):
        assert result in shown


def test_the_model_of_ones_own_on_the_command_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    factory = re.search(r"`(def build\(.*?)`", TEXT)
    assert factory
    (tmp_path / "readme_model.py").write_text(f"{EXAMPLES[0]}\n{factory[1]}\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    settings = Settings(model="readme_model:build", epochs=1)
    assert len(training.train(settings, "runs/mine", progress=False).history) == 1


@pytest.mark.parametrize("line", COMMANDS)
def test_a_command_can_be_typed(line: str) -> None:
    program, name, *_ = line.split()
    if program == "make":
        makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
        assert re.search(rf"^{name}:", makefile, re.MULTILINE)
    else:
        assert can_be_typed(line)


def test_commands_were_found() -> None:
    assert {tuple(line.split()[:2]) for line in COMMANDS} >= {
        ("make", "demo"),
        ("make", "test"),
        *(("pyrovae", name) for name in ("demo", "train", "evidence", "datasets")),
        *(("pyrovae", name) for name in ("bench", "report", "claims")),
    }


def test_its_links_lead_somewhere() -> None:
    links = re.findall(r"\]\((?!http)([^)#]+)", TEXT)
    assert len(links) > 15
    assert [link for link in links if not (ROOT / link).exists()] == []


def test_every_claim_is_linked_to_its_code() -> None:
    for claim in CLAIMS:
        says = claim.says.replace("|", "\\|")
        assert f"| {says} (`{claim.name}`) | [{claim.shown_by}]({claim.shown_by}) |" in TEXT


def test_it_is_read_in_five_minutes() -> None:
    prose = re.sub(r"```.*?```", "", TEXT, flags=re.DOTALL)
    assert len(prose.split()) < 1300, "at 260 words a minute"


def test_the_table_has_the_columns_of_the_demo(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    said: list[str] = []
    demo.demo(epochs=1, num_samples=20, say=said.append)
    shown = next(line for text in said for line in text.splitlines() if line.startswith("prior"))
    table = re.search(r"```text\n(.*?)```", TEXT, re.DOTALL)
    assert table
    header, rule, *_ = table[1].splitlines()
    threshold = r"k̂ ≥ \d\.\d\d"  # depends on K
    assert re.sub(threshold, "", header).split() == re.sub(threshold, "", shown).split()
    assert width(header) == len(rule)
