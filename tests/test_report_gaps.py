"""The table of inference gaps, against numbers by hand."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
from report_toys import Folder

from pyrovae.benchmarks.report import report
from pyrovae.benchmarks.report.content import tables
from pyrovae.benchmarks.report.results import read_results


def refined(folder: Path, **more: object) -> Folder:
    """log p = -10 and -12; the local ELBOs 1 and 2 below; the guide's 3 and 5 below these."""
    study = Folder(folder)
    columns = {"elbo": [-11.0, -14.0], "guide_elbo": [-14.0, -19.0]}
    study.estimate([-10.0, -12.0], "refined", stderr=0.0, columns=columns, **more)
    return study


def table(study: Folder) -> list[str]:
    study.write()
    (found,) = [one for one in tables(read_results(study.path)) if one.name == "gaps"]
    (row,) = found.rows
    return [cell.text for cell in row]


def test_by_hand(tmp_path: Path) -> None:
    # means 1.5 and 4; errors sd/√2 = 0.5 and 1
    assert table(refined(tmp_path)) == ["refined", "0%", "1.50", "0.50", "4.00", "1.00", "2"]


def test_a_higher_estimate_that_can_be_believed_is_the_measure(tmp_path: Path) -> None:
    study = refined(tmp_path)
    study.estimate([-9.0, -12.0], "AIS", stderr=[0.3, 0.4])
    # 2 and 2; Monte Carlo √(0.09 + 0.16) / 2
    assert table(study) == ["AIS", "0%", "2.00", f"{math.sqrt(0.25) / 2:.2f}", "4.00", "1.00", "2"]


def test_a_lower_estimate_is_the_measure_before_one_on_no_known_side(tmp_path: Path) -> None:
    study = refined(tmp_path)
    study.estimate([-10.0, -11.0], "lower", stderr=0.0)
    study.estimate([-3.0, -4.0], "consistent", stderr=0.0, attrs={"direction": "consistent"})
    assert table(study)[0] == "lower"


def test_noise_is_counted_once(tmp_path: Path) -> None:
    study = refined(tmp_path)
    # approximations 1 and 4: sd/√2 = 1.5, which holds the Monte Carlo error √(0.09 + 0.16) / 2
    study.estimate([-10.0, -10.0], "AIS", stderr=[0.3, 0.4])
    assert table(study)[:4] == ["AIS", "0%", "2.50", "1.50"]


def test_an_unknown_noise_leaves_the_spread(tmp_path: Path) -> None:
    study = refined(tmp_path)
    study.estimate([-10.0, -10.0], "AIS", stderr=math.nan)
    assert table(study)[:4] == ["AIS", "0%", "2.50", "1.50"]


def test_of_several_each_says_whose_normals_they_are(tmp_path: Path) -> None:
    study = refined(tmp_path)
    columns = {"elbo": [-10.5, -13.5], "guide_elbo": [-14.0, -19.0]}
    study.estimate([-10.0, -12.0], "longer", stderr=0.0, columns=columns)
    study.write()
    (found,) = [one for one in tables(read_results(study.path)) if one.name == "gaps"]
    assert [[cell.text for cell in row][:3] for row in found.rows] == [
        ["refined", "refined", "0%"],
        ["longer", "refined", "0%"],
    ]
    assert [row[3].text for row in found.rows] == ["1.50", "1.00"]


@pytest.mark.parametrize(
    "other",
    [
        {"khat": 0.9},
        {"attrs": {"direction": "upper"}},
        {"datum": [5, 6]},
        {"model": "another"},
        {"seed": 1},
        {"attrs": {"split": "validation"}},
    ],
)
def test_another_that_cannot_be_the_measure_is_not(tmp_path: Path, other: dict) -> None:
    study = refined(tmp_path)
    study.estimate([-9.0, -9.0], "other", **other)
    assert "refined" in table(study)
    assert "other" not in table(study)


def test_without_a_refined_estimate_there_is_no_table(tmp_path: Path) -> None:
    study = Folder(tmp_path)
    study.estimate([-10.0, -12.0])
    study.write()
    assert "gaps" not in [one.name for one in tables(read_results(tmp_path))]


def test_the_page_and_its_twin_show_every_table(tmp_path: Path) -> None:
    study = refined(tmp_path)
    study.estimate([-9.0, -12.0], "AIS", stderr=[0.3, 0.4])
    study.write()
    report(tmp_path)
    page, twin = ((tmp_path / f"report.{end}").read_text() for end in ("html", "md"))
    captions = [one.caption for one in tables(read_results(tmp_path))]
    assert len(captions) > 2
    for caption in captions:
        assert f"<caption>{caption}</caption>" in page
        assert f"**{caption}**" in twin
