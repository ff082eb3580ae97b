"""Compiled training takes the steps that uncompiled training takes, or says why it cannot."""

from __future__ import annotations

import copy
import warnings

import contract_members as members
import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
import torch._inductor as inductor
from pyro.infer import (
    Trace_ELBO,
    TraceEnum_ELBO,
    TraceGraph_ELBO,
    TraceMeanField_ELBO,
    trace_elbo,
)
from training_toys import Noisy, Toy, toy_data

from pyrovae.inference import CIWAE, ELBO, IWAE, REINFORCE, RWS, STL, DReG, Penalised, fit
from pyrovae.inference.compilation import NotCompiled, backends, gradients

pytestmark = pytest.mark.usefixtures("one_thread")

DATA = {"epochs": 3, "batch_size": 8, "seed": 3, "progress": False}


@pytest.fixture
def replayed(monkeypatch):
    """Graphs run operation by operation: what is tested is what was traced."""

    monkeypatch.setattr(backends, "BACKENDS", (backends.as_traced,))
    monkeypatch.setattr(gradients, "_OFTEN", 1)


def both(model, x, *context, **settings):
    """Parameters and losses after training, uncompiled and compiled."""
    found = []
    for compiled in (False, True):
        one = copy.deepcopy(model)
        objective = copy.deepcopy(settings.get("objective", Trace_ELBO()))
        given = DATA | settings | {"objective": objective, "compile": compiled}
        history = fit(one.model, one.guide, x, *context, **given)
        found.append(([p.detach().clone() for p in one.parameters()], history))
    return found


def assert_same(found, **tolerance):
    (first, one), (second, other) = found
    for a, b in zip(first, second, strict=True):
        torch.testing.assert_close(b, a, **tolerance)
    np.testing.assert_allclose(other.loss, one.loss, rtol=tolerance.get("rtol", 1e-5))


def repeated(part):
    return part.repeat(4, *[1] * (part.dim() - 1))


# its steps differentiate within
UNTRACED = {"semi-amortised"}


@pytest.mark.usefixtures("replayed")
@pytest.mark.parametrize("name", members.FAMILIES)
def test_a_family_takes_the_same_steps(name):
    torch.manual_seed(0)
    make, x, context, objective = members.FAMILIES[name]
    model = make().double()
    x, context = repeated(x.double()), [repeated(part) for part in context]
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always", NotCompiled)
        found = both(model, x, *context, objective=objective, batch_size=len(x) // 4)
    assert_same(found, rtol=1e-9, atol=1e-9)
    refused = any(issubclass(one.category, NotCompiled) for one in told)
    assert refused == (name in UNTRACED)


OBJECTIVES = {
    "Trace_ELBO": Trace_ELBO(),
    "of three": Trace_ELBO(3, vectorize_particles=True),
    "mean field": TraceMeanField_ELBO(),
    "graph": TraceGraph_ELBO(),
    "enumerating": TraceEnum_ELBO(max_plate_nesting=1),
    "ELBO": ELBO(),
    "IWAE": IWAE(5),
    "DReG": DReG(5),
    "STL": STL(2),
    "CIWAE": CIWAE(num_particles=3),
    "RWS": RWS(3),
    "REINFORCE": REINFORCE(3),
    "penalised": Penalised(IWAE(2)),
}


@pytest.mark.usefixtures("replayed")
@pytest.mark.filterwarnings("ignore::pyrovae.inference.compilation.NotCompiled")
@pytest.mark.filterwarnings("ignore:TraceEnum_ELBO found no sample sites")
@pytest.mark.parametrize("name", OBJECTIVES)
def test_an_objective_takes_the_same_steps(name):
    torch.manual_seed(0)
    model = members.FAMILIES["prior StandardNormal"][0]().double()
    x = repeated(members.data().double())
    assert_same(both(model, x, objective=OBJECTIVES[name]), rtol=1e-9, atol=1e-9)


@pytest.mark.usefixtures("replayed")
@pytest.mark.parametrize("objective", [Trace_ELBO(), ELBO()], ids=["pyro", "ours"])
def test_a_warm_up_and_a_last_smaller_batch(objective):
    torch.manual_seed(0)
    model = members.FAMILIES["prior StandardNormal"][0]().double()
    x = repeated(members.data().double())[:-3]
    found = both(model, x, objective=objective, warm_up=3, epochs=6)
    assert_same(found, rtol=1e-9, atol=1e-9)


@pytest.mark.usefixtures("replayed")
def test_dropout_and_batch_norm():
    torch.manual_seed(0)
    found = both(
        Noisy().double(), repeated(members.data().double()), validation=members.data().double()
    )
    assert_same(found, rtol=1e-9, atol=1e-9)


@pytest.mark.usefixtures("replayed")
def test_parameters_of_the_store():
    losses = []
    for compiled in (False, True):
        pyro.clear_param_store()

        def model(x):
            loc = pyro.param("loc", torch.tensor(0.0))
            scale = pyro.param("scale", torch.tensor(1.0), constraint=dist.constraints.positive)
            with pyro.plate("data", len(x)):
                z = pyro.sample("z", dist.Normal(loc, scale))
                pyro.sample("x", dist.Normal(z, 1.0), obs=x)

        def guide(x):
            slope = pyro.param("slope", torch.tensor(0.0))
            with pyro.plate("data", len(x)):
                pyro.sample("z", dist.Normal(slope * x, 0.5**0.5))

        losses.append(fit(model, guide, toy_data(), compile=compiled, **DATA).loss)
    np.testing.assert_allclose(*losses, rtol=1e-6)


# --- more than a step ----------------------------------------------------------------------------


@pytest.mark.usefixtures("replayed")
def test_data_outside_the_support_are_still_found():
    model = members.FAMILIES["prior StandardNormal"][0]().double()
    x = repeated(members.data().double())
    x[-1, 0] = 0.5
    for compiled in (False, True):
        with pytest.raises(ValueError, match=r"Boolean|support"):
            fit(model.model, model.guide, x, compile=compiled, **DATA)


def test_no_switch_is_left_changed(replayed):
    before = trace_elbo.torch_item, trace_elbo.warn_if_nan, inductor.config.fallback_random
    toy = Toy()
    fit(toy.model, toy.guide, toy_data(), compile=True, **DATA)
    assert before == (
        trace_elbo.torch_item,
        trace_elbo.warn_if_nan,
        inductor.config.fallback_random,
    )
    assert torch.distributions.Distribution._validate_args
    assert pyro.poutine.util.is_validation_enabled()


@pytest.mark.usefixtures("replayed")
def test_a_compiled_run_goes_on_as_if_never_stopped(tmp_path):
    model = members.FAMILIES["prior StandardNormal"][0]().double()
    x, path = repeated(members.data().double())[:-3], tmp_path / "run.safetensors"
    whole, parts = copy.deepcopy(model), copy.deepcopy(model)
    settings = DATA | {"compile": True}
    fit(whole.model, whole.guide, x, **settings | {"epochs": 4})
    for epochs in (2, 4):
        fit(
            parts.model,
            parts.guide,
            x,
            **settings | {"epochs": epochs, "checkpoint": path, "resume": True},
        )
    for a, b in zip(whole.parameters(), parts.parameters(), strict=True):
        assert torch.equal(a, b)


# --- with the compiler ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.float64, 1e-10)], ids=str
)
def test_compiled_code_takes_the_same_steps(dtype, tolerance, monkeypatch):
    monkeypatch.setattr(gradients, "_OFTEN", 1)
    torch.manual_seed(0)
    model = members.FAMILIES["prior StandardNormal"][0]().to(dtype)
    with warnings.catch_warnings():
        warnings.simplefilter("error", NotCompiled)
        found = both(model, repeated(members.data().to(dtype)))
    assert_same(found, rtol=tolerance, atol=tolerance)


@pytest.mark.usefixtures("replayed")
@pytest.mark.parametrize("first", [True, False])
def test_a_run_may_go_on_with_or_without_it(first, tmp_path):
    model = members.FAMILIES["prior StandardNormal"][0]().double()
    x, path = repeated(members.data().double()), tmp_path / "run.safetensors"
    whole, parts = copy.deepcopy(model), copy.deepcopy(model)
    objective = ELBO()
    fit(whole.model, whole.guide, x, objective=copy.deepcopy(objective), **DATA | {"epochs": 4})
    for epochs, compiled in ((2, first), (4, not first)):
        given = {"epochs": epochs, "checkpoint": path, "resume": True, "compile": compiled}
        objective = copy.deepcopy(objective)
        fit(parts.model, parts.guide, x, objective=objective, **DATA | given)
    for a, b in zip(whole.parameters(), parts.parameters(), strict=True):
        torch.testing.assert_close(b, a, rtol=1e-9, atol=1e-9)
