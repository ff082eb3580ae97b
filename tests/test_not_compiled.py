"""What a graph cannot repeat is found out, told, and run as it is."""

from __future__ import annotations

import random
import warnings

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
import torch._inductor as inductor
from pyro.infer import TraceGraph_ELBO
from training_toys import Toy, toy_data

from pyrovae.inference import fit
from pyrovae.inference.compilation import NotCompiled, backends, gradients

pytestmark = pytest.mark.usefixtures("one_thread")

DATA = {"epochs": 3, "batch_size": 8, "seed": 3, "progress": False}


@pytest.fixture
def replayed(monkeypatch):
    """Graphs run operation by operation: what is tested is what was traced."""

    monkeypatch.setattr(backends, "BACKENDS", (backends.as_traced,))
    monkeypatch.setattr(gradients, "_OFTEN", 1)


class Branching(Toy):
    """Looks at its data."""

    def model(self, x):
        if float(x.sum()) > 0:
            pyro.factor("nothing", torch.tensor(0.0))
        return super().model(x)


class Outside(Toy):
    """Random numbers that are not torch's."""

    def guide(self, x):
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(self.slope * x + random.random(), self.log_scale.exp()))


class Choosing(Toy):
    """Sums as many terms as there are positive data."""

    def model(self, x):
        pyro.factor("some", x[x > 0].sum())
        return super().model(x)


class Settled(Toy):
    """Looks at a parameter."""

    def model(self, x):
        return super().model(x if self.mu.item() < 9 else 2 * x)


class Averaging(Toy):
    """Puts its moving average, a new tensor, in the place of the old."""

    def __init__(self):
        super().__init__()
        self.register_buffer("mean", torch.zeros(()))

    def guide(self, x):
        self.mean = 0.9 * self.mean + 0.1 * x.mean()
        return super().guide(x - self.mean)


class Noting(Toy):
    """Writes its moving average to a tensor that is no buffer."""

    def __init__(self):
        super().__init__()
        self.mean = torch.zeros(())

    def guide(self, x):
        self.mean.mul_(0.9).add_(0.1 * x.mean())
        return super().guide(x - self.mean)


class Counting(Toy):
    """Counts its steps in Python."""

    steps = 0

    def model(self, x):
        self.steps += 1
        return super().model(x if self.steps < 60 else 2 * x)


class Logging(Toy):
    """Notes what it sees."""

    def __init__(self):
        super().__init__()
        self.seen = []

    def model(self, x):
        self.seen.append(len(x))
        return super().model(x)


class Sizing(Toy):
    """Asks how many data are positive, and makes nothing of them."""

    def model(self, x):
        return super().model(x * len((x > 0).nonzero()))


class Listing(Toy):
    """Takes its data out of torch."""

    def model(self, x):
        return super().model(x if max(x.tolist()) < 9 else 2 * x)


@pytest.mark.usefixtures("replayed")
@pytest.mark.parametrize(
    ("program", "reason"),
    [
        (Branching, r"looks at a value .* of test_not_compiled.py: if float\(x.sum"),
        (Outside, "it depends on more than"),
        (Choosing, r"the size of a tensor depends on values, as that of x\[x > 0\] does"),
        (Settled, r"looks at a value .* if self.mu.item\(\) < 9"),
        (Averaging, r"puts another tensor in the place of Averaging.mean"),
        (Noting, r"writes to Noting.mean, which is no buffer"),
        (Logging, r"changes Logging.seen, which is no tensor"),
        (Sizing, r"the size of a tensor that depends on values is looked at"),
        (Listing, r"looks at a value .*x.tolist\(\)"),
    ],
)
def test_what_a_graph_cannot_repeat_is_run_as_it_is(program, reason):
    toy = program()
    random.seed(0)
    with pytest.warns(NotCompiled, match=reason) as told:
        history = fit(toy.model, toy.guide, toy_data(), compile=True, **DATA)
    assert len([one for one in told if one.category is NotCompiled]) == 1
    if program is not Outside:  # nothing of the trials is left
        other = program()
        np.testing.assert_array_equal(
            fit(other.model, other.guide, toy_data(), **DATA).loss, history.loss
        )
    assert np.isfinite(history.loss).all()


class Annealed(Toy):
    """A number that its user changes from epoch to epoch."""

    temperature = 1.0

    def model(self, x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(self.mu, self.temperature))
            pyro.sample("x", dist.Normal(z, 1.0), obs=x)


@pytest.mark.usefixtures("replayed")
def test_what_changes_between_steps_is_found_out_in_time():
    found = []
    for compiled in (False, True):
        toy = Annealed()

        def next_epoch(x, generator, toy=toy):
            toy.temperature = toy.__dict__.get("temperature", 1.0) + 0.5
            return x

        with warnings.catch_warnings(record=True) as told:
            warnings.simplefilter("always")
            history = fit(
                toy.model, toy.guide, toy_data(), transform=next_epoch, compile=compiled, **DATA
            )
        assert any(one.category is NotCompiled for one in told) == compiled
        found.append(history.loss)
    np.testing.assert_allclose(found[1], found[0], rtol=1e-6)


@pytest.mark.usefixtures("replayed")
def test_too_many_forms_are_left_alone():
    toy, x = Toy(), toy_data(78)
    batches = [x[i * (i + 1) // 2 : (i + 1) * (i + 2) // 2] for i in range(12)]
    loader = torch.utils.data.DataLoader(batches, batch_size=None)
    with pytest.warns(NotCompiled, match="more than 4 forms") as told:
        fit(toy.model, toy.guide, loader, compile=True, epochs=4, seed=3, progress=False)
    assert len([one for one in told if one.category is NotCompiled]) == 1


def test_a_machine_without_a_compiler_replays_the_graph(monkeypatch):
    monkeypatch.setattr(gradients, "_OFTEN", 1)

    def fail(*_, **__):
        raise RuntimeError("no compiler here")

    monkeypatch.setattr(inductor, "compile", fail)
    toy, other = Toy(), Toy()
    with pytest.warns(
        NotCompiled, match="one by one, .* no code .* RuntimeError: no compiler here"
    ):
        fit(toy.model, toy.guide, toy_data(), compile=True, **DATA)
    fit(other.model, other.guide, toy_data(), **DATA)
    assert toy.values() == pytest.approx(other.values(), rel=1e-5)


@pytest.mark.usefixtures("replayed")
def test_a_count_of_steps_is_found_out_at_once():
    toy = Counting()
    with pytest.warns(NotCompiled, match="changes Counting.steps, which is no tensor"):
        fit(toy.model, toy.guide, toy_data(), compile=True, **DATA)


@pytest.mark.usefixtures("replayed")
@pytest.mark.filterwarnings("ignore:compile. nothing")
def test_an_objective_without_a_loss_is_told():
    toy = Toy()
    with pytest.warns(NotCompiled, match="TraceGraph_ELBO sets gradients itself") as told:
        fit(toy.model, toy.guide, toy_data(), objective=TraceGraph_ELBO(), compile=True, **DATA)
    assert len([one for one in told if one.category is NotCompiled]) == 1


@pytest.mark.usefixtures("replayed")
@pytest.mark.filterwarnings("ignore::pyrovae.inference.compilation.NotCompiled")
def test_a_parameter_of_the_store_that_comes_late_is_trained():
    found = []
    for compiled in (False, True):
        pyro.clear_param_store()
        epochs = []

        def model(x, epochs=epochs):
            loc = pyro.param("loc", torch.tensor(0.0))
            if len(epochs) > 2:
                loc = loc + pyro.param("extra", torch.tensor(0.0))
            with pyro.plate("data", len(x)):
                z = pyro.sample("z", dist.Normal(loc, 1.0))
                pyro.sample("x", dist.Normal(z, 1.0), obs=x)

        def guide(x):
            slope = pyro.param("slope", torch.tensor(0.0))
            with pyro.plate("data", len(x)):
                pyro.sample("z", dist.Normal(slope * x, 0.5**0.5))

        def next_epoch(x, generator, epochs=epochs):
            epochs.append(1)
            return x

        settings = DATA | {"epochs": 6, "transform": next_epoch, "compile": compiled}
        history = fit(model, guide, toy_data(), **settings)
        found.append((history.loss, float(pyro.param("extra").detach())))
    np.testing.assert_allclose(found[1][0], found[0][0], rtol=1e-6)
    assert found[1][1] == pytest.approx(found[0][1], rel=1e-4)
    assert found[1][1] != 0


class Growing(Toy):
    """Has another parameter in its second epoch."""

    def __init__(self):
        super().__init__()
        self.extra, self.on = torch.nn.Parameter(torch.zeros(())), False

    def model(self, x):
        return super().model(x + self.extra if self.on else x)


@pytest.mark.usefixtures("replayed")
def test_how_many_steps_are_in_doubt_is_told():
    toy, epochs = Growing(), []

    def next_epoch(x, generator):
        epochs.append(len(epochs))
        toy.on = len(epochs) == 3
        return x

    with pytest.warns(NotCompiled, match=r"another form; 8 steps since the last comparison may"):
        fit(toy.model, toy.guide, toy_data(), transform=next_epoch, compile=True, **DATA)
    assert float(toy.extra.detach()) != 0  # and it is trained


@pytest.mark.usefixtures("replayed")
def test_a_context_that_looks_the_same_and_is_not():
    """1 and True are equal, and so are their hashes."""

    class Told(Toy):
        def guide(self, x, flag):
            return super().guide(2 * x if flag is True else x)

        def model(self, x, flag):
            return super().model(x)

    x, found = toy_data(320), []
    batches = [(x[i : i + 8], True if i % 16 else 1) for i in range(0, 320, 8)]
    for compiled in (False, True):
        loader, toy = torch.utils.data.DataLoader(batches, batch_size=None), Told()
        given = {"epochs": 3, "seed": 3, "progress": False, "compile": compiled}
        found.append(fit(toy.model, toy.guide, loader, **given).loss)
    np.testing.assert_allclose(found[1], found[0], rtol=1e-5)


@pytest.mark.usefixtures("replayed")
@pytest.mark.filterwarnings("ignore:compile. nothing")
def test_a_value_that_is_another_in_every_step_is_not_waited_for(monkeypatch):
    monkeypatch.setattr(gradients, "_ANY", 10)

    class Told(Toy):
        def guide(self, x, weight):
            return super().guide(weight * x)

        def model(self, x, weight):
            return super().model(x)

    x, toy = toy_data(160), Told()
    batches = [(x[i : i + 8], i / 160) for i in range(0, 160, 8)]
    loader = torch.utils.data.DataLoader(batches, batch_size=None)
    with pytest.warns(NotCompiled, match="ever other values beside them"):
        fit(toy.model, toy.guide, loader, epochs=1, seed=3, progress=False, compile=True)


class Setting:
    """A context that can change and be the same object."""

    scale = 1.0


@pytest.mark.usefixtures("replayed")
def test_a_context_that_may_change_is_refused():
    class Told(Toy):
        def guide(self, x, setting):
            return super().guide(setting.scale * x)

        def model(self, x, setting):
            return super().model(x)

    toy = Told()
    with pytest.warns(NotCompiled, match="told from others, but Setting"):
        fit(toy.model, toy.guide, toy_data(), Setting(), compile=True, **DATA)
