"""Which lower bound is believed: the highest, but not for its noise; then doubts, then costs."""

from __future__ import annotations

import itertools
import math

import pytest
import torch

from pyrovae.inference import Estimate, compare_evidence

SIZE = 25  # a mean's error is a fifth of a datum's
DATA = torch.linspace(-120, -80, SIZE, dtype=torch.float64)


def made(value, error=0.002, direction="lower", khat=0.2, evaluations=100, seconds=1.0):
    """An estimate that lies ``value`` above -100 in the mean, with this error of the mean."""
    one = torch.ones(SIZE, dtype=torch.float64)
    return Estimate(
        log_evidence=DATA + value,
        stderr=error * math.sqrt(SIZE) * one,
        ess=100 * one,
        khat=khat * one,
        direction=direction,
        num_samples=1000,
        elbo=DATA + value - 1,
        elbo_stderr=one,
        provenance={"seconds": seconds, "evaluations": evaluations},
    )


def believed(**estimates):
    """The best lower bound, whatever the order the estimates are given in."""
    found = {
        compare_evidence(**dict(order)).best_lower
        for order in itertools.permutations(estimates.items())
    }
    (best,) = found
    return best


def sentences(comparison, name):
    """What the verdict says of an estimate, before others are named."""
    return [line for line in comparison.verdict() if line.startswith((name, f"believe {name}"))]


# --- noise ---------------------------------------------------------------------------------------


def test_a_precise_bound_is_believed_before_one_that_is_higher_by_chance():
    noisy, precise = made(0.1, error=0.06), made(0.0, error=0.002)
    assert believed(noisy=noisy, precise=precise) == "precise"
    comparison = compare_evidence(noisy=noisy, precise=precise)
    (line,) = sentences(comparison, "precise")
    assert line.startswith("believe precise: -100.00 ± 0.00, a lower bound that no other")
    assert line.endswith("exceeds by three errors")
    assert not sentences(comparison, "noisy")  # it is not called low, nor anything else
    assert "+0.100 ± 0.060" in str(comparison)  # the table shows it above all the same


def test_a_bound_that_is_higher_by_more_than_its_noise_is_believed():
    noisy, precise = made(0.4, error=0.06), made(0.0, error=0.002)
    assert believed(noisy=noisy, precise=precise) == "noisy"
    comparison = compare_evidence(noisy=noisy, precise=precise)
    (line,) = sentences(comparison, "precise")
    assert line.startswith("precise is low by 0.40 ± 0.06 or more: no diagnosis of its own")
    (line,) = sentences(comparison, "noisy")
    assert line.startswith("believe noisy: -99.60 ± 0.06, a lower bound that no other")
    assert line.endswith("exceeds by three errors")


@pytest.mark.parametrize(("errors", "best"), [(2.9, "precise"), (3.1, "noisy")])
@pytest.mark.parametrize(("first", "second"), [(0.06, 0.001), (0.05, 0.0331662)])
def test_it_takes_three_errors_of_both_together(errors, best, first, second):
    off = errors * math.hypot(first, second)
    assert believed(noisy=made(off, first), precise=made(0.0, second)) == best


def test_a_difference_within_rounding_is_none():
    """A bound whose error is as good as zero does not beat another by the last digits."""
    higher, lower = made(5e-4, error=2e-9), made(0.0, error=1e-9)
    assert believed(higher=higher, lower=lower) == "lower"
    assert believed(higher=made(5e-3, error=2e-9), lower=lower) == "higher"


def test_the_most_precise_of_several_is_believed():
    many = {f"of {e}": made(0.01 * i, e) for i, e in enumerate((0.03, 0.01, 0.02))}
    assert believed(**many) == "of 0.01"


def test_a_bound_that_is_low_is_not_believed_however_precise():
    assert believed(low=made(-0.5, 1e-6), high=made(0.0, 0.02)) == "high"


def test_the_noise_of_a_third_makes_no_low_bound_good():
    """The highest says little; another says for certain that the most precise is low."""
    three = {"noisy": made(0.5, 0.3), "good": made(0.0, 0.01), "low": made(-0.3, 0.001)}
    assert believed(good=three["good"], low=three["low"]) == "good"
    assert believed(**three) == "good"
    comparison = compare_evidence(**three)
    (line,) = sentences(comparison, "low")
    assert line.startswith("low is low by 0.30 ± 0.01 or more")


def test_what_is_believed_is_exceeded_by_no_other_as_the_verdict_says():
    """Pairs of all kinds: of the bounds that are not believed, none is significantly above."""
    values, errors = (0.0, 0.01, 0.1, 1.0), (0.001, 0.02, 0.09)
    kinds = list(itertools.product(values, errors))
    for (a, of_a), (b, of_b) in itertools.combinations(kinds, 2):
        comparison = compare_evidence(a=made(a, of_a), b=made(b, of_b))
        best = comparison.best_lower
        other = "b" if best == "a" else "a"
        assert not comparison.difference(other, best).exceeds(3.0)
        if not comparison.difference(best, other).exceeds(3.0):
            assert (of_a, of_b)[best == "b"] <= (of_a, of_b)[best == "a"]


# --- doubts, unknown errors and costs ------------------------------------------------------------


def test_a_doubt_weighs_more_than_precision():
    doubtful, sound = made(0.0, 0.001, khat=0.9), made(0.0, 0.03)
    assert believed(doubtful=doubtful, sound=sound) == "sound"


def test_a_doubtful_bound_is_believed_where_it_is_the_highest_and_the_doubt_told():
    """A lower bound is one whatever the tail of its weights: only another may beat it."""
    doubtful, sound = made(1.0, 0.01, khat=0.9), made(0.0, 0.001)
    assert believed(doubtful=doubtful, sound=sound) == "doubtful"
    (line,) = sentences(compare_evidence(doubtful=doubtful, sound=sound), "doubtful")
    assert line.endswith(
        "no other exceeds by three errors, though k̂ is too high for 100% of the data"
    )


def test_an_error_that_is_not_known_comes_last():
    unknown = made(0.0, 1e-6)
    unknown.stderr[3] = math.nan
    assert believed(unknown=unknown, noisy=made(0.0, 0.05)) == "noisy"


def test_of_equally_precise_bounds_the_cheapest_is_believed():
    dear = made(0.0, evaluations=5000, seconds=0.1)
    assert believed(dear=dear, cheap=made(0.0, evaluations=100, seconds=9.0)) == "cheap"
    assert believed(slow=made(0.0, seconds=9.0), fast=made(0.0, seconds=0.1)) == "fast"
    assert believed(dear=made(0.0, 0.001, evaluations=5000), cheap=made(0.0, 0.03)) == "dear"


# --- other sides ---------------------------------------------------------------------------------


@pytest.mark.parametrize("direction", ["upper", "consistent"])
def test_only_a_lower_bound_is_believed_to_be_one(direction):
    other = made(3.0, 1e-6, direction)
    assert believed(other=other, noisy=made(0.1, 0.06), precise=made(0.0)) == "precise"


def test_distances_are_those_from_the_bound_that_is_believed():
    comparison = compare_evidence(
        noisy=made(0.1, 0.06),
        precise=made(0.0),
        above=made(0.3, 0.01, "consistent"),
        upper=made(0.5, 0.01, "upper"),
    )
    (line,) = sentences(comparison, "above")
    assert line.startswith("above lies 0.30 ± 0.01 above precise")
    (line,) = sentences(comparison, "upper")
    assert "is within 0.50 ± 0.01 of precise" in line
    assert "less precise" in str(comparison).splitlines()[0]
