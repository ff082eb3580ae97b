"""The codebook and the quantiser: against distances, moving averages and gradients by hand."""

from __future__ import annotations

import copy

import numpy as np
import oracles
import pytest
import torch
from quantised_toys import codebook, encodings, plain
from torch import nn

from pyrovae.models.quantised import Codebook, VectorQuantiser

GRIDS = [(3,), (2, 2), (1, 2, 3)]


def rows(encoded):
    """``(N, D, *grid)`` as one row for each place."""
    return encoded.movedim(1, -1).reshape(-1, encoded.shape[1])


def nearest(encoded, vectors):
    """The codes of encodings ``(N, D, *grid)``, by distances that are added up: ``(N, *grid)``."""
    distance = torch.cdist(
        rows(encoded), vectors.detach(), compute_mode="donot_use_mm_for_euclid_dist"
    )
    return distance.argmin(-1).reshape(len(encoded), *encoded.shape[2:])


def buffers(book):
    return {name: value.clone() for name, value in book.state_dict().items()}


def assert_untouched(book, before):
    for name, value in book.state_dict().items():
        assert torch.equal(value, before[name]), name


# --- the nearest code ----------------------------------------------------------------------------


@pytest.mark.parametrize("grid", GRIDS)
@pytest.mark.parametrize("decay", [0.9, None])
def test_codes_are_the_nearest(grid, decay):
    quantiser, x = plain(grid, decay=decay).eval(), encodings(grid=grid)
    numbers = nearest(x, quantiser.codebook.vectors)
    assert len(numbers.unique()) == 5
    vectors = quantiser.codebook.vectors[numbers].movedim(-1, 1)
    assert torch.equal(quantiser(x).sample(), vectors)
    assert torch.equal(quantiser(x).rsample((2,)), vectors.expand(2, *x.shape))


@pytest.mark.parametrize("temperature", [0, 0.0])
def test_without_a_temperature_the_guide_is_sure(temperature):
    quantiser, x = plain(temperature=temperature).eval(), encodings()
    probs = quantiser(x).numbers.base_dist.probs
    wanted = nn.functional.one_hot(nearest(x, quantiser.codebook.vectors), 5)
    assert torch.equal(probs, wanted.double())
    right = quantiser(x).sample()
    assert (quantiser(x).log_prob(right) == 0).all()
    other = quantiser.codebook.vectors[(wanted.argmax(-1) + 1) % 5].movedim(-1, 1)
    assert (quantiser(x).log_prob(other) == -torch.inf).all()


@pytest.mark.parametrize("grid", GRIDS)
@pytest.mark.parametrize("temperature", [0.3, 5])
def test_a_temperature_makes_a_softmax_of_squared_distances(grid, temperature):
    quantiser, x = plain(grid, temperature=temperature).eval(), encodings(grid=grid)
    vectors = quantiser.codebook.vectors.numpy()
    away = ((rows(x).numpy()[:, None] - vectors) ** 2).sum(-1)
    logits = -away / temperature
    log_probs = (logits - oracles.logsumexp(logits, -1)[:, None]).reshape(len(x), *grid, 5)
    given = quantiser(x)
    np.testing.assert_allclose(given.numbers.base_dist.logits.numpy(), log_probs, atol=1e-12)
    numbers = torch.randint(5, (len(x), *grid))
    log_prob = given.log_prob(quantiser.codebook.vectors[numbers].movedim(-1, 1))
    wanted = np.take_along_axis(log_probs, numbers.numpy()[..., None], -1).squeeze(-1)
    np.testing.assert_allclose(log_prob, wanted.reshape(len(x), -1).sum(-1), atol=1e-11)


def test_softened_draws_have_their_probabilities():
    quantiser, x = plain((1,), temperature=1.0).eval(), encodings(1, (1,))
    given, count = quantiser(x), 20_000
    drawn = given.sample((count,))[:, 0, :, 0]
    share = (drawn[:, None] == quantiser.codebook.vectors).all(-1).double().mean(0)
    probs = given.numbers.base_dist.probs[0, 0]
    error = (probs * (1 - probs) / count).sqrt()
    assert ((share - probs).abs() < 5 * error).all()


def test_another_temperature_shares_encoder_and_codebook():
    quantiser = plain().eval()
    other = quantiser.at(2.0)
    assert (other.net, other.codebook) == (quantiser.net, quantiser.codebook)
    assert (other.temperature, quantiser.temperature, other.training) == (2.0, 0.0, False)
    assert other.commitment == quantiser.commitment
    assert quantiser.train().at(2.0).training


# --- moving averages -----------------------------------------------------------------------------


def by_the_paper(vectors, batches, decay):
    """N, m and e of appendix A.1, one code and one encoding at a time, from balanced counts."""
    vectors = vectors.copy()
    num_codes, per_code = len(vectors), len(batches[0]) / len(vectors)
    counts = np.full(num_codes, per_code)
    sums = per_code * vectors
    for batch in batches:
        distance = ((batch[:, None] - vectors) ** 2).sum(-1)
        chosen = distance.argmin(-1)
        for code in range(num_codes):
            mine = [row for row, one in zip(batch, chosen, strict=True) if one == code]
            counts[code] = counts[code] * decay + len(mine) * (1 - decay)
            sums[code] = sums[code] * decay + sum(mine, np.zeros(2)) * (1 - decay)
            vectors[code] = sums[code] / counts[code]
    return counts / per_code, sums / per_code, vectors


@pytest.mark.parametrize("decay", [0.5, 0.99])
@pytest.mark.parametrize("num_data", [5, 17])
def test_codes_are_the_moving_averages_of_the_paper(decay, num_data):
    quantiser = plain((2, 2), decay=decay, revive=False)
    book, start = quantiser.codebook, quantiser.codebook.vectors.numpy().copy()
    batches = [encodings(num_data, (2, 2), seed=seed) for seed in range(12)]
    for batch in batches:
        quantiser(batch)
    wanted = by_the_paper(start, [rows(batch).numpy() for batch in batches], decay)
    for found, one in zip((book.counts, book.sums, book.vectors), wanted, strict=True):
        np.testing.assert_allclose(found, one, rtol=1e-11, atol=1e-12)
    assert abs(wanted[2] - start).max() > 0.01


def test_counts_become_the_shares_of_the_codes():
    book, x = codebook(decay=0.5, revive=False), rows(encodings(50))
    numbers = torch.randint(5, (len(x),)) % 4  # never the last
    for _ in range(60):
        book.learn(x, numbers)
    share = numbers.bincount(minlength=5) / len(x)
    torch.testing.assert_close(book.counts / 5, share.double())


def test_a_batch_given_twice_counts_once():
    books = codebook(), codebook()
    x = rows(encodings())
    numbers = nearest(encodings(), books[0].vectors).reshape(-1)
    books[0].learn(x, numbers)
    books[1].learn(x.repeat(2, 1), numbers.repeat(2))
    torch.testing.assert_close(dict(books[0].state_dict()), dict(books[1].state_dict()))


def test_a_step_teaches_before_codes_are_chosen_and_later_ones_leave_it_alone():
    quantiser = plain(decay=0.5)
    first = quantiser(encodings(seed=0))
    taught = quantiser.codebook.vectors.clone()
    assert torch.equal(first.codebook, taught)
    quantiser(encodings(seed=1))
    assert not torch.equal(quantiser.codebook.vectors, taught)
    assert torch.equal(first.codebook, taught)


# --- by gradient ---------------------------------------------------------------------------------


def test_gradients_are_those_of_the_two_terms():
    """Of sum |sg(z) - e|² + β |z - sg(e)|², with the decoder's passed straight through."""
    beta = 0.7
    quantiser = plain((2, 2), commitment=beta, decay=None, revive=False)
    x = encodings(grid=(2, 2)).requires_grad_()
    given = quantiser(x)
    loss = given.rsample().sin().sum() + given.penalty().sum()
    loss.backward()
    vectors = quantiser.codebook.vectors.detach()
    numbers = nearest(x.detach(), vectors)
    code = vectors[numbers].movedim(-1, 1)
    torch.testing.assert_close(x.grad, code.cos() + 2 * beta * (x.detach() - code))
    by_hand = torch.zeros_like(vectors)
    for row, number in zip(rows(x.detach()), numbers.reshape(-1), strict=True):
        by_hand[number] += 2 * (vectors[number] - row)
    torch.testing.assert_close(quantiser.codebook.vectors.grad, by_hand)
    away = (x.detach() - code).square().flatten(1).sum(-1)
    torch.testing.assert_close(given.penalty().detach(), (1 + beta) * away)


@pytest.mark.parametrize("training", [True, False])
def test_moving_averages_leave_the_encodings_term_alone(training):
    quantiser = plain(commitment=0.7).train(training)
    x = encodings().requires_grad_()
    given = quantiser(x)
    given.penalty().sum().backward()
    code = quantiser.codebook.vectors[nearest(x.detach(), quantiser.codebook.vectors)]
    away = x.detach() - code.movedim(-1, 1)
    torch.testing.assert_close(x.grad, 2 * 0.7 * away)
    torch.testing.assert_close(given.penalty().detach(), 0.7 * away.square().sum((1, 2)))


def test_particles_share_encodings():
    """The gradient of each is passed on; the penalty is of each datum's encodings."""
    quantiser, x = plain(temperature=1.0).eval(), encodings().requires_grad_()
    given = quantiser(x).expand((4, len(x)))
    drawn = given.rsample()
    assert drawn.shape == (4, *x.shape)
    weight = torch.randn(drawn.shape, dtype=x.dtype)
    (gradient,) = torch.autograd.grad((weight * drawn).sum(), x)
    torch.testing.assert_close(gradient, weight.sum(0))
    assert torch.equal(given.penalty(), quantiser(x).penalty().expand(4, -1))


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_penalties_are_of_the_nearest_code_at_any_temperature(temperature):
    quantiser, x = plain(temperature=temperature, commitment=1.0).eval(), encodings()
    away = torch.cdist(rows(x), quantiser.codebook.vectors).amin(-1).square()
    torch.testing.assert_close(quantiser(x).penalty(), away.reshape(len(x), -1).sum(-1))


# --- dead codes ----------------------------------------------------------------------------------


def far_away(decay, revive):
    """Two of the five codes are nearest to nothing."""
    book = codebook(decay=decay, revive=revive)
    with torch.no_grad():
        book.vectors[[1, 3]] += 100.0
        book.sums.copy_(book.vectors)
    quantiser = VectorQuantiser(nn.Identity(), book, (3,))
    x = encodings(20)
    for _ in range(12 if decay else 400):
        quantiser(x)
    return book, rows(x)


@pytest.mark.parametrize("decay", [0.6, None])
def test_dead_codes_are_put_next_to_encodings(decay):
    """Just after that of the decay: at 0.6, the 7th step; at 0.99, the 349th."""
    book, x = far_away(decay, revive=True)
    away = torch.cdist(book.vectors.detach(), x).amin(-1)
    assert (away[[1, 3]] < (0.5 if decay else 0.02)).all()
    assert (book.counts > 0.03).all()
    assert len(book.vectors.detach().unique(dim=0)) == 5
    left, _ = far_away(decay, revive=False)
    assert (torch.cdist(left.vectors.detach(), x).amin(-1)[[1, 3]] > 50).all()


def test_live_codes_are_left_alone():
    """In the step that revives, against a codebook that does not."""
    start = codebook(decay=0.9)
    start.counts[[1, 3]] = 0.01
    x = rows(encodings(20))
    numbers = torch.tensor([0, 2, 4]).repeat(20)
    revived, left = copy.deepcopy(start), copy.deepcopy(start)
    left.revive = False
    revived.learn(x, numbers)
    left.learn(x, numbers)
    for name in ("vectors", "counts", "sums"):
        a, b = getattr(revived, name), getattr(left, name)
        assert torch.equal(a[[0, 2, 4]], b[[0, 2, 4]]), name
        assert not torch.equal(a[[1, 3]], b[[1, 3]]), name
    size = x.square().mean().sqrt()
    assert (torch.cdist(revived.vectors[[1, 3]], x).amin(-1) < 0.01 * size).all()
    assert torch.equal(revived.sums[[1, 3]], revived.vectors[[1, 3]])
    assert (revived.counts[[1, 3]] == 1).all()


# --- what changes nothing ------------------------------------------------------------------------


@pytest.mark.parametrize("decay", [0.5, None])
@pytest.mark.parametrize("how", ["evaluation", "no gradient", "frozen"])
def test_only_training_moves_the_codebook(how, decay):
    quantiser = plain(decay=decay, frozen=how == "frozen").train(how != "evaluation")
    before = buffers(quantiser.codebook)
    with torch.set_grad_enabled(how != "no gradient"):
        quantiser(encodings()).rsample()
    assert_untouched(quantiser.codebook, before)
    quantiser.codebook.frozen = False
    quantiser.train()(encodings())
    assert not torch.equal(quantiser.codebook.counts, before["counts"])


def test_state_goes_on_where_it_was():
    quantiser = plain(decay=0.5)
    quantiser(encodings(seed=0))
    other = plain(decay=0.5)
    other.load_state_dict(quantiser.state_dict())
    for one in (quantiser, other):
        torch.manual_seed(2)
        one(encodings(seed=1))
    assert_untouched(other.codebook, buffers(quantiser.codebook))


# --- refusals ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"num_codes": 0}, "num_codes must be at least 1, but is 0"),
        ({"code_dim": -1}, "code_dim must be at least 1, but is -1"),
        ({"decay": 0.0}, r"decay must be in \(0, 1\) or None, but is 0.0"),
        ({"decay": 1}, r"decay must be in \(0, 1\) or None, but is 1"),
        ({"decay": float("nan")}, r"decay must be in \(0, 1\) or None, but is nan"),
        ({"decay": "0.9"}, r"decay must be in \(0, 1\) or None, but is 0.9"),
    ],
)
def test_impossible_codebooks_are_refused(changed, message):
    with pytest.raises(ValueError, match=message):
        Codebook(**{"num_codes": 4, "code_dim": 2} | changed)


@pytest.mark.parametrize(
    ("changed", "kind", "message"),
    [
        ({"codebook": torch.eye(2)}, TypeError, "codebook must be a Codebook, but is a Tensor"),
        ({"grid": 3}, ValueError, r"grid must be a shape, as \(4,\) or \(2, 2\), but is 3"),
        ({"grid": ()}, ValueError, r"grid must be a shape, .*, but is \(\)"),
        ({"grid": (2, 0)}, ValueError, r"grid\[1\] must be at least 1, but is 0"),
        ({"commitment": -0.1}, ValueError, "commitment must be finite and at least 0, but is -0.1"),
        ({"temperature": -1}, ValueError, "temperature must be finite and at least 0, but is -1"),
        ({"temperature": None}, ValueError, "temperature must be finite .* but is None"),
        ({"temperature": torch.inf}, ValueError, "temperature must be finite .* but is inf"),
    ],
)
def test_impossible_quantisers_are_refused(changed, kind, message):
    with pytest.raises(kind, match=message):
        VectorQuantiser(
            **{"net": nn.Identity(), "codebook": Codebook(4, 2), "grid": (3,)} | changed
        )


def test_encodings_of_another_shape_are_refused():
    with pytest.raises(
        ValueError, match=r"net must return .* = \(2, 3\) .* returns shape \(8, 2, 4"
    ):
        plain()(encodings(grid=(4,)))
