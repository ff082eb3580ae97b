"""`pyrovae claims`: what holds, what does not, what raises, and what is written."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
from typer.testing import CliRunner

from pyrovae.benchmarks.claims import CLAIMS, Claim, Verdict, claims
from pyrovae.benchmarks.claims.monte_carlo import _slope
from pyrovae.benchmarks.claims.verdict import above, exactly, near
from pyrovae.benchmarks.cli import app

ROOT = Path(__file__).resolve().parents[1]


def good() -> list[Verdict]:
    return [near("a|b", 1.0, 0.1, 1.2)]


def bad() -> list[Verdict]:
    return [near("right", 1.0, 0.1, 1.0), above("wrong", 0.3, 0.1)]


def raises() -> list[Verdict]:
    raise ArithmeticError("nothing to divide")


AMONG = tuple(
    Claim(one.__name__, f"it is {one.__name__}", "models/vae.py", one)
    for one in (good, bad, raises)
)


def test_one_that_does_not_hold_and_one_that_raises_do_not_stop_the_others(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    said: list[str] = []
    assert not claims(None, tmp_path, said.append, AMONG)
    assert [line.split()[0] for line in said[:3]] == ["holds", "FAILS", "FAILS"]
    assert "1 of 3 claims hold; not so: bad, raises" in said[-1]
    assert "ArithmeticError" in capsys.readouterr().err
    record = json.loads((tmp_path / "claims.json").read_text())
    assert [one["name"] for one in record["claims"]] == ["good", "bad", "raises"]
    assert [v["holds"] for v in record["claims"][1]["verdicts"]] == [True, False]
    assert "ArithmeticError: nothing to divide" in record["claims"][2]["verdicts"][0]["measured"]
    rows = [line for line in (tmp_path / "claims.md").read_text().splitlines() if "|" in line]
    # a bar inside a cell ends no cell
    assert {line.replace("\\|", "").count("|") for line in rows} == {7}


def test_a_slope_and_its_error_by_hand() -> None:
    x, error = [0.0, 1.0, 2.0], [0.1, 0.1, 0.1]
    assert _slope(x, [1.0, 3.0, 5.0], error) == pytest.approx((2.0, 0.1 / math.sqrt(2)))
    # the middle does not count for the slope, and an end of twice the error a quarter
    slope, wide = _slope([0.0, 1.0], [0.0, 1.0], [0.1, 0.2])
    assert (slope, wide) == pytest.approx((1.0, math.hypot(0.1, 0.2)))


def test_where_all_hold() -> None:
    said: list[str] = []
    assert claims(["good"], say=said.append, among=AMONG)
    assert "1 of 1 claims hold;" in said[-1]


def test_a_name_that_is_none() -> None:
    with pytest.raises(ValueError, match="claims should be of good, bad, raises; found nobody"):
        claims(["good", "nobody"], among=AMONG)


@pytest.mark.parametrize(
    ("verdict", "holds"),
    [
        (near("", 1.4, 0.1, 1.0), True),
        (near("", 1.41, 0.1, 1.0), False),
        (near("", 1.0, 0.0, 1.0), False),  # an error of 0 is none
        (near("", float("nan"), 0.1, 1.0), False),
        (near("", 1.0, float("nan"), 1.0), False),
        (above("", 0.41, 0.1), True),
        (above("", 0.39, 0.1), False),
        (above("", float("nan"), 0.1), False),
        (above("", 1.0, float("inf")), False),
        (exactly("", 0.9, 1.0), True),
        (exactly("", float("nan"), 1.0), False),
    ],
)
def test_what_holds(verdict: Verdict, holds: bool) -> None:
    assert verdict.holds is holds


def test_each_claim_names_the_code_that_shows_it() -> None:
    assert len(CLAIMS) == 11
    assert [one.name for one in CLAIMS if not (ROOT / one.shown_by).is_file()] == []


@pytest.mark.parametrize("name", ["perfect-proposal", "identity", "gradients"])
def test_what_is_quick_to_show_holds(name: str) -> None:
    """The others train VAEs, and run by hand: `pyrovae claims`."""
    answer = CliRunner().invoke(app, ["claims", name])
    assert answer.exit_code == 0, answer.output
    assert "1 of 1 claims hold" in answer.output


def test_a_claim_that_does_not_hold_has_an_exit_code(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pyrovae.benchmarks.cli.claims", lambda names, output: False)
    assert CliRunner().invoke(app, ["claims"]).exit_code == 1
