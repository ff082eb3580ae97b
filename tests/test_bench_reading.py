"""Study files: what they mean, and that every fault of one is told at once, with its line."""

from __future__ import annotations

from pathlib import Path

import pytest

from pyrovae.benchmarks.bench import StudyError, check, read_study, shipped

GOOD = """\
title = "Two of everything"
seeds = [0, 1]

[training]
epochs = 2
batch_size = 20

[data.points]
name = "study_toys:data"

[model.A]
name = "study_toys:normal"

[model.B]
name = "study_toys:normal"
training = {epochs = 3}

[objective.ELBO]

[objective."IWAE(4)"]
name = "IWAE"
options = {num_particles = 4}

[estimator.L_20]
name = "importance-sampling"
options = {num_samples = 20}

[[exclude]]
model = "B"
objective = "ELBO"

[[compare]]
row = {objective = "IWAE(4)"}
with = {objective = "ELBO"}

[[published]]
model = "A"
value = -3.5
"""


@pytest.fixture
def write(tmp_path: Path):
    def written(text: str) -> Path:
        file = tmp_path / "two.toml"
        file.write_text(text)
        return file

    return written


def test_a_grid_is_the_product_of_its_axes_but_for_what_is_excluded(write) -> None:
    study = read_study(write(GOOD))
    cells = check(study)
    points = [(cell.model, cell.objective, cell.seed) for cell in cells]
    each = [("A", "ELBO"), ("A", "IWAE(4)"), ("B", "IWAE(4)")]
    assert points == [(*point, seed) for seed in (0, 1) for point in each]
    assert {cell.model: cell.settings.epochs for cell in cells} == {"A": 2, "B": 3}
    assert all(cell.settings.batch_size == 20 for cell in cells)
    assert [cell.estimations[0].question.samples() for cell in cells] == [20] * 6
    assert [cell.estimations[0].question.seed for cell in cells] == [0, 0, 0, 1, 1, 1]
    assert study.published[0]["value"] == -3.5
    (named,) = study.compare
    assert named == {"row": {"objective": "IWAE(4)"}, "with": {"objective": "ELBO"}}


def test_cells_are_named_by_what_decides_their_numbers(write) -> None:
    cells = check(read_study(write(GOOD)))
    assert len({cell.id for cell in cells}) == 6
    again = check(read_study(write(GOOD.replace("Two of everything", "Called otherwise"))))
    assert [cell.id for cell in again] == [cell.id for cell in cells]
    other = check(read_study(write(GOOD.replace("num_samples = 20", "num_samples = 21"))))
    assert not {cell.id for cell in other} & {cell.id for cell in cells}
    assert [cell.training_id for cell in other] == [cell.training_id for cell in cells]
    longer = check(read_study(write(GOOD.replace("epochs = 2\n", "epochs = 4\n"))))
    assert [a.training_id == b.training_id for a, b in zip(longer, cells, strict=True)] == [
        False,
        False,
        True,  # B has epochs of its own
    ] * 2


def test_an_own_factory_that_changes_makes_other_cells(tmp_path, write, monkeypatch) -> None:
    monkeypatch.syspath_prepend(tmp_path)
    own = tmp_path / "own_of_a_study.py"
    own.write_text("from study_toys import Normal\ndef build(x_train):\n    return Normal()\n")
    text = GOOD.replace("study_toys:normal", "own_of_a_study:build")
    first = check(read_study(write(text)))
    own.write_text(own.read_text() + "# changed\n")
    second = check(read_study(write(text)))
    assert not {cell.training_id for cell in first} & {cell.training_id for cell in second}


def test_a_label_like_a_factorys_name_hides_no_data(write) -> None:
    for label in ("points", "ELBO"):
        text = GOOD.replace("[data.points]", f"[data.{label}]")
        first = check(read_study(write(text)))
        other = check(read_study(write(text.replace("study_toys:data", "study_toys:other_data"))))
        assert not {cell.id for cell in first} & {cell.id for cell in other}


def test_other_estimators_and_objectives_make_other_cells(tmp_path, write, monkeypatch) -> None:
    monkeypatch.syspath_prepend(tmp_path)
    for name, source in (
        ("own_estimator", "from study_toys import Noting as build\n"),
        ("own_objective", "from pyro.infer import Trace_ELBO as build\n"),
    ):
        own = tmp_path / f"{name}.py"
        own.write_text(source + "def make():\n    return build()\n")
        text = GOOD.replace("[objective.ELBO]", f'[objective.ELBO]\nname = "{name}:make"')
        if name == "own_estimator":
            text = GOOD.replace('"importance-sampling"', f'"{name}:make"')
            text = text.replace("options = {num_samples = 20}", "")
        first = check(read_study(write(text)))
        own.write_text(own.read_text() + "# changed\n")
        second = check(read_study(write(text)))
        changed = {cell.id for cell in first} - {cell.id for cell in second}
        assert len(changed) == (6 if name == "own_estimator" else 2)


def test_one_cell_under_two_names_is_refused(write) -> None:
    text = GOOD.replace("training = {epochs = 3}", "")
    with pytest.raises(StudyError, match=r"model 'B' and 'A' are the same but for") as caught:
        check(read_study(write(text)))
    assert caught.value.faults[0][0] == line_of(text, "[model.B]")


def test_a_guide_that_lacks_a_latent_is_told_before_anything_runs(write) -> None:
    text = GOOD.replace("[objective.ELBO]", "[objective.ELBO]\nname = 'Trace_ELBO'")
    text = text.replace('normal"\ntraining', 'lacking"\ntraining')
    text = text.replace('[[exclude]]\nmodel = "B"\nobjective = "ELBO"', "")
    with pytest.warns(UserWarning, match="Found vars"), pytest.raises(StudyError) as caught:
        check(read_study(write(text)))
    assert "'B' with data 'points', objective 'ELBO'" in str(caught.value)
    assert "'z'" in str(caught.value)


def test_faults_name_the_file_that_was_read(write) -> None:
    text = GOOD.replace('"IWAE"', '"IWEA"') + "\n[small]\nseeds = [0]\n"
    with pytest.raises(StudyError, match=r"two\.toml:\d+: unknown objective") as caught:
        check(read_study(write(text), small=True))
    assert len(caught.value.faults) == 1, "told once"


FAULTS = {  # what is changed, where the fault is, what is said of it
    "unknown key": (("epochs = 2", "epoch = 2"), "epoch = 2", "unknown key 'epoch'"),
    "type": (("epochs = 2", "epochs = 'two'"), "epochs = 'two'", "should be of type int"),
    "sign": (("epochs = 2", "epochs = 0"), "epochs = 0", "epochs should be more than 0"),
    "seeds": (("[0, 1]", "[0, 0]"), "seeds", "different whole numbers"),
    "top": (("seeds = ", "seed = "), "seed =", "unknown key 'seed'"),
    "options": (("{num_particles = 4}", "4"), "options = 4", "options should be of type dict"),
    "label": (('model = "B"', 'model = "C"'), 'model = "C"', "one of A, B; found 'C'"),
    "key of an entry": (("options = {num_p", "optoins = {num_p"), "optoins", "name, options, tr"),
    "key of an estimator": (("options = {num_s", "opt = {num_s"), "opt =", "name, options, split"),
    "key of data": (('toys:data"', 'toys:data"\noptions = {}'), "options =", "name, training, bin"),
    "side": (("with = {", "without = {"), "without", "unknown key 'without'; there are row, with"),
    "no side": (("with = {", "without = {"), "[[compare]]", "should have labels as 'with'"),
    "axis of a side": (("with = {obj", "with = {ob"), "with =", "unknown key 'obective'"),
    "label of a side": (('= {objective = "ELBO"}', '= {model = "C"}'), "with =", "found 'C'"),
    "two data sets": (('= {objective = "ELBO"}', '= {data = "points"}'), "with =", "two data sets"),
    "no such rows": (("row = {obj", 'row = {model = "B", obj'), "[[compare]]", "name two rows"),
    "trains": (("estimator.L_20", "estimator.training"), "[estimator.tr", "cannot be called"),
    "value": (("value = -3.5", ""), "[[published]]", "should have a value"),
}


def line_of(text: str, anchor: str) -> int:
    return text[: text.index(anchor)].count("\n") + 1


@pytest.mark.parametrize("name", FAULTS)
def test_a_fault_of_form_is_told_with_its_line(name: str, write) -> None:
    change, anchor, words = FAULTS[name]
    text = GOOD.replace(*change)
    with pytest.raises(StudyError) as caught:
        read_study(write(text))
    line = line_of(text, anchor)
    assert [found for found, fault in caught.value.faults if words in fault] == [line]


def test_all_faults_are_told_at_once(write) -> None:
    text = GOOD.replace("epochs = 2", "epoch = 2").replace("[0, 1]", "[-1]").replace("-3.5", "'a'")
    with pytest.raises(StudyError) as caught:
        read_study(write(text))
    assert [line for line, _ in caught.value.faults] == [
        line_of(text, anchor) for anchor in ("seeds", "epoch =", "value = 'a'")
    ]
    assert "two.toml:5: unknown key 'epoch'" in str(caught.value)


def test_no_toml_is_told_with_its_line(write) -> None:
    with pytest.raises(StudyError, match=r"two.toml:3: no TOML"):
        read_study(write("title = 'a'\nseeds = [1]\n[[[\n"))


IMPOSSIBLE = {
    "data": (("study_toys:data", "mnits"), "[data.points]", "unknown data set 'mnits'"),
    "model": (("study_toys:normal", "study_toys:odd"), 'name = "study_toys:odd"', "no attribute"),
    "objective": (('"IWAE"', '"IWEA"'), 'name = "IWEA"', "unknown objective 'IWEA'"),
    "option": (("{num_particles", "{particles"), '[objective."IWAE(4)"]', "particles"),
    "estimator": (("{num_samples", "{samples"), "[estimator.L_20]", "no option 'samples'"),
    "subset": (("20}\n", "20}\nsubset = 21\n"), "[estimator.L_20]", "should be at most 20"),
    "bits": (("study_toys:normal", "vae"), "[model.A]", "Bernoulli"),
    "pair": (("study_toys:normal", "study_toys:discrete"), "[model.A]", "z"),
}


@pytest.mark.parametrize("name", IMPOSSIBLE)
def test_what_cannot_be_is_told_before_anything_runs(name: str, write) -> None:
    change, anchor, words = IMPOSSIBLE[name]
    text = GOOD.replace(*change).replace('"IWAE"', '"STL"' if name == "pair" else '"IWAE"')
    with pytest.raises(StudyError) as caught:
        check(read_study(write(text)))
    line = line_of(text, anchor)
    assert line in [found for found, fault in caught.value.faults if words in fault]


def test_a_folder_of_its_name_does_not_hide_a_shipped_study(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "evidence").mkdir()  # bench evidence --output evidence, and now it goes on
    assert read_study("evidence").name == "evidence"


@pytest.mark.parametrize("name", sorted(shipped()))
def test_shipped_studies_are_studies(name: str) -> None:
    study = read_study(name)
    assert list(study.points())
    assert study.title
    assert study.question
