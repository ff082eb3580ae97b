"""Objectives: what is refused, and in which words; what is taken; every one by its name."""

from __future__ import annotations

import math

import numpy as np
import programs
import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from pyro.infer import SVI
from torch import nn

from pyrovae.inference import (
    CHIVI,
    CIWAE,
    ELBO,
    IWAE,
    JVI,
    KL,
    MIWAE,
    NVIL,
    PIWAE,
    REINFORCE,
    RWS,
    STL,
    TVO,
    VIMCO,
    BetaVAE,
    DReG,
    MonteCarloObjective,
    ProgramError,
    Renyi,
    bounds,
    gradients,
)
from pyrovae.models import VAE
from pyrovae.models.likelihoods import Bernoulli
from pyrovae.models.nets import MLP
from pyrovae.models.posteriors import DiagonalNormal
from pyrovae.models.priors import StandardNormal

pytestmark = pytest.mark.usefixtures("one_thread")

DATA_DIM = 6


def small_vae():
    return VAE(StandardNormal(2), DiagonalNormal(MLP(DATA_DIM, 4)), Bernoulli(MLP(2, DATA_DIM)))


def binary_data(num_data=7):
    return torch.bernoulli(torch.full((num_data, DATA_DIM), 0.4))


class Discrete(nn.Module):
    """A latent of one of many kinds, and binary data."""

    def __init__(self, kind="OneHotCategorical"):
        super().__init__()
        self.kind, self.name = kind, f"discrete_{id(self)}"
        self.encoder, self.decoder = nn.Linear(DATA_DIM, 3), nn.Linear(3, DATA_DIM)
        self.prior = nn.Parameter(torch.zeros(3))

    def latent(self, logits):
        if self.kind == "Categorical":
            return dist.Categorical(logits=logits)
        if self.kind == "Bernoulli":
            return dist.Bernoulli(logits=logits).to_event(1)
        return dist.OneHotCategorical(logits=logits)

    def model(self, x):
        pyro.module(self.name, self)
        with pyro.plate("data", len(x)):
            y = pyro.sample("y", self.latent(self.prior.expand(len(x), 3)))
            y = nn.functional.one_hot(y, 3).float() if self.kind == "Categorical" else y
            pyro.sample("x", dist.Bernoulli(logits=self.decoder(y)).to_event(1), obs=x)

    def guide(self, x):
        pyro.module(self.name, self)
        with pyro.plate("data", len(x)):
            pyro.sample("y", self.latent(self.encoder(x)))


CONTINUOUS = {
    "ELBO": ELBO,
    "STL": STL,
    "BetaVAE": BetaVAE,
    "IWAE": IWAE,
    "MIWAE": lambda: MIWAE(2, 3),
    "PIWAE": lambda: PIWAE(2, 3),
    "CIWAE": lambda: CIWAE(num_particles=6),
    "DReG": DReG,
    "Renyi": Renyi,
    "CHIVI": CHIVI,
    "TVO": lambda: TVO(num_particles=6),
    "JVI": JVI,
    "REINFORCE": REINFORCE,
    "RWS": RWS,
    "RWS asleep": lambda: RWS(wake=0.5, sleep=0.5),
}
DISCRETE = {
    "REINFORCE": REINFORCE,
    "NVIL": NVIL,
    "NVIL with a net": lambda: NVIL(nn.Linear(DATA_DIM, 1)),
    "VIMCO": VIMCO,
    "RWS": RWS,
    "RWS asleep": lambda: RWS(wake=0.5, sleep=0.5),
    "TVO": lambda: TVO(num_particles=6),
    "CHIVI": CHIVI,
    "straight through": lambda: MonteCarloObjective(bounds.IWAE(), gradients.StraightThrough(), 3),
    "relaxed": lambda: MonteCarloObjective(bounds.IWAE(), gradients.Relaxed(0.5), 3),
}
EVERY = [(small_vae, name, make) for name, make in CONTINUOUS.items()] + [
    (Discrete, name, make) for name, make in DISCRETE.items()
]
IDS = [f"{make_pair.__name__} {name}" for make_pair, name, _ in EVERY]


# --- every objective by its name ------------------------------------------------------------------


@pytest.mark.parametrize(("make_pair", "name", "make"), EVERY, ids=IDS)
def test_every_objective_has_a_loss_and_gradients(make_pair, name, make):
    pair, x, objective = make_pair(), binary_data(), make()
    assert math.isfinite(objective.loss(pair.model, pair.guide, x))
    assert all(p.grad is None for p in pair.parameters())
    loss = objective.loss_and_grads(pair.model, pair.guide, x)
    assert isinstance(loss, float)
    assert math.isfinite(loss)
    for parameter, value in pair.named_parameters():
        assert value.grad is not None, parameter
        assert value.grad.isfinite().all(), parameter
    assert any(value.grad.abs().sum() > 0 for value in pair.parameters())


@pytest.mark.parametrize(("make_pair", "name", "make"), EVERY, ids=IDS)
def test_svi_steps_with_every_objective(make_pair, name, make):
    pair, x, objective = make_pair(), binary_data(), make()
    before = {key: value.detach().clone() for key, value in pair.named_parameters()}
    svi = SVI(pair.model, pair.guide, pyro.optim.Adam({"lr": 0.01}), loss=objective)
    losses = [svi.step(x) for _ in range(3)]
    assert np.isfinite(losses).all()
    assert math.isfinite(svi.evaluate_loss(x))
    still = {key for key, value in pair.named_parameters() if torch.equal(value, before[key])}
    assert not still


@pytest.mark.parametrize(("make_pair", "name", "make"), EVERY, ids=IDS)
def test_every_objective_is_a_module(make_pair, name, make):
    pair, x = make_pair(), binary_data()
    pyro.settings.set(module_local_params=True)
    try:
        loss = make()(pair.model, pair.guide)(x)
        loss.backward()
    finally:
        pyro.settings.set(module_local_params=False)
    assert loss.shape == ()
    assert loss.isfinite()


@pytest.mark.parametrize(("make_pair", "name", "make"), EVERY, ids=IDS)
def test_every_objective_takes_a_guide_that_is_not_trained(make_pair, name, make):
    pair, x, objective = make_pair(), binary_data(), make()
    encoder = pair.posterior if isinstance(pair, VAE) else pair.encoder
    encoder.requires_grad_(False)
    pair.eval()
    loss = objective.differentiable_loss(pair.model, pair.guide, x)
    assert loss.isfinite()
    loss.backward()
    assert all(value.grad is None for value in encoder.parameters())
    decoder = pair.likelihood if isinstance(pair, VAE) else pair.decoder
    assert all(value.grad.isfinite().all() for value in decoder.parameters())


@pytest.mark.parametrize(("make_pair", "name", "make"), EVERY, ids=IDS)
def test_every_objective_takes_a_model_that_is_not_trained(make_pair, name, make):
    pair, x, objective = make_pair(), binary_data(), make()
    decoder = pair.likelihood if isinstance(pair, VAE) else pair.decoder
    decoder.requires_grad_(False)
    pair.eval()
    objective.differentiable_loss(pair.model, pair.guide, x).backward()
    encoder = pair.posterior if isinstance(pair, VAE) else pair.encoder
    assert all(value.grad.isfinite().all() for value in encoder.parameters())


@pytest.mark.parametrize(("make_pair", "name", "make"), EVERY, ids=IDS)
def test_every_objective_has_a_differentiable_loss_without_gradients(make_pair, name, make):
    pair, x, objective = make_pair(), binary_data(), make()
    with torch.no_grad():
        loss = objective.differentiable_loss(pair.model, pair.guide, x)
    assert loss.isfinite()
    assert objective.steps == 0


@pytest.mark.parametrize(("make_pair", "name", "make"), EVERY, ids=IDS)
def test_nothing_is_drawn_or_left_behind_by_looking(make_pair, name, make):
    """The first call, which plans, gives what the second one does from the same seed."""
    pair, x, objective = make_pair(), binary_data(), make()
    losses = []
    for _ in range(2):
        pyro.set_rng_seed(3)
        losses.append(objective.loss(pair.model, pair.guide, x))
    assert losses[0] == losses[1]


def test_repr_tells_bound_rule_and_number():
    assert repr(DReG(7)) == (
        "MonteCarloObjective(IWAE(), DoublyReparameterized(), num_particles=7)"
    )
    assert "KL(weight=4.0" in repr(BetaVAE())
    assert repr(VIMCO(4)).startswith("MonteCarloObjective(IWAE(), VIMCO(")


def test_miwae_draws_its_groups_and_its_particles():
    assert MIWAE(num_groups=3, num_particles=4).num_particles == 12
    assert PIWAE(num_groups=3, num_particles=4).num_particles == 12
    assert MIWAE(3, 4).bound == bounds.MIWAE(3)
    assert PIWAE(3, 4).gradient == gradients.Split(bounds.MIWAE(3))


def test_a_network_baseline_is_a_part_of_the_module():
    pair, net = Discrete(), nn.Linear(DATA_DIM, 1)
    module = NVIL(net)(pair.model, pair.guide)
    assert {id(p) for p in net.parameters()} <= {id(p) for p in module.parameters()}
    module(binary_data()).backward()
    assert all(p.grad is not None for p in net.parameters())


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


# --- programs that a rule cannot take -------------------------------------------------------------

NEED_PATHS = [
    (gradients.Pathwise(), bounds.IWAE()),
    (gradients.StickingTheLanding(), bounds.IWAE()),
    (gradients.DoublyReparameterized(), bounds.IWAE()),
    (gradients.Split(bounds.MIWAE(2)), bounds.IWAE()),
    (gradients.WakeSleep(doubly_reparameterized=True), bounds.IWAE()),
]


@pytest.mark.parametrize(("rule", "bound"), NEED_PATHS, ids=repr)
@pytest.mark.parametrize("kind", ["Categorical", "OneHotCategorical", "Bernoulli"])
def test_a_discrete_latent_has_no_path(kind, rule, bound):
    pair, objective = Discrete(kind), MonteCarloObjective(bound, rule, num_particles=4)
    message = rf"guide site 'y' \({kind}\) cannot be reparameterised, which {type(rule).__name__}"
    for call in (objective.differentiable_loss, objective.loss, objective.loss_and_grads):
        with pytest.raises(ProgramError, match=message):
            call(pair.model, pair.guide, binary_data())


@pytest.mark.parametrize("make", [NVIL, VIMCO])
def test_a_score_function_needs_something_to_score(make):
    vae = small_vae()
    message = r"every latent \(z\) can be reparameterised, which leaves nothing to the score"
    with pytest.raises(ProgramError, match=message):
        make().differentiable_loss(vae.model, vae.guide, binary_data())
    objective = MonteCarloObjective(bounds.IWAE(), gradients.VIMCO(everywhere=True), 3)
    assert objective.differentiable_loss(vae.model, vae.guide, binary_data()).isfinite()


@pytest.mark.parametrize("rule", [gradients.Relaxed(), gradients.StraightThrough()], ids=repr)
def test_a_relaxation_needs_something_to_relax(rule):
    vae, objective = small_vae(), MonteCarloObjective(bounds.ELBO(), rule)
    message = r"no latent \(z\) is a OneHotCategorical or a Bernoulli, which leaves nothing"
    with pytest.raises(ProgramError, match=message):
        objective.differentiable_loss(vae.model, vae.guide, binary_data())
    pair = Discrete("Categorical")
    with pytest.raises(ProgramError, match=r"guide site 'y' \(Categorical\) has no relaxation"):
        objective.differentiable_loss(pair.model, pair.guide, binary_data())
    pair = Discrete("Bernoulli")
    assert objective.differentiable_loss(pair.model, pair.guide, binary_data()).isfinite()


def mixed_pair():
    """A discrete latent in one with a path."""

    def model(x):
        with pyro.plate("data", len(x)):
            y = pyro.sample("y", dist.Poisson(x.new_tensor(1.0)))
            z = pyro.sample("z", dist.Normal(y, 1.0))
            pyro.sample("x", dist.Normal(z, 1.0), obs=x)

    def guide(x):
        rate = pyro.param("rate", torch.tensor(0.8))
        with pyro.plate("data", len(x)):
            y = pyro.sample("y", dist.Poisson(rate * x.exp()))
            pyro.sample("z", dist.Normal((x + y) / 2, pyro.param("scale", torch.tensor(0.7))))

    return model, guide


def test_of_several_latents_the_one_at_fault_is_named():
    model, guide = mixed_pair()
    x = torch.linspace(-1, 1, 5)
    with pytest.raises(ProgramError, match=r"guide site 'y' \(Poisson\) cannot be reparam"):
        IWAE(3).differentiable_loss(model, guide, x)
    with pytest.raises(ProgramError, match=r"guide site 'y' \(Poisson\) has no relaxation"):
        MonteCarloObjective(bounds.ELBO(), gradients.Relaxed()).differentiable_loss(model, guide, x)
    assert math.isfinite(VIMCO(3).loss_and_grads(model, guide, x))
    assert all(pyro.param(name).grad is not None for name in ("rate", "scale"))


RESCORING = [
    (gradients.StickingTheLanding(), bounds.IWAE()),
    (gradients.DoublyReparameterized(), bounds.IWAE()),
    (gradients.Split(bounds.MIWAE(2)), bounds.IWAE()),
    (gradients.ScoreFunction(everywhere=True), bounds.IWAE()),
    (gradients.WakeSleep(), bounds.IWAE()),
    (gradients.WakeSleep(sleep=1.0), bounds.IWAE()),
    (gradients.SelfNormalized(), bounds.TVO()),
]


@pytest.mark.parametrize(("rule", "bound"), RESCORING, ids=repr)
def test_a_guide_that_is_summed_out_has_no_draws_to_hold(rule, bound):
    case = programs.enumerated_guide()
    objective = MonteCarloObjective(bound, rule, num_particles=4)
    with pytest.raises(ProgramError, match="guide site 'y' is summed out, so that it has no draw"):
        objective.differentiable_loss(case.model, case.guide, *case.args)
    loss = IWAE(4).differentiable_loss(case.model, case.guide, *case.args)
    assert loss.item() == pytest.approx(-case.exact.sum(), rel=1e-9)


@pytest.mark.parametrize(("rule", "bound"), RESCORING, ids=repr)
def test_a_model_that_sums_out_goes_with_every_rule_but_sleep(rule, bound):
    case = programs.enumerated_mixture()
    objective = MonteCarloObjective(bound, rule, num_particles=2000)
    if getattr(rule, "sleep", 0):
        with pytest.raises(ProgramError, match="latent 'y' is summed out: the sleep update"):
            objective.differentiable_loss(case.model, case.guide, *case.args)
        return
    loss = objective.differentiable_loss(case.model, case.guide, *case.args)
    wide = 1e-1 if isinstance(bound, bounds.IWAE) else 1.0
    assert loss.item() / len(case.exact) == pytest.approx(-case.exact.mean(), abs=wide)


# --- scales ---------------------------------------------------------------------------------------


def scaled_pair(in_model=1.0, in_guide=1.0, of_data=1.0):
    def model(x):
        with pyro.plate("data", len(x)):
            with poutine.scale(scale=in_model):
                z = pyro.sample("z", dist.Normal(x.new_zeros(()), 1.0))
            with poutine.scale(scale=of_data):
                pyro.sample("x", dist.Normal(z, 1.0), obs=x)

    def guide(x):
        loc = pyro.param("loc", torch.tensor(0.1))
        with pyro.plate("data", len(x)), poutine.scale(scale=in_guide):
            pyro.sample("z", dist.Normal(loc + x / 2, 1.0))

    return model, guide


ANY_RULE = ["ELBO", "STL", "IWAE", "DReG", "PIWAE", "CHIVI", "TVO", "REINFORCE", "RWS"]


@pytest.mark.parametrize("name", ANY_RULE)
@pytest.mark.parametrize(
    "scales",
    [
        {"in_model": 2.0, "in_guide": 2.0},
        {"of_data": 0.5},
        {"in_model": 2.0},
        {"in_guide": 2.0},
        {"in_model": 2.0, "of_data": 2.0},
    ],
    ids=str,
)
def test_scales_that_differ_are_refused(name, scales):
    model, guide = scaled_pair(**scales)
    x, make = torch.linspace(-1, 1, 5), CONTINUOUS[name]
    with pytest.raises(ProgramError, match=r"site '\w' has scale .* and \w+ site '\w'.*as kl="):
        make().differentiable_loss(model, guide, x)
    with pytest.raises(ProgramError, match=r"site '\w' has scale .* and \w+ site '\w'.*as kl="):
        make().loss(model, guide, x)


@pytest.mark.parametrize("name", ANY_RULE)
def test_a_scale_of_all_sites_multiplies_the_loss(name):
    x, losses = torch.linspace(-1, 1, 5), []
    for scale in (1.0, 3.0):
        pyro.set_rng_seed(1)
        pair = scaled_pair(scale, scale, scale)
        losses.append(CONTINUOUS[name]().differentiable_loss(*pair, x).item())
    assert losses[1] == pytest.approx(3 * losses[0], rel=1e-6)


@pytest.mark.parametrize("name", ANY_RULE)
@pytest.mark.parametrize("drawn", [False, True], ids=["given", "drawn"])
def test_a_plate_of_more_data_multiplies_the_loss(name, drawn):
    """Five data of fifty, of which the plate is told, or draws for itself."""
    x = torch.full((50 if drawn else 5,), 0.7)

    def pair(total):
        def frame(x):
            if drawn:
                return pyro.plate("data", 50, subsample_size=5)
            return pyro.plate("data", total, subsample=torch.arange(5))

        def model(x):
            with frame(x) as rows:
                z = pyro.sample("z", dist.Normal(x.new_zeros(()), 1.0))
                pyro.sample("x", dist.Normal(z, 1.0), obs=x[rows])

        def guide(x):
            loc = pyro.param("loc", torch.tensor(0.35))  # with this scale, the posterior
            with frame(x):
                pyro.sample("z", dist.Normal(loc, 0.5**0.5))

        return model, guide

    exact = -50 * dist.Normal(0.0, 2**0.5).log_prob(torch.tensor(0.7)).item()
    objective = MonteCarloObjective(CONTINUOUS[name]().bound, CONTINUOUS[name]().gradient, 6)
    assert objective.loss(*pair(50), x) == pytest.approx(exact, rel=1e-5)
    loss = objective.differentiable_loss(*pair(50), x)
    assert loss.item() == pytest.approx(exact, rel=1e-5)


# --- baselines and dreams -------------------------------------------------------------------------


@pytest.mark.parametrize("outputs", [2, DATA_DIM])
def test_a_network_baseline_gives_one_number_for_each_datum(outputs):
    pair = Discrete()
    message = rf"net must return one number for each of 7 data, .* shape \(7, {outputs}\)"
    with pytest.raises(ValueError, match=message):
        NVIL(nn.Linear(DATA_DIM, outputs)).differentiable_loss(
            pair.model, pair.guide, binary_data()
        )


def test_a_network_baseline_may_leave_the_last_dimension_out():
    pair, net = Discrete(), nn.Sequential(nn.Linear(DATA_DIM, 1), nn.Flatten(0))
    loss = NVIL(net).differentiable_loss(pair.model, pair.guide, binary_data())
    loss.backward()
    assert all(p.grad.abs().sum() > 0 for p in net.parameters())


def step_by_step(x):
    """One observed site for each column of x."""
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", dist.Normal(x.new_zeros(()), 1.0))
        for t in range(x.shape[1]):
            pyro.sample(f"x_{t}", dist.Normal(z, 1.0), obs=x[:, t])


def guide_of_sums(x):
    with pyro.plate("data", len(x)):
        pyro.sample("z", dist.Normal(pyro.param("a", torch.tensor(0.1)) * x.sum(-1), 1.0))


def test_dreams_must_fit_the_data():
    x = torch.zeros(4, 2)
    with pytest.raises(ProgramError, match=r"the sleep update puts .*'x_0' \(4,\), 'x_1'"):
        RWS(sleep=1.0).differentiable_loss(step_by_step, guide_of_sums, x)
    loss = RWS(sleep=0.0).differentiable_loss(step_by_step, guide_of_sums, x)
    assert loss.isfinite()


def test_dreams_of_a_tuple_are_a_tuple():
    case = programs.tuple_of_tensors()
    seen = []

    def guide(x):
        seen.append(tuple(part.clone() for part in x))
        scale = pyro.param("scale", torch.tensor(0.5, dtype=torch.float64))
        with pyro.plate("data", len(x[0])):
            pyro.sample("z", dist.Normal((x[0] + x[1].sum(-1)) / 4, scale))

    RWS(sleep=1.0).loss_and_grads(case.model, guide, *case.args)
    (a, b), dreamt = case.args[0], seen[-1]
    assert (dreamt[0].shape, dreamt[1].shape) == (a.shape, b.shape)
    assert not torch.equal(dreamt[0], a)
    assert pyro.param("scale").grad is not None


# --- arguments of the programs --------------------------------------------------------------------

EXACT = [
    programs.tuple_of_tensors,
    programs.conditional,
    programs.nested_plates,
    programs.semi_supervised_labelled,
    programs.batch_norm,
    programs.function_style,
]
NOT_DREAMT = [programs.nested_plates, programs.semi_supervised_labelled]
TIGHT = [*ANY_RULE, "JVI", "MIWAE", "RWS asleep"]


@pytest.mark.parametrize("name", TIGHT)
@pytest.mark.parametrize("make_case", EXACT, ids=lambda f: f.__name__)
def test_at_the_posterior_every_loss_is_log_p(make_case, name):
    """Tuples, contexts, switches and nested plates come through."""
    case, objective = make_case(), CONTINUOUS[name]()
    if name == "RWS asleep" and make_case in NOT_DREAMT:
        pytest.skip("its observations are no x")
    found = objective.loss(case.model, case.guide, *case.args)
    assert found == pytest.approx(-case.exact.sum(), rel=1e-8)
    loss = objective.differentiable_loss(case.model, case.guide, *case.args)
    assert loss.item() == pytest.approx(-case.exact.sum(), rel=1e-8)


@pytest.mark.parametrize("make", [ELBO, lambda: IWAE(3), lambda: DReG(3), lambda: RWS(3, 1.0, 1.0)])
def test_keywords_reach_both_programs(make):
    seen = []

    def model(x, *, noise, shift=0.0):
        seen.append(("model", noise, shift))
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(x.new_zeros(()), 1.0))
            pyro.sample("x", dist.Normal(z + shift, noise), obs=x)

    def guide(x, *, noise, shift=0.0):
        seen.append(("guide", noise, shift))
        precision = 1 + noise**-2
        unit = pyro.param("unit", torch.tensor(1.0, dtype=torch.float64)) ** 0
        with pyro.plate("data", len(x)):
            pyro.sample(
                "z", dist.Normal(unit * (x - shift) / noise**2 / precision, precision**-0.5)
            )

    x, objective = torch.linspace(-1, 2, 5, dtype=torch.float64), make()
    for settings in ({"noise": 0.5}, {"noise": 2.0}, {"noise": 2.0, "shift": 1.0}):
        exact = dist.Normal(settings.get("shift", 0.0), math.hypot(1, settings["noise"]))
        expected = -exact.log_prob(x).sum().item()
        assert objective.loss(model, guide, x, **settings) == pytest.approx(expected, rel=1e-6)
        loss = objective.loss_and_grads(model, guide, x, **settings)
        assert loss == pytest.approx(expected, rel=1e-6)
        wanted = (settings["noise"], settings.get("shift", 0.0))
        assert {("model", *wanted), ("guide", *wanted)} <= set(seen)


def test_batches_of_other_sizes_and_other_programs_take_turns():
    one, two, objective = small_vae(), small_vae(), IWAE(3)
    for vae, size in ((one, 7), (one, 3), (two, 3), (one, 7)):
        x = binary_data(size)
        losses = []
        for each in (objective, IWAE(3)):
            pyro.set_rng_seed(2)
            losses.append(each.loss(vae.model, vae.guide, x))
        assert losses[0] == losses[1]


@pytest.mark.parametrize("by_keyword", [False, True], ids=["by position", "by keyword"])
@pytest.mark.parametrize("first", ["labelled", "unlabelled"])
def test_labels_may_be_there_or_not_from_call_to_call(first, by_keyword):
    """One pair of programs, whose latents depend on what it is given."""
    labelled = programs.semi_supervised_labelled()
    unlabelled = programs.semi_supervised_unlabelled()
    program, objective = programs.SemiSupervised(), IWAE(3)
    x, y = labelled.args
    calls = {
        "labelled": (((x,), {"y": y}) if by_keyword else ((x, y), {}), labelled.exact),
        "unlabelled": (((x,), {}), unlabelled.exact),
    }
    second = next(name for name in calls if name != first)
    for name in (first, second, first):
        (args, keywords), exact = calls[name]
        found = objective.loss(program.model, program.guide, *args, **keywords)
        assert found == pytest.approx(-exact.sum(), rel=1e-8)
