"""Noise on levels, and bits: masses of bins by closed form, round trips, offsets, refusals."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from scipy import stats

from pyrovae.models.dequantisation import bits_per_dimension, dequantise, quantise

DOUBLE = torch.float64
LEVELS = [2, 3, 7, 256, 1000, 65536]
DTYPES = [torch.float32, DOUBLE]


def grid_of(num_levels, dtype=torch.float32):
    return torch.arange(num_levels, dtype=dtype) / (num_levels - 1)


def within(draws, expected):
    """The mean of the draws is the expected one within 5 standard errors."""
    return abs(draws.mean() - expected) < 5 * draws.std() / math.sqrt(len(draws))


# --- the noise -----------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("num_levels", LEVELS)
def test_noise_stays_in_its_bin_and_is_undone(num_levels, dtype):
    x = grid_of(num_levels, dtype).expand(max(2, 4000 // num_levels), -1)
    y = dequantise(x, num_levels)
    assert (y.dtype, y.shape) == (dtype, x.shape)
    level = torch.arange(num_levels, dtype=dtype)
    # in the dtype of y, whose bins are between rounded edges
    assert (y >= level / num_levels).all()
    assert (y < (level + 1) / num_levels).all()
    assert torch.equal(quantise(y, num_levels), x)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("num_levels", LEVELS)
@pytest.mark.parametrize("noise", [0.0, 1 - 2**-24, 1 - 2**-53])
def test_the_least_and_the_most_noise_stay_in_the_bin(monkeypatch, noise, num_levels, dtype):
    monkeypatch.setattr(torch, "rand", lambda shape, **_: torch.full(shape, noise, dtype=dtype))
    x = grid_of(num_levels, dtype)
    y = dequantise(x, num_levels)
    assert 0 <= y.min() <= y.max() < 1
    assert torch.equal(quantise(y, num_levels), x)


def test_the_noise_is_uniform_and_of_each_pixel():
    x = grid_of(256, DOUBLE).reshape(1, 16, 16).expand(40, 16, 16)
    noise = dequantise(x, 256) * 256 - x * 255
    assert stats.kstest(noise.reshape(-1).numpy(), "uniform").pvalue > 1e-4
    centred = noise.reshape(40, 256) - 0.5
    neighbours = (centred[:, 1:] * centred[:, :-1]).reshape(-1)
    assert within(neighbours, 0.0)
    assert not torch.equal(noise[0], noise[1])


def test_data_in_single_precision_are_on_their_level():
    """Bytes over 255, and their double, are off the level by rounding."""
    x = torch.arange(256, dtype=torch.uint8).float().div(255)
    for stored in (x, x.double(), x.double().nextafter(torch.zeros(256, dtype=DOUBLE))):
        level = (dequantise(stored, 256) * 256).floor()
        assert torch.equal(level, torch.arange(256, dtype=stored.dtype))
    assert torch.equal(quantise(dequantise(x, 256), 256), x)


def test_a_generator_draws_the_noise():
    x = torch.zeros(5)
    state = torch.get_rng_state()
    one, again, other = (
        dequantise(x, 4, generator=torch.Generator().manual_seed(seed)) for seed in (1, 1, 2)
    )
    assert torch.equal(one, again)
    assert not torch.equal(one, other)
    assert torch.equal(torch.get_rng_state(), state)


def test_any_shape_will_do():
    for shape in ((), (0,), (2, 3, 4)):
        y = dequantise(torch.ones(shape), 3)
        assert y.shape == shape
        assert torch.equal(quantise(y, 3), torch.ones(shape))


@pytest.mark.parametrize("num_levels", LEVELS)
def test_bins_are_shut_below_and_open_above(num_levels):
    lower = torch.arange(num_levels) / num_levels
    assert torch.equal(quantise(lower, num_levels), grid_of(num_levels))
    below = lower[1:].nextafter(torch.zeros(()))
    assert torch.equal(quantise(below, num_levels), grid_of(num_levels)[:-1])
    assert quantise(torch.tensor(1.0), num_levels) == 1


# --- the bound -----------------------------------------------------------------------------------


def one_dimension(num_levels):
    """Beta(2, 5): log-density, and the masses of the bins."""
    beta = stats.beta(2.0, 5.0)
    mass = np.diff(beta.cdf(np.arange(num_levels + 1) / num_levels))
    return lambda y: torch.as_tensor(beta.logpdf(y[..., 0].numpy())), torch.as_tensor(mass)


def two_dimensions(num_levels):
    """1 + a (1 - 2 y) (1 - 2 y'): Farlie, Gumbel and Morgenstern's, whose margins are uniform."""
    a, edge = 0.95, torch.arange(num_levels + 1, dtype=DOUBLE) / num_levels
    cdf = edge[:, None] * edge * (1 + a * (1 - edge[:, None]) * (1 - edge))
    mass = cdf.diff(dim=0).diff(dim=1).reshape(-1)
    return lambda y: torch.log1p(a * (1 - 2 * y).prod(-1)), mass


def cells(num_levels, dim):
    """Every x on the levels, ``(L^D, D)``."""
    line = grid_of(num_levels, DOUBLE)
    return torch.cartesian_prod(*[line] * dim).reshape(-1, dim)


def mean_over_bins(log_density, x, num_levels):
    """E_u log p(y) for each x, by Gauss and Legendre."""
    node, weight = np.polynomial.legendre.leggauss(60)
    dim = x.shape[1]
    nodes = torch.cartesian_prod(*[torch.as_tensor(node + 1) / 2] * dim).reshape(-1, dim)
    weights = torch.cartesian_prod(*[torch.as_tensor(weight) / 2] * dim).reshape(-1, dim)
    y = (x[:, None] * (num_levels - 1) + nodes) / num_levels
    return (log_density(y) * weights.prod(-1)).sum(-1)


@pytest.mark.parametrize("num_levels", [2, 5])
@pytest.mark.parametrize(("make", "dim"), [(one_dimension, 1), (two_dimensions, 2)])
def test_the_mean_over_the_noise_bounds_the_levels_probability(make, dim, num_levels):
    """E_u log p(y) - D log L <= log P(k); inside the logarithm the mean is P(k) itself."""
    log_density, mass = make(num_levels)
    assert mass.sum() == pytest.approx(1.0)
    x = cells(num_levels, dim)
    bound = mean_over_bins(log_density, x, num_levels)
    for row, lower, exact in zip(x, bound, mass, strict=True):
        y = dequantise(row.expand(20_000, dim), num_levels)
        log_p = log_density(y)
        assert within(log_p, lower)
        assert within(log_p.exp() / num_levels**dim, exact)
    gap = mass.log() - (bound - dim * math.log(num_levels))
    assert (gap > 1e-5).all()


@pytest.mark.parametrize(("make", "dim"), [(one_dimension, 1), (two_dimensions, 2)])
def test_the_bits_of_a_density_are_never_fewer_than_those_of_its_bins(make, dim):
    """On average over data of the bins' own: and their difference shrinks with the bins."""
    excess = []
    for num_levels in (2, 4, 16):
        log_density, mass = make(num_levels)
        bound = mean_over_bins(log_density, cells(num_levels, dim), num_levels)
        discrete = bits_per_dimension(float(mass @ mass.log()), dim)
        assert discrete == pytest.approx(stats.entropy(mass, base=2) / dim)
        excess.append(bits_per_dimension(float(mass @ bound), dim, num_levels) - discrete)
    assert excess[0] > excess[1] > excess[2] > 0


@pytest.mark.parametrize("num_levels", [2, 5, 256])
def test_a_density_that_is_constant_on_bins_has_the_bits_of_its_masses(num_levels):
    mass = torch.rand(num_levels, dtype=DOUBLE, generator=torch.Generator().manual_seed(1))
    mass = mass / mass.sum()
    level = torch.randint(num_levels, (50, 3))
    y = dequantise(level.double() / (num_levels - 1), num_levels)
    bins = (quantise(y, num_levels) * (num_levels - 1)).round().long()
    log_p = (mass * num_levels)[bins].log().sum(-1)
    continuous = bits_per_dimension(log_p, 3, num_levels)
    discrete = bits_per_dimension(mass[level].log().sum(-1), 3)
    torch.testing.assert_close(continuous, discrete)


# --- bits ----------------------------------------------------------------------------------------


def test_256_levels_add_eight_bits():
    """The density of y on [0, 1) is 256 per dimension times that of 256 y on [0, 256)."""
    num_dims, scale = 12, 256
    y = torch.rand(6, num_dims, dtype=DOUBLE)
    on_unit = stats.norm(0.4, 0.2).logpdf(y).sum(-1)
    on_bytes = stats.norm(0.4 * scale, 0.2 * scale).logpdf(scale * y).sum(-1)
    np.testing.assert_allclose(on_unit - on_bytes, num_dims * math.log(256))
    bits = bits_per_dimension(torch.as_tensor(on_unit), num_dims, num_levels=256)
    expected = -on_bytes / (num_dims * math.log(2))
    np.testing.assert_allclose(bits, expected)
    plain = bits_per_dimension(torch.as_tensor(on_unit), num_dims)
    torch.testing.assert_close(bits - plain, torch.full((6,), 8.0, dtype=DOUBLE))


@pytest.mark.parametrize("num_levels", LEVELS)
def test_alike_levels_have_their_logarithm_in_bits(num_levels):
    as_levels = bits_per_dimension(-10 * math.log(num_levels), 10)
    as_density = bits_per_dimension(0.0, 10, num_levels)
    assert as_levels == pytest.approx(math.log2(num_levels))
    assert as_density == pytest.approx(math.log2(num_levels))
    assert isinstance(as_density, float)


def test_bits_keep_shape_dtype_and_gradient():
    log_p = torch.tensor([[-1.0, 2.0], [0.5, -300.0]], requires_grad=True)
    bits = bits_per_dimension(log_p, 4, 16)
    assert (bits.shape, bits.dtype) == (log_p.shape, log_p.dtype)
    bits.sum().backward()
    torch.testing.assert_close(log_p.grad, torch.full((2, 2), -1 / (4 * math.log(2))))
    # a mean of bits is the bits of a mean
    torch.testing.assert_close(bits.mean(), bits_per_dimension(log_p.mean(), 4, 16))


# --- refusals ------------------------------------------------------------------------------------


@pytest.mark.parametrize("num_levels", [-1, 0, 1, 65537])
@pytest.mark.parametrize(
    "call",
    [
        lambda num_levels: dequantise(torch.zeros(2), num_levels),
        lambda num_levels: quantise(torch.zeros(2), num_levels),
        lambda num_levels: bits_per_dimension(-1.0, 2, num_levels),
    ],
    ids=["dequantise", "quantise", "bits"],
)
def test_bad_numbers_of_levels_are_refused(call, num_levels):
    message = f"num_levels must be from 2 to 65536, but is {num_levels}"
    with pytest.raises(ValueError, match=message):
        call(num_levels)


@pytest.mark.parametrize(
    ("make", "kind", "message"),
    [
        *(
            (
                lambda value=value: dequantise(torch.tensor([0.0, value, 1.0]), 4),
                ValueError,
                rf"x must hold levels k / 3 for k = 0 \.\.\. 3, but holds {value:g}",
            )
            for value in (0.5, -1 / 3, 4 / 3, math.nan, math.inf)
        ),
        (
            lambda: dequantise(torch.arange(4), 4),
            TypeError,
            "x must be a floating tensor, k / 3 for the level k, but is torch.int64",
        ),
        (
            lambda: dequantise(np.zeros(3), 4),
            TypeError,
            "x must be a floating tensor, k / 3 for the level k, but is ndarray",
        ),
        *(
            (
                lambda value=value: quantise(torch.tensor([0.5, value]), 4),
                ValueError,
                rf"y must be in \[0, 1\], but holds {value:g}",
            )
            for value in (-0.1, 1.1, math.nan, math.inf)
        ),
        *(
            (
                lambda dims=dims: bits_per_dimension(-1.0, dims),
                ValueError,
                f"num_dims must be at least 1, but is {dims}",
            )
            for dims in (0, -3)
        ),
    ],
)
def test_bad_data_are_refused(make, kind, message):
    with pytest.raises(kind, match=message):
        make()
