"""What is damaged or missing in a study's folder: the rest is read, and all of it is told."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest
from report_toys import Folder, nothing_finished

from pyrovae.benchmarks.report.results import read_results
from pyrovae.benchmarks.report.statistics import score


@pytest.fixture
def folder(tmp_path: Path) -> Folder:
    one = Folder(tmp_path / "study")
    one.estimate([-1.0, -2.0], seed=0)
    one.estimate([-3.0, -4.0], seed=1)
    return one


def file_of(folder: Folder, name: str, seed: int = 0) -> Path:
    cell = folder.cell(seed=seed)
    if name == "cell":
        return folder.path / "cells" / f"{cell['id']}.json"
    return folder.path / "trainings" / cell["id"] / name


def test_all_of_it_is_read(folder: Folder) -> None:
    folder.cell(seed=0)["warnings"] = ["beware"]
    found = read_results(folder.write())
    (row,) = found.rows
    assert (row.point, row.estimator, row.kind) == (("d", "m", "o"), "L", "importance-sampling")
    assert [run.log_evidence.tolist() for run in row.runs] == [[-1, -2], [-3, -4]]
    assert (row.runs[0].split, row.runs[0].fingerprint) == ("test", "fingerprint of d")
    assert [curve.bound.tolist() for curve in found.curves][1] == pytest.approx(
        [-9.9, -9.8, -9.7, -9.6, -9.5]
    )
    assert list(found.samples) == [("d", "m", "o")]
    assert found.dynamic == {"d": True}
    assert found.records[0].warnings == ("beware",)
    assert found.records[0].versions == "torch 9.9"
    assert (found.damaged, found.notes) == ([], [])


@pytest.mark.parametrize(
    "content", [b"", b"{", b"[]", b"\x00\xff" * 50], ids=["empty", "cut", "other", "noise"]
)
@pytest.mark.parametrize("name", ["cell", "evidence-0.nc", "history.csv", "run.json"])
def test_a_damaged_file_is_told_of_and_the_rest_is_read(
    name: str, content: bytes, folder: Folder
) -> None:
    folder.write()
    file = file_of(folder, name)
    file.write_bytes(content)
    found = read_results(folder.path)
    (told,) = found.damaged
    assert str(file.relative_to(folder.path)) in told
    values = [run.log_evidence.tolist() for row in found.rows for run in row.runs]
    lost = name in ("cell", "evidence-0.nc")
    assert values == [[-3, -4]] if lost else [[-1, -2], [-3, -4]]
    assert len(found.curves) == 2 - (name in ("cell", "history.csv"))


@pytest.mark.parametrize("name", ["evidence-0.nc", "history.csv", "run.json"])
def test_a_file_that_is_gone_is_told_of(name: str, folder: Folder) -> None:
    folder.write()
    file_of(folder, name).unlink()
    (told,) = read_results(folder.path).damaged
    assert name in told


@pytest.mark.parametrize("content", [b"", b"no picture", None])
def test_a_picture_that_does_not_read_is_told_of(content, folder: Folder) -> None:
    folder.write()
    file = file_of(folder, "samples.png")
    whole = file.read_bytes()
    file.write_bytes(whole[:-20] if content is None else content)
    found = read_results(folder.path)
    assert "samples.png" in found.damaged[0]
    assert list(found.samples.values()) == [whole], "that of the other seed stands for it"


def test_evidence_that_has_changed_since_is_not_believed(folder: Folder) -> None:
    other = folder.estimate([-99.0, -99.0], seed=0, estimator="other")
    folder.cell(seed=0)["estimates"][0]["file"] = other["file"]
    found = read_results(folder.write())
    assert "not those that the cell has recorded" in found.damaged[0]


@pytest.mark.parametrize("key", ["status", "training", "estimates"])
def test_a_record_that_lacks_something_is_told_of(key: str, folder: Folder) -> None:
    del folder.cell(seed=0)[key]
    (told,) = read_results(folder.write()).damaged
    assert f"lacks '{key}'" in told


@pytest.mark.parametrize("key", ["errors", "warnings", "machine", "finished", "spec"])
def test_a_record_may_lack_what_is_only_shown(key: str, folder: Folder) -> None:
    del folder.cell(seed=0)[key]
    found = read_results(folder.write())
    assert found.damaged == []
    assert len(found.rows[0].runs) == 2


@pytest.mark.parametrize("key", ["estimator", "file", "sha256", "spec"])
def test_an_estimate_that_lacks_something_is_told_of(key: str, folder: Folder) -> None:
    del folder.cell(seed=0)["estimates"][0][key]
    found = read_results(folder.write())
    assert f"lacks '{key}'" in found.damaged[0]
    assert [run.seed for run in found.rows[0].runs] == [1]


@pytest.mark.parametrize("value", [3, "x", [1], {"estimates": 3}])
def test_nonsense_in_a_record_is_told_of(value, folder: Folder) -> None:
    folder.cell(seed=0)["estimates"] = value
    found = read_results(folder.write())
    assert found.damaged
    assert [run.seed for run in found.rows[0].runs] == [1]


def test_an_estimate_that_was_asked_for_and_is_not_there_is_told_of(folder: Folder) -> None:
    folder.cell(seed=0)["spec"]["estimates"]["gone"] = {}
    assert "lacks the estimate gone" in read_results(folder.write()).damaged[0]


@pytest.mark.parametrize(
    "text",
    [
        "epoch,loss\n1,2\n",
        "epoch,seconds,validation_elbo\n",
        "epoch,seconds,validation_elbo\n1,0.5,many\n",
        "epoch,seconds,validation_elbo\n1\n2,3\n",
    ],
)
def test_a_history_without_its_columns_is_told_of(text: str, folder: Folder) -> None:
    folder.write()
    file_of(folder, "history.csv").write_text(text)
    found = read_results(folder.path)
    if "many" in text or "loss" in text or text.count("\n") == 1:
        assert "history.csv" in found.damaged[0]
        assert len(found.curves) == 1
    else:  # what a run that was cut short has not written is not known
        assert np.isnan(found.curves[0].bound).all()


def test_seeds_that_scored_different_data_share_some_of_them(folder: Folder) -> None:
    folder.estimate([7.0, 8.0, 9.0], seed=2, datum=[3, 1, 0])
    found = read_results(folder.write())
    (row,) = found.rows
    assert [run.datum.tolist() for run in row.runs] == [[0, 1]] * 3
    assert row.runs[2].log_evidence.tolist() == [9, 8], "in the order of the data"
    assert score(row).value == pytest.approx((-1.5 - 3.5 + 8.5) / 3)
    assert "the 2 that all have are counted" in found.notes[0]


@pytest.mark.parametrize(
    "attrs", [{"split": "validation"}, {"fingerprint": "other"}, {"datum": [7, 8]}]
)
def test_a_seed_of_other_data_is_left_out_and_told_of(attrs: dict, folder: Folder) -> None:
    datum = attrs.pop("datum", None)
    folder.estimate([7.0, 8.0], seed=2, attrs=attrs, datum=datum)
    found = read_results(folder.write())
    assert [run.seed for run in found.rows[0].runs] == [0, 1]
    assert "seeds 2 are of other data" in found.notes[0]


def test_sandwiches_are_of_simulated_data_unless_a_posterior_is_named(tmp_path: Path) -> None:
    one = Folder(tmp_path / "study")
    upper = {"columns": {"upper_log_evidence": [-0.5, -1.0], "upper_stderr": 0.1}}
    one.estimate([-1.0, -2.0], "drawn", **upper)
    one.estimate([-1.0, -2.0], "held", options={"posterior": "mine:exact"}, **upper)
    drawn, held = read_results(one.write()).rows
    assert (drawn.simulated, held.simulated) == (True, False)
    assert held.sandwich is not None
    assert held.sandwich.tolist() == [[0.5, 1.0]]


def test_thresholds_of_khat_follow_the_number_of_samples(tmp_path: Path) -> None:
    one = Folder(tmp_path / "study")
    one.estimate([-1.0], "few", attrs={"num_samples": 100, "khat_threshold": 0.5}, khat=0.6)
    one.estimate([-1.0], "many", attrs={"num_samples": 10_000, "khat_threshold": 0.7}, khat=0.6)
    few, many = read_results(one.write()).rows
    assert (score(few).unreliable, score(many).unreliable) == (1.0, 0.0)


def test_nothing_finished_is_read_as_that(tmp_path: Path) -> None:
    found = read_results(nothing_finished(tmp_path / "study"))
    assert (found.rows, found.records, found.total) == ([], [], 1)


@pytest.mark.parametrize("content", ["", "{}", "[]", '{"format": "pyrovae-study-1"}'])
def test_a_folder_without_a_study_is_refused(content: str, tmp_path: Path) -> None:
    if content:
        (tmp_path / "study.json").write_text(content)
    with pytest.raises(FileNotFoundError, match=r"study\.json"):
        read_results(tmp_path)


def test_a_study_may_lack_what_is_only_shown(folder: Folder) -> None:
    file = folder.write() / "study.json"
    study = json.loads(file.read_text())
    file.write_text(json.dumps({name: study[name] for name in ("format", "cells")}))
    found = read_results(folder.path)
    assert found.study["title"] == "study"
    assert not math.isnan(score(found.rows[0]).value)
