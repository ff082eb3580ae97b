"""Only estimates of the same data are held against one another."""

from __future__ import annotations

import pyro
import pyro.distributions as dist
import pytest
import torch
from estimator_toys import AIS, ANNEAL, BDMC, SMALL, X, guide, model
from torch.utils.data import DataLoader, TensorDataset

from pyrovae.inference import ImportanceSampling, PriorMonteCarlo, compare_evidence

pytestmark = pytest.mark.usefixtures("one_thread")

REFUSED = "estimates must be of the same data, but are not"


def posterior(x):
    """The exact one."""
    with pyro.plate("data", len(x)):
        pyro.sample("z", dist.Normal(x / 2, 0.5**0.5))


def sampled(x=X, *context, pair=(model, guide), **settings):
    return ImportanceSampling(**{"num_samples": 30} | settings)(*pair, x, *context)


def without_data(estimate):
    """The same, from somewhere that does not say what was scored."""
    provenance = {n: value for n, value in estimate.provenance.items() if n != "data"}
    return estimate.__class__(**{**vars(estimate), "provenance": provenance})


# --- simulated data ------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def simulated():
    """A sandwich around data that have only the form of X."""
    return SMALL[BDMC](model, guide, X)


@pytest.mark.parametrize("first", [True, False])
def test_a_simulated_sandwich_is_not_held_against_estimates_of_real_data(simulated, first):
    real = SMALL[AIS](model, guide, X)
    together = (simulated, real) if first else (real, simulated)
    with pytest.raises(ValueError, match=REFUSED) as refused:
        compare_evidence(*together)
    assert "without a posterior scores data that it simulates" in str(refused.value)
    for name in ("BidirectionalMonteCarlo, lower", "AnnealedImportanceSampling"):
        assert name in str(refused.value)  # so that one knows which to leave out


def test_names_of_ones_own_do_not_hide_it(simulated):
    with pytest.raises(ValueError, match=REFUSED):
        compare_evidence(bound=simulated.lower, sampled=sampled())


def test_two_sandwiches_that_simulate_apart_are_not_of_the_same_data(simulated):
    other = BDMC(**ANNEAL, seed=1)(model, guide, X)
    with pytest.raises(ValueError, match=REFUSED):
        compare_evidence(simulated, other=other)


def test_a_simulated_sandwich_stands_beside_estimates_of_what_it_scored(simulated):
    compared = compare_evidence(simulated, sampled=sampled(simulated.data))
    assert len(compared.estimates) == 3
    assert compared.best_lower is not None


def test_around_real_data_a_sandwich_stands_beside_the_others():
    """With a posterior nothing is simulated."""
    sandwich = BDMC(**ANNEAL, posterior=posterior)(model, guide, X)
    assert len(compare_evidence(sandwich, SMALL[AIS](model, guide, X), sampled()).estimates) == 4


# --- other data ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "other", [X + 1, X.flip(0), X + 1e-12, X.float()], ids=["moved", "order", "a trace", "float32"]
)
def test_other_data_of_the_same_number_are_refused(other):
    """Differences are taken datum by datum: the order matters as well."""
    with pytest.raises(ValueError, match=REFUSED):
        compare_evidence(sampled(), SMALL[AIS](model, guide, other))


def test_one_among_many_is_enough():
    with pytest.raises(ValueError, match=REFUSED):
        compare_evidence(sampled(), sampled(seed=1), sampled(X.flip(0)), sampled(seed=2))


def test_how_the_same_data_were_scored_does_not_matter(tmp_path):
    compared = compare_evidence(
        sampled(),
        sampled(X.clone(), seed=7, memory=1),
        sampled(checkpoint=tmp_path / "estimate.pt", particles="loop"),
        PriorMonteCarlo(30)(model, None, X),
    )
    assert len(compared.estimates) == 4


def test_data_given_with_another_context_are_other_data():
    """p(x | c) is a number of its own for every c."""

    def shifted(x, by):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(by, 1.0))
            pyro.sample("x", dist.Normal(z, 1.0), obs=x)

    def of_shifted(x, by):
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal((x + by) / 2, 0.8))

    pair = (shifted, of_shifted)
    by = torch.ones_like(X)
    found = sampled(X, by, pair=pair)
    with pytest.raises(ValueError, match=REFUSED):
        compare_evidence(found, sampled(X, 2 * by, pair=pair))
    assert compare_evidence(found, sampled(X, by.clone(), pair=pair, seed=1)).best_lower


def test_an_estimate_that_does_not_say_what_it_scored_is_taken_at_its_word():
    """But the others are still held against one another."""
    stranger = without_data(sampled(X.flip(0)))
    assert len(compare_evidence(stranger, sampled()).estimates) == 2
    with pytest.raises(ValueError, match=REFUSED):
        compare_evidence(sampled(), stranger, sampled(X.flip(0)))


# --- batch by batch ------------------------------------------------------------------------------


def in_batches(x, size=2):
    return DataLoader(TensorDataset(x), batch_size=size)


def test_estimates_over_the_same_batches_are_compared():
    assert compare_evidence(sampled(in_batches(X)), sampled(in_batches(X), seed=1)).best_lower


def test_batches_whose_first_differ_are_refused():
    with pytest.raises(ValueError, match=REFUSED):
        compare_evidence(sampled(in_batches(X)), sampled(in_batches(X.flip(0))))


def test_batches_whose_last_differ_are_refused():
    other = X.clone()
    other[-1] += 1
    with pytest.raises(ValueError, match=REFUSED):
        compare_evidence(sampled(in_batches(X)), sampled(in_batches(other)))


def test_the_same_data_at_once_and_in_batches_are_the_same_data():
    compared = compare_evidence(sampled(), sampled(in_batches(X)), sampled(in_batches(X, 1)))
    assert len(compared.estimates) == 3
