"""A study of one's own parts, all from one file of sixty lines outside the package."""

from __future__ import annotations

import json
import math
import shutil
import sys
from pathlib import Path

import pytest
import torch
import xarray as xr
from typer.testing import CliRunner

from pyrovae.benchmarks.claims.toys import Toy
from pyrovae.benchmarks.cli import app
from pyrovae.inference import ImportanceSampling

EXAMPLES = Path(__file__).resolve().parents[1] / "docs" / "examples"


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    shutil.copytree(EXAMPLES, tmp_path, dirs_exist_ok=True)
    text = (tmp_path / "rings.toml").read_text()
    short = (
        text.replace("epochs = 100", "epochs = 2")
        .replace("= 1000", "= 50")
        .replace("[0, 1]", "[0]")
    )
    (tmp_path / "rings.toml").write_text(short)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, "rings", raising=False)
    return tmp_path


def test_the_file_is_short() -> None:
    assert len((EXAMPLES / "rings.py").read_text().splitlines()) <= 60


def test_it_runs_and_is_reported(folder: Path) -> None:
    answer = CliRunner().invoke(app, ["bench", "rings.toml"])
    assert answer.exit_code == 0, answer.output
    records = [json.loads(file.read_text()) for file in folder.glob("runs/rings/cells/*.json")]
    assert {(one["model"], one["objective"]) for one in records} == {
        (model, objective) for model in ("ring", "normal") for objective in ("nested", "IWAE")
    }
    for record in records:
        own, ours = (
            xr.open_dataset(folder / "runs" / "rings" / one["file"], engine="scipy")
            for one in record["estimates"]
        )
        with own, ours:
            assert abs(float(own["log_evidence"].mean() - ours["log_evidence"].mean())) < 1
    answer = CliRunner().invoke(app, ["report", "runs/rings"])
    assert answer.exit_code == 0, answer.output
    page = (folder / "runs" / "rings" / "report.html").read_text()
    assert all(word in page for word in ("ring", "nested", "truncated"))


def test_its_estimator_and_bound_are_right(folder: Path) -> None:
    import rings

    toy = Toy(dim=1, scale=1.0)
    x = torch.linspace(-2, 2, 50, dtype=torch.float64)[:, None]
    pair = toy.model, toy.prior
    found = rings.Truncated(num_samples=2000)(*pair, x)
    away = (found.log_evidence - toy.log_evidence(x)).mean()
    assert abs(float(away)) < 4 * found.mean().monte_carlo_stderr + 0.02
    plain = ImportanceSampling(num_samples=2000, seed=0)(*pair, x)
    assert abs(float((found.log_evidence - plain.log_evidence).mean())) < 0.1
    weights = torch.randn(5, 3, dtype=torch.float64)
    by_hand = sum(weights[:k].logsumexp(0) - math.log(k) for k in range(1, 6)) / 5
    torch.testing.assert_close(rings.Nested()(weights), by_hand)
    ring = rings.Ring()()
    line = torch.linspace(-5, 5, 401)
    density = ring.log_prob(torch.cartesian_prod(line, line)).exp().detach()
    assert float(density.sum()) * 0.025**2 == pytest.approx(1, abs=1e-3)
