"""Runs: what is in a folder, that it comes back, and that nothing is ever written over."""

from __future__ import annotations

import json
import shlex
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pytest
import torch
import xarray as xr

from pyrovae.benchmarks import runs, scoring, training
from pyrovae.benchmarks.factories import FactoryError
from pyrovae.benchmarks.options import parse_options
from pyrovae.benchmarks.pairs import Pair
from pyrovae.benchmarks.runs import Settings, new_folder, open_run
from pyrovae.benchmarks.scoring import Question
from pyrovae.inference import ImportanceSampling, MonteCarloObjective
from pyrovae.models import load

pytestmark = pytest.mark.usefixtures("no_pictures", "one_thread")

BITS = Settings(data="cli_toys:bits", model="cli_toys:ours", epochs=3, batch_size=20)
QUICK = Question(num_samples=50)
MODELS = ["cli_toys:ours", "cli_toys:moody", "cli_toys:functions"]


def parameters(pair: Pair) -> dict[str, torch.Tensor]:
    """Everything that was trained, wherever the pair keeps it."""
    import pyro

    found = {name: value.detach().clone() for name, value in pyro.get_param_store().items()}
    for i, module in enumerate(pair.modules):
        found |= {f"{i}.{name}": value.clone() for name, value in module.state_dict().items()}
    return found


def same(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[k], other[k]) for k in one)


def contents(folder: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in folder.iterdir()}


@pytest.mark.parametrize("model", MODELS)
def test_a_run_comes_back_as_it_was_trained(model: str, tmp_path: Path) -> None:
    settings = Settings(**{**asdict(BITS), "model": model, "patience": 2})
    trained = training.train(settings, tmp_path / "run")
    x = trained.dataset.test
    with trained.pair.evaluating():
        direct = ImportanceSampling(50)(trained.pair.model, trained.pair.guide, x)
    kept = parameters(trained.pair)
    run = open_run(tmp_path / "run")
    answer = scoring.evidence(run, QUICK)
    assert torch.equal(answer.estimate.log_evidence, direct.log_evidence)
    restored = training.restore(run, trained.dataset)
    assert same(parameters(restored), kept)


@pytest.mark.parametrize("model", MODELS)
def test_a_model_file_stands_where_it_needs_nothing_else(model: str, tmp_path: Path) -> None:
    trained = training.train(Settings(**{**asdict(BITS), "model": model}), tmp_path / "run")
    file = tmp_path / "run" / "model.safetensors"
    if model == "cli_toys:ours":
        assert trained.unsaved is None
        vae = load(file)
        assert not vae.training
        assert same(vae.state_dict(), trained.pair.whole.state_dict())
    else:
        reason = {"cli_toys:moody": "of your own (Moody)", "cli_toys:functions": "one module"}
        assert reason[model] in trained.unsaved
        assert not file.exists()
    assert (file in trained.written) == file.exists()


def test_a_checkpoint_and_a_model_file_give_the_same_score(tmp_path: Path) -> None:
    training.train(BITS, tmp_path / "run")
    run = open_run(tmp_path / "run")
    one = scoring.evidence(run, QUICK, tmp_path / "one.nc")
    run.model.unlink()
    two = scoring.evidence(run, QUICK, tmp_path / "two.nc")
    assert torch.equal(one.estimate.log_evidence, two.estimate.log_evidence)
    sources = [xr.load_dataset(tmp_path / f"{n}.nc").attrs["source"] for n in ("one", "two")]
    assert sources == ["model.safetensors", "checkpoint.safetensors"]


def test_what_a_run_says_about_itself(tmp_path: Path) -> None:
    settings = Settings(model="vae", options={"latent_dim": 3}, epochs=2, patience=5, warm_up=1)
    trained = training.train(settings, tmp_path / "a run")
    content = json.loads((tmp_path / "a run" / "run.json").read_text())
    assert content["settings"]["options"] == {"latent_dim": 3, "hidden": [200, 200]}
    assert content["settings"]["patience"] == 5
    assert content["dataset"]["fingerprint"] == trained.dataset.fingerprint
    assert {"torch", "pyro-ppl", "pyrovae", "python"} <= set(content["versions"])
    result = content["result"]
    history = trained.history
    assert result["epochs"] == 2
    assert result["parameters_of_epoch"] == history.best_epoch
    assert result["validation_elbo"] == history.validation_elbo[history.best_epoch - 1]
    csv = np.genfromtxt(tmp_path / "a run" / "history.csv", delimiter=",", names=True)
    np.testing.assert_allclose(csv["validation_elbo"], history.validation_elbo)
    assert csv["epoch"].tolist() == [1, 2]
    assert open_run(tmp_path / "a run").settings == trained.run.settings


def test_the_recorded_command_makes_the_same_settings() -> None:
    settings = Settings(
        data="mnist",
        model="a.b:c",
        options={"hidden": [3, 4], "name": "x y", "flag": True},
        objective="RenyiELBO",
        objective_options={"alpha": 0.5},
        epochs=7,
        patience=3,
        binarise=False,
        data_folder="some where",
    )
    words = shlex.split(settings.command("my runs/1"))
    assert words[:2] == ["pyrovae", "train"]
    assert words[-2:] == ["--output", "my runs/1"]
    given = dict(zip(words[2::2], words[3::2], strict=False))
    assert "--no-binarise" in words
    pairs = [words[i + 1] for i, word in enumerate(words) if word == "--option"]
    assert parse_options(pairs) == settings.options
    assert parse_options([given["--objective-option"]]) == {"alpha": 0.5}
    assert given["--data"] == "mnist"


def test_the_same_seed_makes_the_same_run_and_another_another(tmp_path: Path) -> None:
    results = []
    for folder, seed in (("a", 0), ("b", 0), ("c", 1)):
        settings = Settings(**{**asdict(BITS), "seed": seed})
        results.append(parameters(training.train(settings, tmp_path / folder).pair))
    assert same(results[0], results[1])
    assert not same(results[0], results[2])


@pytest.mark.parametrize("model", MODELS)
def test_going_on_with_more_epochs_is_as_if_never_stopped(model: str, tmp_path: Path) -> None:
    def settings(epochs: int) -> Settings:
        return Settings(**{**asdict(BITS), "model": model, "epochs": epochs, "patience": 10})

    whole = parameters(training.train(settings(5), tmp_path / "whole").pair)
    training.train(settings(2), tmp_path / "parts")
    run = runs.going_on(open_run(tmp_path / "parts"), {"epochs": 5})
    trained = training.resume(run)
    assert same(parameters(trained.pair), whole)
    assert len(trained.history) == 5
    assert open_run(tmp_path / "parts").settings.epochs == 5
    assert open_run(tmp_path / "parts").result["epochs"] == 5


def test_a_finished_run_that_goes_on_is_unfinished_until_it_ends(tmp_path: Path) -> None:
    training.train(BITS, tmp_path / "run")
    before = open_run(tmp_path / "run")
    with pytest.raises(ValueError, match="epochs should be at least 3"):
        training.resume(runs.going_on(before, {"epochs": 2}))
    assert open_run(tmp_path / "run").result == before.result
    checkpoint = before.checkpoint.read_bytes()
    before.checkpoint.write_bytes(checkpoint[:-10])
    with pytest.raises(ValueError, match="truncated, corrupt"):
        training.resume(runs.going_on(before, {"epochs": 9}))
    assert open_run(tmp_path / "run").result == before.result
    assert open_run(tmp_path / "run").settings.epochs == 3


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"learning_rate": 0.5}, "learning-rate 0.001, not 0.5"),
        ({"data": "digits"}, "data 'cli_toys:bits', not 'digits'"),
        ({"options": {"latent_dim": 3}}, r"options \{'latent_dim': 2\}, not"),
        ({"options": {"other": 3}}, r"options \{\}, not"),
    ],
)
def test_a_run_goes_on_with_its_own_settings(given: dict, message: str, tmp_path: Path) -> None:
    settings = Settings(**{**asdict(BITS), "options": {"latent_dim": 2}})
    run = runs.Run(tmp_path, settings)
    assert runs.going_on(run, {"data": "cli_toys:bits", "epochs": 9}).settings.epochs == 9
    assert runs.going_on(run, {"options": {"latent_dim": 2}}) == run
    with pytest.raises(ValueError, match=message):
        runs.going_on(run, given)


def test_a_folder_that_holds_something_is_left_alone(tmp_path: Path) -> None:
    training.train(BITS, tmp_path / "run")
    before = contents(tmp_path / "run")
    with pytest.raises(FileExistsError, match="never written over"):
        training.train(BITS, tmp_path / "run")
    (tmp_path / "file").write_text("mine")
    with pytest.raises(FileExistsError, match="never written over"):
        training.train(BITS, tmp_path / "file")
    assert contents(tmp_path / "run") == before
    assert (tmp_path / "file").read_text() == "mine"


def test_a_failure_before_the_first_step_leaves_no_folder(tmp_path: Path) -> None:
    for setting in ({"data": "cli_toys:with_nan"}, {"model": "cli_toys:raises"}, {"epochs": 0}):
        with pytest.raises((ValueError, RuntimeError)):
            training.train(Settings(**{**asdict(BITS), **setting}), tmp_path / "run")
        assert not (tmp_path / "run").exists()
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match="epochs"):
        training.train(Settings(**{**asdict(BITS), "epochs": 0}), tmp_path / "empty")
    assert list((tmp_path / "empty").iterdir()) == []
    training.train(BITS, tmp_path / "empty")


@pytest.mark.filterwarnings("ignore:Encountered NaN")
def test_a_failure_later_keeps_what_was_done(tmp_path: Path) -> None:
    settings = Settings(**{**asdict(BITS), "model": "cli_toys:exploding", "epochs": 90})
    with pytest.raises(FloatingPointError, match=r"epoch 1[45]"):
        training.train(settings, tmp_path / "run")
    run = open_run(tmp_path / "run")
    assert run.result is None
    assert run.epochs_done() >= 13


def test_files_of_others_are_never_removed(tmp_path: Path) -> None:
    def fail() -> None:
        with new_folder(tmp_path / "run") as folder:
            (folder / "notes.txt").write_text("mine")
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()
    assert (tmp_path / "run" / "notes.txt").read_text() == "mine"


def test_evidence_is_a_file_with_its_provenance(tmp_path: Path) -> None:
    trained = training.train(BITS, tmp_path / "run")
    question = Question(num_samples=40, subset=5, subset_seed=3, seed=9)
    answer = scoring.evidence(trained.run, question)
    assert answer.file.parent == tmp_path / "run"
    found = xr.load_dataset(answer.file)
    rows = trained.dataset.subset_indices("test", 5, 3)
    assert found.datum.values.tolist() == rows.tolist()
    np.testing.assert_array_equal(found.log_evidence, answer.estimate.log_evidence)
    assert found.attrs["direction"] == "lower"
    assert found.attrs["num_samples"] == 40
    assert found.attrs["fingerprint"] == trained.dataset.fingerprint
    assert json.loads(found.attrs["run_settings"]) == asdict(trained.run.settings)
    assert json.loads(found.attrs["provenance"])["seed"] == 9
    assert (found.attrs["subset"], found.attrs["subset_seed"]) == (5, 3)
    with pytest.raises(FileExistsError, match="never written over"):
        scoring.evidence(trained.run, question)
    direct = ImportanceSampling(40, seed=9)(
        trained.pair.model, trained.pair.guide, trained.dataset.test[rows]
    )
    assert torch.equal(direct.log_evidence, answer.estimate.log_evidence)


def test_estimators_by_name_and_of_ones_own(tmp_path: Path) -> None:
    run = training.train(BITS, tmp_path / "run").run
    own = scoring.evidence(run, Question(estimator="cli_toys:Doubled", num_samples=40))
    assert own.estimate.num_samples == 80
    options = {"factor": 3}
    own = scoring.evidence(
        run, Question(estimator="cli_toys:Doubled", num_samples=30, options=options)
    )
    assert own.estimate.num_samples == 90
    prior = scoring.evidence(run, Question(estimator="prior-monte-carlo", num_samples=40))
    assert prior.estimate.provenance["estimator"] == "PriorMonteCarlo"
    names = {own.file.name, prior.file.name}
    assert names == {
        "evidence-cli_toys-Doubled-test-K30-factor=3-seed0-epoch3.nc",
        "evidence-prior-monte-carlo-test-K40-seed0-epoch3.nc",
    }
    with pytest.raises(FactoryError, match="should return an Estimate, found float"):
        scoring.evidence(run, Question(estimator="cli_toys:no_estimate"))
    with pytest.raises(ValueError, match="training data are not held out"):
        scoring.evidence(run, Question(split="train"))


def test_data_that_changed_are_not_scored(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import cli_toys

    run = training.train(BITS, tmp_path / "run").run
    monkeypatch.setattr(cli_toys, "bits", cli_toys.few_bits)
    with pytest.raises(ValueError, match="is not the one"):
        scoring.evidence(run, QUICK)
    with pytest.raises(ValueError, match="is not the one"):
        training.resume(run)


def test_an_unfinished_run_is_scored_from_its_checkpoint(tmp_path: Path) -> None:
    trained = training.train(BITS, tmp_path / "run")
    finished = scoring.evidence(trained.run, QUICK, tmp_path / "a.nc")
    run = trained.run.write(result=None)
    answer = scoring.evidence(run, QUICK, tmp_path / "b.nc")
    assert torch.equal(answer.estimate.log_evidence, finished.estimate.log_evidence)
    run.checkpoint.unlink()
    with pytest.raises(ValueError, match="has not finished an epoch"):
        scoring.evidence(run, QUICK, tmp_path / "c.nc")


def test_a_run_that_went_on_is_scored_anew_beside_its_older_answer(tmp_path: Path) -> None:
    run = training.train(BITS, tmp_path / "run").run
    older = scoring.evidence(run, QUICK)
    went_on = training.resume(runs.going_on(run, {"epochs": 4})).run
    newer = scoring.evidence(went_on, QUICK)
    assert {older.file.name, newer.file.name} == {
        "evidence-importance-sampling-test-K50-seed0-epoch3.nc",
        "evidence-importance-sampling-test-K50-seed0-epoch4.nc",
    }
    assert not torch.equal(older.estimate.log_evidence, newer.estimate.log_evidence)


def test_answers_to_other_options_have_other_names(tmp_path: Path) -> None:
    run = training.train(BITS, tmp_path / "run").run
    plain = scoring.evidence(run, QUICK).file
    looped = scoring.evidence(run, replace(QUICK, options={"particles": "loop"})).file
    assert looped.name == plain.name.replace("-seed0", "-particles=loop-seed0")


def test_an_answer_is_not_lost_to_a_file_that_came_in_between(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = training.train(BITS, tmp_path / "run").run
    asked = tmp_path / "answer.nc"

    def faster(*args, _call=scoring._rows):
        asked.write_text("theirs")
        return _call(*args)

    monkeypatch.setattr(scoring, "_rows", faster)
    answer = scoring.evidence(run, QUICK, asked)
    assert asked.read_text() == "theirs"
    assert answer.file == tmp_path / "answer-2.nc"
    assert len(xr.load_dataset(answer.file).datum) == len(answer.rows)


@pytest.mark.parametrize("text", ["", "{", "[]", "{}", '{"format": "pyrovae-run-1"}', "\x00\xff"])
def test_a_damaged_record_is_told(text: str, tmp_path: Path) -> None:
    (tmp_path / "run.json").write_text(text, encoding="latin-1")
    with pytest.raises(ValueError, match=r"run\.json is damaged, or not a run's record"):
        open_run(tmp_path)
    with pytest.raises(FileNotFoundError, match="there is no run in"):
        open_run(tmp_path / "nowhere")


@pytest.mark.parametrize(
    ("record", "message"),
    [
        ([], r"it should be a JSON object, but is \[\]"),
        ({"format": "other"}, "its format should be pyrovae-run-1, but is other"),
        ({"format": "pyrovae-run-1", "settings": 3}, "its settings should be a JSON object, but"),
        (
            {"format": "pyrovae-run-1", "settings": {"epochs": "8"}},
            "its settings should hold int as epochs, but hold '8'",
        ),
        (
            {"format": "pyrovae-run-1", "settings": {"seed": True}},
            "its settings should hold int as seed, but hold True",
        ),
        (
            {"format": "pyrovae-run-1", "settings": {}, "result": {}},
            "its result should hold int as epochs, but hold None",
        ),
        ({"format": "pyrovae-run-1", "settings": {"lr": 1}}, "its settings hold lr, which are"),
        (
            {"format": "pyrovae-run-1", "settings": {}, "result": [1]},
            r"its result should be a JSON object, but is \[1\]",
        ),
    ],
)
def test_a_record_of_something_else_says_what_is_odd(record, message, tmp_path: Path) -> None:
    (tmp_path / "run.json").write_text(json.dumps(record))
    with pytest.raises(ValueError, match=message):
        open_run(tmp_path)


def test_objectives_by_name_and_of_ones_own(tmp_path: Path) -> None:
    assert {"Trace_ELBO", "RenyiELBO", "TraceMeanField_ELBO"} <= set(training.OBJECTIVES)
    assert isinstance(training.OBJECTIVES["ELBO"](), MonteCarloObjective)
    for i, (objective, options) in enumerate(
        [("RenyiELBO", {"num_particles": 3}), ("cli_toys:two_particles", {})]
    ):
        settings = {**asdict(BITS), "objective": objective, "objective_options": options}
        trained = training.train(Settings(**settings), tmp_path / str(i))
        made = trained.history.settings["objective"]
        assert f"num_particles={3 - i}" in made


def test_our_objectives_by_name(tmp_path: Path) -> None:
    settings = replace(BITS, objective="DReG", objective_options={"num_particles": 3}, epochs=1)
    assert repr(training.make_objective(settings)).startswith("MonteCarloObjective(IWAE(), Doubly")
    run = training.train(settings, tmp_path / "run").run
    assert open_run(run.path).settings.objective == "DReG"
    with pytest.raises(FactoryError, match="num_particles must be a whole number"):
        training.make_objective(replace(settings, objective_options={"num_particles": 0}))


def test_the_shape_goes_to_a_factory_that_asks_for_it(tmp_path: Path) -> None:
    training.train(Settings(**{**asdict(BITS), "model": "cli_toys:shaped"}), tmp_path / "run")
    assert open_run(tmp_path / "run").settings.options == {"shape": [8]}
