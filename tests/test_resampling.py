"""Systematic resampling: unbiased, never more than one copy off, each datum by itself."""

from __future__ import annotations

import math

import pytest
import torch

from pyrovae.inference.evidence.annealing.resampling import effective, systematic


def counts(chosen, size):
    """How often each particle was chosen, ``(C, N)``."""
    return (
        torch.zeros(size, chosen.shape[1]).double().scatter_add(0, chosen, chosen.double() * 0 + 1)
    )


def weights(count, data, spread=2.0, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return spread * torch.randn(count, data, dtype=torch.float64, generator=generator)


@pytest.mark.parametrize("count", [1, 2, 7, 64, 1000])
@pytest.mark.parametrize("spread", [0.0, 0.1, 3.0, 50.0])
def test_counts_are_within_one_of_what_is_expected(count, spread):
    log_weight = weights(count, 200, spread)
    chosen = systematic(log_weight)
    assert chosen.shape == log_weight.shape
    expected = count * log_weight.softmax(0)
    found = counts(chosen, count)
    assert (found.sum(0) == count).all()
    assert ((found - expected).abs() < 1 + 1e-6).all()


def test_copies_are_unbiased():
    log_weight = weights(8, 1)
    repeated = log_weight.expand(8, 40_000)
    found = counts(systematic(repeated), 8)
    expected = 8 * log_weight.softmax(0)
    # a count is one of two neighbouring numbers, so that its variance is at most a quarter
    share = expected - expected.floor()
    error = (share * (1 - share) / 40_000).sqrt()
    assert ((found.mean(1, keepdim=True) - expected).abs() < 5 * error + 1e-9).all()


def test_the_mean_of_any_function_is_unbiased_over_resampled_particles():
    log_weight = weights(20, 1, seed=3)
    value = torch.linspace(-3, 3, 20, dtype=torch.float64).sin()[:, None]
    chosen = systematic(log_weight.expand(20, 20_000))
    means = value.expand(20, 20_000).gather(0, chosen).mean(0)
    exact = (log_weight.softmax(0) * value).sum()
    assert abs(means.mean() - exact) < 5 * means.std() / math.sqrt(20_000)


@pytest.mark.parametrize("where", [[0], [9], [0, 1, 8, 9], list(range(9)), list(range(1, 10))])
def test_particles_without_weight_are_never_chosen(where):
    log_weight = weights(10, 5000, spread=0.5)
    log_weight[where] = -math.inf
    chosen = systematic(log_weight)
    assert not torch.isin(chosen, torch.tensor(where)).any()


def test_weights_that_underflow_are_as_good_as_none():
    log_weight = weights(10, 2000)
    log_weight[4:] -= 2000
    assert (systematic(log_weight) < 4).all()


def test_equal_weights_keep_every_particle():
    chosen = systematic(torch.full((100, 50), -700.0).double())
    assert torch.equal(chosen, torch.arange(100)[:, None].expand(100, 50))


def test_numbers_stand_in_ascending_order():
    assert (systematic(weights(50, 100)).diff(dim=0) >= 0).all()


def test_a_constant_in_the_log_weights_changes_nothing():
    log_weight = weights(30, 40)
    torch.manual_seed(1)
    one = systematic(log_weight)
    torch.manual_seed(1)
    assert torch.equal(one, systematic(log_weight - 512.0))


def test_a_datum_is_resampled_as_if_it_were_alone():
    """Its numbers depend on its own weights and its own uniform number, on no one else's."""
    log_weight = weights(30, 40)
    other = log_weight.clone()
    other[:, 1:] = weights(30, 39, spread=10.0, seed=9)
    other[:-1, 5] = -math.inf
    torch.manual_seed(1)
    one = systematic(log_weight)
    torch.manual_seed(1)
    assert torch.equal(one[:, 0], systematic(other)[:, 0])


def test_data_have_uniform_numbers_of_their_own():
    """Equal weights of two data are not copied alike, or their errors would not average out."""
    found = counts(systematic(weights(6, 1).expand(6, 3000)), 6)
    assert (found.std(1) > 0).any()


def test_effective_sample_size_is_the_formula():
    log_weight = weights(30, 5)
    share = log_weight.softmax(0)
    torch.testing.assert_close(effective(log_weight - 900), 1 / share.square().sum(0))
    assert effective(torch.zeros(7, 1).double()).item() == pytest.approx(7.0)
    one = torch.tensor([[0.0], [-math.inf], [-math.inf]]).double()
    assert effective(one).item() == pytest.approx(1.0)


def test_no_weight_at_all_is_no_sample():
    assert effective(torch.full((4, 2), -math.inf).double()).tolist() == [0.0, 0.0]
