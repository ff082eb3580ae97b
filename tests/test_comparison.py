"""What a table of estimates says: which to believe, which not, and why."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from pyrovae.inference import Estimate, Sandwich, compare_evidence


def made(value, stderr=0.01, direction="lower", khat=0.2, seconds=1.0, size=100, **diagnostics):
    """An estimate of data that differ by ten nats, all off by the same."""
    rng = np.random.default_rng(0)
    data = torch.as_tensor(-100 + 10 * rng.standard_normal(size))
    noise = torch.as_tensor(
        np.random.default_rng(abs(hash((value, seconds))) % 1000).normal(size=size)
    )
    full = torch.full((size,), 1.0).double()
    return Estimate(
        log_evidence=data + value + stderr * noise,
        stderr=stderr * full,
        ess=100 * full,
        khat=khat * full,
        direction=direction,
        num_samples=1000,
        elbo=data + value - 1,
        elbo_stderr=stderr * full,
        diagnostics={name: number * full for name, number in diagnostics.items()},
        provenance={"estimator": direction, "seconds": seconds, "evaluations": 1000},
    )


def sentence(comparison, start):
    (line,) = (line for line in comparison.verdict() if line.startswith(start))
    return line


def test_a_lower_bound_below_another_is_low_by_their_difference():
    comparison = compare_evidence(L=made(-0.8, khat=0.9), AIS=made(0.0))
    assert comparison.best_lower == "AIS"
    assert sentence(comparison, "L is low").startswith("L is low by 0.80")
    assert "k̂ is too high for 100% of the data" in sentence(comparison, "L is low")


def test_differences_are_paired():
    """Data differ by ten nats, and 0.01 between estimates is seen all the same."""
    off = compare_evidence(a=made(0.0), b=made(0.01)).difference("b", "a")
    assert off.stderr == pytest.approx(0.01 * math.sqrt(2) / 10)
    assert abs(off.value - 0.01) < 5 * off.stderr


def test_the_cheapest_of_equal_bounds_is_believed():
    comparison = compare_evidence(dear=made(0.0, seconds=50.0), cheap=made(0.0, seconds=2.0))
    assert comparison.best_lower == "cheap"


def test_of_equal_bounds_one_without_a_doubt_is_believed():
    comparison = compare_evidence(cheap=made(0.0, khat=0.9), sound=made(0.0, seconds=50.0))
    assert comparison.best_lower == "sound"


def test_a_low_bound_whose_diagnosis_is_silent_is_told_so():
    line = sentence(compare_evidence(L=made(-0.5), AIS=made(0.0)), "L is low")
    assert "no diagnosis of its own shows it" in line


def test_an_upper_bound_closes_the_interval():
    comparison = compare_evidence(AIS=made(0.0), EUBO=made(0.5, direction="upper", rhat=1.0))
    assert comparison.best_upper == "EUBO"
    assert "mean log p(x) is within 0.50" in sentence(comparison, "EUBO bounds it from above")


@pytest.mark.parametrize(
    ("fault", "reason"),
    [
        ({"khat": 0.9}, "k̂ is too high for 100%"),
        ({"rhat": 1.2}, "R̂ is above 1.05 for 100%"),
        ({"acceptance": 0.05}, "hardly moved"),
        ({"stderr": 0.8}, "its error is 0.8 nats"),
    ],
)
def test_an_upper_bound_in_doubt_is_not_relied_on(fault, reason):
    comparison = compare_evidence(AIS=made(0.0), upper=made(0.5, direction="upper", **fault))
    assert comparison.best_upper is None
    assert reason in sentence(comparison, "upper is no upper bound to be relied on")
    assert sentence(comparison, "no upper bound that can be relied on")


def test_bounds_that_contradict_each_other_are_told_first():
    comparison = compare_evidence(
        low=made(1.0), high=made(0.0, direction="upper", khat=0.9), fine=made(-0.1)
    )
    ((low, high, off),) = comparison.contradictions
    assert (low, high) == ("low", "high")
    assert abs(off.value - 1.0) < 0.01
    assert comparison.verdict()[0].startswith("low, a lower bound, lies 1.00")
    assert "high: k̂ is too high" in comparison.verdict()[0]


def test_consistent_estimates_are_held_against_the_bound():
    comparison = compare_evidence(
        AIS=made(0.0),
        agrees=made(0.0, direction="consistent", khat=math.nan, rhat=1.0),
        below=made(-0.5, direction="consistent", khat=math.nan, rhat=1.3),
        above=made(0.3, direction="consistent", khat=math.nan, rhat=1.0),
    )
    assert sentence(comparison, "agrees") == "agrees agrees with AIS"
    assert "below a lower bound: R̂ is above" in sentence(comparison, "below")
    assert "nothing speaks against it" in sentence(comparison, "above")


def test_without_a_lower_bound_nothing_is_believed():
    comparison = compare_evidence(a=made(0, direction="upper"), b=made(1, direction="upper"))
    assert comparison.best_lower is None
    assert comparison.verdict()[0].startswith("no lower bound is among them")
    assert "less" not in str(comparison).splitlines()[0]


def test_the_table_has_a_row_for_each_with_its_cost():
    shown = str(compare_evidence(L=made(-0.8, khat=0.9), AIS=made(0.0, khat=math.nan)))
    header, _, first, second, *_ = shown.splitlines()
    assert header.split()[:2] == ["estimate", "side"]
    assert first.split()[:2] == ["L", "lower"]
    assert "1,000" in first
    assert "100%" in first
    assert "100%" not in second  # unknown is not high


def test_a_bound_that_is_minus_infinity_for_a_datum_is_infinitely_low():
    broken = made(-0.2)
    broken.log_evidence[3] = -math.inf
    comparison = compare_evidence(a=broken, b=made(0.0))
    assert comparison.difference("b", "a").value == math.inf
    assert "it is not finite for 1% of the data" in sentence(comparison, "a is low")


def test_a_sandwich_gives_two_rows():
    sandwich = Sandwich(made(0.0), made(0.1, direction="upper"), torch.zeros(100))
    comparison = compare_evidence(sandwich, L=made(-0.1))
    assert list(comparison.estimates) == ["lower, lower", "lower, upper", "L"]
    assert comparison.best_upper == "lower, upper"


def test_estimates_without_names_are_told_apart():
    comparison = compare_evidence(made(0.0), made(0.1), made(0.2))
    assert list(comparison.estimates) == ["lower", "lower #2", "lower #3"]


def test_it_opens_as_a_dataset(tmp_path):
    dataset = compare_evidence(a=made(0.0), b=made(0.5, direction="upper")).to_dataset()
    assert dict(dataset.sizes) == {"estimate": 2, "datum": 100}
    assert dataset["side"].values.tolist() == ["lower", "upper"]
    assert "believe a" in dataset.attrs["verdict"]
    dataset.to_netcdf(tmp_path / "comparison.nc", engine="scipy")


def test_bad_input_is_refused():
    with pytest.raises(ValueError, match="estimates must be at least two, but are 1"):
        compare_evidence(made(0.0))
    with pytest.raises(TypeError, match="estimates must be Estimates or Sandwiches"):
        compare_evidence(made(0.0), 3.0)
    with pytest.raises(ValueError, match="estimates must be of the same data"):
        compare_evidence(a=made(0.0), b=made(0.0, size=3))
