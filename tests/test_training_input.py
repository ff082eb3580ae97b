"""What `fit` refuses before it starts: argument, expectation, value."""

from __future__ import annotations

from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer import JitTrace_ELBO, RenyiELBO, Trace_ELBO, TraceGraph_ELBO
from pyro.infer.autoguide import AutoNormalMessenger
from torch import Tensor, nn
from torch.optim import lr_scheduler
from torch.utils.data import DataLoader, TensorDataset
from training_toys import QUIET, Toy, fresh_net, net_data, toy_data

from pyrovae.inference.training import fit

pytestmark = pytest.mark.usefixtures("one_thread")


X = toy_data()
NAN = X.clone()
NAN[17] = float("nan")
INFINITE = net_data()
INFINITE[5, 2] = float("-inf")


class NoLoss:
    def loss_and_grads(self) -> None: ...


REFUSED: dict[str, tuple[dict[str, Any], type[Exception], str]] = {
    "NaN": ({"x": NAN}, ValueError, "x: must be finite, but datum 17 holds nan"),
    "infinity": ({"x": INFINITE}, ValueError, "x: must be finite, but datum 5 holds -inf"),
    "NaN in a part": ({"x": (X, NAN)}, ValueError, "x: must be finite, but datum 17 holds nan"),
    "NaN in the context": (
        {"context": (NAN,)},
        ValueError,
        r"context\[0\]: must be finite, but datum 17",
    ),
    "NaN in validation": ({"validation": NAN}, ValueError, "validation: must be finite, but datum"),
    "no data": ({"x": X[:0]}, ValueError, r"x: must hold at least one datum, but .*\(0,\)"),
    "a scalar": ({"x": torch.tensor(1.0)}, ValueError, r"x: must hold at least one datum"),
    "no parts": ({"x": ()}, ValueError, "x: must hold at least one datum"),
    "parts that disagree": (
        {"x": (X, X[:150])},
        ValueError,
        r"x: its parts must hold the same number of data, but hold \[200, 150\]",
    ),
    "an array": ({"x": X.numpy()}, TypeError, "x: must be a tensor, .*, but is a ndarray"),
    "a list": ({"x": [X]}, TypeError, "x: must be a tensor, .*, but is a list"),
    "a tuple of arrays": ({"x": (X, X.numpy())}, TypeError, "x: .* but holds a ndarray"),
    "wider validation": (
        {"validation": torch.zeros(3, 2)},
        ValueError,
        r"validation: its data must have shape \(\) like those of x, but have \(2,\)",
    ),
    "validation without context": (
        {"context": (X,), "validation": X},
        ValueError,
        r"validation: must be a tuple \(x, \*context\) of 2, because .* but is a Tensor",
    ),
    "validation with too much": (
        {"context": (X,), "validation": (X, X, X)},
        ValueError,
        "must be a tuple .* of 2, .* but is a of 3",
    ),
    "validation context that disagrees": (
        {"context": (X,), "validation": (X[:10], X[:9])},
        ValueError,
        r"validation: its context\[0\] must hold 10 data like its x, but has shape \(9,\)",
    ),
    "validation with other parts": (
        {"validation": (X, X)},
        ValueError,
        "validation: must have 1 parts like x, but has 2",
    ),
    "no validation data": ({"validation": X[:0]}, ValueError, "validation: must hold at least one"),
    "an empty loader": (
        {"x": DataLoader(TensorDataset(X[:3]), batch_size=4, drop_last=True)},
        ValueError,
        "x: must hold at least one batch, but the loader is empty",
    ),
    "a loader of words": (
        {"x": DataLoader(["a", "b"])},
        TypeError,
        "x: must be a tensor",
    ),
    "no epochs": ({"epochs": 0}, ValueError, "epochs: must be at least 1, but is 0"),
    "half an epoch": ({"epochs": 0.5}, TypeError, r"epochs: must be an integer, but is 0\.5"),
    "yes epochs": ({"epochs": True}, TypeError, "epochs: must be an integer, but is True"),
    "no batch": ({"batch_size": 0}, ValueError, "batch_size: must be at least 1, but is 0"),
    "no rate": ({"learning_rate": 0}, ValueError, "learning_rate: must be positive and finite"),
    "NaN rate": ({"learning_rate": float("nan")}, ValueError, "learning_rate: .* but is nan"),
    "a word for a rate": ({"learning_rate": "fast"}, TypeError, "learning_rate: must be a number"),
    "negative warm-up": ({"warm_up": -1}, ValueError, "warm_up: must be at least 0, but is -1"),
    "no clip": ({"clip": 0.0}, ValueError, "clip: must be positive and finite, but is 0.0"),
    "patience alone": ({"patience": 3}, ValueError, "patience: needs validation data"),
    "no patience": (
        {"patience": 0, "validation": X},
        ValueError,
        "patience: must be at least 1, but is 0",
    ),
    "negative seed": ({"seed": -1}, ValueError, "seed: must be at least 0, but is -1"),
    "no interval": ({"checkpoint_every": 0}, ValueError, "checkpoint_every: must be at least 1"),
    "a number for a path": ({"checkpoint": 3}, TypeError, "checkpoint: must be a path, but is 3"),
    "resume from nothing": ({"resume": True}, ValueError, "resume: needs the path"),
    "objective's class": (
        {"objective": Trace_ELBO},
        TypeError,
        r"objective: must be an instance, Trace_ELBO\(\), but is the class",
    ),
    "no objective": (
        {"objective": "elbo"},
        TypeError,
        "objective: must have the methods of a pyro",
    ),
    "no loss": ({"objective": NoLoss()}, TypeError, "objective: must have the methods of a pyro"),
    "no model": ({"model": "model"}, TypeError, "model: must be callable, but is a str"),
    "no guide": ({"guide": None}, TypeError, "guide: must be callable, but is a NoneType"),
    "no transform": ({"transform": 1}, TypeError, "transform: must be callable, but is a int"),
    "no optimizer": ({"optimizer": "adam"}, TypeError, "optimizer: must be callable"),
    "an optimizer already made": (
        {"optimizer": torch.optim.SGD([torch.zeros(1)], lr=0.1)},
        TypeError,
        "optimizer: must be callable",
    ),
    "an optimizer of nothing": (
        {"optimizer": lambda p: None},
        TypeError,
        "optimizer: must return a torch.optim.Optimizer, but returned a NoneType",
    ),
    "an optimizer of others": (
        {"optimizer": lambda p: torch.optim.SGD([torch.zeros(1)], lr=0.1)},
        ValueError,
        "optimizer: holds a tensor that is no parameter of model or guide",
    ),
    "LBFGS": ({"optimizer": torch.optim.LBFGS}, TypeError, "optimizer: LBFGS evaluates the loss"),
    "a schedule of nothing": (
        {"schedule": lambda optimizer: 3},
        TypeError,
        "schedule: must return a torch.optim.lr_scheduler, but returned a int",
    ),
    "a plateau of nothing": (
        {"schedule": lr_scheduler.ReduceLROnPlateau},
        ValueError,
        "schedule: ReduceLROnPlateau needs validation data",
    ),
    "a transform that loses data": (
        {"transform": lambda x, generator: x[:5]},
        ValueError,
        "transform: must return 200 data, but returned 5",
    ),
    "a transform to NaN": (
        {"transform": lambda x, generator: x.sub(100).log()},
        ValueError,
        "transform: must be finite, but datum 0 holds nan",
    ),
    "a transform to nothing": (
        {"transform": lambda x, generator: None},
        TypeError,
        "transform: must be a tensor, .* but is a NoneType",
    ),
    "a transform to a tuple": (
        {"transform": lambda x, generator: (x, x)},
        TypeError,
        "transform: must return a Tensor, but returned a tuple",
    ),
    "a transformed loader": (
        {"x": DataLoader(TensorDataset(X)), "transform": lambda x, generator: x},
        ValueError,
        "transform: must be None for a DataLoader",
    ),
    "no such device": ({"device": "tape"}, ValueError, "device: must name a device of torch"),
    "a compiled warm-up": (
        {"objective": JitTrace_ELBO(), "warm_up": 3},
        ValueError,
        "warm_up: must be 0 for a compiled objective",
    ),
    "a compiled module": (
        {"objective": JitTrace_ELBO()},
        ValueError,
        "objective: JitTrace_ELBO compiles programs that name their parameters",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_bad_input_is_refused_in_one_line(case: str) -> None:
    changed, error, message = REFUSED[case]
    toy = Toy()
    settings = {"model": toy.model, "guide": toy.guide, "x": X, "context": (), "epochs": 2}
    settings |= {**QUIET, **changed}
    args = [settings.pop(name) for name in ("model", "guide", "x")] + list(settings.pop("context"))
    state = torch.get_rng_state()
    with pytest.raises(error, match=message) as refused:
        fit(*args, **settings)
    assert "\n" not in str(refused.value)
    assert toy.values() == Toy().values()
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is one")
def test_a_missing_gpu_is_told() -> None:
    toy = Toy()
    with pytest.raises(ValueError, match="device: must be there, but 'cuda' is not"):
        fit(toy.model, toy.guide, X, epochs=1, device="cuda", **QUIET)


def test_the_wrong_dtype_is_told() -> None:
    net = fresh_net()
    with pytest.raises(TypeError, match=r"x: must be torch.float32 like the .* is torch.float64"):
        fit(net.model, net.guide, net_data().double(), epochs=1, **QUIET)
    net.double()  # what both agree on is fine
    assert fit(net.model, net.guide, net_data().double(), epochs=1, **QUIET).loss[0] > 0


def test_programs_without_parameters_are_refused() -> None:
    def model(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            pyro.sample("x", dist.Normal(z, 1.0), obs=x)

    def guide(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(0.5 * x, 1.0))

    with pytest.raises(ValueError, match="model, guide: must have parameters to train, but have"):
        fit(model, guide, X, epochs=1, **QUIET)
    toy = Toy().requires_grad_(False)
    with pytest.raises(ValueError, match="have none; the 4 found are frozen"):
        fit(toy.model, toy.guide, X, epochs=1, **QUIET)


@pytest.mark.parametrize("objective", [Trace_ELBO(), RenyiELBO(), TraceGraph_ELBO()])
def test_an_objective_that_reaches_no_parameter_is_refused(objective: Any) -> None:
    class Idle(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.unused = nn.Parameter(torch.zeros(3))

        def model(self, x: Tensor) -> None:
            with pyro.plate("data", len(x)):
                pyro.sample("x", dist.Normal(0.0, 1.0), obs=x)

        def guide(self, x: Tensor) -> None:
            pass

    idle = Idle()
    with pytest.raises(ValueError, match=r"gave none to any of the 1 parameters"):
        fit(idle.model, idle.guide, X, objective=objective, epochs=1, **QUIET)


def test_a_context_passed_whole_is_pointed_at_when_programs_fail() -> None:
    toy = Toy()

    def model(x: Tensor, label: Tensor) -> None:
        toy.model(x + label)

    def guide(x: Tensor, label: Tensor) -> None:
        pyro.module("toy", toy)
        toy.guide(x + label)

    with pytest.raises(RuntimeError, match="size of tensor") as failed:
        fit(model, guide, X, X[:199], epochs=1, **QUIET)
    assert any("context[0], of shape (199,), was not cut" in n for n in failed.value.__notes__)


def test_effect_based_guides_train_but_do_not_warm_up() -> None:
    class Mean(AutoNormalMessenger):
        pass

    def model(x: Tensor) -> None:
        mu = pyro.sample("mu", dist.Normal(0.0, 10.0))
        with pyro.plate("data", len(x)):
            pyro.sample("x", dist.Normal(mu, 1.5), obs=x)

    guide = Mean(model)
    history = fit(model, guide, X, epochs=30, batch_size=200, learning_rate=0.1, **QUIET)
    assert history.loss[-1] < history.loss[0] - 0.05
    with pytest.raises(ValueError, match="warm_up: must be 0 for an effect-based guide"):
        fit(model, guide, X, epochs=1, warm_up=2, **QUIET)
