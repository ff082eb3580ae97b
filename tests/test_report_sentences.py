"""What a report says: which estimate to believe, what leads what, how far from the published."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
from report_toys import Folder, nothing_finished

from pyrovae.benchmarks.report.choice import believed, compared
from pyrovae.benchmarks.report.content import refusals, tables
from pyrovae.benchmarks.report.figures import figures
from pyrovae.benchmarks.report.page import how_to_read, parts_of
from pyrovae.benchmarks.report.results import read_results
from pyrovae.benchmarks.report.rows import Results
from pyrovae.benchmarks.report.summary import sentences, state


@pytest.fixture
def folder(tmp_path: Path) -> Folder:
    return Folder(tmp_path / "study")


def said(folder: Folder) -> str:
    return "\n".join(sentences(read_results(folder.write())))


def upper(direction: str = "upper") -> dict[str, str]:
    return {"direction": direction}


def column(results: Results, header: str, table: str = "scores") -> list[str]:
    (found,) = [one for one in tables(results) if one.name == table]
    at = [name for name, _ in found.headers].index(header)
    return [row[at].text for row in found.rows]


def test_the_highest_lower_estimate_is_believed(folder: Folder) -> None:
    folder.estimate([-5.0, -7.0], "low")
    folder.estimate([-4.0, -6.0], "better", stderr=0.1)
    folder.estimate([-1.0, -1.0], "doubtful", khat=0.9)
    folder.estimate([-2.0, -2.0], "no side", attrs=upper("consistent"))
    folder.estimate([-3.0, -3.0], "above", attrs=upper())
    text = said(folder)
    assert "that can be believed: better, −5.000 ± 0.071 (Monte Carlo) ± 0.997 (test set)" in text
    assert "± unknown (seed)" in text
    assert "Higher, but not to be relied on" in text
    assert "doubtful (−1.000)" in text
    assert "above (" not in text, "an upper bound is above by right"


def test_means_over_other_data_are_not_compared(folder: Folder) -> None:
    folder.estimate([-5.0, -7.0, -9.0], "all of them")
    folder.estimate([-6.0, -8.0, -9.0], "all, lower")
    folder.estimate([-1.0], "the easiest", datum=[0])
    folder.estimate([-0.5], "and doubtful", datum=[0], khat=0.9)
    text = said(folder)
    assert "believed: all of them, −7.000" in text
    assert "of 3 test data; means over other data are not compared" in text
    assert "Higher" not in text


def test_without_a_lower_estimate_one_on_no_known_side_is(folder: Folder) -> None:
    folder.estimate([-2.0, -2.0], "no side", attrs=upper("consistent"))
    folder.estimate([-1.0, -1.0], "above", attrs=upper())
    assert "on no known side of the truth: no side" in said(folder)


def test_of_upper_bounds_alone_nothing_is_believed_to_be_log_p(folder: Folder) -> None:
    folder.estimate([-1.0, -1.0], "above", attrs=upper())
    folder.estimate([-2.0, -2.0], "tighter", attrs=upper())
    folder.estimate([-9.0, -9.0], "doubtful", khat=0.9)
    text = said(folder)
    assert "only upper bounds" in text
    assert "lowest is tighter" in text
    assert "that can be believed" not in text
    folder.estimate([-1.5, -1.5], "above", model="other", attrs=upper())
    assert "do not tell which model is best" in said(folder)


@pytest.mark.parametrize(
    ("values", "khat"), [([-1.0, -2.0], 0.9), ([-1.0, -2.0], math.nan), ([-1.0, -math.inf], 0.1)]
)
def test_where_nothing_is_trusted_nothing_is_called_believable(
    values: list[float], khat: float, folder: Folder
) -> None:
    folder.estimate(values, khat=khat)
    folder.estimate(values, khat=khat, model="other")
    text = said(folder)
    assert "None of these estimates is to be relied on" in text
    assert "believed" not in text
    results = read_results(folder.path)
    assert believed(results.rows) is None
    assert not any(cell.strong for one in tables(results) for row in one.rows for cell in row)


def test_simulated_data_alone_say_so(folder: Folder) -> None:
    folder.estimate([-1.0, -2.0], "BDMC", columns={"upper_log_evidence": [-0.75, -1.75]})
    text = said(folder)
    assert "No held-out data are scored" in text
    assert "gap of 0.250 ± 0.000 nats, on data drawn from the model" in text


def test_a_sandwich_of_held_out_data_is_not_called_simulated(folder: Folder) -> None:
    folder.estimate(
        [-1.0, -2.0],
        "BDMC",
        columns={"upper_log_evidence": [-0.5, -1.0]},
        options={"posterior": "mine:exact"},
        attrs=upper("lower and upper"),
    )
    text = said(folder)
    assert "drawn from the model" not in text
    assert "gap of 0.750 ± 0.250 nats, on the held-out data" in text
    assert "that can be believed: BDMC" in text or "that can be believed: L" in text
    results = read_results(folder.path)
    assert "simulated" not in column(results, "side")[0]
    (figure,) = [one for one in parts_of(results)[0].figures.values() if one.name == "sandwich"]
    assert "drawn from the model" not in figure.caption


def test_the_best_leads_the_next_that_is_trusted(folder: Folder) -> None:
    for seed in (0, 1, 2):
        wobble = seed / 100
        folder.estimate([-1.0 - wobble, -2.0], model="best", seed=seed)
        folder.estimate([-3.0, -4.1 - wobble], model="next", seed=seed)
        folder.estimate([-1.5, -2.5], model="doubtful", seed=seed, khat=0.9)
    text = said(folder)
    assert "believed: best" in text
    assert "It leads next by 2.050 ±" in text
    assert "more than its errors explain" in text
    assert "leads doubtful" not in text
    results = read_results(folder.path)
    assert column(results, "sure", "differences") == ["yes", "doubtful: k̂ or R̂"]


def test_a_lead_of_one_seed_is_not_sure(folder: Folder) -> None:
    folder.estimate([-1.0, -2.0, -3.0], model="best")
    folder.estimate([-3.0, -4.1, -5.0], model="next")
    assert "with other seeds it is unknown" in said(folder)
    results = read_results(folder.path)
    assert column(results, "sure", "differences") == ["unknown"]
    assert column(results, "± seed", "differences") == ["–"]
    assert column(results, "± seed") == ["–", "–"], "no seed error is not an error of nothing"


def test_one_image_has_no_error_by_data(folder: Folder) -> None:
    folder.estimate([-1.0], model="best")
    folder.estimate([-2.0], model="next")
    text = said(folder)
    assert "± unknown (test set)" in text
    results = read_results(folder.path)
    assert column(results, "± test set") == ["–", "–"]
    assert column(results, "± test set", "differences") == ["–"]


@pytest.mark.parametrize(
    ("attrs", "why"),
    [({"split": "validation"}, "validation data"), ({"fingerprint": "other"}, "fingerprints")],
)
def test_rows_of_other_data_are_not_compared(attrs: dict, why: str, folder: Folder) -> None:
    folder.estimate([-1.0, -2.0], model="best")
    folder.estimate([-3.0, -4.0], model="next", attrs=attrs)
    text = said(folder)
    assert "It is not compared with the next" in text
    assert why in text
    results = read_results(folder.path)
    assert why in refusals(results)[0]
    assert [one.name for one in tables(results)] == ["scores", "trainings"]


def test_one_draw_is_said_only_of_bits_that_were_drawn(folder: Folder) -> None:
    folder.estimate([-1.0, -2.0])
    assert column(read_results(folder.write()), "± binarisation") == ["one draw"]
    folder.dynamic = False
    folder.estimate([-1.0, -2.0], data="static")
    results = read_results(folder.write())
    assert column(results, "± binarisation") == ["one draw", "–"]
    static = results.of("static")
    assert "± binarisation" not in [name for name, _ in tables(static)[0].headers]
    assert "binarisation" in how_to_read(results)[0]


def test_static_bits_are_not_spoken_of_as_drawn(folder: Folder) -> None:
    folder.dynamic = False
    folder.estimate([-1.0, -2.0])
    assert "binarisation" not in how_to_read(read_results(folder.write()))[0]


def test_the_distance_counts_the_published_error(tmp_path: Path) -> None:
    known = {"model": "m", "value": -2.0, "spread": 0.4, "source": "Somebody, 1999"}
    folder = Folder(tmp_path / "study", published=[known])
    folder.estimate([-1.0, -2.0], stderr=0.3, seed=0)
    folder.estimate([-1.0, -2.0], stderr=0.3, seed=1)
    folder.estimate([-1.0, -2.0], model="not published")
    text = said(folder)
    # Monte Carlo √(4·0.09)/4 = 0.15, seeds 0, published 0.4
    assert "m is +0.50 ± 0.43 (Monte Carlo, seeds, the published spread) nats" in text
    assert "from the published −2.00 ± 0.4 (Somebody, 1999)" in text
    results = read_results(folder.path)
    assert column(results, "published") == ["−2.00 ± 0.40", "–"]
    assert column(results, "± distance") == ["0.43", "–"]


def test_estimators_of_one_model_are_held_against_the_believed(folder: Folder) -> None:
    folder.estimate([-3.0, -4.0], "first")
    folder.estimate([-1.0, -2.0], "best")
    pairs = compared(read_results(folder.write()))
    assert [(row.estimator, other.estimator) for row, other in pairs] == [("first", "best")]


def test_of_a_part_of_the_test_set_the_distance_has_an_error_by_data(tmp_path: Path) -> None:
    folder = Folder(tmp_path / "study", published=[{"value": -2.0}])
    folder.estimate([-1.0, -3.0], "whole", stderr=0.0)
    folder.estimate([-1.0, -3.0], "part", stderr=0.0, attrs={"subset": 2})
    assert column(read_results(folder.write()), "± distance") == ["0.00", "1.00"]
    assert "part is +0.00 ± 1.00 (Monte Carlo, data) nats" in said(folder)


def test_a_diagnosis_that_is_not_known_is_not_called_too_high(folder: Folder) -> None:
    folder.estimate([-1.0, -2.0], "AIS", khat=math.nan)
    folder.estimate([-3.0, -4.0], "L")
    folder.estimate([-3.0, -4.0], "half", khat=[math.nan, 0.9])
    results = read_results(folder.write())
    assert column(results, "k̂ or R̂ too high") == ["unknown", "0%", "100.0%"]
    assert "AIS (−1.500, k̂ unknown)" in said(folder)


def test_upper_bounds_are_not_compared_as_if_higher_were_better(folder: Folder) -> None:
    for model in "mn":
        folder.estimate([-1.0, -2.0], "EUBO", model=model, attrs={"direction": "upper"})
        folder.estimate([-3.0, -4.0], "L", model=model)
    pairs = compared(read_results(folder.write()))
    assert [(row.estimator, other.estimator) for row, other in pairs] == [("L", "L")]


def test_the_scores_say_where_data_are_others(folder: Folder) -> None:
    folder.estimate([-1.0, -2.0, -3.0], "all")
    folder.estimate([-1.0, -2.0], "some")
    (drawn,) = [one for one in figures(read_results(folder.write())) if one.name == "scores"]
    assert "some (2 data)" in drawn.svg()
    assert "all (" not in drawn.svg()
    assert "Rows of other data, with their number, are not to be compared" in drawn.caption
    assert "which all rows share" not in drawn.caption


def test_rows_that_the_study_names_are_compared_too(tmp_path: Path) -> None:
    named = [
        {"row": {"objective": "c"}, "with": {"objective": "b"}},
        {"row": {"objective": "b"}, "with": {"objective": "a"}},  # as it is anyway
        {"row": {"objective": "c"}, "with": {"estimator": "none"}},
    ]
    folder = Folder(tmp_path / "study", compare=named)
    for estimator in ("L", "M"):
        for i, objective in enumerate("abc"):
            folder.estimate([-1.0 - i, -2.0], estimator, objective=objective)
    pairs = compared(read_results(folder.write()))
    names = [(row.point[2], other.point[2], row.estimator, other.estimator) for row, other in pairs]
    usual = [(row, "a", one, one) for row in "bc" for one in "LM"]
    assert sorted(names) == sorted([*usual, ("c", "b", "L", "L"), ("c", "b", "M", "M")])
    found = column(read_results(folder.path), "difference", "differences")
    assert found == ["−0.500", "−0.500", "−1.000", "−1.000", "−0.500", "−0.500"]


@pytest.mark.parametrize("value", [-math.inf, math.nan])
def test_a_value_that_is_no_number_is_told_of(value: float, folder: Folder) -> None:
    folder.estimate([-1.0, value, -2.0], model="odd")
    folder.estimate([-1.0, -4.0, -2.0])
    assert "odd: 1 of 3 estimates are infinite or no number" in said(folder)
    assert column(read_results(folder.path), "sure", "differences") == ["not finite"]
    assert "believed: m" in said(folder)


def test_two_data_sets_have_an_answer_and_tables_each(folder: Folder) -> None:
    folder.estimate([-1.0, -2.0], data="small")
    folder.estimate([-1.5, -2.5], data="small", model="n")
    folder.estimate([-100.0, -200.0], data="Large & odd")
    folder.estimate([-101.0, -201.0], data="Large & odd", model="n")
    small, large = parts_of(read_results(folder.write()))
    assert (small.title, large.title) == ("small", "Large & odd")
    assert "m, −1.500" in small.sentences[0]
    assert "m, −150.000" in large.sentences[0]
    assert len(large.tables["scores"].rows) == 2
    names = [one.name for part in (small, large) for one in part.tables.values()]
    names += [one.name for part in (small, large) for one in part.figures.values()]
    assert "scores-2-large-odd" in names
    assert len(names) == 2 * len(set(names) & {one.name for one in small.figures.values()}) + 2 * 3


def test_how_far_the_study_is(folder: Folder, tmp_path: Path) -> None:
    folder.estimate([-1.0, -2.0])
    folder.fail("out of order", seed=1)
    assert state(read_results(folder.write())) == "1 of 2 cells are finished, 1 have failed."
    begun = read_results(nothing_finished(tmp_path / "begun"))
    assert "1 are not finished" in state(begun)
    assert sentences(begun) == ["Nothing is finished yet."]
