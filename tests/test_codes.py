"""Priors of grids of codes by enumeration; their vectors, and levels of grey; refusals."""

from __future__ import annotations

import copy
import math
import pickle

import numpy as np
import oracles
import pyro.distributions as dist
import pytest
import torch

from pyrovae.models import load, save
from pyrovae.models.distributions.embedded import Embedded
from pyrovae.models.distributions.grid import UnitGrid, check_num_levels, nearest_level
from pyrovae.models.priors import AutoregressivePrior, UniformCodes

pytestmark = pytest.mark.usefixtures("one_thread")

GRIDS = {"2x2": ((2, 2), 3), "line": ((4,), 3), "1x3": ((1, 3), 4), "one": ((), 5)}


def randn(*shape):
    return torch.randn(*shape, dtype=torch.float64)


def codes(kind, grid, num_codes):
    torch.manual_seed(6)
    if kind is AutoregressivePrior:
        prior = AutoregressivePrior(grid, num_codes, hidden=6).double()
        with torch.no_grad():
            for parameter in prior.parameters():
                parameter.normal_(0, 0.7)
        return prior
    return UniformCodes(grid, num_codes).double()


def enumerated(grid, num_codes):
    return torch.as_tensor(oracles.enumerated_codes(math.prod(grid), num_codes)).reshape(-1, *grid)


@pytest.mark.parametrize("kind", [UniformCodes, AutoregressivePrior])
@pytest.mark.parametrize(("grid", "num_codes"), GRIDS.values(), ids=GRIDS)
def test_probabilities_of_all_codes_sum_to_one_and_are_those_of_draws(kind, grid, num_codes):
    prior, every = codes(kind, grid, num_codes), enumerated(grid, num_codes)
    with torch.no_grad():
        chance = prior().log_prob(every).exp().numpy()
    assert chance.sum() == pytest.approx(1.0, abs=1e-12)
    flat = np.allclose(chance, 1 / len(every), rtol=1e-12)
    assert flat == (kind is UniformCodes)
    draws = prior().sample(torch.Size((300, 100)))
    assert draws.shape == (300, 100, *grid)
    places = num_codes ** np.arange(math.prod(grid))[::-1]
    rows = draws.reshape(30_000, -1).numpy() @ places
    counts = np.bincount(rows, minlength=len(every))
    often = chance * len(rows) > 30
    stderr = np.sqrt(len(rows) * chance * (1 - chance))[often]
    assert (abs(counts - len(rows) * chance)[often] < 5 * stderr).all()
    rare = counts[~often].sum(), len(rows) * chance[~often].sum()
    assert abs(rare[0] - rare[1]) <= 5 * math.sqrt(rare[1])
    assert often.sum() > len(every) / 4


def test_a_code_is_a_product_of_conditionals_in_the_order_of_rows():
    """Each is the ratio of two marginals of the enumerated table, and ignores what comes later."""
    prior, every = codes(AutoregressivePrior, (2, 2), 3), enumerated((2, 2), 3)
    with torch.no_grad():
        table = prior().log_prob(every).exp().numpy().reshape(3, 3, 3, 3)
        told = prior.logits(every.reshape(-1, 4)).softmax(-1).numpy().reshape(3, 3, 3, 3, 4, 3)
    product = np.ones_like(table)
    for place in range(4):
        marginal = table.sum(tuple(range(place + 1, 4)), keepdims=True)
        conditional = marginal / marginal.sum(place, keepdims=True)
        np.testing.assert_allclose(conditional.sum(place), 1.0, rtol=1e-12)
        product = product * conditional
        along = np.moveaxis(np.broadcast_to(conditional, table.shape), place, -1)
        mine = told[..., place, :]
        np.testing.assert_allclose(mine, np.expand_dims(along, place) + 0 * mine, rtol=1e-10)
    np.testing.assert_allclose(product, table, rtol=1e-10)
    marginal = table.sum((2, 3))
    conditional = marginal / marginal.sum(1, keepdims=True)
    assert abs(conditional - conditional.mean(0)).max() > 0.01  # it does look back


def test_an_autoregressive_prior_learns_which_codes_come_together():
    """Its cross-entropy comes down to the entropy: all codes of a grid are the same one."""
    torch.manual_seed(0)
    prior = AutoregressivePrior((2, 2), 3, hidden=12)
    grids = torch.arange(3)[:, None, None].expand(3, 2, 2)
    optimizer = torch.optim.Adam(prior.parameters(), lr=0.05)
    for _ in range(100):
        optimizer.zero_grad()
        loss = -prior().log_prob(grids).mean()
        loss.backward()
        optimizer.step()
    assert math.log(3) <= loss.item() < math.log(3) + 0.05
    assert UniformCodes((2, 2), 3)().log_prob(grids).allclose(torch.tensor(-4 * math.log(3)))


@pytest.mark.parametrize(
    ("far", "apart", "dtype"),
    [(0.0, 1.0, torch.float32), (1e4, 0.1, torch.float32), (1e6, 1e-4, torch.float64)],
)
def test_vectors_of_a_codebook_have_the_probabilities_of_their_numbers(far, apart, dtype):
    codebook = (far + apart * randn(3, 4)).to(dtype)
    numbers = codes(AutoregressivePrior, (2, 2), 3)()
    one, every = Embedded(numbers, codebook), enumerated((2, 2), 3)
    vectors = torch.stack([codebook[row.flatten()].T.reshape(4, 2, 2) for row in every])
    torch.testing.assert_close(one.log_prob(vectors), numbers.log_prob(every))
    assert one.support.check(one.sample(torch.Size((50,)))).all()
    wrong = vectors[0].clone()
    wrong[0, 0, 0] += apart
    with pytest.raises(ValueError, match="within the support"):
        one.log_prob(wrong)


def test_draws_of_codes_hand_their_gradient_to_the_encoding():
    numbers = dist.Categorical(logits=torch.zeros(5, 2, 3)).to_event(1)
    encoded = torch.randn(5, 4, 2, requires_grad=True)
    slope = torch.randn(6, 5, 4, 2)
    drawn = Embedded(numbers, torch.randn(3, 4), encoded).rsample(torch.Size((6,)))
    (drawn * slope).sum().backward()
    torch.testing.assert_close(encoded.grad, slope.sum(0))
    with pytest.raises(NotImplementedError, match="an encoder"):
        Embedded(numbers, torch.randn(3, 4)).rsample()


@pytest.mark.parametrize("num_levels", [2, 3, 256, 65536])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_every_level_is_on_the_grid_and_what_is_between_is_not(num_levels, dtype):
    k = torch.arange(num_levels)
    for x in (k.float() / (num_levels - 1), k.double() / (num_levels - 1)):
        assert torch.equal(nearest_level(x.to(dtype), num_levels).long(), k)
        assert UnitGrid(num_levels).check(x.to(dtype)).all()
        assert not UnitGrid(num_levels).check((x + 1.0 + 1 / num_levels).to(dtype)).any()
    assert not UnitGrid(num_levels).check(((k + 0.5) / (num_levels - 1)).to(dtype)).any()
    odd = torch.tensor([math.nan, math.inf, -math.inf], dtype=dtype)
    assert not UnitGrid(num_levels).check(odd).any()


def test_bytes_are_on_the_grid_only_at_its_ends():
    every = torch.arange(256).to(torch.uint8)
    assert UnitGrid(256).check(every).nonzero().flatten().tolist() == [0, 1]


@pytest.mark.parametrize(
    "duplicate",
    [
        lambda prior, path: copy.deepcopy(prior),
        lambda prior, path: pickle.loads(pickle.dumps(prior)),
        lambda prior, path: (save(prior, path), load(path))[1].double(),
    ],
    ids=["copied", "pickled", "loaded"],
)
@pytest.mark.parametrize("kind", [UniformCodes, AutoregressivePrior])
def test_a_copy_has_the_same_probabilities(kind, duplicate, tmp_path):
    prior, every = codes(kind, (2, 2), 3), enumerated((2, 2), 3)
    twin = duplicate(prior, tmp_path / "prior")
    assert torch.equal(twin().log_prob(every), prior().log_prob(every))


@pytest.mark.parametrize("kind", [UniformCodes, AutoregressivePrior])
def test_impossible_sizes_are_refused(kind):
    with pytest.raises(ValueError, match=r"grid\[1\] must be at least 1, but is 0"):
        kind((2, 0), 3)
    with pytest.raises(ValueError, match="num_codes must be at least 1, but is 0"):
        kind((2, 2), 0)
    with pytest.raises(TypeError, match="grid must be a sequence of sizes, but is 4"):
        kind(4, 3)
    with pytest.raises(ValueError, match="hidden must be at least 1, but is 0"):
        AutoregressivePrior((2, 2), 3, hidden=0)
    with pytest.raises(ValueError, match="num_levels must be from 2 to 65536, but is 65537"):
        check_num_levels(65537)


@pytest.mark.parametrize("kind", [UniformCodes, AutoregressivePrior])
@pytest.mark.parametrize(
    ("value", "message"),
    [
        (torch.full((2, 2), 3), "support"),
        (torch.full((2, 2), -1), "support"),
        (torch.full((2, 2), 0.5), "support"),
        (torch.zeros(5, 4), "event.shape"),
        (torch.zeros(5, 1, 2), "event.shape"),  # would broadcast
        (torch.zeros(2), "event.shape|value"),
    ],
)
def test_what_is_no_code_is_refused(kind, value, message):
    with pytest.raises(ValueError, match=message):
        kind((2, 2), 3)().log_prob(value)
