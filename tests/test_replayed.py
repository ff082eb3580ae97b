"""Compiled chains go where chains go, and cost what they cost."""

from __future__ import annotations

import warnings

import contract_members as members
import pyro
import pyro.distributions as dist
import pytest
import torch
from torch.utils.data import DataLoader, TensorDataset
from training_toys import Toy, toy_data

from pyrovae.inference import (
    HMC,
    AnnealedImportanceSampling,
    BridgeSampling,
    ChiUpperBound,
    ImportanceSampling,
    JackknifeImportanceSampling,
    PriorMonteCarlo,
    RefinedImportanceSampling,
    Scaled,
    SequentialMonteCarlo,
    ThermodynamicIntegration,
)
from pyrovae.inference.compilation import NotCompiled, Replays, backends, replayed
from pyrovae.inference.compilation.hoisting import hoisted
from pyrovae.inference.compilation.tracing import trace

pytestmark = pytest.mark.usefixtures("one_thread")

WALK = {"num_chains": 4, "num_temperatures": 8, "pilot_temperatures": 4, "kernel": HMC(3)}
ESTIMATORS = {
    "annealed": AnnealedImportanceSampling(**WALK),
    "from the prior": AnnealedImportanceSampling(**WALK, start="prior"),
    "from a proposal": AnnealedImportanceSampling(**WALK, start=Scaled(1.3)),
    "in tiles": AnnealedImportanceSampling(**WALK, memory=1),
    "smc": SequentialMonteCarlo(**WALK),
    "thermodynamic": ThermodynamicIntegration(**WALK, num_moves=2),
    "importance": ImportanceSampling(20, memory=1),
    "defensive": ImportanceSampling(20, memory=1, defensive=0.25),
    "proposal": ImportanceSampling(20, memory=1, proposal=Scaled(1.3)),
    "prior": PriorMonteCarlo(20, memory=1),
    "jackknife": JackknifeImportanceSampling(20, memory=1),
    "chi": ChiUpperBound(20, memory=1),
    "refined": RefinedImportanceSampling(20, num_steps=8, memory=1),
    "bridge": BridgeSampling(num_chains=4, num_draws=10, num_warmup=20, kernel=HMC(3)),
}
FAMILIES = ["prior StandardNormal", "prior FlowPrior", "HierarchicalVAE", "ConditionalVAE"]


@pytest.fixture
def as_traced(monkeypatch):
    monkeypatch.setattr(backends, "BACKENDS", (backends.as_traced,))


def compiled(estimator):
    return type(estimator)(**vars(estimator) | {"compile": True})


def pair(name):
    torch.manual_seed(0)
    make, x, context, _ = members.FAMILIES[name]
    model = make().double().eval()
    return model.model, model.guide, x.double(), *context


def assert_same(estimator, programs):
    with warnings.catch_warnings():
        warnings.simplefilter("error", NotCompiled)
        one, other = (each(*programs) for each in (estimator, compiled(estimator)))
    torch.testing.assert_close(other.log_evidence, one.log_evidence, rtol=1e-8, atol=1e-8)
    for cost in ("evaluations", "gradients"):
        assert other.provenance[cost] == one.provenance[cost]


@pytest.mark.usefixtures("as_traced")
@pytest.mark.parametrize("name", ESTIMATORS)
def test_compiled_chains_are_the_chains(name):
    assert_same(ESTIMATORS[name], pair("prior StandardNormal"))


@pytest.mark.usefixtures("as_traced")
@pytest.mark.parametrize("family", FAMILIES)
def test_of_every_family(family):
    assert_same(ESTIMATORS["annealed"], pair(family))


def test_with_the_compiler():
    assert_same(ESTIMATORS["annealed"], pair("prior StandardNormal"))


@pytest.mark.usefixtures("as_traced")
def test_batches_of_a_loader_share_their_graphs(monkeypatch):
    traced = []
    monkeypatch.setattr(replayed, "trace", lambda *args: traced.append(1) or trace(*args))
    model, guide, x = pair("prior StandardNormal")
    batches = DataLoader(TensorDataset(x.repeat(4, 1)), batch_size=len(x))
    assert_same(ESTIMATORS["importance"], (model, guide, batches))
    assert len(traced) == 1


# --- functions and their graphs ------------------------------------------------------------------


def calls(function, given, name="f"):
    """What graphs give, or None, for one function and many inputs."""
    replays = Replays(torch.device("cpu"))
    found = [replays(name, function, moving, fixed) for moving, fixed in given]
    return replays, [None if one is None else one[0] for one in found]


@pytest.mark.usefixtures("as_traced")
def test_a_function_is_run_by_a_graph_once_it_came_often():
    given = [((torch.randn(3),), (torch.randn(3), 2.0)) for _ in range(8)]
    _, found = calls(lambda moving, fixed: (moving[0] * fixed[0].exp() * fixed[1],), given)
    assert [one is None for one in found] == [True] * 3 + [False] * 5
    for one, ((x,), (y, _)) in zip(found[3:], given[3:], strict=True):
        torch.testing.assert_close(one, 2 * x * y.exp())


@pytest.mark.usefixtures("as_traced")
def test_each_form_and_each_value_has_a_graph_of_its_own():
    ones, twos = torch.ones(1), torch.ones(2)
    given = [((ones,), (2.0,)), ((ones,), (3.0,)), ((twos,), (2.0,))] * 5
    _, found = calls(lambda moving, fixed: (moving[0] * fixed[0],), given)
    assert [one.tolist() for one in found[-3:]] == [[2.0], [3.0], [2.0, 2.0]]


def test_a_function_that_looks_is_run_as_it_is():
    def looking(moving, fixed):
        return (moving[0].square() if float(moving[0].sum()) > 0 else moving[0],)

    given = [((torch.tensor([value]),), ()) for value in (1.0, -1.0, 2.0, -2.0, 3.0, -3.0)]
    with pytest.warns(
        NotCompiled,
        match=r"looks at a value .*, in line \d+ of test_replayed.py: return \(moving",
    ) as told:
        _, found = calls(looking, given)
    assert len(told) == 1
    assert found == [None] * 6


@pytest.mark.usefixtures("as_traced")
def test_a_function_that_changes_is_run_as_it_is():
    counted = []

    def changing(moving, fixed):
        counted.append(1)
        return (moving[0] * len(counted),)

    with pytest.warns(NotCompiled, match="differs from the program"):
        _, found = calls(changing, [((torch.ones(3),), ())] * 6)
    assert found == [None] * 6


class Drifting(Toy):
    """Its noise stands on a number that its user changes while it is scored."""

    scale = 1.0

    def model(self, x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(self.mu, self.scale))
            pyro.sample("x", dist.Normal(z, 1.0), obs=x)


def drifting(x, since=10):
    """A toy, and a loader of batches since one of which its noise is another."""
    toy = Drifting()

    class Batches(torch.utils.data.Dataset):
        def __len__(self):
            return len(x) // 5

        def __getitem__(self, i):
            if i == len(self):
                raise IndexError
            toy.scale = 1.0 if i < since else 2.0
            return (x[5 * i : 5 * i + 5],)

    return toy, DataLoader(Batches(), batch_size=None)


@pytest.mark.usefixtures("as_traced")
@pytest.mark.parametrize("since", [10, 22, 39])
def test_what_was_found_out_late_is_done_again(since):
    x, found = toy_data(200), []
    for compiled in (False, True):
        toy, loader = drifting(x, since)
        with warnings.catch_warnings(record=True) as told:
            warnings.simplefilter("always", NotCompiled)
            estimator = ImportanceSampling(50, compile=compiled)
            found.append(estimator(toy.model, toy.guide, loader).log_evidence)
        assert [w for w in told if "all is done again: the compiled" in str(w.message)] or (
            not compiled
        )
    torch.testing.assert_close(found[1], found[0], rtol=0, atol=0)


@pytest.mark.usefixtures("as_traced")
def test_what_is_kept_and_in_doubt_is_an_error(tmp_path):
    toy, loader = drifting(toy_data(200))
    estimator = ImportanceSampling(50, compile=True, checkpoint=tmp_path / "kept")
    with pytest.raises(RuntimeError, match=r"What stands in .*kept may be wrong: delete it"):
        estimator(toy.model, toy.guide, loader)


class Stream(torch.utils.data.IterableDataset):
    def __init__(self, toy, x):
        self.toy, self.batches = toy, iter(x.split(5))

    def __iter__(self):
        for number, batch in enumerate(self.batches):
            self.toy.scale = 1.0 if number < 10 else 2.0
            yield (batch,)


@pytest.mark.usefixtures("as_traced")
def test_what_cannot_be_had_again_is_an_error():
    toy = Drifting()
    loader = DataLoader(Stream(toy, toy_data(200)), batch_size=None)
    with pytest.raises(RuntimeError, match="may not give it twice: begin again without compile"):
        ImportanceSampling(50, compile=True)(toy.model, toy.guide, loader)


class Refused(Toy):
    def model(self, x):
        return super().model(x if self.mu.item() < 9 else 2 * x)


@pytest.mark.usefixtures("as_traced")
def test_a_reason_is_told_once():
    toy = Refused()
    estimator = AnnealedImportanceSampling(**WALK, memory=1, compile=True)
    with pytest.warns(NotCompiled, match="looks at a value") as told:
        estimator(toy.model, toy.guide, toy_data(20))
    assert len([w for w in told if w.category is NotCompiled]) == 1


@pytest.mark.usefixtures("as_traced")
def test_too_many_forms_are_told():
    toy, x = Toy(), toy_data(20)
    loader = DataLoader([(x[:n],) for n in range(3, 14) for _ in range(5)], batch_size=None)
    with pytest.warns(NotCompiled, match="data of more than 8 forms") as told:
        ImportanceSampling(20, compile=True)(toy.model, toy.guide, loader)
    assert len([w for w in told if w.category is NotCompiled]) == 1


@pytest.mark.usefixtures("as_traced")
def test_data_that_were_written_to_are_looked_at_again():
    x, y = torch.ones(3), torch.ones(3)
    replays = Replays(torch.device("cpu"))
    for number in range(8):
        y.fill_(number)
        found = replays("f", lambda moving, fixed: (moving[0] + fixed[0] * 2,), (x,), (y,))
    assert found[0].tolist() == [15.0] * 3


@pytest.mark.usefixtures("as_traced")
def test_random_numbers_are_those_of_the_program_and_fresh():
    def drawing(moving, fixed):
        return (fixed[0] * torch.randn(4),)

    x = torch.ones(4)
    replays = Replays(torch.device("cpu"))
    for _ in range(4):
        replays("f", drawing, (), (x,))
    torch.manual_seed(5)
    expected = torch.randn(4), torch.randn(4)
    torch.manual_seed(5)
    for one in expected:
        assert torch.equal(replays("f", drawing, (), (x,))[0], one)


# --- what need not be done again -----------------------------------------------------------------


def parts(function, moving, fixed):
    """The two graphs of a function: by name, the operations of each; and what they give."""
    with torch.no_grad():
        before, after = hoisted(trace(function, [*moving, *fixed]), len(moving))
    names = [
        [str(node.target) for node in graph.graph.nodes if node.op == "call_function"]
        for graph in (before.graph, after)
    ]

    def run(moving, fixed):
        with torch.no_grad():
            return after(*moving, *before.graph(*fixed, *before.held))

    return *names, run


def test_what_stands_on_fixed_inputs_alone_is_done_once():
    net, decoder = torch.nn.Linear(4, 4), torch.nn.Linear(4, 4)

    def function(z, x):
        return (decoder(z * net(x).exp()).sin(),)

    z, x = torch.randn(2, 4), torch.randn(2, 4)
    before, after, run = parts(function, [z], [x])
    assert "aten.exp.default" in before
    assert "aten.exp.default" not in after
    assert "aten.sin.default" in after
    assert "aten.sin.default" not in before
    other = torch.randn(2, 4)
    torch.testing.assert_close(run([other], [x])[0], function(other, x)[0])
    with torch.no_grad():
        net.weight.mul_(2.0)  # parameters are no constants
    torch.testing.assert_close(run([other], [x])[0], function(other, x)[0])


def test_random_numbers_are_drawn_each_time():
    def function(x):
        noise = torch.empty(3).normal_()
        return (x.exp() * noise, torch.rand(2), torch.bernoulli(x.sigmoid()))

    before, after, run = parts(function, [], [torch.zeros(3)])
    assert "aten.normal_.default" in after
    assert "aten.normal_.default" not in before
    assert {"aten.rand.default", "aten.bernoulli.default"} <= set(after)
    assert not torch.equal(run([], [torch.zeros(3)])[0], run([], [torch.zeros(3)])[0])


def test_what_is_written_to_is_made_anew():
    """A sum that is built up in place would otherwise grow from run to run."""

    def function(u, x):
        total = x.exp()
        total.add_(u)
        parts = torch.zeros(2, 3)
        parts[0].copy_(u)
        return (total, parts + x)

    u, x = torch.randn(3), torch.randn(3)
    _, _, run = parts(function, [u], [x])
    for _ in range(2):
        torch.testing.assert_close(run([u], [x]), function(u, x))


def test_a_program_that_writes_to_its_parameters_is_refused():
    count = torch.zeros(3)

    def function(u):
        count.add_(1)
        return (u + count,)

    with pytest.raises(ValueError, match="writes to its data"):
        parts(function, [torch.ones(3)], [])
