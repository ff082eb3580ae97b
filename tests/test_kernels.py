"""Markov kernels leave their densities as they are, chain by chain and datum by datum."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from pyrovae.inference import HMC, Langevin
from pyrovae.inference.evidence.annealing.anneal import Chains
from pyrovae.inference.kernels import check_kernel
from pyrovae.inference.paths import Path, log_between
from pyrovae.inference.target import gradient_of

pytestmark = pytest.mark.usefixtures("one_thread")

CHAINS = 20_000
KOLMOGOROV = 2.75  # times 1/√n: the distance that one sample in two million exceeds
KERNELS = [HMC(num_leapfrog=4), HMC(num_leapfrog=1), HMC(num_leapfrog=3, jitter=0.0), Langevin()]


class Densities:
    """What a path asks of a target, of two functions of u; each takes ``(C, N, D)``."""

    def __init__(self, joint, guide=None, size=1, dim=1):
        self.functions = {"joint": joint, "guide": guide or standard_normal}
        self.num_data, self.dim = size, dim
        self.num_gradients = 0

    def log_densities(self, u, *kinds, slope=False):
        return {kind: self.functions[kind](u) for kind in kinds}

    def gradients(self, u, *kinds):
        with torch.enable_grad():
            at = u.detach().requires_grad_()
            found = self.log_densities(at, *kinds)
            return {k: (v.detach(), gradient_of(v, at, keep_graph=True)) for k, v in found.items()}


def standard_normal(u):
    return (-0.5 * u.square() - 0.5 * math.log(2 * math.pi)).sum(-1)


def path_of(joint, guide=None, size=1, dim=1):
    return Path(Densities(joint, guide, size, dim), "guide")


def ones(*shape):
    return torch.ones(*shape, dtype=torch.float64)


def run(path, kernel, u, step, beta=1.0, moves=5, scale=None):
    """The point after some moves, and the mean acceptance of each datum."""
    size, dim = u.shape[1:]
    step = torch.as_tensor(step, dtype=torch.float64).expand(size)
    beta = torch.as_tensor(beta, dtype=torch.float64).expand(size)
    scale = ones(size, dim) if scale is None else scale
    point, accepted = path.point(u), torch.zeros(size).double()
    for _ in range(moves):
        made = kernel.move(path, point, beta, step, scale)
        point, accepted = made.point, accepted + made.acceptance.mean(0) / moves
    return point, accepted


def assert_moments(values, mean, second):
    """Mean and mean square of independent values ``(C, ...)``, at five standard errors."""
    for found, exact in ((values, mean), (values.square(), second)):
        error = found.std(0) / math.sqrt(len(values))
        assert ((found.mean(0) - exact).abs() < 5 * error).all()


def assert_distribution(values, cdf):
    """Kolmogorov's distance of independent values to a distribution."""
    ordered = np.sort(values.numpy())
    probability = cdf(ordered)
    rank = np.arange(len(ordered) + 1) / len(ordered)
    distance = max(np.abs(probability - rank[:-1]).max(), np.abs(probability - rank[1:]).max())
    assert distance < KOLMOGOROV / math.sqrt(len(ordered))


# --- invariance ----------------------------------------------------------------------------------


@pytest.mark.parametrize("kernel", KERNELS, ids=repr)
def test_a_correlated_normal_stays_what_it_is(kernel):
    """Three data with a normal each, steps so large that many are rejected."""
    torch.manual_seed(0)
    factor = torch.tensor([[1.0, 0.0], [1.8, 0.5]], dtype=torch.float64)
    factors = torch.stack(
        [factor, 0.3 * factor, factor.flip(0).flip(1).T.tril() + 0.1 * ones(2, 2)]
    )
    factors = factors.tril()
    mean = torch.tensor([[0.0, 1.0], [5.0, -3.0], [0.0, 0.0]], dtype=torch.float64)

    def joint(u):
        white = torch.linalg.solve_triangular(factors, (u - mean).permute(1, 2, 0), upper=False)
        return -0.5 * white.square().sum(1).T

    noise = torch.randn(CHAINS, 3, 2, dtype=torch.float64)
    start = mean + torch.einsum("nij,cnj->cni", factors, noise)
    smallest = torch.linalg.svdvals(factors)[:, -1]
    point, accepted = run(path_of(joint, size=3, dim=2), kernel, start, 1.5 * smallest)
    assert ((accepted > 0.2) & (accepted < 0.97)).all()
    assert ((point.u != start).all(-1).double().mean(0) > 0.5).all()
    covariance = factors @ factors.mT
    variance = covariance.diagonal(dim1=-2, dim2=-1)
    assert_moments(point.u, mean, variance + mean.square())
    product = (point.u - mean).prod(-1)
    error = product.std(0) / math.sqrt(CHAINS)
    assert ((product.mean(0) - covariance[:, 0, 1]).abs() < 5 * error).all()


@pytest.mark.parametrize("step", [0.8, 1.6])
@pytest.mark.parametrize("kernel", KERNELS, ids=repr)
def test_a_skew_density_stays_what_it_is(kernel, step):
    """The logarithm of an exponential variable: mean −γ, variance π²/6."""
    torch.manual_seed(1)
    path = path_of(lambda u: (u - u.exp()).sum(-1))
    start = -torch.rand(CHAINS, 1, 1, dtype=torch.float64).log()
    point, accepted = run(path, kernel, start.log(), step)
    assert 0.1 < accepted < 0.99
    mean = -0.5772156649015329
    assert_moments(point.u, mean, math.pi**2 / 6 + mean**2)
    assert_distribution(point.u.flatten(), lambda u: -np.expm1(-np.exp(u)))


@pytest.mark.parametrize("kernel", [HMC(num_leapfrog=3), Langevin()], ids=repr)
def test_every_beta_has_the_density_between(kernel):
    """Between N(0, 1) and N(2, ½²) at β = 0, ½ and 1: normals of precision 1 + 3 β."""
    torch.manual_seed(2)
    beta = torch.tensor([0.0, 0.5, 1.0], dtype=torch.float64)
    precision = 1 + 3 * beta
    mean = 4 * beta * 2 / precision
    path = path_of(lambda u: -2 * (u - 2).square().sum(-1) + 7.0, size=3)
    start = mean[:, None] + torch.randn(CHAINS, 3, 1).double() / precision.sqrt()[:, None]
    point, accepted = run(path, kernel, start, 1.5 / precision.sqrt(), beta)
    assert (accepted < 0.97).all()
    assert_moments(point.u[..., 0], mean, 1 / precision + mean.square())


@pytest.mark.parametrize("beta", [0.0, 1.0])
def test_chains_that_begin_anywhere_come_to_the_start_or_the_posterior(beta):
    torch.manual_seed(3)
    path = path_of(lambda u: -2 * (u - 2).square().sum(-1))
    begun = torch.full((4000, 1, 1), 5.0, dtype=torch.float64)
    point, _ = run(path, HMC(num_leapfrog=4), begun, 0.4, beta, moves=40)
    mean, scale = (0.0, 1.0) if beta == 0 else (2.0, 0.5)
    assert_moments(point.u.flatten(), mean, scale**2 + mean**2)


def test_scales_of_coordinates_make_a_long_normal_round():
    """With its own scales a normal of condition 10⁶ is moved as one of condition 1."""
    scale = torch.tensor([[1e-3, 1e3]], dtype=torch.float64)
    long = path_of(lambda u: -0.5 * (u / scale).square().sum(-1), dim=2)
    torch.manual_seed(4)
    noise = torch.randn(500, 1, 2, dtype=torch.float64)
    torch.manual_seed(5)
    one, _ = run(long, HMC(5), scale * noise, 0.7, scale=scale)
    torch.manual_seed(5)
    two, _ = run(path_of(standard_normal, dim=2), HMC(5), noise, 0.7)
    torch.testing.assert_close(one.u / scale, two.u)


def test_a_point_holds_the_densities_where_it_is():
    """Those of chains that moved and of chains that stayed are both up to date."""
    torch.manual_seed(6)
    path = path_of(lambda u: (u - u.exp()).sum(-1))
    point, _ = run(path, HMC(2), torch.randn(200, 1, 1).double(), 1.5, 0.7)
    again = path.point(point.u)
    for name, value in vars(point).items():
        torch.testing.assert_close(value, getattr(again, name), rtol=1e-12, atol=1e-12)


# --- the integrator ------------------------------------------------------------------------------


class Watched(Path):
    """Notes where gradients are asked for on the way."""

    def leapfrog(self, *given):
        made = super().leapfrog(*given)
        self.seen.append(made[0])
        return made


def leap(monkeypatch, joint, u, momentum, step, count):
    """End of a trajectory and the momentum there, read off the kernel's own moves; acceptance."""
    path = Watched(Densities(joint, size=u.shape[1], dim=u.shape[2]), "guide")
    path.seen = [u]
    with monkeypatch.context() as patch:
        patch.setattr(torch, "randn_like", lambda tensor: momentum)
        patch.setattr(torch, "rand_like", torch.zeros_like)  # all are accepted
        point = path.point(u)
        size, dim = u.shape[1:]
        made = HMC(count, jitter=0.0).move(
            path, point, ones(size), step * ones(size), ones(size, dim)
        )
    end = made.point
    half_way = (end.u - path.seen[-1]) / step
    return end.u, half_way + 0.5 * step * end.slope_joint, made.acceptance


def quartic(u):
    return (-0.25 * u**4 + 0.3 * u - 0.2 * u.prod(-1, keepdim=True) ** 2).sum(-1)


@pytest.mark.parametrize("count", [1, 2, 9])
def test_trajectories_come_back_when_the_momentum_is_turned(monkeypatch, count):
    torch.manual_seed(7)
    u, momentum = torch.randn(2, 30, 1, 2, dtype=torch.float64)
    end, there, forward = leap(monkeypatch, quartic, u, momentum, 0.1, count)
    assert ((end - u).abs() > 1e-4).all()
    back, turned, backward = leap(monkeypatch, quartic, end, -there, 0.1, count)
    torch.testing.assert_close(back, u, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(turned, -momentum, rtol=1e-9, atol=1e-9)
    # what one direction loses the other wins, and one of them is always accepted
    torch.testing.assert_close(torch.maximum(forward, backward), torch.ones(30, 1).double())


def test_trajectories_keep_volume(monkeypatch):
    torch.manual_seed(8)
    start = torch.randn(4, dtype=torch.float64)
    step = 1e-6

    def flow(state):
        u, momentum = state.reshape(2, 1, 1, 2)
        end, there, _ = leap(monkeypatch, quartic, u, momentum, 0.3, 4)
        return torch.cat([end.flatten(), there.flatten()])

    columns = [
        (flow(start + step * unit) - flow(start - step * unit)) / (2 * step)
        for unit in torch.eye(4).double()
    ]
    jacobian = torch.stack(columns, 1)
    assert float(jacobian.det()) == pytest.approx(1.0, abs=1e-7)
    assert (jacobian - torch.eye(4)).abs().max() > 0.1


def test_the_energy_error_falls_with_the_square_of_the_step(monkeypatch):
    torch.manual_seed(9)
    u, momentum = torch.randn(2, 400, 1, 2, dtype=torch.float64)
    errors = []
    for count in (10, 20, 40):
        *_, acceptance = leap(monkeypatch, quartic, u, momentum, 1.0 / count, count)
        errors.append(-acceptance.log())
    lost = (errors[0] > 1e-4) & (errors[2] > 0)  # gains are not told apart: their acceptance is 1
    assert lost.sum() > 50
    first, second, third = (error[lost].sum() for error in errors)
    assert first / second == pytest.approx(4, rel=0.1)
    assert second / third == pytest.approx(4, rel=0.05)


def test_the_acceptance_is_that_of_the_energies_at_both_ends(monkeypatch):
    torch.manual_seed(10)
    u, momentum = torch.randn(2, 50, 1, 2, dtype=torch.float64)
    end, there, acceptance = leap(monkeypatch, quartic, u, momentum, 0.5, 3)
    before = quartic(u) - 0.5 * momentum.square().sum(-1)
    after = quartic(end) - 0.5 * there.square().sum(-1)
    torch.testing.assert_close(acceptance, (after - before).clamp(max=0).exp())


@pytest.mark.parametrize("kernel", KERNELS, ids=repr)
def test_gradients_are_as_many_as_the_settings_say(kernel):
    """One at each leapfrog step, on average over moves where their number varies."""
    path = path_of(standard_normal)
    point = path.point(torch.zeros(1, 1, 1).double())
    asked = []
    real_step, real_point = path.leapfrog, path.point
    path.leapfrog = lambda *args: (asked.append(1), real_step(*args))[1]
    path.point = lambda *args: (asked.append(1), real_point(*args))[1]
    for _ in range(600):
        point = kernel.move(path, point, ones(1), ones(1), ones(1, 1)).point
    mean = len(asked) / 600
    assert abs(mean - kernel.num_leapfrog) < 5 * kernel.num_leapfrog / math.sqrt(600)


def test_langevin_is_hmc_with_a_single_step():
    path = path_of(lambda u: (u - u.exp()).sum(-1))
    start = torch.randn(50, 1, 1).double()
    torch.manual_seed(11)
    one, _ = run(path, Langevin(), start, 0.9)
    torch.manual_seed(11)
    two, _ = run(path, HMC(1, jitter=0.0), start, 0.9)
    assert torch.equal(one.u, two.u)


# --- data and chains do not touch each other -----------------------------------------------------


@pytest.mark.parametrize("kernel", KERNELS, ids=repr)
def test_a_step_size_belongs_to_its_datum(kernel):
    path = path_of(standard_normal, size=3)
    start = torch.randn(40, 3, 1).double()
    found = []
    for other in (1e-9, 0.4, 30.0):
        torch.manual_seed(12)
        point, accepted = run(path, kernel, start, [0.9, other, 1.3])
        found.append(point.u)
        if other == 1e-9:
            assert (point.u - start)[:, 1].abs().max() < 1e-6
            assert accepted[1] == pytest.approx(1.0)
        elif other == 30.0:
            assert accepted[1] < 0.2
    for u in found[1:]:
        assert torch.equal(u[:, [0, 2]], found[0][:, [0, 2]])


def test_a_beta_belongs_to_its_datum():
    path = path_of(lambda u: -8 * (u - 2).square().sum(-1), size=3)
    start = torch.randn(40, 3, 1).double()
    found = []
    for other in (0.01, 0.8):
        torch.manual_seed(13)
        found.append(run(path, HMC(3), start, 0.3, [0.2, other, 0.9])[0].u)
    assert torch.equal(found[0][:, [0, 2]], found[1][:, [0, 2]])
    assert not torch.equal(found[0][:, 1], found[1][:, 1])


def _spoiled(how):
    """A normal that is spoiled for one chain of one datum as soon as it leaves its beginning."""

    def joint(u):
        value = standard_normal(u)
        chain, datum = torch.zeros(2, *value.shape, dtype=torch.bool)
        chain[3], datum[:, 1] = True, True
        hit = chain & datum & (u[..., 0] != 0.0)
        if how == "slope":  # finite, but its gradient is not
            edge = torch.where(hit, u[..., 0] * 0, 1.0)
            return value + torch.where(hit, edge.sqrt(), 0.0)
        return value + torch.where(hit, u[..., 0] * 0 + float(how), 0.0)

    return joint


@pytest.mark.parametrize("how", ["nan", "inf", "-inf", "slope"])
@pytest.mark.parametrize("kernel", KERNELS, ids=repr)
def test_a_chain_that_meets_nan_or_infinity_stays_alone_behind(kernel, how):
    torch.manual_seed(14)
    start = torch.randn(6, 2, 1).double()
    start[3, 1] = 0.0
    torch.manual_seed(15)
    sound, _ = run(path_of(standard_normal, size=2), kernel, start, 0.5, moves=3)
    torch.manual_seed(15)
    broken, _ = run(path_of(_spoiled(how), size=2), kernel, start, 0.5, moves=3)
    others = torch.ones(6, 2, dtype=torch.bool)
    others[3, 1] = False
    assert torch.equal(broken.u[others], sound.u[others])
    assert broken.u[3, 1] == 0.0
    assert sound.u[3, 1] != 0.0
    assert all(value.isfinite().all() for value in vars(broken).values())


def test_an_end_that_has_no_part_does_not_spoil_the_density():
    path = path_of(lambda u: u[..., 0] * math.nan)
    point = path.point(torch.tensor([[[0.5]]]).double())
    assert log_between(point, torch.zeros(1).double()) == standard_normal(point.u)
    path = path_of(standard_normal, guide=lambda u: u[..., 0] * math.nan)
    point = path.point(torch.tensor([[[0.5]]]).double())
    assert log_between(point, ones(1)) == standard_normal(point.u)


def test_a_chain_that_begins_where_the_density_is_zero_leaves():
    """A draw of the prior that the likelihood rules out must not be kept for ever."""

    def half_normal(u):
        return torch.where(u[..., 0] > 0, standard_normal(u), -math.inf)

    torch.manual_seed(16)
    start = torch.full((200, 1, 1), -0.5, dtype=torch.float64)
    point, _ = run(path_of(half_normal), HMC(3), start, 0.7, moves=60)
    assert (point.u > 0).all()
    assert point.log_joint.isfinite().all()


@pytest.mark.parametrize("kernel", [HMC(num_leapfrog=3), Langevin()], ids=repr)
def test_a_density_with_a_hard_edge_stays_what_it_is(kernel):
    def half_normal(u):
        return torch.where(u[..., 0] > 0, standard_normal(u), -math.inf)

    torch.manual_seed(17)
    start = torch.randn(CHAINS, 1, 1, dtype=torch.float64).abs()
    point, accepted = run(path_of(half_normal), kernel, start, 0.8)
    assert accepted < 0.9
    assert_moments(point.u.flatten(), math.sqrt(2 / math.pi), 1.0)


# --- what is counted -----------------------------------------------------------------------------


def test_moves_whose_energy_breaks_down_are_counted_by_datum():
    torch.manual_seed(18)
    factor = torch.tensor([1e4, 1e-4], dtype=torch.float64)
    path = path_of(lambda u: -(factor * u[..., 0] ** 4), size=2)
    chains = Chains.begin(path.point(torch.randn(30, 2, 1).double()))
    for _ in range(4):
        chains.move(path, HMC(3), ones(2), ones(2), ones(2, 1))
    found = chains.diagnostics()
    assert found["divergences"][0] > 60
    assert found["divergences"][1] == 0
    assert found["acceptance"][0] < 0.1
    assert found["acceptance"][1] > 0.9


def test_chains_that_never_moved_have_no_acceptance():
    path = path_of(standard_normal, size=2)
    chains = Chains.begin(path.point(torch.zeros(3, 2, 1).double()))
    assert chains.diagnostics()["acceptance"].isnan().all()


def test_points_are_taken_and_chosen_chain_by_chain():
    path = path_of(standard_normal, size=2, dim=3)
    one, two = (path.point(torch.randn(4, 2, 3).double()) for _ in range(2))
    chosen = torch.tensor([[True, False]] * 4)
    mixed = one.where(chosen, two)
    for name, value in vars(mixed).items():
        assert torch.equal(value[:, 0], getattr(one, name)[:, 0])
        assert torch.equal(value[:, 1], getattr(two, name)[:, 1])
    numbers = torch.tensor([[3, 0], [3, 1], [0, 1], [2, 2]])
    for name, value in vars(one.take(numbers)).items():
        for n in range(2):
            assert torch.equal(value[:, n], getattr(one, name)[numbers[:, n], n])


# --- settings ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: HMC(0), ValueError, "num_leapfrog must be a whole number of at least 1, but is 0"),
        (lambda: HMC(2.0), ValueError, r"num_leapfrog must be a whole number .* but is 2\.0"),
        (lambda: HMC(target_acceptance=1.0), ValueError, r"target_acceptance must be in \(0, 1\)"),
        (lambda: HMC(jitter=1.5), ValueError, r"jitter must be in \[0, 1\], but is 1\.5"),
        (lambda: HMC(jitter="a"), TypeError, "jitter must be a number, but is 'a'"),
        (lambda: Langevin(0), ValueError, r"target_acceptance must be in \(0, 1\), but is 0"),
        (lambda: check_kernel("nuts"), TypeError, r"kernel must be HMC\(...\) or .* but is 'nuts'"),
        (lambda: check_kernel(HMC), TypeError, r"kernel must be HMC\(...\) or Langevin\(...\)"),
    ],
)
def test_bad_settings_are_refused(make, error, message):
    with pytest.raises(error, match=message):
        make()
