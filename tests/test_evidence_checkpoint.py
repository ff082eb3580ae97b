"""Estimates that are interrupted go on from their checkpoint, to the same bits."""

from __future__ import annotations

import functools
import subprocess
import sys
import textwrap
from pathlib import Path

import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from pyrovae.inference import (
    HMC,
    AnnealedImportanceSampling,
    BidirectionalMonteCarlo,
    BridgeSampling,
    EqualLength,
    EvidenceUpperBound,
    HarmonicMean,
    ImportanceSampling,
    JackknifeImportanceSampling,
    RefinedImportanceSampling,
    SequentialMonteCarlo,
    ThermodynamicIntegration,
)
from pyrovae.inference.evidence import journal
from pyrovae.inference.evidence.journal import Journal

pytestmark = pytest.mark.usefixtures("one_thread")

X = torch.linspace(-2, 2, 3, dtype=torch.float64)
FEW = HMC(num_leapfrog=2)
ANNEAL = {"num_temperatures": 8, "pilot_temperatures": 4, "kernel": FEW}
CHAINS = {"num_chains": 3, "num_draws": 8, "num_warmup": 20, "kernel": FEW}


def model(x):
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", dist.Normal(x.new_zeros(()), 1.0))
        pyro.sample("x", dist.Normal(2 * z.sin(), 0.7), obs=x)


def guide(x):
    with pyro.plate("data", len(x)):
        pyro.sample("z", dist.Normal(x / 3, 0.9))


def posterior(x):
    """Takes the place of an exact one: what is tested are bits, not the answer."""
    guide(x)


def counted(stop=None, error=KeyboardInterrupt, program=model):
    """The model, the list of its calls so far, and an exception once there are ``stop``."""
    calls = []

    def watched(x, *context):
        calls.append(len(x))
        if len(calls) == stop:
            raise error
        program(x, *context)

    return watched, calls


# two tiles at least for each, so that some are finished and one is under way
ESTIMATORS = {
    "importance": (ImportanceSampling, {"num_samples": 60}),
    "defensive": (ImportanceSampling, {"num_samples": 60, "defensive": 0.3}),
    "jackknife": (JackknifeImportanceSampling, {"num_samples": 60}),
    "annealed": (AnnealedImportanceSampling, {"num_chains": 3, **ANNEAL}),
    "annealed_from_the_prior": (
        AnnealedImportanceSampling,
        {"num_chains": 3, "start": "prior", "schedule": EqualLength(), **ANNEAL},
    ),
    "sequential": (SequentialMonteCarlo, {"num_chains": 6, "threshold": 0.95, **ANNEAL}),
    "sequential_adaptive": (
        SequentialMonteCarlo,
        {"num_chains": 6, "adaptive": 0.998, **ANNEAL, "num_temperatures": 40},
    ),
    "bridge": (BridgeSampling, CHAINS),
    "upper": (EvidenceUpperBound, CHAINS),
    "harmonic": (HarmonicMean, CHAINS),
    "thermodynamic": (ThermodynamicIntegration, {"num_chains": 3, "num_moves": 4, **ANNEAL}),
    "thermodynamic_one_move": (
        ThermodynamicIntegration,
        {"num_chains": 3, "num_moves": 1, **ANNEAL},
    ),
    "refined": (RefinedImportanceSampling, {"num_samples": 40, "num_steps": 6}),
    "bidirectional": (
        BidirectionalMonteCarlo,
        {"num_chains": 3, "posterior": posterior, **ANNEAL},
    ),
    "bidirectional_simulated": (BidirectionalMonteCarlo, {"num_chains": 3, **ANNEAL}),
}


def made(name, **more):
    kind, settings = ESTIMATORS[name]
    return kind(**{"memory": 1, **settings, **more})


def tensors(found):
    """Every number of an estimate, or of both in a sandwich."""
    if hasattr(found, "lower"):
        low, high = tensors(found.lower), tensors(found.upper)
        return {f"lower {n}": v for n, v in low.items()} | {
            f"upper {n}": v for n, v in high.items()
        }
    return {n: getattr(found, n) for n in found.CORE} | dict(found.diagnostics)


def assert_same_bits(one, two):
    ours, theirs = tensors(one), tensors(two)
    assert ours.keys() == theirs.keys()
    for name, value in ours.items():
        torch.testing.assert_close(
            value, theirs[name], rtol=0, atol=0, equal_nan=True, msg=lambda m, n=name: f"{n}: {m}"
        )


@functools.cache
def uninterrupted(name):
    """The estimate for the first two data, and how often the model is called for it."""
    whole, calls = counted()
    return made(name)(whole, guide, X[:2]), len(calls)


# of the second half the first part is the second tile's pilot; a sandwich goes backwards at the end
@pytest.mark.parametrize("share", [0.35, 0.5, 0.72, 0.86, 0.97])
@pytest.mark.parametrize("name", ESTIMATORS)
def test_an_interrupted_estimate_goes_on_to_the_same_bits(name, share, tmp_path):
    expected, calls = uninterrupted(name)
    path = tmp_path / "estimate.pt"
    broken, _ = counted(stop=int(share * calls))
    with pytest.raises(KeyboardInterrupt):
        made(name, checkpoint=path)(broken, guide, X[:2])
    assert_same_bits(made(name, checkpoint=path)(model, guide, X[:2]), expected)


def _state(path):
    """What a file holds of the tile under way."""
    (plan,) = Journal._read(path)["batches"][0]["plans"].values()
    return plan["state"]


def test_a_sandwich_is_interrupted_on_both_ways(tmp_path):
    """Stopped anywhere it goes on; and the stops lie in the forward and in the backward half."""
    expected, calls = uninterrupted("bidirectional")
    halves = set()
    for stop in range(calls // 2, calls, max(calls // 24, 1)):
        path = tmp_path / f"{stop}.pt"
        broken, _ = counted(stop=stop)
        with pytest.raises(KeyboardInterrupt):
            made("bidirectional", checkpoint=path)(broken, guide, X[:2])
        if (state := _state(path)) is not None:
            halves.add("backward" if state["other"]["step"] else "forward")
        assert_same_bits(made("bidirectional", checkpoint=path)(model, guide, X[:2]), expected)
    assert halves == {"forward", "backward"}


@pytest.mark.parametrize(
    "name", ["annealed", "sequential", "bridge", "thermodynamic", "bidirectional"]
)
def test_interrupted_again_and_again(name, tmp_path):
    whole, calls = counted()
    expected = made(name)(whole, guide, X)
    path = tmp_path / "estimate.pt"
    found, tries = None, 0
    while found is None:
        # past what planning, the pilot and the first tile's warm-up take, or nothing would advance
        broken, _ = counted(stop=int(0.5 * len(calls)))
        tries += 1
        assert tries < 30
        try:
            found = made(name, checkpoint=path)(broken, guide, X)
        except KeyboardInterrupt:
            continue
    assert tries > 1
    assert_same_bits(found, expected)


@pytest.mark.parametrize("name", ESTIMATORS)
def test_a_checkpoint_changes_no_number(name, tmp_path):
    found = made(name, checkpoint=tmp_path / "one.pt")(model, guide, X[:2])
    assert_same_bits(found, uninterrupted(name)[0])


def _tiles(name):
    return made(name)(model, guide, X).provenance["tile"]["data"]


@pytest.mark.parametrize("name", ["importance", "annealed", "sequential", "bridge", "refined"])
def test_finished_tiles_are_not_run_again(name, tmp_path):
    assert _tiles(name) < len(X)
    whole, calls = counted()
    made(name)(whole, guide, X)
    path = tmp_path / "estimate.pt"
    broken, _ = counted(stop=int(0.95 * len(calls)))
    with pytest.raises(KeyboardInterrupt):
        made(name, checkpoint=path)(broken, guide, X)
    again, rest = counted()
    made(name, checkpoint=path)(again, guide, X)
    planning, few = counted()
    made(name, checkpoint=path)(planning, guide, X)  # now all is finished: planning is left
    assert len(rest) - len(few) < 0.5 * (len(calls) - len(few))


def test_a_finished_estimate_is_read_not_made(tmp_path):
    path = tmp_path / "estimate.pt"
    first = made("annealed", checkpoint=path)(model, guide, X)
    watched, calls = counted()
    second = made("annealed", checkpoint=path)(watched, guide, X)
    assert_same_bits(first, second)
    whole, all_calls = counted()
    made("annealed")(whole, guide, X)
    assert len(calls) < 0.2 * len(all_calls)


@pytest.mark.parametrize("name", ["importance", "annealed", "bidirectional_simulated"])
def test_without_a_seed_the_one_drawn_first_is_kept(name, tmp_path):
    path = tmp_path / "estimate.pt"
    whole, calls = counted()
    made(name)(whole, guide, X)
    torch.manual_seed(7)
    broken, _ = counted(stop=int(0.8 * len(calls)))
    with pytest.raises(KeyboardInterrupt):
        made(name, seed=None, checkpoint=path)(broken, guide, X)
    torch.manual_seed(8)
    resumed = made(name, seed=None, checkpoint=path)(model, guide, X)
    single = resumed.lower if hasattr(resumed, "lower") else resumed
    expected = made(name, seed=single.provenance["seed"])(model, guide, X)
    assert_same_bits(resumed, expected)


def test_batches_of_a_loader_are_kept_apart(tmp_path):
    path = tmp_path / "estimate.pt"

    def loader():
        return DataLoader(TensorDataset(X), batch_size=2)

    whole, calls = counted()
    expected = made("annealed")(whole, guide, loader())
    for share in (0.4, 0.9):
        broken, _ = counted(stop=int(share * len(calls)))
        path.unlink(missing_ok=True)
        with pytest.raises(KeyboardInterrupt):
            made("annealed", checkpoint=path)(broken, guide, loader())
        assert_same_bits(made("annealed", checkpoint=path)(model, guide, loader()), expected)


KILLED = """
    import os, signal, sys
    sys.path.insert(0, sys.argv[1])
    import torch
    torch.set_num_threads(1)
    import test_evidence_checkpoint as toys
    toys.journal._INTERVAL = 0.0

    class Kill(BaseException):
        def __init__(self):
            os.kill(os.getpid(), signal.SIGKILL)

    model, _ = toys.counted(stop=int(sys.argv[4]), error=Kill)
    toys.made(sys.argv[2], checkpoint=sys.argv[3])(model, toys.guide, toys.X)
"""


@pytest.mark.parametrize("name", ["annealed", "bidirectional"])
def test_a_killed_process_is_taken_up_by_another(name, tmp_path):
    path = tmp_path / "estimate.pt"
    whole, calls = counted()
    expected = made(name)(whole, guide, X)
    program = [sys.executable, "-W", "ignore", "-c", textwrap.dedent(KILLED)]
    stop = str(int(0.9 * len(calls)))
    folder = str(Path(__file__).parent)
    ended = subprocess.run([*program, folder, name, str(path), stop], check=False)
    assert ended.returncode == -9
    again, rest = counted()
    assert_same_bits(made(name, checkpoint=path)(again, guide, X), expected)
    assert len(rest) < 0.5 * len(calls)


# --- what does not fit ---------------------------------------------------------------------------


@pytest.fixture
def kept(tmp_path):
    """A checkpoint that an importance sampler has left."""
    path = tmp_path / "estimate.pt"
    made("importance", checkpoint=path)(model, guide, X)
    return path


@pytest.mark.parametrize(
    "other",
    [
        {"num_samples": 61},
        {"seed": 1},
        {"seed": None},
        {"smooth": True},
        {"defensive": 0.5},
    ],
)
def test_a_file_of_other_settings_is_refused(kept, other):
    before = kept.read_bytes()
    with pytest.raises(ValueError, match=r"checkpoint .*estimate\.pt belongs to other settings"):
        made("importance", checkpoint=kept, **other)(model, guide, X)
    assert kept.read_bytes() == before


@pytest.mark.parametrize("x", [X + 1e-9, X[:2], X.float()])
def test_a_file_of_other_data_is_refused(kept, x):
    with pytest.raises(ValueError, match="belongs to other settings, programs or data"):
        made("importance", checkpoint=kept)(model, guide, x)


def test_a_file_of_another_estimator_is_refused(kept):
    with pytest.raises(ValueError, match="belongs to other settings"):
        made("jackknife", checkpoint=kept)(model, guide, X)


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.slope = nn.Parameter(torch.tensor(1.5, dtype=torch.float64))

    def model(self, x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(x.new_zeros(()), 1.0))
            pyro.sample("x", dist.Normal(self.slope * z, 0.7), obs=x)


def test_a_file_of_other_parameters_is_refused(tmp_path):
    net, path = Net(), tmp_path / "estimate.pt"
    made("importance", checkpoint=path)(net.model, guide, X)
    made("importance", checkpoint=path)(net.model, guide, X)
    with torch.no_grad():
        net.slope += 1e-6
    with pytest.raises(ValueError, match="belongs to other settings, programs or data"):
        made("importance", checkpoint=path)(net.model, guide, X)


def _in_store(x):
    slope = pyro.param("slope", torch.tensor(1.5, dtype=torch.float64))
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", dist.Normal(x.new_zeros(()), 1.0))
        pyro.sample("x", dist.Normal(slope * z, 0.7), obs=x)


def test_a_file_of_other_parameters_in_the_store_is_refused(tmp_path):
    path = tmp_path / "estimate.pt"
    _in_store(X)
    made("importance", checkpoint=path)(_in_store, guide, X)
    with torch.no_grad():
        pyro.param("slope").add_(0.1)
    with pytest.raises(ValueError, match="belongs to other settings, programs or data"):
        made("importance", checkpoint=path)(_in_store, guide, X)


def test_a_folder_is_no_checkpoint(tmp_path):
    with pytest.raises(IsADirectoryError, match=r"checkpoint must be a file, but .* is a folder"):
        ImportanceSampling(5, checkpoint=tmp_path)(model, guide, X)


@pytest.mark.parametrize(
    "damage",
    [
        lambda content: b"",
        lambda content: content[: len(content) // 2],
        lambda content: content[:-100],
        lambda content: b"no journal at all",
        lambda content: b"\x80\x04" + content[2:],
        lambda content: b"PK\x03\x04" + bytes(200),
    ],
    ids=["empty", "half", "the end is missing", "text", "another head", "zeros"],
)
def test_a_damaged_file_is_refused_and_left_alone(kept, damage):
    kept.write_bytes(damage(kept.read_bytes()))
    before = kept.read_bytes()
    with pytest.raises(ValueError, match="checkpoint must be a file that an estimator wrote"):
        made("importance", checkpoint=kept)(model, guide, X)
    assert kept.read_bytes() == before


@pytest.mark.parametrize("content", [{"version": 99}, [1, 2], {"weights": torch.zeros(2)}])
def test_a_file_of_another_kind_is_refused(tmp_path, content):
    path = tmp_path / "other.pt"
    torch.save(content, path)
    with pytest.raises(ValueError, match=r"checkpoint must be a file .* but is .*other\.pt"):
        made("importance", checkpoint=path)(model, guide, X)


@pytest.mark.parametrize("name", ["importance", "annealed"])
def test_a_flipped_byte_is_refused(name, tmp_path):
    """Whatever happens on the disk, no number comes of it."""
    path = tmp_path / "estimate.pt"
    made(name, checkpoint=path)(model, guide, X)
    content = path.read_bytes()
    generator = torch.Generator().manual_seed(0)
    for place in torch.randint(len(content), (60,), generator=generator).tolist():
        flipped = bytearray(content)
        flipped[place] ^= 0xFF
        path.write_bytes(flipped)
        with pytest.raises(ValueError, match="checkpoint must be a file that an estimator wrote"):
            made(name, checkpoint=path)(model, guide, X)


def test_a_missing_folder_is_refused_before_anything_is_run(tmp_path):
    watched, calls = counted()
    with pytest.raises(FileNotFoundError, match=r"checkpoint: there is no folder .*nowhere"):
        made("importance", checkpoint=tmp_path / "nowhere" / "one.pt")(watched, guide, X)
    assert not calls


def test_a_full_disk_does_not_lose_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / "estimate.pt"
    whole, calls = counted()
    expected = made("annealed")(whole, guide, X)
    broken, _ = counted(stop=int(0.8 * len(calls)))
    with pytest.raises(KeyboardInterrupt):
        made("annealed", checkpoint=path)(broken, guide, X)
    before = path.read_bytes()

    def full(path, content):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(journal, "write_atomically", full)
        with pytest.raises(OSError, match="No space left"):
            made("annealed", checkpoint=path)(model, guide, X)
    assert path.read_bytes() == before
    assert_same_bits(made("annealed", checkpoint=path)(model, guide, X), expected)


def test_a_file_is_written_at_most_every_few_seconds(tmp_path, monkeypatch):
    written = []
    real = journal.write_atomically
    monkeypatch.setattr(
        journal, "write_atomically", lambda path, content: (written.append(1), real(path, content))
    )
    made("annealed", checkpoint=tmp_path / "one.pt")(model, guide, X)
    assert len(written) == 2  # at the beginning and at the end
    written.clear()
    monkeypatch.setattr(journal, "_INTERVAL", 0.0)
    made("annealed", checkpoint=tmp_path / "two.pt")(model, guide, X)
    assert len(written) > 20


def test_no_temporary_file_is_left(tmp_path):
    made("annealed", checkpoint=tmp_path / "one.pt")(model, guide, X)
    assert [path.name for path in tmp_path.iterdir()] == ["one.pt"]


class Exact:
    """A posterior that is an object, and says nothing of itself."""

    def __call__(self, x):
        posterior(x)


def test_an_object_for_a_posterior_is_the_same_in_another_process(tmp_path):
    """Its address is not, and must not be what a checkpoint is held against."""
    path = tmp_path / "estimate.pt"
    objects = [Exact(), Exact()]  # two addresses, as two processes would have
    found = made("bidirectional", posterior=objects[0], checkpoint=path)(model, guide, X[:2])
    again = made("bidirectional", posterior=objects[1], checkpoint=path)(model, guide, X[:2])
    assert_same_bits(found, again)


# --- programs that are planned twice -------------------------------------------------------------


def _ragged(x, lengths):
    """A latent for every step of the longest sequence: the first data do not show them all."""
    with pyro.plate("data", len(x)):
        for step in range(int(lengths.max())):
            with pyro.poutine.mask(mask=lengths > step):
                z = pyro.sample(f"z{step}", dist.Normal(x.new_zeros(()), 1.0))
                pyro.sample(f"x{step}", dist.Normal(z, 1.0), obs=x[:, step])


def _ragged_guide(x, lengths):
    with pyro.plate("data", len(x)):
        for step in range(int(lengths.max())):
            with pyro.poutine.mask(mask=lengths > step):
                pyro.sample(f"z{step}", dist.Normal(x[:, step] / 2, 0.8))


def test_latents_that_only_later_data_have_do_not_confuse_the_checkpoint(tmp_path):
    path = tmp_path / "estimate.pt"
    lengths = torch.full((300,), 2)
    lengths[280] = 3  # beyond the data that a plan looks at
    x = torch.randn(300, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    settings = {"num_samples": 20, "memory": 50_000}
    expected = made("importance", **settings)(_ragged, _ragged_guide, x, lengths)
    for _ in range(2):  # the second time what the first has left is read
        found = made("importance", checkpoint=path, **settings)(_ragged, _ragged_guide, x, lengths)
        assert_same_bits(found, expected)
