"""What objectives are made of is checked: types, numbers, and pairs that make no sense."""

from __future__ import annotations

import math

import pytest
from objective_toys import binary_data, small_vae

from pyrovae.inference import (
    CHIVI,
    CIWAE,
    ELBO,
    IWAE,
    JVI,
    KL,
    MIWAE,
    PIWAE,
    REINFORCE,
    RWS,
    STL,
    TVO,
    VIMCO,
    BetaVAE,
    DReG,
    MonteCarloObjective,
    Renyi,
    bounds,
    gradients,
)

pytestmark = pytest.mark.usefixtures("one_thread")


# --- types and numbers ----------------------------------------------------------------------------


@pytest.mark.parametrize("bound", [None, "IWAE", bounds.IWAE, IWAE, 5, gradients.Pathwise()])
def test_a_bound_must_be_one(bound):
    with pytest.raises(TypeError, match="bound must be a bound"):
        MonteCarloObjective(bound)


@pytest.mark.parametrize("rule", ["pathwise", gradients.Pathwise, bounds.IWAE(), DReG()])
def test_a_gradient_must_be_one(rule):
    with pytest.raises(TypeError, match="gradient must be a gradient rule, but is"):
        MonteCarloObjective(bounds.IWAE(), rule)


@pytest.mark.parametrize("kl", [0.5, KL, "analytic"])
def test_a_kl_must_be_one(kl):
    with pytest.raises(TypeError, match="kl must be a KL or None, but is"):
        MonteCarloObjective(bounds.ELBO(), kl=kl)


@pytest.mark.parametrize("num_particles", [0, -1, 2.5, 3.0, True, None, "5"])
def test_a_number_of_particles_must_be_one(num_particles):
    message = "num_particles must be a whole number of at least 1, but is"
    with pytest.raises(ValueError, match=message):
        MonteCarloObjective(bounds.IWAE(), num_particles=num_particles)
    with pytest.raises(ValueError, match=message):
        IWAE(num_particles)


def test_an_unknown_way_is_refused():
    vae = small_vae()
    with pytest.raises(ValueError, match=r"particles must be 'auto' or one of .*, but is 'vmap'"):
        IWAE(particles="vmap").loss(vae.model, vae.guide, binary_data())


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: MonteCarloObjective(bounds.MIWAE(4), num_particles=6), "must divide num_particle"),
        (
            lambda: MonteCarloObjective(bounds.IWAE(), gradients.Split(bounds.MIWAE(4)), 6),
            "num_groups must divide num_particles, 6, but is 4",
        ),
        (lambda: MonteCarloObjective(bounds.Jackknife(2), num_particles=2), "of the jackknife, 2"),
        (lambda: JVI(order=5, num_particles=5), "larger than the order of the jackknife, 5"),
        (
            lambda: MonteCarloObjective(
                bounds.IWAE(), gradients.Split(bounds.Jackknife(3)), num_particles=3
            ),
            "larger than the order of the jackknife, 3",
        ),
        (lambda: VIMCO(1), "at least 2 for a leave-one-out baseline, but is 1"),
        (
            lambda: MonteCarloObjective(
                bounds.ELBO(), gradients.ScoreFunction(gradients.LeaveOneOut()), 1
            ),
            "at least 2 for a leave-one-out baseline, but is 1",
        ),
        (lambda: MIWAE(0), "num_groups must be a whole number of at least 1, but is 0"),
        (lambda: CIWAE(2.0), r"beta must be in \[0, 1\], but is 2.0"),
        (lambda: BetaVAE(-1.0), "weight must be finite and at least 0, but is -1.0"),
        (lambda: RWS(wake=-1.0), "wake must be finite and at least 0, but is -1.0"),
        (lambda: RWS(sleep=math.nan), "sleep must be finite and at least 0, but is nan"),
        (lambda: RWS(wake=0.0, sleep=0.0), "wake or sleep must be positive, but both are 0"),
        (
            lambda: gradients.WakeSleep(wake=0.5, doubly_reparameterized=True),
            "wake must be 1 where it is doubly reparameterised, but is 0.5",
        ),
        (lambda: gradients.MovingAverage(1.0), r"decay must be in \[0, 1\), but is 1"),
        (lambda: gradients.MovingAverage(-0.1), r"decay must be in \[0, 1\], but is -0.1"),
        (lambda: gradients.Relaxed(0.0), "temperature must be finite and larger than 0"),
        (lambda: gradients.StraightThrough(math.nan), "temperature must be finite and larger"),
    ],
)  # fmt: skip
def test_numbers_are_checked(make, message):
    with pytest.raises(ValueError, match=message):
        make()


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: gradients.ScoreFunction(gradients.NoBaseline), "baseline must be a Baseline, as"),
        (lambda: gradients.ScoreFunction(0.9), "baseline must be a Baseline, as"),
        (lambda: gradients.Split(MIWAE()), "guide_bound must be a bound, as"),
        (lambda: gradients.Split(bounds.IWAE), "guide_bound must be a bound, as"),
    ],
)
def test_types_of_settings_are_checked(make, message):
    with pytest.raises(TypeError, match=message):
        make()


# --- bounds and rules that do not go together -----------------------------------------------------

SIGNED = [bounds.TVO(), bounds.Jackknife(), bounds.CUBO()]
PATHS = [gradients.StickingTheLanding(), gradients.DoublyReparameterized()]
OF_THE_ESTIMATE = [
    gradients.Pathwise(),
    gradients.ScoreFunction(),
    gradients.ScoreFunction(everywhere=True),
    gradients.Relaxed(),
    gradients.StraightThrough(),
    gradients.Split(bounds.ELBO()),
]
PAIRS = [
    *((rule, bound, "") for rule in PATHS for bound in SIGNED),
    *((rule, bounds.CUBO(), "has no lower limit.*use SelfNormal") for rule in OF_THE_ESTIMATE),
    (gradients.WakeSleep(), bounds.ELBO(), "its wake update of the model is .* of the IWAE"),
    (gradients.WakeSleep(), bounds.CUBO(), "of the IWAE"),
    (gradients.SelfNormalized(), bounds.IWAE(), "it is that of TVO and CUBO"),
    (gradients.SelfNormalized(), bounds.ELBO(), "it is that of TVO and CUBO"),
    (gradients.VIMCO(), bounds.ELBO(), r"takes any bound"),
    (gradients.VIMCO(), bounds.MIWAE(2), r"takes any bound"),
]


@pytest.mark.parametrize(("rule", "bound", "reason"), PAIRS, ids=repr)
def test_pairs_without_a_meaning_are_refused(rule, bound, reason):
    names = f"{type(rule).__name__} makes no sense for {type(bound).__name__}: "
    with pytest.raises(ValueError, match=f"gradient: {names}.*{reason}"):
        MonteCarloObjective(bound, rule, num_particles=4)


@pytest.mark.parametrize(
    ("rule", "bound"),
    [
        *((rule, bounds.MIWAE(2)) for rule in PATHS),
        *((rule, bounds.Renyi(0.3)) for rule in PATHS),
        (gradients.Pathwise(), bounds.TVO()),
        (gradients.Split(bounds.CUBO()), bounds.IWAE()),
        (gradients.Split(bounds.TVO()), bounds.Jackknife()),
        (gradients.ScoreFunction(gradients.LeaveOneOut()), bounds.TVO()),
        (gradients.SelfNormalized(), bounds.CUBO(3)),
    ],
    ids=repr,
)
def test_pairs_with_one_are_taken(rule, bound):
    objective = MonteCarloObjective(bound, rule, num_particles=4)
    assert (objective.bound, objective.gradient) == (bound, rule)


# --- bounds by the names of objectives ------------------------------------------------------------


@pytest.mark.parametrize("make", [ELBO, IWAE, MIWAE, CIWAE, Renyi, JVI])
def test_a_shortcut_gives_its_bound(make):
    objective = MonteCarloObjective(make(), num_particles=8)
    assert objective.bound == make().bound
    assert objective.num_particles == 8
    assert objective.gradient == gradients.Pathwise()


def test_a_shortcut_goes_with_another_rule():
    objective = MonteCarloObjective(IWAE(), gradients.DoublyReparameterized(), num_particles=3)
    assert repr(objective) == repr(DReG(3))
    with pytest.raises(ValueError, match="StickingTheLanding makes no sense for Jackknife"):
        MonteCarloObjective(JVI(), gradients.StickingTheLanding(), num_particles=3)


@pytest.mark.parametrize("make", [STL, DReG, BetaVAE, TVO, REINFORCE, VIMCO, RWS, CHIVI, PIWAE])
def test_a_whole_objective_is_no_bound(make):
    with pytest.raises(TypeError, match="bound must be a bound, but is a whole objective"):
        MonteCarloObjective(make(), num_particles=8)
