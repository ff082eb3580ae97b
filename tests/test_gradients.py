"""The mean of many gradients equals the exact gradient of the stated target, for every rule.

Exact means: quadrature over the noise of all K particles, or a sum over all their codes, in numpy,
differentiated by finite differences. z-tests at 5 standard errors.
"""

from __future__ import annotations

import itertools
from functools import partial

import gradient_oracles as oracles
import numpy as np
import pytest
import torch
from gradient_toys import Chain, Code, Mixed, assert_is_expected, measure
from oracles import bernoulli_logpmf, normal_logpdf

from pyrovae.inference import MonteCarloObjective, bounds, gradients
from pyrovae.inference.objectives.gradients.self_normalized import coefficients

pytestmark = pytest.mark.usefixtures("one_thread")

X = np.array([-0.5, 1.4])
NOISE = 0.7
THETA, PHI = np.array([0.9, 0.3]), np.array([0.4, 0.2, -0.3])
DEEP_THETA = np.array([0.9, 0.3, 0.6])
DEEP_PHI = np.array([0.4, 0.2, -0.3, 0.5, -0.1, -0.2])
CODE_THETA, CODE_PHI = np.array([0.3, -0.4, 1.2, -0.7, 0.1]), np.array([0.8, -0.5, -0.2, 0.4])

TVO_GRID = bounds.TVO(3, first=0.1).grid
# a bound of M groups has the expectation of one of its groups
BOUNDS = {
    "elbo": (bounds.ELBO(), 3, partial(oracles.bound_of, "elbo"), 1),
    "iwae": (bounds.IWAE(), 3, partial(oracles.bound_of, "iwae"), 3),
    "miwae": (bounds.MIWAE(2), 6, partial(oracles.bound_of, "iwae"), 3),
    "miwae-3": (bounds.MIWAE(3), 6, partial(oracles.bound_of, "iwae"), 2),
    "ciwae": (bounds.CIWAE(0.3), 3, partial(oracles.bound_of, "ciwae", beta=0.3), 3),
    "renyi": (bounds.Renyi(0.4), 3, partial(oracles.bound_of, "renyi", alpha=0.4), 3),
    "renyi-negative": (bounds.Renyi(-1.0), 3, partial(oracles.bound_of, "renyi", alpha=-1.0), 3),
    "tvo": (bounds.TVO(3, first=0.1), 3, partial(oracles.bound_of, "tvo", grid=TVO_GRID), 3),
    "jackknife": (bounds.Jackknife(1), 3, partial(oracles.bound_of, "jackknife"), 3),
}


def exact(system, formula, theta, phi, count, **how):
    """The gradient of the K-particle bound's mean, over theta and phi."""
    return np.concatenate(
        [
            oracles.derivative(
                lambda t: system.expected_bound(formula, t, phi, phi, X, count, **how), theta
            ),
            oracles.derivative(
                lambda p: system.expected_bound(formula, theta, p, p, X, count, **how), phi
            ),
        ]
    )


def exact_weighted(system, weights, theta, phi, count, **how):
    """The mean of sum_k c_k grad log p + d_k grad log q."""
    at = (theta, phi)
    return np.concatenate(
        [
            oracles.derivative(
                lambda t: system.expected_weighted(weights, at, t, phi, X, count, **how), theta
            ),
            oracles.derivative(
                lambda p: system.expected_weighted(weights, at, theta, p, X, count, **how), phi
            ),
        ]
    )


# --- draws that can be reparameterised -----------------------------------------------------------

CHAIN = oracles.GaussianChain(1, NOISE)
EVERYWHERE = partial(gradients.ScoreFunction, everywhere=True)
UNBIASED = {
    "pathwise": (gradients.Pathwise, list(BOUNDS)),
    "dreg": (
        gradients.DoublyReparameterized,
        ["elbo", "iwae", "miwae", "miwae-3", "ciwae", "renyi", "renyi-negative"],
    ),
    "stl": (gradients.StickingTheLanding, ["elbo"]),
    "score": (EVERYWHERE, ["elbo", "iwae"]),
    "score-leave-one-out": (
        lambda: EVERYWHERE(gradients.LeaveOneOut()),
        ["elbo", "iwae", "miwae", "ciwae", "renyi", "tvo", "jackknife"],
    ),
}


@pytest.mark.parametrize(
    ("rule", "bound"), [(rule, bound) for rule, (_, names) in UNBIASED.items() for bound in names]
)
def test_the_gradient_is_that_of_the_particles_bound(rule, bound):
    torch.manual_seed(0)
    which, particles, formula, count = BOUNDS[bound]
    objective = MonteCarloObjective(which, UNBIASED[rule][0](), particles)
    found = measure(objective, Chain(THETA, PHI, NOISE), X)
    assert_is_expected(found, exact(CHAIN, formula, THETA, PHI, count, nodes=20))


@pytest.mark.parametrize("rule", ["pathwise", "dreg"])
def test_a_hierarchy_has_its_gradient_too(rule):
    torch.manual_seed(1)
    deep = oracles.GaussianChain(2, NOISE)
    objective = MonteCarloObjective(bounds.IWAE(), UNBIASED[rule][0](), 2)
    found = measure(objective, Chain(DEEP_THETA, DEEP_PHI, NOISE), X)
    formula = partial(oracles.bound_of, "iwae")
    assert_is_expected(found, exact(deep, formula, DEEP_THETA, DEEP_PHI, 2, nodes=12))


def test_sticking_the_landing_is_biased_for_the_iwae_as_it_says():
    """Its mean is that of the path alone: measured, and the bias stated."""
    torch.manual_seed(2)
    formula = partial(oracles.bound_of, "iwae")
    path = oracles.derivative(
        lambda p: CHAIN.expected_bound(formula, THETA, p, PHI, X, 3, nodes=20), PHI
    )
    truth = exact(CHAIN, formula, THETA, PHI, 3, nodes=20)
    objective = MonteCarloObjective(bounds.IWAE(), gradients.StickingTheLanding(), 3)
    found = measure(objective, Chain(THETA, PHI, NOISE), X)
    assert_is_expected(found, np.concatenate([truth[:2], path]))
    bias = path - truth[2:]
    assert np.abs(bias).max() > 0.05 * np.abs(truth[2:]).max()
    assert np.abs(bias / found[1][2:]).max() > 5  # so that the test can tell


def test_the_split_gives_each_program_its_own_bound():
    torch.manual_seed(3)
    objective = MonteCarloObjective(bounds.IWAE(), gradients.Split(bounds.MIWAE(2)), 6)
    found = measure(objective, Chain(THETA, PHI, NOISE), X)
    formula = partial(oracles.bound_of, "iwae")
    theta = oracles.derivative(
        lambda t: CHAIN.expected_bound(formula, t, PHI, PHI, X, 6, nodes=8), THETA, step=1e-3
    )
    phi = exact(CHAIN, formula, THETA, PHI, 3, nodes=20)[2:]
    assert_is_expected(found, np.concatenate([theta, phi]))


def shares(log_weight, power=1.0):
    weight = np.exp(power * log_weight)
    return weight / weight.sum(0)


def wake(log_weight):
    return shares(log_weight), shares(log_weight)


@pytest.mark.parametrize("doubly", [False, True])
def test_wake_updates_are_weighted_scores(doubly):
    torch.manual_seed(4)
    rule = gradients.WakeSleep(doubly_reparameterized=doubly)
    found = measure(MonteCarloObjective(bounds.IWAE(), rule, 3), Chain(THETA, PHI, NOISE), X)
    assert_is_expected(found, exact_weighted(CHAIN, wake, THETA, PHI, 3, nodes=20))


def self_normalized(bound):
    """The published covariances, written out."""

    def tvo(log_weight):
        of_model = of_guide = 0.0
        for left, right in itertools.pairwise(TVO_GRID):
            share = shares(log_weight, left)
            off = log_weight - (share * log_weight).sum(0)
            of_model = of_model + (right - left) * share * (1 + left * off)
            of_guide = of_guide + (right - left) * share * ((1 - left) * off - 1)
        return of_model, of_guide

    def cubo(log_weight):  # lowered: the loss has the other sign
        return 0 * log_weight, 0.5 * shares(log_weight, 2.0)

    return tvo if isinstance(bound, bounds.TVO) else cubo


@pytest.mark.parametrize("bound", [bounds.TVO(3, first=0.1), bounds.CUBO(2)])
def test_self_normalised_gradients_are_weighted_scores(bound):
    torch.manual_seed(5)
    objective = MonteCarloObjective(bound, gradients.SelfNormalized(), 3)
    found = measure(objective, Chain(THETA, PHI, NOISE), X)
    assert_is_expected(
        found, exact_weighted(CHAIN, self_normalized(bound), THETA, PHI, 3, nodes=20)
    )


def limit_tvo(theta, phi, nodes=80):
    """The left sum of exact expectations under pi_beta, by quadrature over z."""
    z = np.linspace(-9, 9, 4001)
    total = 0.0
    for datum in X:
        joint, guide = CHAIN.log_joint(theta, datum, [z]), CHAIN.log_guide(phi, datum, [z])
        for left, right in itertools.pairwise(TVO_GRID):
            density = np.exp((1 - left) * guide + left * joint)
            total += (right - left) * (density * (joint - guide)).sum() / density.sum()
    return total


def limit_cubo(theta, phi):
    z = np.linspace(-9, 9, 4001)
    total = 0.0
    for datum in X:
        joint, guide = CHAIN.log_joint(theta, datum, [z]), CHAIN.log_guide(phi, datum, [z])
        total += 0.5 * np.log((np.exp(2 * joint - guide)).sum() * (z[1] - z[0]))
    return total


@pytest.mark.parametrize(("name", "sign"), [("tvo", 1), ("cubo", -1)])
def test_the_bias_of_self_normalised_gradients_falls_as_one_over_k(name, sign):
    """Against the exact expectations they stand for; the size of the bias at K = 3 is stated."""
    bound, limit = {
        "tvo": (bounds.TVO(3, first=0.1), limit_tvo),
        "cubo": (bounds.CUBO(2), limit_cubo),
    }[name]
    target = sign * oracles.derivative(lambda p: limit(THETA, p), PHI)
    bias = []
    for count in (2, 4):
        how = {"nodes": 10 if count == 4 else 40}
        mean = exact_weighted(CHAIN, self_normalized(bound), THETA, PHI, count, **how)[2:]
        bias.append(np.linalg.norm(mean - target) / np.linalg.norm(target))
    assert bias[0] > 0.01
    assert 0.3 < bias[1] / bias[0] < 0.7
    torch.manual_seed(6)
    objective = MonteCarloObjective(bound, gradients.SelfNormalized(), 400)
    mean, stderr = measure(objective, Chain(THETA, PHI, NOISE), X, repeats=60, tiled=20)
    allowance = 5 * stderr[2:] + bias[1] * 4 / 400 * 2 * np.linalg.norm(target)
    assert (np.abs(mean[2:] - target) < allowance).all()


def limit_renyi(theta, phi, alpha=0.4):
    z = np.linspace(-9, 9, 4001)
    total = 0.0
    for datum in X:
        joint, guide = CHAIN.log_joint(theta, datum, [z]), CHAIN.log_guide(phi, datum, [z])
        mass = np.exp((1 - alpha) * joint + alpha * guide).sum() * (z[1] - z[0])
        total += np.log(mass) / (1 - alpha)
    return total


@pytest.mark.parametrize(("name", "limit"), [("renyi", limit_renyi), ("tvo", limit_tvo)])
def test_the_particles_target_of_renyi_and_tvo_is_off_the_exact_bound_by_one_over_k(name, limit):
    """What Pathwise follows without bias is the K-particle mean: here its distance is stated."""
    formula = BOUNDS[name][2]
    target = oracles.derivative(lambda p: limit(THETA, p), PHI)
    off = []
    for count, nodes in ((2, 40), (4, 10)):
        mean = exact(CHAIN, formula, THETA, PHI, count, nodes=nodes)[2:]
        off.append(np.linalg.norm(mean - target) / np.linalg.norm(target))
    assert off[0] > 0.01
    assert 0.3 < off[1] / off[0] < 0.8


def test_coefficients_are_those_of_the_limit():
    """Weights that are all equal leave the plain scores."""
    of_model, of_guide = coefficients(bounds.TVO(3), torch.zeros(5, 1, dtype=torch.float64))
    np.testing.assert_allclose(of_model, 0.2)
    np.testing.assert_allclose(of_guide, -0.2)


# --- draws that cannot ---------------------------------------------------------------------------

CODES = oracles.BinaryCode(2, NOISE)
DISCRETE = {
    "none": gradients.NoBaseline,
    "average": gradients.MovingAverage,
    "leave-one-out": gradients.LeaveOneOut,
    "network": lambda: gradients.NetworkBaseline(Reading()),
}


class Reading(torch.nn.Module):
    """A baseline that is wrong, but not useless."""

    def __init__(self):
        super().__init__()
        self.line = torch.nn.Linear(1, 1).double()

    def forward(self, x):
        return self.line(x[:, None])


@pytest.mark.parametrize("baseline", DISCRETE)
@pytest.mark.parametrize("bound", ["elbo", "iwae"])
def test_score_functions_are_unbiased_for_codes(baseline, bound):
    torch.manual_seed(7)
    which, particles, formula, count = BOUNDS[bound]
    rule = gradients.ScoreFunction(DISCRETE[baseline]())
    found = measure(
        MonteCarloObjective(which, rule, particles), Code(CODE_THETA, CODE_PHI, NOISE), X
    )
    assert_is_expected(found, exact(CODES, formula, CODE_THETA, CODE_PHI, count))


@pytest.mark.parametrize("bound", ["miwae", "miwae-3", "ciwae", "renyi", "tvo", "jackknife"])
def test_leave_one_out_is_unbiased_for_every_bound(bound):
    torch.manual_seed(8)
    which, particles, formula, count = BOUNDS[bound]
    rule = gradients.ScoreFunction(gradients.LeaveOneOut())
    found = measure(
        MonteCarloObjective(which, rule, particles), Code(CODE_THETA, CODE_PHI, NOISE), X
    )
    assert_is_expected(found, exact(CODES, formula, CODE_THETA, CODE_PHI, count))


@pytest.mark.parametrize("one_hot", [False, True])
def test_vimco_is_unbiased(one_hot):
    torch.manual_seed(9)
    pair = Code(CODE_THETA, CODE_PHI, NOISE, one_hot)
    found = measure(MonteCarloObjective(bounds.IWAE(), gradients.VIMCO(), 3), pair, X)
    formula = partial(oracles.bound_of, "iwae")
    assert_is_expected(found, exact(CODES, formula, CODE_THETA, CODE_PHI, 3))


def test_baselines_lower_the_variance():
    spread = {}
    for name in ("none", "leave-one-out"):
        torch.manual_seed(10)
        rule = gradients.ScoreFunction(DISCRETE[name]())
        objective = MonteCarloObjective(bounds.IWAE(), rule, 3)
        _, stderr = measure(objective, Code(CODE_THETA, CODE_PHI, NOISE), X)
        spread[name] = (stderr[5:] ** 2).sum()
    assert spread["leave-one-out"] < 0.3 * spread["none"]


def test_wake_and_sleep_of_codes():
    torch.manual_seed(11)
    objective = MonteCarloObjective(bounds.IWAE(), gradients.WakeSleep(wake=0.5, sleep=2.0), 3)
    found = measure(objective, Code(CODE_THETA, CODE_PHI, NOISE), X)

    def half_wake(log_weight):
        return shares(log_weight), 0.5 * shares(log_weight)

    expected = exact_weighted(CODES, half_wake, CODE_THETA, CODE_PHI, 3)
    dreamt = oracles.derivative(lambda p: CODES.expected_sleep(CODE_THETA, p), CODE_PHI)
    expected[5:] += 2.0 * len(X) * dreamt
    assert_is_expected(found, expected)


@pytest.mark.parametrize("one_hot", [False, True])
def test_relaxed_draws_have_the_gradient_of_the_relaxed_bound(one_hot):
    torch.manual_seed(12)
    theta, phi, single = CODE_THETA[[0, 2, 4]], CODE_PHI[[0, 2]], oracles.BinaryCode(1, NOISE)
    formula = partial(oracles.bound_of, "iwae")

    def relaxed(t, p):
        return single.expected_relaxed(formula, t, p, X, 2, temperature=0.7)

    expected = np.concatenate(
        [
            oracles.derivative(lambda t: relaxed(t, phi), theta),
            oracles.derivative(lambda p: relaxed(theta, p), phi),
        ]
    )
    objective = MonteCarloObjective(bounds.IWAE(), gradients.Relaxed(0.7), 2)
    # two classes differ by the difference of two Gumbel variables, which is logistic
    found = measure(objective, Code(theta, phi, NOISE, one_hot), X)
    assert_is_expected(found, expected)


def test_straight_through_has_the_value_of_hard_draws_and_a_biased_gradient():
    """Its mean is computed, and its distance from the ELBO's true gradient stated."""
    torch.manual_seed(13)
    theta, phi, temperature = CODE_THETA[[0, 2, 4]], CODE_PHI[[0, 2]], 0.7
    single = oracles.BinaryCode(1, NOISE)
    node = np.linspace(-34, 34, 200_001)
    density = np.exp(-node - 2 * np.logaddexp(0, -node)) * (node[1] - node[0])
    straight = np.zeros(2)
    for datum in X:
        logit = phi[0] * datum + phi[1]
        soft = 1 / (1 + np.exp(-(logit + node) / temperature))
        hard = (logit + node > 0).astype(float)
        pull = (datum - theta[1] * hard - theta[2]) * theta[1] / NOISE**2 + theta[0] - logit
        path = (density * pull * soft * (1 - soft) / temperature).sum()
        straight += path * np.array([datum, 1.0])
    formula = partial(oracles.bound_of, "elbo")
    truth = exact(single, formula, theta, phi, 1)
    pair = Code(theta, phi, NOISE)
    objective = MonteCarloObjective(bounds.ELBO(), gradients.StraightThrough(temperature), 3)
    found = measure(objective, pair, X)
    assert_is_expected(found, np.concatenate([truth[:3], straight]))
    assert np.abs((straight - truth[3:]) / found[1][3:]).max() > 10
    batch = torch.tensor(X).repeat(30_000)
    with torch.no_grad():
        value = -float(objective.differentiable_loss(pair.model, pair.guide, batch)) / 30_000
    expected = single.expected_bound(formula, theta, phi, phi, X, 1)
    assert value == pytest.approx(expected, abs=0.02)


@pytest.mark.parametrize("rule", [gradients.Relaxed(0.7), gradients.StraightThrough(0.7)])
def test_relaxed_objectives_are_reported_with_hard_draws(rule):
    """The reported loss is the bound of the programs as they are."""
    torch.manual_seed(14)
    pair, formula = Code(CODE_THETA, CODE_PHI, NOISE), partial(oracles.bound_of, "iwae")
    objective = MonteCarloObjective(bounds.IWAE(), rule, 3)
    batch = torch.tensor(X).repeat(2000)
    values = [-objective.loss(pair.model, pair.guide, batch) / 2000 for _ in range(20)]
    expected = CODES.expected_bound(formula, CODE_THETA, CODE_PHI, CODE_PHI, X, 3)
    stderr = np.std(values, ddof=1) / np.sqrt(len(values))
    assert abs(np.mean(values) - expected) < 5 * stderr


# --- mixed latents -------------------------------------------------------------------------------


def test_each_latent_takes_the_gradient_that_it_can():
    """A code, and a number that is drawn given it: pathwise and score in one, without bias."""
    torch.manual_seed(14)
    pair, x = Mixed(NOISE), X
    theta_phi = np.concatenate([pair.theta.detach(), pair.phi.detach()])
    expected = oracles.derivative(lambda v: mixed_iwae(v, x), theta_phi)
    rule = gradients.ScoreFunction(gradients.LeaveOneOut())
    found = measure(MonteCarloObjective(bounds.IWAE(), rule, 2), pair, x)
    assert_is_expected(found, expected)


def mixed_iwae(vector, x, count=2, nodes=30):
    theta, phi = vector[:4], vector[4:]
    eps, chance_eps = oracles.gaussian_grid(count, nodes)
    total = 0.0
    for datum in x:
        for codes in np.ndindex(*[2] * count):
            chance, weights = 1.0, []
            for k, c in enumerate(codes):
                log_q = bernoulli_logpmf(c, phi[0] * datum + phi[1])
                chance = chance * np.exp(log_q)
                loc = phi[2] * datum + phi[3] * c + phi[4]
                z = loc + np.exp(phi[5]) * eps[k]
                joint = bernoulli_logpmf(c, theta[0])
                joint = joint + normal_logpdf(z, theta[1] + (theta[2] - theta[1]) * c)
                joint = joint + normal_logpdf(datum, theta[3] * z, NOISE)
                weights.append(joint - log_q - normal_logpdf(z, loc, np.exp(phi[5])))
            total += chance * (chance_eps * oracles.bound_of("iwae", np.stack(weights))).sum()
    return total


# --- no variance at the posterior ----------------------------------------------------------------


def exact_chain():
    """A guide of the chain that is the posterior."""
    precision = THETA[0] ** 2 + NOISE**2
    slope = THETA[0] / precision
    scale = NOISE / np.sqrt(precision)
    return Chain(THETA, [slope, -slope * THETA[1], np.log(scale)], NOISE)


@pytest.mark.parametrize(
    ("rule", "bound", "is_still"),
    [
        (gradients.StickingTheLanding(), bounds.ELBO(), True),
        (gradients.StickingTheLanding(), bounds.IWAE(), True),
        (gradients.DoublyReparameterized(), bounds.IWAE(), True),
        (gradients.DoublyReparameterized(), bounds.Renyi(0.5), True),
        (gradients.WakeSleep(doubly_reparameterized=True), bounds.IWAE(), True),
        (gradients.ScoreFunction(gradients.LeaveOneOut(), everywhere=True), bounds.IWAE(), True),
        (gradients.Pathwise(), bounds.ELBO(), False),
        (gradients.Pathwise(), bounds.IWAE(), False),
        (gradients.WakeSleep(), bounds.IWAE(), False),
    ],
)
def test_variance_of_the_guides_gradient_at_the_posterior(rule, bound, is_still):
    torch.manual_seed(15)
    pair = exact_chain()
    _, stderr = measure(MonteCarloObjective(bound, rule, 5), pair, X, repeats=20, tiled=1)
    variance = 20 * (stderr[2:] ** 2).sum()
    assert (variance < 1e-24) if is_still else (variance > 1e-3)
