"""What compiling took and saved is told where it was not worth it."""

from __future__ import annotations

import warnings

import pytest
import torch
from training_toys import Toy, toy_data

from pyrovae.inference import ImportanceSampling, NoGain, fit
from pyrovae.inference.compilation import gradients
from pyrovae.inference.compilation.gain import Gain


def told(gain):
    with warnings.catch_warnings(record=True) as found:
        warnings.simplefilter("always")
        gain.tell()
    return [str(one.message) for one in found if one.category is NoGain]


def test_a_run_that_was_too_short_is_told_how_long_it_should_be():
    gain = Gain(cost=8.0, runs=100, before=[0.03, 0.02], after=[0.5, 0.01])
    assert gain.each == pytest.approx(0.01)
    (message,) = told(gain)
    assert "took 8.0 s, and saved 1.0 s in 100 steps: it pays from 800 on" in message


def test_what_does_not_gain_at_all_is_told_so():
    (message,) = told(Gain(cost=8.0, runs=100, before=[0.01], after=[0.02]))
    assert message.endswith("it never pays")


def test_a_run_in_which_nothing_was_compiled_is_told_so():
    toy = Toy()
    with pytest.warns(NoGain, match=r"compile: nothing was: in 4 steps"):
        fit(toy.model, toy.guide, toy_data(), epochs=2, progress=False, compile=True)
    model, x = Toy(), toy_data()
    with pytest.warns(NoGain, match=r"compile: nothing was: in 1 step nothing"):
        ImportanceSampling(5, compile=True)(model.model, model.guide, x)


@pytest.mark.parametrize(
    "gain",
    [
        Gain(),
        Gain(cost=8.0, runs=1000, before=[0.02], after=[0.01]),  # saved ten seconds
        Gain(cost=0.5, runs=1, before=[0.02], after=[0.01]),  # half a second is no loss
    ],
)
def test_a_run_that_gained_is_told_nothing(gain):
    assert told(gain) == []


@pytest.mark.usefixtures("one_thread")
def test_fit_says_what_it_took(monkeypatch):
    monkeypatch.setattr("pyrovae.inference.compilation.gain._LOSS", 0.0)
    monkeypatch.setattr(gradients, "_OFTEN", 1)
    toy = Toy()
    with pytest.warns(NoGain, match=r"compile: took \d+\.\d s") as found:
        history = fit(toy.model, toy.guide, toy_data(), epochs=2, progress=False, compile=True)
    assert history.compile_seconds > 0
    (one,) = [w for w in found if w.category is NoGain]
    assert one.filename == __file__
    again = fit(toy.model, toy.guide, toy_data(), epochs=2, progress=False)
    assert again.compile_seconds == 0


def test_the_time_of_a_failed_attempt_counts():
    gain = Gain()
    with pytest.raises(ZeroDivisionError), gain.making():
        _ = 1 / 0
    assert gain.cost > 0
    with gain.timed(gain.before, torch.device("cpu")):
        pass
    assert len(gain.before) == 1
