"""The four errors of a row and those of a difference, against numbers computed by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy import stats

from pyrovae.benchmarks.report.rows import Estimated, Row
from pyrovae.benchmarks.report.statistics import difference, score, unpaired


def run(values, seed=0, stderr=0.0, khat=0.1, **rest) -> Estimated:
    values = np.asarray(values, float)
    given = {"split": "test", "fingerprint": "f", "direction": "lower", **rest}
    return Estimated(
        seed=seed,
        datum=np.asarray(given.pop("datum", np.arange(len(values)))),
        log_evidence=values,
        stderr=np.broadcast_to(np.asarray(stderr, float), values.shape),
        khat=np.broadcast_to(np.asarray(khat, float), values.shape),
        elbo=values - 1,
        num_samples=1000,
        khat_threshold=2 / 3,
        evaluations=1000.0,
        gradients=0.0,
        seconds=1.0,
        **given,
    )


def row(*runs: Estimated, model: str = "m") -> Row:
    return Row(("d", model, "o"), "L", "importance-sampling", runs)


def test_the_errors_of_two_seeds_and_two_data_by_hand() -> None:
    # L = [[1, 3], [2, 6]], σ = [[0.3, 0.4], [0.5, 1.2]]
    found = score(row(run([1, 3], 0, [0.3, 0.4]), run([2, 6], 1, [0.5, 1.2])))
    assert found.value == 3.0
    # Σσ² = 0.09 + 0.16 + 0.25 + 1.44 = 1.94; over (SN)² = 16
    assert found.monte_carlo == pytest.approx(math.sqrt(1.94 / 16))
    # means over seeds 1.5 and 4.5, of variance 4.5; their Monte Carlo variance is (1.94/4)/2
    assert found.data == pytest.approx(math.sqrt((4.5 - 1.94 / 8) / 2))
    # means over data 2 and 4, of variance 2, over S = 2
    assert found.seed == pytest.approx(1.0)
    assert (found.num_seeds, found.num_data) == (2, 2)
    assert found.elbo == 2.0


def test_each_error_shrinks_with_its_own_number() -> None:
    """A row made of known parts: hard data, lucky seeds, noisy samples."""
    rng = np.random.default_rng(0)
    S, N, tau_data, tau_seed, sigma = 40, 400, 3.0, 0.5, 1.0
    L = (
        rng.normal(0, tau_data, N) + rng.normal(0, tau_seed, S)[:, None]
        + rng.normal(0, sigma, (S, N))
    )  # fmt: skip
    found = score(row(*(run(one, s, sigma) for s, one in enumerate(L))))
    assert found.monte_carlo == pytest.approx(sigma / math.sqrt(S * N))
    # a standard deviation of n values is known to within 1/√2n: five times that
    assert found.data == pytest.approx(tau_data / math.sqrt(N), rel=5 / math.sqrt(2 * N))
    with_noise = math.sqrt(tau_seed**2 + sigma**2 / N)
    assert found.seed == pytest.approx(with_noise / math.sqrt(S), rel=5 / math.sqrt(2 * S))


def test_the_error_by_seed_holds_the_noise_already() -> None:
    """No effect of a seed, noise 1 in each of 3 x 100: the mean scatters by 1/sqrt(300)."""
    generator = np.random.default_rng(0)
    squares = []
    for _ in range(400):
        runs = [run(generator.normal(size=100), seed=s, stderr=1.0) for s in range(3)]
        squares.append(score(row(*runs)).own ** 2)
    # the larger of the two, of which one scatters: 1 + exp(-1); counted twice it were 2
    assert np.mean(squares) == pytest.approx((1 + math.exp(-1)) / 300, rel=0.1)


def test_noise_alone_leaves_no_error_by_data() -> None:
    assert score(row(run([0.0, 0.1], stderr=1.0))).data == 0.0


def test_noise_that_is_not_known_stays_in_the_error_by_data() -> None:
    found = score(row(run([1.0, 3.0], stderr=math.nan)))
    assert math.isnan(found.monte_carlo)
    assert found.data == 1.0


def test_one_seed_has_no_error_by_seed_and_one_datum_none_by_data() -> None:
    found = score(row(run([1.0, 2.0])))
    assert math.isnan(found.seed)
    assert found.data > 0
    found = score(row(run([1.0], 0, 0.5), run([2.0], 1, 0.5)))
    assert math.isnan(found.data)
    assert found.monte_carlo == pytest.approx(math.sqrt(0.5 / 4))
    assert found.seed == 0.5


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("odd", [-math.inf, math.nan, math.inf])
def test_of_odd_values_no_error_is_claimed(odd: float) -> None:
    found = score(row(run([1.0, odd, 2.0], 0, 0.1), run([1.0, 2.0, 3.0], 1, 0.1)))
    assert str(found.value) == str(odd)
    assert math.isnan(found.data)
    assert math.isnan(found.seed)
    gap = difference(row(run([odd, 1.0])), row(run([odd, 2.0])))
    assert math.isnan(gap.value)
    assert not gap.sure


def test_khat_that_is_unknown_vouches_for_nothing() -> None:
    assert score(row(run([1, 2, 3, 4], khat=[0.1, 0.7, math.nan, 0.6]))).unreliable == 0.5
    chains = run([1, 2, 3, 4], khat=math.nan, rhat=np.array([1.0, 1.2, math.nan, 1.01]))
    assert score(row(chains)).unreliable == 0.5


def test_a_row_is_of_one_set_of_data() -> None:
    with pytest.raises(ValueError, match="same data"):
        row(run([1, 2]), run([1, 2, 3], 1))
    with pytest.raises(ValueError, match="same data"):
        row(run([1, 2]), run([1, 2], 1, fingerprint="g"))


def test_a_difference_is_paired_by_datum_and_seed() -> None:
    rng = np.random.default_rng(1)
    a, b = rng.normal(0, 10, (2, 3, 7))
    found = difference(
        row(*(run(v, s) for s, v in enumerate(a))), row(*(run(v, s) for s, v in enumerate(b)))
    )
    gap = a - b
    by_data = stats.ttest_1samp(gap.mean(0), 0.0)
    by_seed = stats.ttest_rel(a.mean(1), b.mean(1))
    assert found.value == pytest.approx(gap.mean())
    assert found.data == pytest.approx(stats.sem(gap.mean(0)))
    assert found.seed == pytest.approx(stats.sem(gap.mean(1)))
    assert found.p_data == pytest.approx(by_data.pvalue)
    assert found.p_seed == pytest.approx(by_seed.pvalue)
    assert (found.num_seeds, found.num_data) == (3, 7)


def test_only_shared_data_and_seeds_are_compared() -> None:
    mine = row(run([1.0, 2.0, 3.0], 0, datum=[5, 6, 7]), run([1.0, 1.0, 1.0], 1, datum=[5, 6, 7]))
    its = row(run([9.0, 1.0, 1.0], 0, datum=[8, 7, 6]))
    found = difference(mine, its)
    # of seed 0 the data 6 and 7: 2 − 1 and 3 − 1
    assert found.value == 1.5
    assert found.data == pytest.approx(0.5)
    assert (found.num_seeds, found.num_data) == (1, 2)
    assert math.isnan(found.seed)
    assert math.isnan(found.p_seed)
    assert not found.sure, "nothing is known of other seeds"


@pytest.mark.parametrize(
    ("other", "why"),
    [
        (run([1, 2], split="validation"), "validation"),
        (run([1, 2], fingerprint="g"), "fingerprint"),
        (run([1, 2], fingerprint=""), "does not say"),
        (run([1, 2], datum=[4, 5]), "no datum"),
        (run([1, 2], 3), "no seed"),
        (run([1, 2], simulated=True), "own"),
    ],
)
def test_what_cannot_be_paired_is_refused_with_a_reason(other: Estimated, why: str) -> None:
    mine = row(run([1, 2]))
    assert why in (unpaired(mine, row(other)) or "")
    with pytest.raises(ValueError, match=why):
        difference(mine, row(other))
    assert unpaired(mine, row(run([5, 6]))) is None


def test_equal_rows_differ_by_nothing_and_shifted_ones_surely() -> None:
    a = row(run([1.0, 2.0], 0), run([3.0, 1.0], 1))
    assert difference(a, a).p_data == 1.0
    b = row(run([2.0, 3.0], 0), run([4.0, 2.0], 1))
    found = difference(b, a)
    assert (found.value, found.data, found.seed, found.sure) == (1.0, 0.0, 0.0, True)
