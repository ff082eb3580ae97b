"""What an estimate has cost: counted from the settings, and counted on after an interruption."""

from __future__ import annotations

import functools
import shutil
import tempfile
from dataclasses import is_dataclass, replace
from pathlib import Path

import pytest
import torch
from estimator_toys import (
    AIS,
    ANNEAL,
    ANNEALING,
    BDMC,
    CHAINS,
    SMALL,
    SMC,
    STREAMING,
    TI,
    X,
    guide,
    model,
)
from target_toys import gamma_poisson, points, target_of

from pyrovae.inference import (
    HMC,
    BridgeSampling,
    PosteriorSampling,
    RateDistortion,
    RefinedImportanceSampling,
    Scaled,
)
from pyrovae.inference.evidence.journal import Batch, Journal, Keeper

pytestmark = pytest.mark.usefixtures("one_thread")

LONGER = ANNEAL | {"num_temperatures": 10}  # to be interrupted more than once
# those that keep how far they are in a tile
KEEPING = {
    **{kind.__name__: kind(**LONGER) for kind in ANNEALING},
    "ThermodynamicIntegration": TI(**LONGER, num_moves=2),
    "BridgeSampling": SMALL[BridgeSampling],  # as are others that draw from the posterior
    "from a proposal": AIS(**LONGER, start=Scaled(1.5)),
    "adaptive": SMC(**(ANNEAL | {"num_temperatures": 40}), start="prior", adaptive=0.995),
    "PosteriorSampling": PosteriorSampling(**CHAINS),
    "RateDistortion": RateDistortion(**LONGER),
}
# and those that begin a tile again
AGAIN = {kind.__name__: SMALL[kind] for kind in (*STREAMING, RefinedImportanceSampling)}
ALL = KEEPING | AGAIN
SOME = [AIS, BDMC, BridgeSampling, *STREAMING, RefinedImportanceSampling]


def run(estimator, x, program=model):
    """The result; a rate-distortion curve asks for no guide."""
    if isinstance(estimator, RateDistortion):
        return estimator(program, x)
    return estimator(program, guide, x)


def counted(stop=None):
    """The model, and the list of its calls so far; it is interrupted once there are ``stop``."""
    calls = []

    def watched(x):
        calls.append(len(x))
        if len(calls) == stop:
            raise KeyboardInterrupt
        model(x)

    return watched, calls


def spent(found):
    """Evaluations and gradients; both halves of a sandwich have those of the whole."""
    if hasattr(found, "lower"):
        assert spent(found.upper) == spent(found.lower)
        found = found.lower
    return found.provenance["evaluations"], found.provenance["gradients"]


def numbers(found):
    """Every tensor of a result, whatever its kind."""
    if isinstance(found, torch.Tensor):
        return [found]
    held = vars(found) if is_dataclass(found) else found if isinstance(found, dict) else {}
    return [one for name in sorted(held) for one in numbers(held[name])]


def assert_same_numbers(one, two):
    torch.testing.assert_close(numbers(one), numbers(two), rtol=0, atol=0, equal_nan=True)
    assert len(numbers(one)) > 4


def resumed(name, path, size=1, memory=None, *, program=model):
    """The result for the first data, every one a tile where memory is short."""
    return run(replace(ALL[name], checkpoint=path, memory=memory), X[:size], program)


def observed(name, path, *where):
    """A result; after how many calls of the model it kept its state, and it finished tiles."""
    watched, calls = counted()
    kept, finished = [], []
    offer, add = Keeper.offer, Batch.add
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Keeper, "offer", lambda *a, **k: (kept.append(len(calls)), offer(*a, **k)))
        patch.setattr(Batch, "add", lambda *a: (finished.append(len(calls)), add(*a)))
        return resumed(name, path, *where, program=watched), kept, finished


@functools.cache
def uninterrupted(name, *where):
    """What is observed without a checkpoint."""
    return observed(name, None, *where)


def interrupt(name, path, stop, *where):
    """Leave a checkpoint: the numbers of tiles finished, and whether another is under way."""
    broken, _ = counted(stop)
    with pytest.raises(KeyboardInterrupt):
        resumed(name, path, *where, program=broken)
    (plan,) = Journal._read(path)["batches"][0]["plans"].values()
    return list(plan["tiles"]), plan["state"] is not None


@functools.cache
def gone_on(name, times):
    """The result for one datum, from so many interruptions inside of its tile."""
    with tempfile.TemporaryDirectory() as folder:
        path, copy = Path(folder) / "estimate.pt", Path(folder) / "copy.pt"
        _, kept, _ = uninterrupted(name)
        for number in range(times):
            if number:
                shutil.copy(path, copy)
                _, kept, _ = observed(name, copy)
            assert interrupt(name, path, kept[len(kept) // 3] + 1) == ([], True)
        return resumed(name, path)


def looked_at_again(name):
    """The particles whose densities a call looks up again to go on: a sandwich has two ways."""
    estimator = ALL[name]
    return estimator.num_chains * (2 if isinstance(estimator, BDMC) else 1)


# --- of settings ---------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", STREAMING)
def test_a_sample_costs_an_evaluation_and_no_gradient(kind):
    assert spent(SMALL[kind](model, guide, X)) == (SMALL[kind].num_samples, 0)


def test_annealed_chains_cost_what_their_steps_do():
    """With L leapfrog steps a move, each of which asks for the density and its gradient."""
    chains, steps, leapfrog = 4, 6, 3
    pilot = 1 + (30 + 5) * leapfrog  # the start's, thirty moves to settle and one a temperature
    scored = 1 + (steps - 1) * leapfrog
    settings = {
        "num_chains": chains,
        "num_temperatures": steps,
        "pilot_temperatures": 5,
        "kernel": HMC(leapfrog, jitter=0.0),
    }
    wanted = chains * (pilot + scored)
    assert spent(AIS(**settings)(model, guide, X)) == (wanted, wanted)
    wanted = chains * (pilot + 2 * scored)
    assert spent(BDMC(**settings)(model, guide, X)) == (wanted, wanted)


def test_of_several_tiles_the_dearest_counts(tmp_path):
    """How long trajectories are is drawn anew for every tile."""
    dearest = set()
    for seed in (1, 2, 3):
        path = tmp_path / f"{seed}.pt"
        one = replace(SMALL[AIS], seed=seed, memory=1, checkpoint=path)
        found = one(model, guide, X)
        (plan,) = Journal._read(path)["batches"][0]["plans"].values()
        tiles = [
            (tile["num_evaluations"], tile["num_gradients"]) for tile in plan["tiles"].values()
        ]
        assert len(tiles) == len(X)
        assert spent(found) == max(tiles)
        dearest.add(tiles.index(max(tiles)) if min(tiles) < max(tiles) else None)
    assert len(dearest) > 1  # it is not always the same one


# --- after an interruption -----------------------------------------------------------------------


def assert_all_is_counted(name, times):
    """Nothing lost or counted twice; where a call stopped, the densities may be looked up again."""
    found, (whole, _, _) = gone_on(name, times), uninterrupted(name)
    assert_same_numbers(found, whole)
    for ours, theirs in zip(spent(found), spent(whole), strict=True):
        assert theirs <= ours <= theirs + times * looked_at_again(name)


@pytest.mark.parametrize("name", KEEPING)
def test_what_was_spent_on_a_tile_under_way_is_counted(name):
    assert_all_is_counted(name, 1)


@pytest.mark.parametrize("name", [AIS.__name__, BDMC.__name__, "adaptive"])
def test_interruptions_one_after_another_all_count(name):
    assert_all_is_counted(name, 2)


@pytest.mark.parametrize("name", [kind.__name__ for kind in SOME])
def test_finished_tiles_keep_their_costs(name, tmp_path):
    where = (2, 1)
    path = tmp_path / "estimate.pt"
    whole, _, finished = uninterrupted(name, *where)
    assert len(finished) == 2
    assert interrupt(name, path, finished[0] + 1, *where) == ([0], False)
    for _ in range(2):  # the second time all is read
        found = resumed(name, path, *where)
        assert_same_numbers(found, whole)
        assert spent(found) == spent(whole)


# --- of a target ---------------------------------------------------------------------------------


def test_a_target_counts_particles_and_takes_up_those_of_another():
    first = target_of(gamma_poisson())
    assert first.spent == [0, 0]
    first.log_densities(points(first, 5), "joint")
    first.gradients(points(first, 3), "guide", "joint")  # one run of the model, one gradient
    assert first.spent == [8, 3]
    second = target_of(gamma_poisson())
    second.take_up(first.spent)
    second.gradients(points(second, 2), "joint")
    assert second.spent == [10, 5]
    assert first.spent == [8, 3]
