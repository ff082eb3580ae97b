"""Temperatures: they rise from 0 to 1, and by equal lengths where that is asked for."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from pyrovae.inference import EqualLength, Linear, Sigmoid
from pyrovae.inference.evidence.annealing.schedules import check_schedule, interpolate


@pytest.mark.parametrize("schedule", [Linear(), Sigmoid(), Sigmoid(1e-3), Sigmoid(30.0)], ids=repr)
@pytest.mark.parametrize("count", [1, 2, 7, 1000])
def test_temperatures_never_fall_and_end_at_zero_and_one(schedule, count):
    betas = schedule.betas(count)
    assert betas.shape == (count + 1,)
    assert betas.dtype == torch.float64
    assert (betas[0], betas[-1]) == (0.0, 1.0)
    assert (betas.diff() >= 0).all()


@pytest.mark.parametrize("schedule", [Linear(), Sigmoid(), Sigmoid(1e-3), Sigmoid(10.0)], ids=repr)
def test_temperatures_of_moderate_sharpness_rise_strictly_and_are_symmetric(schedule):
    betas = schedule.betas(50)
    assert (betas.diff() > 0).all()
    torch.testing.assert_close(betas, 1 - betas.flip(0))


def test_a_sigmoid_is_the_logistic_curve_stretched():
    t = np.linspace(-1, 1, 11)
    curve = 1 / (1 + np.exp(-4 * t))
    expected = (curve - curve[0]) / (curve[-1] - curve[0])
    np.testing.assert_allclose(Sigmoid(4.0).betas(10), expected, rtol=1e-12, atol=1e-15)


def test_a_sigmoid_without_sharpness_is_linear():
    torch.testing.assert_close(Sigmoid(1e-4).betas(20), Linear().betas(20), rtol=0, atol=1e-8)


@pytest.mark.parametrize("sharpness", [0.0, -1.0, math.inf, math.nan])
def test_sharpness_must_be_positive(sharpness):
    with pytest.raises(ValueError, match="sharpness must be finite and larger than 0, but is"):
        Sigmoid(sharpness)


@pytest.mark.parametrize("schedule", [3, "sigmoid", None, Linear, [0.0, 1.0]])
def test_what_is_no_schedule_is_refused(schedule):
    with pytest.raises(TypeError, match=r"schedule must be Linear\(\), Sigmoid\(\) or EqualLength"):
        check_schedule(schedule)


def test_equal_lengths_begin_from_a_schedule_of_fixed_temperatures():
    with pytest.raises(TypeError, match=r"initial must be Linear\(\) or Sigmoid\(\), but is 3"):
        EqualLength(initial=3)
    assert torch.equal(EqualLength(initial=Linear()).betas(5), Linear().betas(5))


# --- equal thermodynamic length ------------------------------------------------------------------


def length_to(pilot, variance):
    """The share of the path's length up to each temperature of the pilot, by the trapezoid rule."""
    speed = np.sqrt(np.maximum(variance, 0.0))
    pieces = 0.5 * (speed[1:] + speed[:-1]) * np.diff(pilot)
    return np.concatenate([[0.0], np.cumsum(pieces)]) / pieces.sum()


CURVES = [
    lambda b: np.ones_like(b),
    lambda b: 1e4 * np.exp(-20 * b),  # nearly all of it near the prior
    lambda b: 1 / (0.05 + b) ** 2,
    lambda b: np.where((b > 0.4) & (b < 0.5), 100.0, 0.01),  # a phase transition
]


@pytest.mark.parametrize("initial", [Linear(), Sigmoid()], ids=repr)
@pytest.mark.parametrize("number", range(len(CURVES)))
def test_steps_share_out_the_length_and_the_pilots_steps_evenly(initial, number):
    """Half of what progress is counted in is length, the other half the pilot's own schedule."""
    pilot = initial.betas(2000)
    variance = CURVES[number](pilot.numpy())
    found = EqualLength(initial).freeze(pilot, torch.as_tensor(variance)[:, None], 40)[:, 0]
    even = np.linspace(0, 1, 2001)
    progress = 0.5 * length_to(pilot.numpy(), variance) + 0.5 * even
    at = np.interp(found.numpy(), pilot.numpy(), progress)
    np.testing.assert_allclose(at, np.linspace(0, 1, 41), atol=1e-3)


@pytest.mark.parametrize("count", [1, 3, 500])
def test_equal_lengths_never_fall_and_end_at_zero_and_one(count):
    torch.manual_seed(0)
    pilot = Sigmoid().betas(30)
    variance = torch.rand(31, 6, dtype=torch.float64) ** 8 * 1e6
    betas = EqualLength().freeze(pilot, variance, count)
    assert betas.shape == (count + 1, 6)
    assert (betas[0] == 0).all()
    assert (betas[-1] == 1).all()
    assert (betas.diff(dim=0) >= 0).all()


def test_each_datum_has_temperatures_of_its_own():
    pilot = Linear().betas(200)
    early = 1e4 * torch.exp(-30 * pilot)
    both = torch.stack([early, early.flip(0)], 1)
    betas = EqualLength(Linear()).freeze(pilot, both, 10)
    alone = EqualLength(Linear()).freeze(pilot, both[:, :1], 10)
    assert torch.equal(betas[:, :1], alone)
    assert betas[5, 0] < 0.3
    torch.testing.assert_close(betas[:, 0], 1 - betas[:, 1].flip(0), rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("value", [0.0, -1.0])
def test_a_path_without_variance_keeps_the_pilots_schedule(value):
    """An exact guide: every log-ratio is the same, and rounding may make a variance negative."""
    pilot = Sigmoid().betas(100)
    betas = EqualLength().freeze(pilot, torch.full((101, 2), value).double(), 50)
    torch.testing.assert_close(betas[:, 0], Sigmoid().betas(50), rtol=1e-6, atol=1e-6)


def test_a_normal_with_shrinking_variance_is_cut_into_equal_ratios():
    """From N(0, s²) to N(0, 1) the variance along the path is known, and so is its length.

    With precisions λ(β) = (1 − β) / s² + β the log-ratio is −(1 − 1/s²) u² / 2 + const, of variance
    (1 − 1/s²)² / (2 λ²): equal lengths are equal ratios of λ.
    """
    wide, pilot = 30.0, Linear().betas(20_000)
    precision = (1 - pilot) / wide**2 + pilot
    variance = 0.5 * ((1 - wide**-2) / precision) ** 2
    half = EqualLength(Linear()).freeze(pilot, variance[:, None], 10)[:, 0]
    length = (precision.log() - precision[0].log()) / (2 * math.log(wide))
    progress = 0.5 * length + 0.5 * pilot
    at = np.interp(half.numpy(), pilot.numpy(), progress.numpy())
    np.testing.assert_allclose(at, np.linspace(0, 1, 11), atol=2e-3)


# --- interpolation -------------------------------------------------------------------------------


def test_interpolation_agrees_with_numpy_in_each_column():
    torch.manual_seed(0)
    x = torch.rand(12, 3, dtype=torch.float64).sort(0).values
    y = torch.randn(12, 3, dtype=torch.float64)
    at = torch.rand(40, 3, dtype=torch.float64) * 1.4 - 0.2  # beyond both ends too
    found = interpolate(at, x, y)
    for n in range(3):
        np.testing.assert_allclose(found[:, n], np.interp(at[:, n], x[:, n], y[:, n]), rtol=1e-9)


def test_interpolation_at_the_points_gives_them_back():
    x = torch.linspace(0, 1, 9, dtype=torch.float64)[:, None]
    y = torch.randn(9, 1, dtype=torch.float64)
    torch.testing.assert_close(interpolate(x, x, y), y)


def test_interpolation_takes_points_that_coincide():
    x = torch.tensor([[0.0], [0.5], [0.5], [1.0]], dtype=torch.float64)
    y = torch.tensor([[0.0], [1.0], [2.0], [3.0]], dtype=torch.float64)
    found = interpolate(torch.tensor([[0.25], [0.75]], dtype=torch.float64), x, y)
    assert found.flatten().tolist() == [0.5, 2.5]
