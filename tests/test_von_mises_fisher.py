"""Laws on the sphere against scipy's Bessel functions and quadrature; gradients of their draws.

With A = I_{d/2}(κ) / I_{d/2-1}(κ), and the exact moments of w = μᵀz,

    E w = A,  E w² = 1 - (d - 1) A / κ,  dA/dκ = E w² - A².
"""

from __future__ import annotations

import math

import numpy as np
import pytest
import scipy.stats
import torch
from pyro.distributions import constraints
from scipy.special import gammaln, ive
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.distributions import kl_divergence

from pyrovae.models.distributions import SphereUniform, VonMisesFisher

DTYPES = [torch.float32, torch.float64]
KAPPAS = [1e-3, 0.1, 1.0, 5.0, 15.0, 100.0, 1e4]
DIMS = [2, 3, 5, 10, 50]
LAWS = [(d, kappa) for d in DIMS for kappa in KAPPAS if d < 50 or kappa >= 0.1]  # scipy's range
MANY = 50_000

pytestmark = pytest.mark.usefixtures("one_thread")


def log_area(d):
    return math.log(2) + d / 2 * math.log(math.pi) - gammaln(d / 2)


def log_constant(d, kappa):
    """What the density exp(κ (w - 1)) is divided by."""
    return (
        d / 2 * math.log(2 * math.pi)
        - (d / 2 - 1) * math.log(kappa)
        + np.log(ive(d / 2 - 1, kappa))
    )


def moments(d, kappa):
    """E w, E w²."""
    mean = ive(d / 2, kappa) / ive(d / 2 - 1, kappa)
    return mean, 1 - (d - 1) * mean / kappa


def angle_cdf(d, kappa, theta):
    """The distribution function of the angle, by Gauss-Legendre between its values."""
    node, weight = np.polynomial.legendre.leggauss(60)
    edges = np.concatenate([[0.0], theta])
    t = edges[:-1, None] + np.diff(edges)[:, None] * (node + 1) / 2
    log_f = (d - 2) * np.log(np.sin(t).clip(1e-300)) - 2 * kappa * np.sin(t / 2) ** 2
    log_f += log_area(d - 1) - log_constant(d, kappa)
    return np.cumsum((np.exp(log_f) * weight / 2).sum(-1) * np.diff(edges))


def unit(*shape, dtype=torch.float64):
    vector = torch.randn(*shape, dtype=dtype)
    return vector / vector.norm(dim=-1, keepdim=True)


def around(d, kappa, dtype=torch.float64):
    return VonMisesFisher(unit(d, dtype=dtype), torch.tensor(kappa, dtype=dtype))


def z_score(draws, expected):
    return float(((draws.mean(0) - expected) / draws.std(0)).abs().max()) * len(draws) ** 0.5


# --- densities -----------------------------------------------------------------------------------


@pytest.mark.parametrize("kappa", [0.0, *KAPPAS])
def test_densities_integrate_to_one_on_circle_and_sphere(kappa):
    turn = torch.arange(1000, dtype=torch.float64) * (2 * math.pi / 1000)
    circle = torch.stack((turn.cos(), turn.sin()), -1)
    one = around(2, kappa)
    assert float(one.log_prob(circle).exp().mean()) * 2 * math.pi == pytest.approx(1, abs=1e-10)
    # rings around an axis that is not the mean direction
    node, weight = (torch.as_tensor(part) for part in np.polynomial.legendre.leggauss(500))
    lean = (node[:, None] + 1) * (math.pi / 2)
    ring = lean.sin() * turn.cos(), lean.sin() * turn.sin(), lean.cos().expand(-1, 1000)
    density = around(3, kappa).log_prob(torch.stack(ring, -1)).exp() * lean.sin()
    assert float(weight @ density.mean(-1)) * math.pi**2 == pytest.approx(1, abs=1e-9)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("d", "kappa"), LAWS)
def test_the_density_is_that_of_bessel_functions(d, kappa, dtype):
    torch.manual_seed(0)
    one = around(d, kappa, dtype)
    z = torch.cat((one.sample(torch.Size((50,))), unit(50, d, dtype=dtype)))
    w = 1 - (z.double() - one.direction.double()).square().sum(-1).numpy() / 2
    exact = kappa * (w - 1) - log_constant(d, kappa)
    tolerance = 1e-10 if dtype == torch.float64 else 1e-5
    np.testing.assert_allclose(one.log_prob(z), exact, rtol=tolerance, atol=tolerance)
    if d > 2 and kappa < 1e4:
        theirs = scipy.stats.vonmises_fisher(one.direction.double().numpy(), kappa)
        points = z.double().numpy() / np.linalg.norm(z.double(), axis=-1, keepdims=True)
        np.testing.assert_allclose(
            one.log_prob(z), theirs.logpdf(points), rtol=1e-9, atol=max(100 * tolerance, 1e-9)
        )


@pytest.mark.parametrize(("d", "kappa"), LAWS)
def test_mean_and_entropy_are_closed_forms(d, kappa):
    for dtype, tolerance in ((torch.float32, 1e-5), (torch.float64, 1e-9)):
        one = around(d, kappa, dtype)
        mean, _ = moments(d, kappa)
        np.testing.assert_allclose(one.mean, mean * one.direction, rtol=tolerance)
        exact = log_constant(d, kappa) + kappa * (1 - mean)
        assert float(one.entropy()) == pytest.approx(exact, rel=tolerance, abs=tolerance)
        assert one.entropy().dtype == one.mean.dtype == dtype


@pytest.mark.parametrize("d", DIMS)
def test_without_concentration_it_is_the_uniform_law(d):
    one, z = around(d, 0.0), unit(6, d)
    uniform = SphereUniform(torch.zeros(d, dtype=torch.float64))
    torch.testing.assert_close(one.log_prob(z), uniform.log_prob(z))
    assert float(uniform.log_prob(z)[0]) == pytest.approx(-log_area(d))
    assert float(uniform.entropy()) == pytest.approx(log_area(d))
    assert float(kl_divergence(one, uniform)) == pytest.approx(0, abs=1e-12)
    draws = uniform.sample(torch.Size((MANY,)))
    assert z_score(draws, uniform.mean) < 5
    assert z_score(draws**2, torch.full((d,), 1 / d)) < 5


def test_the_density_follows_its_arguments():
    """In κ by w - A, along the sphere by the part of κ μ, or of κ z, that is tangent to it."""
    torch.manual_seed(0)
    mean, z = unit(4, 5).requires_grad_(), unit(4, 5).requires_grad_()
    kappa = torch.tensor([0.1, 1.0, 20.0, 300.0], dtype=torch.float64, requires_grad=True)
    score = VonMisesFisher(mean, kappa).log_prob(z).sum()
    by_mean, by_kappa, by_z = torch.autograd.grad(score, [mean, kappa, z])
    w = (mean * z).sum(-1)
    expected = w.detach() - torch.as_tensor(moments(5, kappa.detach().numpy())[0])
    torch.testing.assert_close(by_kappa, expected)
    for got, at, other in ((by_mean, mean, z), (by_z, z, mean)):
        tangent = got - (got * at).sum(-1, keepdim=True) * at
        torch.testing.assert_close(tangent, kappa[:, None] * (other - w[:, None] * at))


# --- draws ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("d", DIMS)
@pytest.mark.parametrize("kappa", [0.1, 1.0, 15.0, 1e4])
def test_the_angles_law_is_exact_to_a_part_in_200000(d, kappa, monkeypatch):
    """And its slope is -(dF/dκ) / f. Quantiles that are asked for stand in for random ones."""
    level = torch.tensor([1e-6, 1e-3, 0.02, 0.3, 0.5, 0.9, 0.999, 1 - 1e-6], dtype=torch.float64)
    monkeypatch.setattr(torch, "rand", lambda *_, **__: level)
    parameter = torch.full((8,), kappa, dtype=torch.float64, requires_grad=True)
    one = VonMisesFisher(unit(d), parameter)
    w = (one.rsample() * one.direction).sum(-1)
    theta = w.clamp(-1, 1).acos()
    exact = angle_cdf(d, kappa, theta.detach().numpy())
    np.testing.assert_allclose(exact, level, atol=5e-6 if kappa < 1e4 else 1e-5, rtol=2e-2)
    (slope,) = torch.autograd.grad(w.sum(), parameter)
    step = 1e-3 * kappa
    slower, faster = (angle_cdf(d, kappa + s, theta.detach().numpy()) for s in (-step, step))
    further = theta.detach().numpy() * (1 + 1e-4)
    density = (angle_cdf(d, kappa, further) - exact) / (further - theta.detach().numpy())
    by_kappa = -(faster - slower) / (2 * step) / density
    expected = -np.sin(theta.detach().numpy()) * by_kappa
    middle = slice(2, 6)
    np.testing.assert_allclose(slope[middle], expected[middle], rtol=3e-3)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("d", DIMS)
@pytest.mark.parametrize("kappa", [0.1, 5.0, 1e4])
def test_draws_follow_the_law(d, kappa, dtype):
    torch.manual_seed(1)
    one = around(d, kappa, dtype)
    z = one.sample(torch.Size((MANY,)))
    assert z.dtype == dtype
    assert constraints.sphere.check(z).all()
    z, mean = z.double(), one.direction.double()
    square = (z - mean).square().sum(-1)
    theta = 2 * (square.sqrt() / 2).clamp(max=1).asin()
    level = angle_cdf(d, kappa, theta.sort().values.numpy())
    assert scipy.stats.kstest(level, "uniform").pvalue > 1e-6
    first, second = moments(d, kappa)
    assert z_score(z, first * mean) < 5
    outer = z[:, :3, None] * z[:, None, :3]
    side = (1 - second) / (d - 1)
    expected = side * torch.eye(d) + (second - side) * mean[:, None] * mean
    assert z_score(outer, expected[:3, :3]) < 5
    # across the mean no direction is preferred: the fourth power tells a frame's axes
    if d > 2:
        across = z - (z @ mean)[:, None] * mean
        a = unit(d)
        a = a - (a @ mean) * mean
        share = (across @ (a / a.norm()) / across.norm(dim=-1)) ** 4
        assert z_score(share, 3 / (d - 1) / (d + 1)) < 5


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("d", [2, 3, 10])
@pytest.mark.parametrize("kappa", [0.1, 3.0, 200.0])
def test_gradients_of_draws_are_those_of_the_expectation(d, kappa, dtype):
    torch.manual_seed(2)
    a, mean = unit(d, dtype=dtype), unit(d, dtype=dtype)
    aside = unit(d, dtype=dtype)
    aside = aside - (aside @ mean) * mean
    rows, each = 400, 200  # means of as many draws are what is counted
    kappas = torch.full((rows,), kappa, dtype=dtype, requires_grad=True)
    raw = (2 * mean).repeat(rows, 1).requires_grad_()
    one = VonMisesFisher(raw / raw.norm(dim=-1, keepdim=True), kappas)
    z = one.rsample(torch.Size((each,)))
    first, second = moments(d, kappa)
    by_first = second - first**2
    by_second = -(d - 1) * (by_first / kappa - first / kappa**2)  # derivative of E w² in κ
    along, across = float(a @ mean), float(a @ aside)
    spread = (d * second - 1) / (d - 1)  # E (aᵀz)² = (1 - E w²)/(d-1) + spread (aᵀμ)²
    expected = {
        1: (by_first * along, first * across / 2),
        2: (by_second * (d * along**2 - 1) / (d - 1), 2 * spread * along * across / 2),
    }
    for power, (by_kappa, by_mean) in expected.items():
        value = ((z @ a) ** power).mean(0).sum()
        draws = torch.autograd.grad(value, [kappas, raw], retain_graph=True)
        assert z_score(draws[0].double(), by_kappa) < 5
        assert z_score((draws[1] @ aside).double(), by_mean) < 5


def test_second_derivatives_of_draws_are_right(monkeypatch):
    level = torch.tensor([0.1, 0.5, 0.8], dtype=torch.float64)
    monkeypatch.setattr(torch, "rand", lambda *_, **__: level)

    def draw(kappa, turn):
        torch.manual_seed(0)
        mean = torch.stack((turn.cos(), turn.sin(), torch.zeros_like(turn)), -1)
        return VonMisesFisher(mean, kappa).rsample()

    kappa = torch.full((3,), 4.0, dtype=torch.float64, requires_grad=True)
    turn = torch.zeros(3, dtype=torch.float64, requires_grad=True)
    z = draw(kappa, turn)
    (slope,) = torch.autograd.grad(z[:, 0].sum(), kappa, create_graph=True)
    (bend,) = torch.autograd.grad(slope.sum(), kappa)
    h = 0.02
    up, here, down = (draw(kappa.detach() + s, turn.detach())[:, 0] for s in (h, 0.0, -h))
    torch.testing.assert_close(bend, (up - 2 * here + down) / h**2, rtol=2e-2, atol=1e-4)
    # by the smallest rotation, whatever turns within a plane turns as a whole
    (once,) = torch.autograd.grad(z[:, 0].sum(), turn, create_graph=True)
    (twice,) = torch.autograd.grad(once.sum(), turn)
    torch.testing.assert_close(once, -z[:, 1])
    torch.testing.assert_close(twice, -z[:, 0])


@pytest.mark.parametrize("sign", [1.0, -1.0])
@pytest.mark.parametrize("d", [2, 3, 40])
def test_no_direction_is_a_pole(d, sign):
    """A frame that is fixed would spin there: gradients stay as large as those elsewhere."""
    mean = torch.zeros(2000, d)
    mean[:, 0] = sign
    mean[:, 1] = 1e-4 * torch.randn(2000)
    mean = (mean / mean.norm(dim=-1, keepdim=True)).requires_grad_()
    z = VonMisesFisher(mean, torch.tensor(1.0)).rsample()
    assert constraints.sphere.check(z).all()
    (slope,) = torch.autograd.grad(z[:, -1].sum(), mean)
    assert slope.norm(dim=-1).max() < 3


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("kappa", [0.0, 1e-3, 1.0, 1e3, 1e6, 1e8])
@pytest.mark.parametrize("d", [2, 3, 40, 1000])
def test_draws_stay_on_the_sphere_and_everything_finite(d, kappa, dtype):
    torch.manual_seed(0)
    kappas = torch.full((500,), kappa, dtype=dtype, requires_grad=True)
    mean = unit(500, d, dtype=dtype).requires_grad_()
    one = VonMisesFisher(mean, kappas, validate_args=True)
    z = one.rsample(torch.Size((4,)))
    total = one.log_prob(z).sum() + one.entropy().sum() + z.sum()  # log_prob checks the support
    assert total.isfinite()
    assert all(g.isfinite().all() for g in torch.autograd.grad(total, [mean, kappas]))


def test_nothing_waits_for_a_number():
    """Tensors without numbers raise where one is asked for."""
    with FakeTensorMode():
        mean = torch.empty(7, 4, requires_grad=True)
        one = VonMisesFisher(mean, torch.empty(7, requires_grad=True), validate_args=False)
        one = one.expand(torch.Size((3, 7)))
        z = one.rsample()
        (one.log_prob(z).sum() + one.entropy().sum() + one.mean.sum()).backward()
        assert (z.shape, mean.grad.shape) == ((3, 7, 4), (7, 4))


# --- shapes and refusals -------------------------------------------------------------------------


def test_copies_share_their_table_and_their_gradient():
    mean, kappa = unit(5, 3), torch.rand(5, dtype=torch.float64).requires_grad_()
    one = VonMisesFisher(mean, kappa)
    wide = one.expand(torch.Size((4, 5)))
    assert wide._angle is one._angle
    assert wide.sample(torch.Size((2,))).shape == (2, 4, 5, 3)
    z = unit(4, 5, 3)
    torch.testing.assert_close(wide.log_prob(z), one.log_prob(z))
    assert (wide.mean.shape, wide.entropy().shape) == ((4, 5, 3), (4, 5))
    (slope,) = torch.autograd.grad(wide.log_prob(z).sum(), kappa)
    apart = kappa.detach().repeat(4, 1).requires_grad_()
    (each,) = torch.autograd.grad(VonMisesFisher(mean, apart).log_prob(z).sum(), apart)
    torch.testing.assert_close(slope, each.sum(0))
    kl = kl_divergence(wide, SphereUniform(z[0, 0]).expand(torch.Size((4, 5))))
    assert kl.shape == (4, 5)
    shared = VonMisesFisher(mean[0], kappa)  # one direction, many concentrations
    assert (shared.batch_shape, shared.sample().shape) == ((5,), (5, 3))
    torch.testing.assert_close(shared.log_prob(z), VonMisesFisher(mean[:1], kappa).log_prob(z))


def test_rows_of_different_concentrations_draw_each_their_own():
    kappa = torch.tensor([[0.1], [3.0], [1e4]], dtype=torch.float64)
    one = VonMisesFisher(unit(3, 2, 3), kappa.expand(3, 2))
    z = one.sample(torch.Size((20_000,)))
    w = (z * one.direction).sum(-1)
    first, _ = moments(3, kappa[:, 0].numpy())
    assert z_score(w, torch.as_tensor(first)[:, None]) < 5


@pytest.mark.parametrize("d", [2, 3, 10])
@pytest.mark.parametrize("kappa", [0.5, 20.0])
def test_the_divergence_from_uniform_is_the_mean_log_ratio(d, kappa):
    torch.manual_seed(3)
    one, uniform = around(d, kappa), SphereUniform(torch.zeros(d, dtype=torch.float64))
    kl = kl_divergence(one, uniform)
    exact = log_area(d) - log_constant(d, kappa) - kappa * (1 - moments(d, kappa)[0])
    assert float(kl) == pytest.approx(exact, rel=1e-9)
    z = one.sample(torch.Size((MANY,)))
    assert z_score(one.log_prob(z) - uniform.log_prob(z), kl) < 5


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (
            lambda: VonMisesFisher(torch.ones(4, 1), torch.tensor(1.0)),
            r"direction must have at least 2 components, but is of shape \(4, 1\)",
        ),
        (lambda: VonMisesFisher(torch.ones(3), torch.tensor(1.0)), "direction .* Sphere"),
        (lambda: VonMisesFisher(unit(3), torch.tensor(-1.0)), "concentration .* constraint"),
        (lambda: SphereUniform(torch.tensor(1.0)), r"like must have at least 2 .* shape \(\)"),
        (
            lambda: around(3, 1.0).log_prob(unit(5, 2)),
            r"value must end in the event shape \(3,\), but has shape \(5, 2\)",
        ),
        (lambda: SphereUniform(torch.zeros(3)).log_prob(torch.ones(3)), "within the support"),
        (
            lambda: kl_divergence(around(3, 1.0), SphereUniform(torch.zeros(2))),
            r"one sphere, but have event shapes \(3,\) and \(2,\)",
        ),
    ],
)
def test_what_is_no_sphere_is_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()
