"""The KL as a term of its own: warm-up, free bits and closed forms, against formulas in numpy."""

from __future__ import annotations

import math

import numpy as np
import oracles
import programs
import pyro
import pyro.distributions as dist
import pytest
import torch
from kl_toys import (
    DATA_DIM,
    LATENT_DIM,
    NUM_DATA,
    Normals,
    gradients_of,
    held_by_hand,
    loss_of,
    objective,
    watched,
)
from pyro.infer import Trace_ELBO, TraceMeanField_ELBO
from pyro.infer.autoguide import AutoNormal

from pyrovae.inference import (
    KL,
    BetaVAE,
    FreeBits,
    MonteCarloObjective,
    ProgramError,
    WarmUp,
    bounds,
    gradients,
)

pytestmark = pytest.mark.usefixtures("one_thread")


# --- the three small classes ----------------------------------------------------------------------


def test_a_warm_up_rises_in_a_straight_line():
    rise = WarmUp(steps=5, start=0.5, end=2.0)
    np.testing.assert_allclose([rise(t) for t in range(7)], [0.5, 0.8, 1.1, 1.4, 1.7, 2.0, 2.0])
    assert rise.duration == 5
    assert rise(10**9) == 2.0
    assert WarmUp(steps=1)(0) == 0.0
    assert WarmUp(steps=1)(1) == 1.0
    falling = WarmUp(steps=2, start=4.0, end=1.0)
    assert [falling(t) for t in range(4)] == [4.0, 2.5, 1.0, 1.0]


def test_a_warm_up_in_cycles_rises_and_stays_as_long():
    rise = WarmUp(steps=4, cycles=3)
    once = [0.0, 0.25, 0.5, 0.75, 1.0, 1.0, 1.0, 1.0]
    assert [rise(t) for t in range(24)] == 3 * once
    assert rise.duration == 20
    assert all(rise(t) == 1.0 for t in range(rise.duration, 100))
    kl = KL(weight=rise)
    assert kl.is_rising(19)
    assert not kl.is_rising(20)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: WarmUp(0), "steps must be a whole number of at least 1, but is 0"),
        (lambda: WarmUp(1.5), "steps must be a whole number of at least 1, but is 1.5"),
        (lambda: WarmUp(3, cycles=0), "cycles must be a whole number of at least 1, but is 0"),
        (lambda: WarmUp(3, start=-0.1), "start must be finite and at least 0, but is -0.1"),
        (lambda: WarmUp(3, end=-1.0), "end must be finite and at least 0, but is -1.0"),
        (lambda: WarmUp(3, end=math.nan), "end must be finite and at least 0, but is nan"),
        (lambda: FreeBits(-0.5), "nats must be finite and at least 0, but is -0.5"),
        (lambda: FreeBits(math.nan), "nats must be finite and at least 0, but is nan"),
        (lambda: FreeBits(0.5, per="latent"), "per must be one of .*, but is 'latent'"),
        (lambda: FreeBits(0.5, over="epoch"), "over must be one of .*, but is 'epoch'"),
        (lambda: KL(weight=-1.0), "weight must be finite and at least 0, but is -1.0"),
        (lambda: KL(weight=math.nan), "weight must be finite and at least 0, but is nan"),
        (lambda: KL(form="exact"), "form must be one of .*, but is 'exact'"),
    ],
)
def test_settings_are_checked(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_free_bits_that_are_none_are_refused():
    with pytest.raises((TypeError, ValueError), match="free_bits"):
        KL(free_bits=0.5)


def test_settings_are_values():
    assert KL(weight=WarmUp(3)) == KL(weight=WarmUp(3))
    assert len({KL(), KL(weight=1.0), KL(weight=2.0), KL(free_bits=FreeBits(0.1))}) == 3


def test_free_bits_hold_a_divergence_up():
    divergence = torch.tensor([[0.1, 2.0], [0.5, 1.0], [0.3, 0.0]], dtype=torch.float64)
    held = FreeBits(0.4, over="datum")(divergence)
    np.testing.assert_allclose(held, np.maximum(divergence.numpy(), 0.4).sum(-1))
    batch = FreeBits(0.4, over="batch")(divergence)
    assert batch.shape == (3,)
    # the first dimension's mean is 0.3, below; the second's is 1, above
    assert float(batch.mean()) == pytest.approx(0.4 + 1.0)


@pytest.mark.parametrize("over", ["batch", "datum"])
def test_what_is_below_has_no_gradient(over):
    divergence = torch.tensor([[0.1, 2.0], [0.3, 1.0]], dtype=torch.float64, requires_grad=True)
    FreeBits(0.5, over=over)(divergence).sum().backward()
    assert divergence.grad.tolist() == [[0.0, 1.0], [0.0, 1.0]]


# --- values on the same draws ---------------------------------------------------------------------

WAYS = [(1, "auto"), (1, "loop"), (3, "auto"), (3, "plate"), (3, "tile"), (3, "loop")]
FREE = [
    None,
    FreeBits(0.7),
    FreeBits(0.7, over="datum"),
    FreeBits(1.5, per="site"),
    FreeBits(1.5, per="site", over="datum"),
]


@pytest.mark.parametrize(("num_particles", "way"), WAYS)
@pytest.mark.parametrize("free", FREE, ids=repr)
@pytest.mark.parametrize("form", ["monte-carlo", "analytic", "auto"])
def test_the_loss_is_the_formula_at_its_draws(form, free, num_particles, way):
    pair = Normals()
    ours = objective(num_particles, way, weight=0.6, form=form, free_bits=free)
    loss = loss_of(pair, ours)
    assert pair.draws().shape == (num_particles, NUM_DATA, LATENT_DIM)
    closed = form != "monte-carlo"
    divergence = pair.exact_kl() if closed else pair.sampled_kl().mean(0)
    by_hand = -(pair.log_likelihood().mean(0).sum() - 0.6 * held_by_hand(divergence, free))
    assert loss.item() == pytest.approx(by_hand, rel=1e-10)
    if closed:
        assert ours.kl_forms == {"z": "analytic"}


def test_the_levels_of_the_free_bits_are_met_and_missed():
    """So that the test above sees both sides of each."""
    divergence = Normals().exact_kl()
    assert divergence.mean(0).min() < 0.7 < divergence.mean(0).max() or divergence.min() < 0.7
    assert divergence.min() < 0.7 < divergence.max()
    assert divergence.sum(-1).min() < 1.5 < divergence.sum(-1).max()


@pytest.mark.parametrize("form", ["monte-carlo", "analytic"])
@pytest.mark.parametrize("num_particles", [1, 3])
def test_loss_and_gradient_are_those_of_pyro(form, num_particles):
    pair = Normals()
    rule = Trace_ELBO if form == "monte-carlo" else TraceMeanField_ELBO
    theirs = rule(num_particles, max_plate_nesting=1, vectorize_particles=num_particles > 1)
    ours = objective(num_particles, "plate" if num_particles > 1 else "auto", form=form)
    expected = loss_of(pair, theirs)
    expected_gradients = gradients_of(pair, expected)
    loss = loss_of(pair, ours)
    assert loss.item() == pytest.approx(expected.item(), rel=1e-10)
    for found, wanted in zip(gradients_of(pair, loss), expected_gradients, strict=True):
        torch.testing.assert_close(found, wanted)


@pytest.mark.parametrize("form", ["monte-carlo", "analytic"])
def test_the_ways_of_drawing_agree_in_distribution(form):
    means = []
    for seed, way in enumerate(("plate", "tile", "loop")):
        pair, ours = Normals(), objective(4, way, form=form, weight=0.5)
        pyro.set_rng_seed(seed)
        with torch.no_grad():
            values = torch.stack(
                [ours.differentiable_loss(pair.model, pair.guide, pair.x) for _ in range(150)]
            )
        means.append((values.mean(), values.std() / math.sqrt(150)))
    for mean, error in means[1:]:
        assert abs(mean - means[0][0]) < 5 * math.hypot(error, means[0][1])


def test_below_the_free_bits_the_guide_is_moved_by_the_data_alone():
    pair = Normals()
    free = gradients_of(pair, loss_of(pair, objective(free_bits=FreeBits(1e3), form="analytic")))
    none = gradients_of(pair, loss_of(pair, objective(weight=0.0)))
    for with_bits, without_kl in zip(free, none, strict=True):
        torch.testing.assert_close(with_bits, without_kl)


def test_a_weight_of_nothing_takes_nothing_else_away():
    pair = Normals()
    loss = loss_of(pair, objective(2, "plate", weight=0.0))
    assert loss.item() == pytest.approx(-pair.log_likelihood().mean(0).sum(), rel=1e-10)


def test_beta_vae_is_its_formula():
    pair = Normals()
    loss = loss_of(pair, BetaVAE(beta=4.0))
    by_hand = 4 * pair.sampled_kl().sum() - pair.log_likelihood().sum()
    assert loss.item() == pytest.approx(by_hand, rel=1e-10)


@pytest.mark.parametrize(
    "rule",
    [
        gradients.Pathwise(),
        gradients.StickingTheLanding(),
        gradients.DoublyReparameterized(),
        gradients.ScoreFunction(everywhere=True),
        gradients.ScoreFunction(gradients.LeaveOneOut(), everywhere=True),
        gradients.Split(bounds.ELBO()),
    ],
    ids=repr,
)
def test_every_rule_weighs_the_kl(rule):
    pair = Normals()
    ours = MonteCarloObjective(bounds.ELBO(), rule, num_particles=4, kl=KL(weight=0.6))
    loss = loss_of(pair, ours)
    assert pair.draws().shape == (4, NUM_DATA, LATENT_DIM)
    terms = pair.log_likelihood() - 0.6 * pair.sampled_kl().sum(-1)
    assert loss.item() == pytest.approx(-terms.mean(0).sum(), rel=1e-10)


@pytest.mark.parametrize(
    "rule",
    [
        gradients.StickingTheLanding(),
        gradients.DoublyReparameterized(),
        gradients.ScoreFunction(gradients.LeaveOneOut(), everywhere=True),
        gradients.Split(bounds.ELBO()),
    ],
    ids=repr,
)
def test_every_rule_has_the_gradient_of_the_weighted_kl(rule):
    """Mean gradients, against those of the closed form on as many draws."""

    def mean_gradient(ours):
        pair, rows = Normals(), []
        for seed in range(60):
            loss = loss_of(pair, ours, seed)
            rows.append(torch.cat([g.flatten() for g in gradients_of(pair, loss)]))
        rows = torch.stack(rows)
        return rows.mean(0), rows.std(0) / math.sqrt(len(rows))

    weight = KL(weight=0.3)
    ours = MonteCarloObjective(bounds.ELBO(), rule, num_particles=32, kl=weight)
    exact = objective(32, "plate", weight=0.3, form="analytic")
    (found, error), (expected, other) = mean_gradient(ours), mean_gradient(exact)
    spread = (error**2 + other**2).sqrt().clamp(min=1e-9)
    assert ((found - expected) / spread).abs().max() < 5


# --- closed forms, and where there are none -------------------------------------------------------


def heavy_pair():
    """Two latents: "a" has a closed form, "b" has a prior without one."""

    def model(x):
        with pyro.plate("data", len(x)):
            a = pyro.sample("a", dist.Normal(x.new_zeros(()), 1.0))
            b = pyro.sample("b", dist.StudentT(x.new_tensor(5.0), 0.0, 1.0))
            pyro.sample("x", dist.Normal(a + b, 1.0), obs=x)

    def guide(x):
        with pyro.plate("data", len(x)):
            pyro.sample("a", dist.Normal(0.3 * x, 0.8))
            pyro.sample("b", dist.Normal(0.2 * x, 0.9))

    return model, guide


def test_auto_takes_closed_forms_site_by_site():
    model, guide = heavy_pair()
    x = torch.linspace(-2, 2, 6, dtype=torch.float64)
    ours = objective(form="auto", weight=0.5)
    guide, seen = watched(guide, "a", "b")
    loss = ours.differentiable_loss(model, guide, x)
    (a,), (b,) = seen["a"], seen["b"]
    assert ours.kl_forms == {"a": "analytic", "b": "monte-carlo"}
    data = x.numpy()
    closed = 0.5 * (0.64 + (0.3 * data) ** 2 - 1) - np.log(0.8)
    student = dist.StudentT(torch.tensor(5.0, dtype=torch.float64)).log_prob(torch.from_numpy(b))
    sampled = oracles.normal_logpdf(b, 0.2 * data, 0.9) - student.numpy()
    by_hand = -(oracles.normal_logpdf(data, a + b) - 0.5 * (closed + sampled)).sum()
    assert loss.item() == pytest.approx(by_hand, rel=1e-6)


def test_analytic_is_refused_where_there_is_no_closed_form():
    x = torch.zeros(3, dtype=torch.float64)
    with pytest.raises(ProgramError, match="site 'b': no closed form of the KL from Normal to Stu"):
        objective(form="analytic").differentiable_loss(*heavy_pair(), x)


def correlated_pair():
    def model(x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(x.new_zeros(2), 1.0).to_event(1))
            pyro.sample("x", dist.Normal(z, 1.0).to_event(1), obs=x)

    def guide(x):
        factor = x.new_tensor([[0.8, 0.0], [0.3, 0.6]])
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.MultivariateNormal(0.5 * x, scale_tril=factor))

    return model, guide


def test_free_bits_of_dimensions_need_independent_ones():
    x = torch.randn(4, 2, dtype=torch.float64)
    message = r"site 'z' \(MultivariateNormal\) has no independent dimensions .*per='site'"
    with pytest.raises(ProgramError, match=message):
        objective(free_bits=FreeBits(0.1)).differentiable_loss(*correlated_pair(), x)
    ours = objective(free_bits=FreeBits(0.1, per="site"))
    assert ours.differentiable_loss(*correlated_pair(), x).isfinite()


def test_what_is_no_site_of_its_own_is_refused():
    case = programs.enumerated_mixture()
    for settings in ({"form": "analytic"}, {"free_bits": FreeBits(0.1, per="site")}):
        with pytest.raises(ProgramError, match="site 'y' is summed out"):
            objective(**settings).differentiable_loss(case.model, case.guide, *case.args)
    with pytest.raises(ProgramError, match="latent y is summed out, and has no term of its own"):
        objective(weight=0.5).differentiable_loss(case.model, case.guide, *case.args)
    pair, x = Normals(), torch.zeros(4, DATA_DIM, dtype=torch.float64)
    guide = AutoNormal(pair.model)
    guide(x)
    with pytest.raises(ProgramError, match="an autoguide's base draw"):
        objective(form="analytic").differentiable_loss(pair.model, guide, x)
    assert objective(weight=0.5).differentiable_loss(pair.model, guide, x).isfinite()
