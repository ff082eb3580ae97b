"""Programs that a gradient rule cannot take, scales, dreams, and arguments of the programs."""

from __future__ import annotations

import math

import programs
import pyro
import pyro.distributions as dist
import pytest
import torch
from objective_toys import CONTINUOUS, DATA_DIM, Discrete, binary_data, small_vae
from pyro import poutine
from torch import nn

from pyrovae.inference import (
    ELBO,
    IWAE,
    NVIL,
    RWS,
    VIMCO,
    DReG,
    MonteCarloObjective,
    ProgramError,
    bounds,
    gradients,
)

pytestmark = pytest.mark.usefixtures("one_thread")


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
    with pytest.raises(ProgramError, match=r"simulated observations are to .*'x_0' \(4,\), 'x_1'"):
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
