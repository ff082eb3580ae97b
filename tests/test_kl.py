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
from pyro import poutine
from pyro.infer import Trace_ELBO, TraceMeanField_ELBO
from pyro.infer.autoguide import AutoNormal
from torch import nn
from training_toys import QUIET, Toy, toy_data

from pyrovae.inference import ELBO as elbo
from pyrovae.inference import (
    KL,
    BetaVAE,
    FreeBits,
    MonteCarloObjective,
    ProgramError,
    WarmUp,
    bounds,
    fit,
    gradients,
)

pytestmark = pytest.mark.usefixtures("one_thread")

NUM_DATA, DATA_DIM, LATENT_DIM = 8, 5, 2


def objective(num_particles=1, particles="auto", **kl):
    return MonteCarloObjective(
        bounds.ELBO(), num_particles=num_particles, kl=KL(**kl), particles=particles
    )


class Normals(nn.Module):
    """z ~ N(m, s²), x | z ~ N(W z + b, 1); q(z | x) = N(A x, t²). Remembers its draws."""

    def __init__(self):
        super().__init__()
        generator = torch.Generator().manual_seed(11)

        def parameter(*shape, scale=1.0):
            start = torch.randn(*shape, generator=generator, dtype=torch.float64)
            return nn.Parameter(scale * start)

        self.weight, self.bias = parameter(DATA_DIM, LATENT_DIM), parameter(DATA_DIM)
        self.prior_loc, self.prior_log_scale = parameter(LATENT_DIM), parameter(LATENT_DIM)
        self.encoder = parameter(LATENT_DIM, DATA_DIM, scale=0.3)
        self.log_scale = parameter(LATENT_DIM, scale=0.5)
        self.x = torch.randn(NUM_DATA, DATA_DIM, generator=generator, dtype=torch.float64)
        self.drawn = []

    def prior(self):
        return dist.Normal(self.prior_loc, self.prior_log_scale.exp())

    def posterior(self, x):
        return dist.Normal(x @ self.encoder.T, self.log_scale.exp())

    def model(self, x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", self.prior().to_event(1))
            loc = z @ self.weight.T + self.bias
            pyro.sample("x", dist.Normal(loc, 1.0).to_event(1), obs=x)
        if torch.is_grad_enabled():  # not where the programs are only looked at
            self.drawn.append(z.detach())

    def guide(self, x):
        with pyro.plate("data", len(x)):
            pyro.sample("z", self.posterior(x).to_event(1))

    # --- in numpy, of the draws that were made ---

    def values(self):
        return {name: p.detach().numpy() for name, p in self.named_parameters()}

    def draws(self):
        """Those of the last call, ``(K, N, Z)``, whichever way they were made."""
        return torch.cat([z.reshape(-1, NUM_DATA, LATENT_DIM) for z in self.drawn]).numpy()

    def log_likelihood(self):
        """log p(x | z), ``(K, N)``."""
        v = self.values()
        loc = self.draws() @ v["weight"].T + v["bias"]
        return oracles.normal_logpdf(self.x.numpy(), loc).sum(-1)

    def posterior_values(self):
        v = self.values()
        return self.x.numpy() @ v["encoder"].T, np.exp(v["log_scale"])

    def sampled_kl(self):
        """log q - log p of each draw and dimension, ``(K, N, Z)``."""
        v, (loc, scale) = self.values(), self.posterior_values()
        z = self.draws()
        prior = oracles.normal_logpdf(z, v["prior_loc"], np.exp(v["prior_log_scale"]))
        return oracles.normal_logpdf(z, loc, scale) - prior

    def exact_kl(self):
        """KL of each datum and dimension, ``(N, Z)``."""
        v, (loc, scale) = self.values(), self.posterior_values()
        ratio = scale / np.exp(v["prior_log_scale"])
        apart = (loc - v["prior_loc"]) / np.exp(v["prior_log_scale"])
        return 0.5 * (ratio**2 + apart**2 - 1) - np.log(ratio)


def loss_of(pair, objective, seed=0):
    pair.drawn.clear()
    pyro.set_rng_seed(seed)
    return objective.differentiable_loss(pair.model, pair.guide, pair.x)


def watched(program, *names):
    """The program, and the values of its sites in the calls that take a gradient."""
    seen = {name: [] for name in names}

    def run(*args):
        nodes = poutine.trace(program).get_trace(*args).nodes
        if torch.is_grad_enabled():
            for name in names:
                seen[name].append(nodes[name]["value"].detach().numpy())

    return run, seen


def gradients_of(module, loss):
    found = torch.autograd.grad(loss, list(module.parameters()), allow_unused=True)
    return [
        torch.zeros_like(p) if g is None else g
        for p, g in zip(module.parameters(), found, strict=True)
    ]


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


def held_by_hand(divergence, free):
    """The summed KL of all data: ``(N, Z)`` to a number."""
    if free is None:
        return divergence.sum()
    if free.per == "site":
        divergence = divergence.sum(-1, keepdims=True)
    if free.over == "datum":
        return np.maximum(divergence, free.nats).sum()
    return len(divergence) * np.maximum(divergence.mean(0), free.nats).sum()


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


# --- masks ----------------------------------------------------------------------------------------


def masked_pair():
    """A latent of each of three steps, of sequences of unequal length."""
    lengths = torch.tensor([3, 1, 2, 3])

    def model(x):
        with pyro.plate("data", len(x), dim=-1):
            for t in range(3):
                with poutine.mask(mask=t < lengths):
                    z = pyro.sample(f"z_{t}", dist.Normal(x.new_zeros(1), 1.0).to_event(1))
                    pyro.sample(f"x_{t}", dist.Normal(z[..., 0], 1.0), obs=x[:, t])

    def guide(x):
        with pyro.plate("data", len(x), dim=-1):
            for t in range(3):
                with poutine.mask(mask=t < lengths):
                    pyro.sample(f"z_{t}", dist.Normal(0.5 * x[:, t, None], 0.7).to_event(1))

    return model, guide, lengths


MASKED_X = torch.linspace(-1.5, 2, 12, dtype=torch.float64).reshape(4, 3)


@pytest.mark.parametrize(("num_particles", "way"), [(1, "auto"), (2, "plate"), (2, "loop")])
@pytest.mark.parametrize("per", [None, "dimension", "site"])
@pytest.mark.parametrize("form", ["monte-carlo", "analytic"])
def test_masks_in_the_programs_hold(form, per, num_particles, way):
    model, guide, lengths = masked_pair()
    free = per and FreeBits(0.35, per=per)
    ours = objective(num_particles, way, form=form, free_bits=free)
    guide, seen = watched(guide, "z_0", "z_1", "z_2")
    loss = ours.differentiable_loss(model, guide, MASKED_X)
    steps = [np.stack(values).reshape(num_particles, 4) for values in seen.values()]
    z, x = np.stack(steps, -1), MASKED_X.numpy()  # (K, N, T)
    mask = np.arange(3) < lengths.numpy()[:, None]
    likelihood = np.where(mask, oracles.normal_logpdf(x, z), 0.0)
    if form == "analytic":
        divergence = 0.5 * (0.49 + (0.5 * x) ** 2 - 1) - math.log(0.7) + 0 * z
    else:
        divergence = oracles.normal_logpdf(z, 0.5 * x, 0.7) - oracles.normal_logpdf(z)
    divergence = np.where(mask, divergence, 0.0).mean(0)
    held = held_by_hand(divergence, free and FreeBits(0.35))
    assert loss.item() == pytest.approx(-(likelihood.sum(-1).mean(0).sum() - held), rel=1e-6)


def test_masked_sites_equal_those_of_pyro():
    model, guide, _ = masked_pair()
    pyro.set_rng_seed(1)
    expected = TraceMeanField_ELBO().differentiable_loss(model, guide, MASKED_X)
    pyro.set_rng_seed(1)
    loss = objective(form="analytic").differentiable_loss(model, guide, MASKED_X)
    assert loss.item() == pytest.approx(expected.item(), rel=1e-6)


@pytest.mark.parametrize("masked", ["both", "model", "guide"])
def test_masks_of_a_sampled_kl_are_those_of_the_log_weights(masked):
    """The same ELBO on the same draws; a mask in one program alone is refused."""
    rows, every = torch.tensor([True, False, True]), torch.tensor(True)
    x = torch.tensor([0.5, 1.0, -1.0], dtype=torch.float64)

    def model(x):
        with pyro.plate("data", 3), poutine.mask(mask=every if masked == "guide" else rows):
            b = pyro.sample("b", dist.StudentT(x.new_tensor(5.0), 0.0, 1.0))
            pyro.sample("x", dist.Normal(b, 1.0), obs=x)

    def guide(x):
        with pyro.plate("data", 3), poutine.mask(mask=every if masked == "model" else rows):
            pyro.sample("b", dist.Normal(0.2 * x, 0.9))

    if masked != "both":
        for ours in (objective(), objective(form="auto")):
            with pytest.raises(ProgramError, match="site 'b' is masked otherwise in the model"):
                ours.differentiable_loss(model, guide, x)
        return
    losses = []
    for one in (Trace_ELBO(), objective(), objective(form="auto")):  # no closed form: sampled
        pyro.set_rng_seed(1)
        losses.append(one.differentiable_loss(model, guide, x).item())
    assert losses[1:] == pytest.approx(2 * losses[:1], rel=1e-6)


# --- a hierarchy ----------------------------------------------------------------------------------


class Hierarchy(nn.Module):
    """u ~ N(0, 1), z | u ~ N(u, 0.7²), x | z ~ N(z, 0.9²), with a guide in either order."""

    def model(self, x):
        with pyro.plate("data", len(x)):
            u = pyro.sample("u", dist.Normal(x.new_zeros(()), 1.0))
            z = pyro.sample("z", dist.Normal(u, 0.7))
            pyro.sample("x", dist.Normal(z, 0.9), obs=x)

    def top_down(self, x):
        with pyro.plate("data", len(x)):
            u = pyro.sample("u", dist.Normal(0.4 * x, 0.8))
            pyro.sample("z", dist.Normal(0.3 * x + 0.5 * u, 0.6))

    def bottom_up(self, x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(0.6 * x, 0.7))
            pyro.sample("u", dist.Normal(0.6 * z, 0.6))

    def in_reverse(self, x):
        """Independent, in the order that is not the model's."""
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(0.6 * x, 0.7))
            pyro.sample("u", dist.Normal(0.4 * x, 0.8))


def per_datum_losses(ours, guide, repeats=40, size=500):
    """Means of independent losses per datum, with their error: one datum, many times over."""
    hierarchy, x = Hierarchy(), torch.full((size,), 1.3, dtype=torch.float64)
    with torch.no_grad():
        values = torch.stack(
            [
                ours.differentiable_loss(hierarchy.model, getattr(hierarchy, guide), x) / size
                for _ in range(repeats)
            ]
        )
    return float(values.mean()), float(values.std()) / math.sqrt(repeats)


def test_a_hierarchy_takes_each_sites_kl_given_its_parent():
    hierarchy, x = Hierarchy(), torch.linspace(-1, 2, 5, dtype=torch.float64)
    ours = objective(form="analytic")
    guide, seen = watched(hierarchy.top_down, "u", "z")
    loss = ours.differentiable_loss(hierarchy.model, guide, x)
    (u,), (z,) = seen["u"], seen["z"]
    data = x.numpy()

    def kl(loc_q, scale_q, loc_p, scale_p):
        ratio = scale_q / scale_p
        return 0.5 * (ratio**2 + ((loc_q - loc_p) / scale_p) ** 2 - 1) - np.log(ratio)

    by_hand = kl(0.4 * data, 0.8, 0.0, 1.0) + kl(0.3 * data + 0.5 * u, 0.6, u, 0.7)
    by_hand = by_hand - oracles.normal_logpdf(data, z, 0.9)
    assert loss.item() == pytest.approx(by_hand.sum(), rel=1e-6)
    assert ours.kl_forms == {"u": "analytic", "z": "analytic"}


@pytest.mark.parametrize("form", ["analytic", "auto"])
@pytest.mark.parametrize("guide", ["top_down", "in_reverse", "bottom_up"])
def test_a_hierarchys_kl_is_right_in_expectation_or_refused(guide, form):
    """A guide that draws a parent given its child has no KL of the child in closed form."""
    pyro.set_rng_seed(2)
    sampled = per_datum_losses(elbo(), guide)
    try:
        closed = per_datum_losses(objective(form=form), guide)
    except ProgramError:
        if form == "analytic" and guide != "top_down":
            return  # by the order of the sites; "auto" falls back
        raise
    assert abs(closed[0] - sampled[0]) < 5 * math.hypot(closed[1], sampled[1])


# --- scoring, steps and state ---------------------------------------------------------------------


@pytest.mark.parametrize(
    "settings",
    [
        {"weight": 0.2},
        {"weight": WarmUp(10)},
        {"free_bits": FreeBits(5.0)},
        {"form": "analytic", "weight": 3.0},
    ],
    ids=repr,
)
def test_the_loss_that_is_reported_is_the_bound(settings):
    pair = Normals()
    ours = objective(2, "plate", **settings)
    plain = elbo(2, particles="plate")
    ours.kl_factor = 0.5  # as fit's own warm-up would
    found = []
    for one in (ours, plain):
        pyro.set_rng_seed(4)
        found.append(one.loss(pair.model, pair.guide, pair.x))
    assert found[0] == found[1]
    assert isinstance(found[0], float)


def test_a_warm_up_counts_steps_that_take_a_gradient():
    pair, ours = Normals(), objective(weight=WarmUp(4))
    assert ours.is_warming_up
    for step in range(6):
        assert ours.steps == step
        assert ours.is_warming_up == (step < 4)
        loss = loss_of(pair, ours)
        beta = min(step / 4, 1.0)
        by_hand = beta * pair.sampled_kl().sum() - pair.log_likelihood().sum()
        assert loss.item() == pytest.approx(by_hand, rel=1e-10)
        ours.loss(pair.model, pair.guide, pair.x)
        with torch.no_grad():
            ours.differentiable_loss(pair.model, pair.guide, pair.x)
    ours.loss_and_grads(pair.model, pair.guide, pair.x)
    assert ours.steps == 7


def test_state_goes_from_one_objective_to_another():
    pair, first = Normals(), objective(weight=WarmUp(10))
    for _ in range(3):
        loss_of(pair, first)
    second = objective(weight=WarmUp(10))
    second.load_state_dict(first.state_dict())
    assert second.steps == 3
    assert second.is_warming_up
    assert loss_of(pair, second).item() == loss_of(pair, first).item()
    assert second.state_dict() == first.state_dict()


def test_the_state_holds_the_moving_average():
    def fresh():
        rule = gradients.ScoreFunction(gradients.MovingAverage(0.5), everywhere=True)
        return MonteCarloObjective(bounds.ELBO(), rule, 2, kl=KL(weight=WarmUp(10)))

    pair, first, second = Normals(), fresh(), fresh()
    for seed in range(3):
        loss_of(pair, first, seed)
    second.load_state_dict(first.state_dict())
    results = [gradients_of(pair, loss_of(pair, one, 5)) for one in (first, second)]
    for a, b in zip(*results, strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=0)
    other = gradients_of(pair, loss_of(pair, fresh(), 5))
    assert not torch.allclose(other[-1], results[0][-1])


def test_fits_warm_up_multiplies_the_weight():
    pair, ours = Normals(), objective(weight=0.5)
    ours.kl_factor = 0.5
    loss = loss_of(pair, ours)
    by_hand = 0.25 * pair.sampled_kl().sum() - pair.log_likelihood().sum()
    assert loss.item() == pytest.approx(by_hand, rel=1e-10)


@pytest.mark.parametrize("form", ["monte-carlo", "analytic"])
def test_fit_warms_up_as_it_does_with_pyros_objective(form):
    x, histories = toy_data(60), []
    theirs = Trace_ELBO() if form == "monte-carlo" else TraceMeanField_ELBO()
    for one in (theirs, objective(form=form)):
        toy = Toy()
        histories.append(
            fit(
                toy.model, toy.guide, x, objective=one, epochs=6, batch_size=20, warm_up=4,
                validation=x[:20], learning_rate=0.01, **QUIET,
            )
        )  # fmt: skip
    theirs, ours = histories
    np.testing.assert_allclose(ours.loss, theirs.loss, rtol=1e-4)
    np.testing.assert_array_equal(ours.beta, theirs.beta)
    np.testing.assert_allclose(ours.gradient_norm, theirs.gradient_norm, rtol=1e-3)


def test_fits_warm_up_does_not_stay():
    x, toy, ours = toy_data(20), Toy(), elbo()
    nn.init.constant_(toy.slope, 0.5)  # a KL that is not zero
    fit(toy.model, toy.guide, x, objective=ours, epochs=1, warm_up=5, learning_rate=1e-9, **QUIET)
    losses = []
    for one in (ours, elbo()):
        pyro.set_rng_seed(1)
        losses.append(one.differentiable_loss(toy.model, toy.guide, x).item())
    assert losses[0] == pytest.approx(losses[1], rel=1e-6)


def test_the_objectives_own_warm_up_runs_through_fit():
    x, toy = toy_data(60), Toy()
    ours = objective(weight=WarmUp(5))
    fit(toy.model, toy.guide, x, objective=ours, epochs=2, batch_size=20, validation=x, **QUIET)
    assert ours.steps == 6
    assert not ours.is_warming_up


# --- what does not go together --------------------------------------------------------------------


@pytest.mark.parametrize(
    "bound",
    [bounds.IWAE(), bounds.MIWAE(1), bounds.CIWAE(0.5), bounds.Renyi(0.5), bounds.Jackknife()],
    ids=repr,
)
@pytest.mark.parametrize(
    "kl", [KL(weight=0.5), KL(form="analytic"), KL(free_bits=FreeBits(0.1))], ids=repr
)
def test_only_the_elbo_has_a_kl(bound, kl):
    message = f"kl: {type(bound).__name__} has no KL term to be changed; only the ELBO has"
    with pytest.raises(ValueError, match=message):
        MonteCarloObjective(bound, num_particles=4, kl=kl)
    MonteCarloObjective(bound, num_particles=4, kl=KL())


@pytest.mark.parametrize(
    "rule",
    [
        gradients.StickingTheLanding(),
        gradients.DoublyReparameterized(),
        gradients.ScoreFunction(everywhere=True),
        gradients.Split(bounds.ELBO()),
        gradients.StraightThrough(),
    ],
    ids=repr,
)
def test_closed_forms_and_free_bits_need_the_pathwise_rule(rule):
    for kl in (KL(form="analytic"), KL(form="auto"), KL(free_bits=FreeBits(0.1))):
        with pytest.raises(ValueError, match=f"but gradient is {type(rule).__name__}"):
            MonteCarloObjective(bounds.ELBO(), rule, num_particles=4, kl=kl)
    MonteCarloObjective(bounds.ELBO(), rule, num_particles=4, kl=KL(weight=0.5))


def test_fits_warm_up_is_refused_without_a_kl():
    toy, iwae = Toy(), MonteCarloObjective(bounds.IWAE(), num_particles=3)
    with pytest.raises(ValueError, match="warm_up: IWAE has no KL term to be changed"):
        fit(toy.model, toy.guide, toy_data(20), objective=iwae, epochs=2, warm_up=2, **QUIET)
