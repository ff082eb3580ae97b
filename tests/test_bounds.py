"""Bounds: values and slopes against naive formulas in numpy, and what they are in expectation."""

from __future__ import annotations

import itertools
import math
from dataclasses import FrozenInstanceError

import numpy as np
import pytest
import torch

from pyrovae.inference.objectives import bounds
from pyrovae.inference.objectives.bounds import (
    CIWAE,
    CUBO,
    ELBO,
    IWAE,
    MIWAE,
    TVO,
    Bound,
    Jackknife,
    Renyi,
    slope,
)
from pyrovae.inference.objectives.gradients.pathwise import path_share

# --- naive formulas -------------------------------------------------------------------------------


def naive_iwae(log_weight):
    return np.log(np.mean(np.exp(log_weight), 0))


def naive_miwae(num_groups):
    def bound(log_weight):
        size = len(log_weight) // num_groups
        groups = [log_weight[start : start + size] for start in range(0, len(log_weight), size)]
        return sum(naive_iwae(group) for group in groups) / num_groups

    return bound


def naive_ciwae(beta):
    return lambda log_weight: beta * log_weight.mean(0) + (1 - beta) * naive_iwae(log_weight)


def naive_power(power):
    """Renyi at 1 - power, and CUBO at n = power."""
    return lambda log_weight: np.log(np.mean(np.exp(log_weight) ** power, 0)) / power


def naive_tvo(num_intervals, first):
    grid = [0.0, *np.logspace(np.log10(first), 0.0, num_intervals)]
    if num_intervals == 1:
        grid = [0.0, 1.0]

    def bound(log_weight):
        total = 0.0
        for left, right in itertools.pairwise(grid):
            power = np.exp(log_weight) ** left
            total = total + (right - left) * (power * log_weight).sum(0) / power.sum(0)
        return total

    return bound


def naive_jackknife(order):
    """The combination of subset means that cancels the bias in 1/K, 1/K², ..., 1/K^m."""

    def bound(log_weight):
        size = len(log_weight)
        sizes = np.array([size - out for out in range(order + 1)], dtype=float)
        system = sizes[None] ** -np.arange(order + 1.0)[:, None]
        coefficients = np.linalg.solve(system, np.eye(order + 1)[0])
        means = [
            np.mean([naive_iwae(log_weight[list(kept)]) for kept in subsets], 0)
            for subsets in (
                itertools.combinations(range(size), size - out) for out in range(order + 1)
            )
        ]
        return sum(c * mean for c, mean in zip(coefficients, means, strict=True))

    return bound


CASES: list[tuple[Bound, object]] = [
    (ELBO(), lambda log_weight: log_weight.mean(0)),
    (IWAE(), naive_iwae),
    (MIWAE(1), naive_iwae),
    (MIWAE(2), naive_miwae(2)),
    (MIWAE(3), naive_miwae(3)),
    (MIWAE(6), lambda log_weight: log_weight.mean(0)),
    (CIWAE(0.0), naive_iwae),
    (CIWAE(0.3), naive_ciwae(0.3)),
    (CIWAE(1.0), lambda log_weight: log_weight.mean(0)),
    (Renyi(-1.5), naive_power(2.5)),
    (Renyi(0.0), naive_iwae),
    (Renyi(0.5), naive_power(0.5)),
    (Renyi(1.0), lambda log_weight: log_weight.mean(0)),
    (Renyi(3.0), naive_power(-2.0)),
    (CUBO(1), naive_iwae),
    (CUBO(2), naive_power(2.0)),
    (CUBO(3), naive_power(3.0)),
    (TVO(1), lambda log_weight: log_weight.mean(0)),
    (TVO(2, first=0.3), naive_tvo(2, 0.3)),
    (TVO(5, first=0.01), naive_tvo(5, 0.01)),
    (TVO(), naive_tvo(5, 0.025)),
    (Jackknife(1), naive_jackknife(1)),
    (Jackknife(2), naive_jackknife(2)),
    (Jackknife(3), naive_jackknife(3)),
]
BOUNDS = [bound for bound, _ in CASES]
SHARED = [b for b in BOUNDS if isinstance(b, ELBO | IWAE | MIWAE | CIWAE | Renyi)]


def log_weights_of(num_particles=6, num_data=4, spread=1.5):
    generator = torch.Generator().manual_seed(7)
    shape = (num_particles, num_data)
    return spread * torch.randn(shape, generator=generator, dtype=torch.float64) - 2.0


@pytest.mark.parametrize(("bound", "naive"), CASES, ids=[repr(b) for b in BOUNDS])
def test_a_bound_is_its_formula(bound, naive):
    log_weight = log_weights_of()
    assert bound(log_weight).shape == (4,)
    np.testing.assert_allclose(bound(log_weight).numpy(), naive(log_weight.numpy()), rtol=1e-12)


def test_groups_are_of_particles_that_follow_one_another():
    log_weight = log_weights_of()
    two, three = MIWAE(2)(log_weight), MIWAE(3)(log_weight)
    assert (two - three).abs().min() > 1e-3
    by_hand = (IWAE()(log_weight[:3]) + IWAE()(log_weight[3:])) / 2
    torch.testing.assert_close(two, by_hand)


def test_jackknife_of_one_is_the_textbook_one():
    log_weight = log_weights_of()
    without = [IWAE()(torch.cat([log_weight[:k], log_weight[k + 1 :]])) for k in range(6)]
    by_hand = 6 * IWAE()(log_weight) - 5 * torch.stack(without).mean(0)
    torch.testing.assert_close(Jackknife(1)(log_weight), by_hand)


def test_renyi_is_continuous_at_its_limits_and_falls_with_alpha():
    log_weight = log_weights_of()
    torch.testing.assert_close(Renyi(1 + 1e-7)(log_weight), ELBO()(log_weight), atol=1e-5, rtol=0)
    torch.testing.assert_close(Renyi(1 - 1e-7)(log_weight), ELBO()(log_weight), atol=1e-5, rtol=0)
    torch.testing.assert_close(Renyi(1e-9)(log_weight), IWAE()(log_weight), atol=1e-7, rtol=0)
    values = torch.stack([Renyi(a)(log_weight) for a in (-3.0, -1.0, 0.0, 0.5, 1.0, 2.0, 9.0)])
    assert (values.diff(dim=0) < 0).all()


def test_the_grid_is_spaced_evenly_in_logarithms():
    grid = np.array(TVO(num_intervals=4, first=0.001).grid)
    np.testing.assert_allclose(grid, [0.0, 0.001, 0.01, 0.1, 1.0], rtol=1e-12)
    assert TVO(num_intervals=1).grid == (0.0, 1.0)
    widths = [width for width, _, _ in TVO(7).intervals(log_weights_of())]
    assert sum(widths) == pytest.approx(1.0)


def test_only_the_chi_bound_lies_above():
    assert {type(bound).__name__ for bound in BOUNDS if bound.direction == "upper"} == {"CUBO"}
    assert {bound.direction for bound in BOUNDS} == {"lower", "upper"}


# --- at the edges ---------------------------------------------------------------------------------

OF_MEANS_OF_WEIGHTS = [
    IWAE(), MIWAE(2), CIWAE(0.0), Renyi(0.0), Renyi(0.5), Renyi(-1.0), CUBO(2), Jackknife(1),
]  # fmt: skip


@pytest.mark.parametrize("bound", OF_MEANS_OF_WEIGHTS, ids=repr)
def test_weights_of_zero_leave_the_others(bound):
    log_weight = log_weights_of()
    log_weight[1, 0] = log_weight[4, 2] = -math.inf
    value = bound(log_weight)
    assert value.isfinite().all()
    small = log_weight.masked_fill(log_weight == -math.inf, -300.0)
    torch.testing.assert_close(value, bound(small))
    assert slope(bound, log_weight).isfinite().all()


@pytest.mark.parametrize("bound", [ELBO(), CIWAE(0.3), Renyi(1.0), TVO(1), TVO(5)], ids=repr)
def test_weights_of_zero_make_a_mean_of_logarithms_minus_infinity(bound):
    log_weight = log_weights_of()
    log_weight[1, 0] = -math.inf
    value = bound(log_weight)
    assert value[0] == -math.inf
    assert value[1:].isfinite().all()


@pytest.mark.parametrize("bound", BOUNDS, ids=repr)
@pytest.mark.parametrize("shift", [-1e4, -3.0, 0.25, 1e4])
def test_a_constant_goes_through(bound, shift):
    log_weight = log_weights_of()
    expected = bound(log_weight) + shift
    torch.testing.assert_close(bound(log_weight + shift), expected, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("bound", BOUNDS, ids=repr)
def test_weights_far_apart_do_not_overflow(bound):
    log_weight = log_weights_of()
    log_weight[0] += 1e4
    log_weight[3] -= 1e4
    assert bound(log_weight).isfinite().all()
    assert slope(bound, log_weight).isfinite().all()
    top = log_weight[0]
    if isinstance(bound, IWAE):
        torch.testing.assert_close(bound(log_weight), top - math.log(6))
    if isinstance(bound, CUBO):
        torch.testing.assert_close(bound(log_weight), top - math.log(6) / bound.n)


@pytest.mark.parametrize("bound", BOUNDS, ids=repr)
def test_equal_weights_are_the_bound(bound):
    torch.testing.assert_close(
        bound(torch.full((6, 2), -5.0, dtype=torch.float64)),
        torch.full((2,), -5.0, dtype=torch.float64),
    )


# --- slopes ---------------------------------------------------------------------------------------


def differences(function, log_weight, step=1e-5):
    """d function(log_weight)[..., n] / d log_weight[k, n] by central differences."""
    rows = []
    for k in range(len(log_weight)):
        up, down = log_weight.copy(), log_weight.copy()
        up[k] += step
        down[k] -= step
        rows.append((function(up) - function(down)) / (2 * step))
    return np.stack(rows)


@pytest.mark.parametrize(("bound", "naive"), CASES, ids=[repr(b) for b in BOUNDS])
def test_a_slope_is_the_derivative_and_slopes_sum_to_one(bound, naive):
    log_weight = log_weights_of()
    found = slope(bound, log_weight)
    assert not found.requires_grad
    assert not log_weight.requires_grad
    np.testing.assert_allclose(found.numpy(), differences(naive, log_weight.numpy()), atol=1e-8)
    np.testing.assert_allclose(found.sum(0).numpy(), 1.0, rtol=1e-10)


def test_a_slope_can_be_had_without_gradients():
    with torch.no_grad():
        found = slope(IWAE(), log_weights_of())
    torch.testing.assert_close(found, log_weights_of().softmax(0))


@pytest.mark.parametrize("bound", SHARED, ids=repr)
def test_the_path_share_is_what_the_second_derivative_leaves(bound):
    log_weight = log_weights_of()
    first = slope(bound, log_weight).numpy()

    def slopes(values):
        return slope(bound, torch.from_numpy(values)).numpy()

    second = np.stack([row[k] for k, row in enumerate(differences(slopes, log_weight.numpy()))])
    found = path_share(bound, log_weight)
    np.testing.assert_allclose(found.numpy(), 1 - second / first, atol=1e-6)


@pytest.mark.parametrize("bound", SHARED, ids=repr)
def test_path_shares_stay_finite_where_weights_vanish(bound):
    log_weight = log_weights_of()
    log_weight[0] += 1e4
    assert path_share(bound, log_weight).isfinite().all()


@pytest.mark.parametrize("bound", [CUBO(), TVO(), Jackknife()], ids=repr)
def test_other_bounds_have_no_path_share(bound):
    with pytest.raises(TypeError, match=f"no path share is known for {type(bound).__name__}"):
        path_share(bound, log_weights_of())


# --- settings -------------------------------------------------------------------------------------


@pytest.mark.parametrize("bound", BOUNDS, ids=repr)
def test_bounds_are_values(bound):
    copy = eval(repr(bound), vars(bounds))
    assert copy == bound
    assert hash(copy) == hash(bound)
    assert bound != object()
    with pytest.raises(FrozenInstanceError):
        bound.anything = 1


def test_bounds_of_other_settings_differ():
    kinds = {(type(b).__name__, *vars(b).values()) for b in BOUNDS}  # TVO() and CUBO() included
    assert len(set(BOUNDS)) == len(kinds) == len(BOUNDS)
    assert CIWAE(0.0) != Renyi(0.0)
    assert repr(TVO()) == "TVO(num_intervals=5, first=0.025)"


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: MIWAE(0), "num_groups must be a whole number of at least 1, but is 0"),
        (lambda: MIWAE(2.0), "num_groups must be a whole number of at least 1, but is 2.0"),
        (lambda: MIWAE(True), "num_groups must be a whole number"),
        (lambda: CIWAE(-0.1), r"beta must be in \[0, 1\], but is -0.1"),
        (lambda: CIWAE(1.5), r"beta must be in \[0, 1\], but is 1.5"),
        (lambda: CIWAE(math.nan), r"beta must be in \[0, 1\], but is nan"),
        (lambda: Renyi(math.inf), "alpha must be finite, but is inf"),
        (lambda: Renyi(math.nan), "alpha must be finite, but is nan"),
        (lambda: CUBO(0.5), "n must be finite and at least 1, but is 0.5"),
        (lambda: CUBO(math.inf), "n must be finite and at least 1, but is inf"),
        (lambda: CUBO(math.nan), "n must be finite and at least 1, but is nan"),
        (lambda: TVO(0), "num_intervals must be a whole number of at least 1, but is 0"),
        (lambda: TVO(first=0.0), r"first must be in \(0, 1\), but is 0.0"),
        (lambda: TVO(first=1.0), r"first must be in \(0, 1\), but is 1.0"),
        (lambda: TVO(first=math.nan), r"first must be in \(0, 1\), but is nan"),
        (lambda: Jackknife(0), "order must be a whole number of at least 1, but is 0"),
        (lambda: Jackknife(1.5), "order must be a whole number of at least 1, but is 1.5"),
    ],
)
def test_settings_are_checked(make, message):
    with pytest.raises(ValueError, match=message):
        make()


@pytest.mark.parametrize(
    ("bound", "num_particles", "message"),
    [
        (MIWAE(4), 6, "num_groups must divide num_particles, 6, but is 4"),
        (MIWAE(8), 4, "num_groups must divide num_particles, 4, but is 8"),
        (Jackknife(2), 2, "must be larger than the order of the jackknife, 2, but is 2"),
        (Jackknife(1), 1, "must be larger than the order of the jackknife, 1, but is 1"),
        (Jackknife(3), 60, "at most 20,000 subsets for a .* of order 3, but 60 leave 34,220"),
    ],
    ids=repr,
)
def test_numbers_of_particles_are_checked(bound, num_particles, message):
    with pytest.raises(ValueError, match=message):
        bound.check(num_particles)


@pytest.mark.parametrize("bound", BOUNDS, ids=repr)
def test_six_particles_do_for_all_of_these(bound):
    bound.check(6)
