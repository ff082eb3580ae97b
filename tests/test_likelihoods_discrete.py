"""Likelihoods of levels and of classes: probabilities that add up, tails, draws, refusals."""

from __future__ import annotations

import math
from fractions import Fraction

import numpy as np
import pyro.distributions as dist
import pytest
import torch
from scipy import special, stats
from torch import nn

from pyrovae.models.distributions.grid import UnitGrid, check_num_levels
from pyrovae.models.likelihoods import (
    Categorical,
    DiscretizedLogistic,
    DiscretizedLogisticMixture,
    LearnedScale,
)

DTYPES = [torch.float32, torch.float64]
LOCS = [-50.0, -0.01, 0.0, 0.123, 0.5, 1.0, 3.0, 1e4]
SCALES = [1e-30, 1e-9, 1e-4, 0.01, 0.1, 1.0, 30.0, 1e6]


class Given(nn.Module):
    """A decoder whose output is its input."""

    def forward(self, z):
        return z


def grid(num_levels, dtype=torch.float64):
    return torch.arange(num_levels, dtype=dtype) / (num_levels - 1)


def logistic(loc, scale, num_levels=256):
    """The distribution, from a network that returns both."""
    output = torch.cat([loc, scale.log()], -1)
    return DiscretizedLogistic(Given(), num_levels)(output)


def level_logpmf(num_levels, loc, scale):
    """log P of each level by differences of whichever tail is the smaller."""
    edge = (np.arange(num_levels - 1) + 0.5) / (num_levels - 1)
    below = special.expit(np.concatenate([[-np.inf], (edge - loc) / scale, [np.inf]]))
    above = special.expit(np.concatenate([[np.inf], (loc - edge) / scale, [-np.inf]]))
    with np.errstate(divide="ignore"):
        return np.log(np.where(below[1:] < 0.5, np.diff(below), -np.diff(above)))


# --- rounded logistics ---------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("num_levels", [2, 3, 256, 65536])
def test_levels_add_up_to_one(dtype, num_levels):
    loc, scale = torch.cartesian_prod(*(torch.tensor(a, dtype=dtype) for a in (LOCS, SCALES))).T
    levels = grid(num_levels, dtype)[:, None]
    for part in range(0, len(loc), 8):
        one = logistic(loc[part : part + 8, None], scale[part : part + 8, None], num_levels)
        total = one.log_prob(levels[..., None]).double().exp().sum(0)
        bound = 1e-6 if dtype == torch.float32 else 1e-12
        assert (total - 1).abs().max() < bound


@pytest.mark.parametrize("num_levels", [2, 5, 256])
@pytest.mark.parametrize("loc", [-0.3, 0.123, 0.5, 1.4])
@pytest.mark.parametrize("scale", [0.02, 0.2, 5.0])
def test_levels_are_masses_of_the_logistic(num_levels, loc, scale):
    loc, scale = (torch.tensor([each], dtype=torch.float64) for each in (loc, scale))
    ours = logistic(loc, scale, num_levels).log_prob(grid(num_levels)[:, None])
    exact = level_logpmf(num_levels, float(loc), float(scale))
    np.testing.assert_allclose(ours, exact, rtol=1e-10, atol=1e-9)


def test_tails_are_those_of_the_exponential():
    """Far from the mean each bin is its tail: a level further off costs 1 / w nats, exactly."""
    one = DiscretizedLogistic(Given(), scale=1 / 255)(torch.tensor([-2000 / 255]))  # w = 1
    log_p = one.log_prob(grid(256, torch.float32)[:, None]).double()
    k = torch.arange(1, 255, dtype=torch.float64)
    expected = -(k - 0.5 + 2000) + math.log1p(-math.exp(-1))
    torch.testing.assert_close(log_p[1:-1], expected, rtol=1e-6, atol=0)
    torch.testing.assert_close(log_p[0], torch.tensor(0.0).double())
    torch.testing.assert_close(log_p[-1], torch.tensor(-2254.5).double())


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("scale", [1e-30, 1e-12, 1e-6, 1e-3])
def test_a_tiny_scale_has_a_probability_and_a_slope(dtype, scale):
    """c = 128: level 128 has nearly all of the mass, level 130 loses 3 / 2 w nats."""
    loc = torch.tensor([128 / 255], dtype=dtype, requires_grad=True)
    log_scale = torch.tensor([scale], dtype=dtype).log().requires_grad_()
    one = DiscretizedLogistic(Given())(torch.cat([loc, log_scale], -1))
    log_p = one.log_prob(grid(256, dtype)[:, None])
    assert log_p.isfinite().all()
    width = max(scale * 255, 1e-12)
    found = log_p.detach().double().numpy() * width
    error = 1.5e-5 if dtype == torch.float32 else 1e-13  # of c, rounded
    assert abs(found[128] - width * np.log(np.tanh(0.25 / width))) < error
    exact = -np.logaddexp(0, 1.5 / width) - np.logaddexp(0, -2.5 / width)
    assert abs(found[130] - width * (exact + np.log(-np.expm1(-1 / width)))) < error
    for level in (0, 127, 128, 129, 255):
        slopes = torch.autograd.grad(log_p[level], (loc, log_scale), retain_graph=True)
        assert all(slope.isfinite().all() for slope in slopes)


@pytest.mark.parametrize("num_levels", [2, 256])
def test_gradients_are_right_at_and_between_the_edges(num_levels):
    loc = torch.tensor([0.3, -2.0, 4.0, 0.0], dtype=torch.float64, requires_grad=True)
    scale = torch.tensor([0.1, 0.01, 3.0, 1e-3], dtype=torch.float64, requires_grad=True)
    levels = grid(num_levels)[[0, num_levels // 2, num_levels - 1]][:, None]

    def score(loc, scale):
        return logistic(loc[..., None], scale[..., None], num_levels).log_prob(levels[..., None])

    assert torch.autograd.gradcheck(score, (loc, scale))


@pytest.mark.parametrize("num_levels", [2, 33, 256])
def test_the_mean_is_the_sum_over_levels(num_levels):
    loc, scale = torch.cartesian_prod(
        torch.tensor(LOCS, dtype=torch.float64), torch.tensor(SCALES, dtype=torch.float64)
    ).T[..., None]
    one = logistic(loc, scale, num_levels)
    p = one.log_prob(grid(num_levels)[:, None, None]).exp()
    expected = (p * grid(num_levels)[:, None]).sum(0)
    torch.testing.assert_close(one.mean[..., 0], expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("loc", "scale"), [(0.4, 0.1), (-0.1, 0.2), (1.2, 0.05), (0.5, 1e-9)])
def test_levels_are_drawn_as_often_as_they_should(dtype, loc, scale):
    one = logistic(torch.tensor([loc], dtype=dtype), torch.tensor([scale], dtype=dtype), 11)
    x = one.sample(torch.Size((100_000,)))
    assert x.dtype == dtype
    assert UnitGrid(11).check(x).all()
    p = one.log_prob(grid(11, dtype)[:, None]).double().exp()
    found = torch.bincount((x[:, 0] * 10).round().long(), minlength=11) / len(x)
    assert ((found - p).abs() <= 5 * (p * (1 - p) / len(x)).sqrt() + 1e-12).all()


def test_levels_from_single_precision_are_levels_in_double():
    x = (grid(256, torch.float32) * torch.ones(3, 1)).double()
    one = logistic(torch.full((256,), 0.5).double(), torch.full((256,), 0.1).double())
    exact = one.log_prob(grid(256).expand(3, 256))
    torch.testing.assert_close(one.log_prob(x), exact, rtol=1e-14, atol=0)


@pytest.mark.parametrize("kind", ["one", "mixture"])
@pytest.mark.parametrize("bad", [0.5, -1 / 255, 256 / 255, math.nan, 1 / 256])
def test_what_is_on_no_level_is_refused(kind, bad):
    one = {
        "one": lambda: DiscretizedLogistic(Given())(torch.zeros(3, 4)),
        "mixture": lambda: DiscretizedLogisticMixture(Given(), 2)(torch.zeros(3, 12)),
    }[kind]()
    one.log_prob(torch.tensor([1.0, 77 / 255]))
    with pytest.raises(ValueError, match="within the support"):
        one.log_prob(torch.tensor([1.0, bad]))


@pytest.mark.parametrize("num_levels", [2, 10, 256, 65536])
@pytest.mark.parametrize("dtype", DTYPES)
def test_every_level_is_on_the_grid_however_it_was_divided(num_levels, dtype):
    k = torch.arange(num_levels)
    exact = [float(Fraction(int(i), num_levels - 1)) for i in k[:: max(num_levels // 500, 1)]]
    ways = (
        k.to(dtype) / (num_levels - 1),
        k.to(dtype) * (1 / (num_levels - 1)),
        torch.tensor(exact, dtype=dtype),
        torch.tensor(exact, dtype=torch.float32).to(dtype),
    )
    for x in ways:
        assert UnitGrid(num_levels).check(x).all()
        assert not UnitGrid(num_levels).check(x + 0.3 / (num_levels - 1)).any()


@pytest.mark.parametrize(
    ("scale", "features"), [(0.1, 6), (2, 6), (LearnedScale((6,)), 6), (None, 12)]
)
@pytest.mark.parametrize("dtype", DTYPES)
def test_the_scale_is_a_number_learned_or_the_networks(scale, features, dtype):
    likelihood = DiscretizedLogistic(nn.Linear(2, features), scale=scale).to(dtype)
    one = likelihood(torch.randn(4, 5, 2, dtype=dtype))
    assert (one.batch_shape, one.event_shape) == ((4, 5), (6,))
    x = one.sample()
    assert x.dtype == one.mean.dtype == one.log_prob(x).dtype == dtype
    one.log_prob(x).sum().backward()
    assert all(p.grad.any() for p in likelihood.parameters())


# --- mixtures of them ----------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_mixture_is_the_weighted_sum_of_its_components(dtype):
    """Three features of M each for every number, one number after another."""
    torch.manual_seed(0)
    pieces, m, d, num_levels = torch.randn(4, 5, 2, 9, dtype=dtype), 3, 2, 7
    one = DiscretizedLogisticMixture(Given(), m, num_levels)(pieces.flatten(-2))
    assert (one.batch_shape, one.event_shape) == ((4, 5), (d,))
    x = grid(num_levels, dtype)[torch.randint(num_levels, (5, d))]
    expected = np.zeros((4, 5))
    for k, n, j in np.ndindex(4, 5, d):
        logits, loc, log_scale = pieces[k, n, j].double().numpy().reshape(3, m)
        level = int((x[n, j] * (num_levels - 1)).round())
        p = [
            np.exp(level_logpmf(num_levels, loc[i], np.exp(log_scale[i]))[level]) for i in range(m)
        ]
        expected[k, n] += np.log(special.softmax(logits) @ p)
    tolerance = 1e-5 if dtype == torch.float32 else 1e-12
    np.testing.assert_allclose(one.log_prob(x), expected, rtol=tolerance)


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_mixture_adds_up_and_draws_and_has_a_mean(dtype):
    torch.manual_seed(0)
    one = DiscretizedLogisticMixture(Given(), 4, 9)(torch.randn(12, dtype=dtype))
    p = one.log_prob(grid(9, dtype)[:, None]).double().exp()
    assert abs(float(p.sum()) - 1) < (1e-6 if dtype == torch.float32 else 1e-12)
    torch.testing.assert_close(one.mean.double(), (p @ grid(9))[None], rtol=1e-6, atol=1e-6)
    x = one.sample(torch.Size((100_000,)))
    assert x.dtype == dtype
    found = torch.bincount((x[:, 0] * 8).round().long(), minlength=9) / len(x)
    assert ((found - p).abs() <= 5 * (p * (1 - p) / len(x)).sqrt()).all()


def test_a_mixtures_gradients_are_finite_where_a_component_has_no_share():
    output = torch.tensor([[30.0, -1000, 0.1, 50.0, -9.0, -60.0]], requires_grad=True)
    for level in (0.0, 26 / 255, 1.0):
        one = DiscretizedLogisticMixture(Given(), 2)(output)
        (slope,) = torch.autograd.grad(one.log_prob(torch.tensor([level])).sum(), output)
        assert slope.isfinite().all()


# --- classes -------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("as_type", [torch.float32, torch.float64, torch.int64, torch.uint8])
def test_classes_are_scored_whatever_the_dtype_of_their_numbers(dtype, as_type):
    torch.manual_seed(0)
    logits = 5 * torch.randn(4, 5, 3, 6, dtype=dtype)
    x = torch.randint(6, (5, 3))
    one = Categorical(Given(), 6)(logits.flatten(-2))
    assert (one.batch_shape, one.event_shape) == ((4, 5), (3,))
    log_p = logits.double().numpy() - special.logsumexp(logits.double().numpy(), -1, keepdims=True)
    expected = np.take_along_axis(log_p, x.numpy()[None, ..., None].repeat(4, 0), -1)[..., 0].sum(
        -1
    )
    tolerance = 1e-5 if dtype == torch.float32 else 1e-12
    np.testing.assert_allclose(one.log_prob(x.to(as_type)), expected, rtol=tolerance)


def test_classes_are_drawn_as_numbers_that_can_be_scored_and_encoded():
    p = np.array([0.5, 0.3, 0.2, 0.0])
    logits = torch.as_tensor(np.log(np.maximum(p, 1e-300)))
    one = Categorical(Given(), 4)(logits)
    x = one.sample(torch.Size((100_000,)))
    assert x.dtype == torch.float64
    found = np.bincount(x[:, 0].long(), minlength=4) / len(x)
    assert (abs(found - p) <= 5 * np.sqrt(p * (1 - p) / len(x))).all()
    assert float(one.mean) == pytest.approx(0.7, rel=1e-12)
    assert float(one.variance) == pytest.approx(0.61, rel=1e-12)
    spread = one.expand(torch.Size((3,)))
    assert spread.sample().shape == (3, 1)
    assert spread.sample().dtype == torch.float64
    with pytest.raises(ValueError, match="within the support"):
        one.log_prob(torch.tensor([4.0]))
    with pytest.raises(ValueError, match="within the support"):
        one.log_prob(torch.tensor([1.5]))


def test_two_classes_are_a_bernoulli():
    torch.manual_seed(0)
    odds, x = torch.randn(5, 3), torch.rand(5, 3).round()
    one = Categorical(Given(), 2)(torch.stack([torch.zeros(5, 3), odds], -1).flatten(-2))
    expected = dist.Bernoulli(logits=odds).to_event(1)
    torch.testing.assert_close(one.log_prob(x), expected.log_prob(x))
    torch.testing.assert_close(one.mean, expected.mean)


# --- all of them ---------------------------------------------------------------------------------

KINDS = {
    "logistic": (lambda e: DiscretizedLogistic(Given(), 4, event_dim=e), 2),
    "mixture": (lambda e: DiscretizedLogisticMixture(Given(), 3, 4, event_dim=e), 9),
    "categorical": (lambda e: Categorical(Given(), 4, event_dim=e), 4),
}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("shape", [(), (6,), (1, 2, 3)])
def test_a_datum_may_be_a_number_a_vector_or_an_image(kind, shape):
    make, size = KINDS[kind]
    torch.manual_seed(0)
    likelihood, features = make(len(shape)), (*shape[:-1], ([1, *shape][-1]) * size)
    if kind == "logistic" and not shape:  # one number has nothing side by side
        likelihood, features = DiscretizedLogistic(Given(), 4, scale=0.2, event_dim=0), ()
    one = likelihood(torch.randn(4, 5, *features))
    assert (one.batch_shape, one.event_shape) == ((4, 5), shape)
    x = one.sample()
    assert x.shape == one.mean.shape == (4, 5, *shape)
    assert one.log_prob(x).shape == (4, 5)
    assert one.log_prob(x[0]).shape == (4, 5)


@pytest.mark.parametrize(
    ("make", "kind", "message"),
    [
        (lambda: check_num_levels(65537), ValueError, "from 2 to 65536, but is 65537"),
        (lambda: DiscretizedLogistic(Given(), 1), ValueError, "num_levels must be .* but is 1"),
        (
            lambda: DiscretizedLogistic(Given(), scale=0.0),
            ValueError,
            r"scale must be positive, but is 0\.0",
        ),
        (
            lambda: DiscretizedLogistic(Given(), scale="wide"),
            TypeError,
            "scale must be a number, a LearnedScale or None, but is a str",
        ),
        (
            lambda: DiscretizedLogistic(Given())(torch.zeros(5, 3)),
            ValueError,
            r"net must return 2 D features \(mean and log scale\), but returns 3",
        ),
        (
            lambda: DiscretizedLogisticMixture(Given(), 0),
            ValueError,
            "num_components must be at least 1, but is 0",
        ),
        (
            lambda: DiscretizedLogisticMixture(Given(), 2, num_levels=0),
            ValueError,
            "num_levels must be .* but is 0",
        ),
        (
            lambda: DiscretizedLogisticMixture(Given(), 2)(torch.zeros(5, 10)),
            ValueError,
            r"net must return 6 features \(2 logits, .*\) for each of D numbers, but returns 10",
        ),
        (lambda: Categorical(Given(), 0), ValueError, "num_classes must be at least 1, but is 0"),
        (
            lambda: Categorical(Given(), 4, event_dim=0)(torch.zeros(5, 8)),
            ValueError,
            r"net must return 4 features \(logits\), but returns 8",
        ),
    ],
)
def test_bad_likelihoods_are_refused(make, kind, message):
    with pytest.raises(kind, match=message):
        make()


def test_the_oracle_is_the_logistics_own():
    """level_logpmf against scipy's distribution function."""
    edges = np.array([-np.inf, 0.25, 0.75, np.inf])
    expected = np.log(np.diff(stats.logistic.cdf(edges, 0.4, 0.2)))
    np.testing.assert_allclose(level_logpmf(3, 0.4, 0.2), expected, rtol=1e-12)
