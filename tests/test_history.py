"""What a run recorded converts to xarray and pandas and survives a file."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import xarray as xr
from training_toys import Toy, toy_data

from pyrovae.inference.training import History, fit


@pytest.fixture
def history() -> History:
    history = History({"seed": 3, "objective": "Trace_ELBO()", "clip": None, "flag": True})
    history.append(loss=3.5, beta=0.5, learning_rate=0.1, gradient_norm=2.0, seconds=1.0)
    history.append(loss=2.5, beta=1.0, learning_rate=0.05, validation_elbo=-2.75, seconds=1.5)
    history.best_epoch = 2
    return history


def test_columns_are_arrays_along_the_epochs(history: History) -> None:
    assert len(history) == 2
    np.testing.assert_array_equal(history.epoch, [1, 2])
    np.testing.assert_array_equal(history.loss, [3.5, 2.5])
    np.testing.assert_array_equal(history.validation_elbo, [np.nan, -2.75])
    np.testing.assert_array_equal(history.gradient_norm, [2.0, np.nan])
    np.testing.assert_array_equal(history.learning_rate, [0.1, 0.05])
    np.testing.assert_array_equal(history.beta, [0.5, 1.0])
    np.testing.assert_array_equal(history.seconds, [1.0, 1.5])


def test_a_dataset_with_units_and_settings(history: History, tmp_path: Path) -> None:
    dataset = history.to_xarray()
    assert dict(dataset.sizes) == {"epoch": 2}
    assert dataset.loss.sel(epoch=2).item() == 2.5
    assert dataset.validation_elbo.attrs["units"] == "nats per datum"
    assert dataset.attrs["best_epoch"] == 2
    assert dataset.attrs["objective"] == "Trace_ELBO()"
    dataset.to_netcdf(tmp_path / "history.nc", engine="scipy")
    with xr.open_dataset(tmp_path / "history.nc", engine="scipy") as back:
        xr.testing.assert_equal(back.load(), dataset)
        assert back.attrs["seed"] == 3


def test_a_frame_indexed_by_epoch(history: History) -> None:
    frame = history.to_pandas()
    assert frame.index.name == "epoch"
    assert frame.loc[1, "loss"] == 3.5
    assert list(frame.index) == [1, 2]


def test_the_repr_is_short(history: History) -> None:
    assert repr(history) == ("History(2 epochs, loss=2.50, validation_elbo=-2.75, best_epoch=2)")
    history.stopped_early = True
    assert "stopped early" in repr(history)
    assert repr(History()) == "History(0 epochs)"


def test_an_unknown_column_is_refused(history: History) -> None:
    with pytest.raises(ValueError, match=r"row: columns are .*, but got \['accuracy'\]"):
        history.append(accuracy=1.0)
    assert len(history) == 2


def test_the_state_goes_through_json(history: History) -> None:
    state = json.loads(json.dumps(history.state()))
    back = History.from_state(state)
    assert back.state()["settings"] == history.settings
    np.testing.assert_array_equal(back.loss, history.loss)
    np.testing.assert_array_equal(back.validation_elbo, history.validation_elbo)
    assert (back.best_epoch, back.stopped_early) == (2, False)


def test_fit_says_what_it_did() -> None:
    toy = Toy()
    x = toy_data()
    history = fit(toy.model, toy.guide, x, epochs=2, validation=x, progress=False, seed=4)
    attrs = history.to_xarray().attrs
    assert attrs["seed"] == 4
    assert attrs["objective"].startswith("Trace_ELBO(")
    assert attrs["optimizer"].startswith("Adam(")
    assert {"torch", "pyro", "batch_size", "data_shape"} <= attrs.keys()
    assert np.isfinite(history.to_pandas().to_numpy()).all()
    assert (history.seconds > 0).all()
