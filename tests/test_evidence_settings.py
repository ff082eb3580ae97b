"""Settings that make no sense are refused by name, before anything is run."""

from __future__ import annotations

import dataclasses
import math

import pytest
from estimator_toys import (
    ALL,
    ANNEALING,
    SAMPLING,
    SMALL,
    STREAMING,
    X,
    guide,
    model,
    named,
)

from pyrovae.inference import (
    AnnealedImportanceSampling,
    BidirectionalMonteCarlo,
    ChiUpperBound,
    EqualLength,
    ImportanceSampling,
    JackknifeImportanceSampling,
    RefinedImportanceSampling,
    SequentialMonteCarlo,
    ThermodynamicIntegration,
)

pytestmark = pytest.mark.usefixtures("one_thread")

AIS, BDMC = AnnealedImportanceSampling, BidirectionalMonteCarlo
SMC, TI = SequentialMonteCarlo, ThermodynamicIntegration

COUNT = "must be a whole number of at least 1, but is"
STARTS = r"start must be 'guide', 'prior', Scaled\(...\) or StudentT\(...\), but is"


@pytest.mark.parametrize("kind", **named([*ANNEALING, *SAMPLING]))
@pytest.mark.parametrize(
    ("settings", "error", "message"),
    [
        ({"num_chains": 0}, ValueError, f"num_chains {COUNT} 0"),
        ({"num_chains": 2.0}, ValueError, rf"num_chains {COUNT} 2\.0"),
        ({"num_chains": True}, ValueError, f"num_chains {COUNT} True"),
        ({"start": "x"}, ValueError, f"{STARTS} 'x'"),
        ({"start": None}, ValueError, f"{STARTS} None"),
        ({"start": guide}, ValueError, f"{STARTS} <function"),
        ({"kernel": "nuts"}, TypeError, r"kernel must be HMC\(...\) .* but is 'nuts'"),
        ({"kernel": None}, TypeError, r"kernel must be HMC\(...\) .* but is None"),
    ],
)
def test_settings_of_chains_are_checked(kind, settings, error, message):
    with pytest.raises(error, match=message):
        kind(**settings)


@pytest.mark.parametrize("kind", **named(ANNEALING))
@pytest.mark.parametrize(
    ("settings", "error", "message"),
    [
        ({"num_temperatures": 0}, ValueError, f"num_temperatures {COUNT} 0"),
        ({"num_temperatures": "10"}, ValueError, f"num_temperatures {COUNT} '10'"),
        ({"pilot_temperatures": 0}, ValueError, f"pilot_temperatures {COUNT} 0"),
        ({"schedule": 3}, TypeError, r"schedule must be Linear\(\), Sigmoid\(\) or .* but is 3"),
        ({"schedule": EqualLength}, TypeError, r"schedule must be Linear\(\)"),
    ],
)
def test_settings_of_annealing_are_checked(kind, settings, error, message):
    with pytest.raises(error, match=message):
        kind(**settings)


@pytest.mark.parametrize("kind", **named(SAMPLING))
@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"num_draws": 0}, f"num_draws {COUNT} 0"),
        ({"num_draws": 3}, "num_draws must be at least 4, but is 3"),
        ({"num_warmup": 0}, f"num_warmup {COUNT} 0"),
        ({"num_warmup": 19}, "num_warmup must be at least 20, to adapt in, but is 19"),
    ],
)
def test_settings_of_posterior_draws_are_checked(kind, settings, message):
    with pytest.raises(ValueError, match=message):
        kind(**settings)


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: SMC(adaptive=0), ValueError, r"adaptive must be in \(0, 1\), but is 0"),
        (lambda: SMC(adaptive=1.0), ValueError, r"adaptive must be in \(0, 1\), but is 1\.0"),
        (lambda: SMC(adaptive=True), TypeError, "adaptive must be a number, but is True"),
        (lambda: SMC(threshold=-0.1), ValueError, r"threshold must be in \[0, 1\], but is -0\.1"),
        (lambda: SMC(threshold=1.1), ValueError, r"threshold must be in \[0, 1\], but is 1\.1"),
        (lambda: SMC(threshold="a"), TypeError, "threshold must be a number, but is 'a'"),
        (lambda: TI(num_moves=0), ValueError, f"num_moves {COUNT} 0"),
        (lambda: TI(num_chains=1), ValueError, "num_chains must be at least 2, .* but is 1"),
        (lambda: BDMC(posterior=3), TypeError, "posterior must be a Pyro program or None.* is 3"),
        (
            lambda: ImportanceSampling(defensive=1.5),
            ValueError,
            r"defensive must be in \[0, 1\], but is 1\.5",
        ),
        (
            lambda: ImportanceSampling(defensive=1),
            ValueError,
            "defensive must be below 1, but is 1: that is PriorMonteCarlo",
        ),
        (
            lambda: ImportanceSampling(defensive=-0.1),
            ValueError,
            r"defensive must be in \[0, 1\], but is -0\.1",
        ),
        (
            lambda: ImportanceSampling(num_samples=4, defensive=0.1),
            ValueError,
            r"num_samples must leave a sample to the prior .* 4 at defensive=0\.1 leave 0 and 4",
        ),
        (lambda: ImportanceSampling(smooth=1), TypeError, "smooth must be True or False, .* 1"),
        (
            lambda: ImportanceSampling(proposal="wide"),
            TypeError,
            r"proposal must be Scaled\(...\), StudentT\(...\) or None, but is 'wide'",
        ),
        (lambda: JackknifeImportanceSampling(order=3), ValueError, "order must be 1 or 2, .* is 3"),
        (
            lambda: JackknifeImportanceSampling(order=True),
            ValueError,
            "order must be 1 or 2, but is True",
        ),
        (
            lambda: JackknifeImportanceSampling(num_samples=2, order=2),
            ValueError,
            "num_samples must be larger than the order, 2, but is 2",
        ),
        (lambda: ChiUpperBound(power=0.5), ValueError, "power must be finite and at least 1.*0.5"),
        (lambda: ChiUpperBound(power="2"), TypeError, "power must be a number, but is '2'"),
        (
            lambda: RefinedImportanceSampling(df=0),
            ValueError,
            "df must be finite and larger than 0, but is 0",
        ),
        (lambda: RefinedImportanceSampling(df=math.nan), ValueError, "df must be .* but is nan"),
        (lambda: RefinedImportanceSampling(df=-math.inf), ValueError, "df must be .* is -inf"),
        (lambda: RefinedImportanceSampling(num_steps=0), ValueError, f"num_steps {COUNT} 0"),
        (lambda: RefinedImportanceSampling(num_particles=0), ValueError, f"num_particles {COUNT}"),
        (
            lambda: RefinedImportanceSampling(learning_rate=0.0),
            ValueError,
            r"learning_rate must be finite and larger than 0, but is 0\.0",
        ),
        (
            lambda: RefinedImportanceSampling(full_rank="yes"),
            TypeError,
            "full_rank must be True or False, but is 'yes'",
        ),
    ],
)
def test_settings_of_single_estimators_are_checked(make, error, message):
    with pytest.raises(error, match=message):
        make()


@pytest.mark.parametrize("kind", **named(ALL))
@pytest.mark.parametrize(
    ("settings", "error", "message"),
    [
        ({"checkpoint": 3}, TypeError, "checkpoint must be a path or None, but is 3"),
        ({"memory": 0}, ValueError, f"memory {COUNT} 0"),
        ({"seed": -1}, ValueError, r"seed must be a whole number in \[0, 2\^64\) .* but is -1"),
        ({"seed": 2**64}, ValueError, "seed must be a whole number .* but is 18446744073709551616"),
        ({"progress": "x"}, TypeError, "progress must be True or False, but is 'x'"),
        ({"seed": True}, ValueError, "seed must be a whole number .* but is True"),
    ],
)
def test_settings_that_all_share_are_checked(kind, settings, error, message):
    with pytest.raises(error, match=message):
        kind(**settings)


@pytest.mark.parametrize("kind", **named([*STREAMING, RefinedImportanceSampling]))
def test_the_number_of_samples_is_checked(kind):
    with pytest.raises(ValueError, match=f"num_samples {COUNT} 0"):
        kind(num_samples=0)


@pytest.mark.parametrize("kind", **named(ALL))
def test_an_unknown_way_is_refused(kind):
    estimator = dataclasses.replace(SMALL[kind], particles="vmap")
    with pytest.raises(ValueError, match=r"particles must be 'auto' or one of .* but is 'vmap'"):
        estimator(model, guide, X)
