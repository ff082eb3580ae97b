"""Densities over unconstrained coordinates: they integrate to what they must, in all three ways."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import oracles
import programs
import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer.autoguide import AutoMultivariateNormal, AutoNormal

from pyrovae.inference import ImportanceSampling, ProgramError, Scaled
from pyrovae.inference.evidence.proposals import Local
from pyrovae.inference.particles import plan_particles
from pyrovae.inference.target import Target, check_differentiable

pytestmark = pytest.mark.usefixtures("one_thread")

WAYS = ("plate", "tile", "loop")


def log_beta(a, b):
    return math.lgamma(a) + math.lgamma(b) - math.lgamma(a + b)


@dataclass(frozen=True)
class Pair:
    """A pair whose guide is the exact posterior, log p(x), and what the volume is the volume of."""

    model: Callable[..., Any]
    guide: Callable[..., Any]
    args: tuple
    exact: np.ndarray
    free: Callable[[dict], torch.Tensor]  # as many numbers as coordinates, from a single draw


def gamma_poisson():
    a, b, x = 2.5, 1.3, torch.tensor([0.0, 2.0, 5.0], dtype=torch.float64)

    def model(x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Gamma(x.new_tensor(a), x.new_tensor(b)))
            pyro.sample("x", dist.Poisson(z), obs=x)

    def guide(x):
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Gamma(a + x, b + 1))

    def evidence(k):
        value = math.lgamma(a + k) - math.lgamma(a) - math.lgamma(k + 1)
        return value + a * math.log(b / (b + 1)) - k * math.log(b + 1)

    exact = np.array([evidence(k) for k in x.tolist()])
    return Pair(model, guide, (x,), exact, lambda z: z["z"].reshape(-1))


def beta_binomial():
    a, b, n, x = 2.0, 3.0, 10, torch.tensor([0.0, 4.0, 10.0], dtype=torch.float64)

    def model(x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Beta(x.new_tensor(a), x.new_tensor(b)))
            pyro.sample("x", dist.Binomial(n, z), obs=x)

    def guide(x):
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Beta(a + x, b + n - x))

    def evidence(k):
        choose = math.log(math.comb(n, int(k)))
        return choose + log_beta(a + k, b + n - k) - log_beta(a, b)

    exact = np.array([evidence(k) for k in x.tolist()])
    return Pair(model, guide, (x,), exact, lambda z: z["z"].reshape(-1))


def log_normal():
    x = torch.tensor([0.4, 1.0, 3.0], dtype=torch.float64)

    def model(x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.LogNormal(x.new_tensor(0.3), x.new_tensor(0.7)))
            pyro.sample("x", dist.LogNormal(z.log(), 0.5), obs=x)

    def guide(x):
        precision = 1 / 0.49 + 1 / 0.25
        mean = (0.3 / 0.49 + x.log() / 0.25) / precision
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.LogNormal(mean, precision**-0.5))

    log_x = np.log(x.numpy())
    exact = oracles.normal_logpdf(log_x, 0.3, math.sqrt(0.74)) - log_x
    return Pair(model, guide, (x,), exact, lambda z: z["z"].reshape(-1))


def dirichlet_multinomial():
    alpha = torch.tensor([1.5, 2.0, 0.7], dtype=torch.float64)
    x = torch.tensor([[3.0, 2.0, 1.0], [0.0, 6.0, 0.0]], dtype=torch.float64)

    def model(x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Dirichlet(alpha))
            pyro.sample("x", dist.Multinomial(6, z), obs=x)

    def guide(x):
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Dirichlet(alpha + x))

    def evidence(row):
        value = math.lgamma(7) + math.lgamma(4.2) - math.lgamma(10.2)
        for a, k in zip(alpha.tolist(), row, strict=True):
            value += math.lgamma(a + k) - math.lgamma(a) - math.lgamma(k + 1)
        return value

    exact = np.array([evidence(row) for row in x.tolist()])
    return Pair(model, guide, (x,), exact, lambda z: z["z"].reshape(-1)[:-1])


def mask_and_plates():
    """A latent per datum and one per replicate, of which some are masked."""
    a, b = 2.0, 1.0
    x = torch.tensor([[1.0, 0.0, 4.0], [2.0, 1.0, 3.0]], dtype=torch.float64)
    seen = torch.tensor([[True, True, True], [True, True, False]])  # the first is the datum's own

    def model(x, seen):
        with pyro.plate("data", len(x), dim=-1):
            z = pyro.sample("z", dist.Gamma(x.new_tensor(a), x.new_tensor(b)))
            pyro.sample("y", dist.Poisson(z), obs=x[:, 0])
            inside = pyro.poutine.mask(mask=seen[:, 1:].T)
            with pyro.plate("replicates", 2, dim=-2), inside:
                u = pyro.sample("u", dist.Gamma(x.new_tensor(a), x.new_tensor(b)))
                pyro.sample("x", dist.Poisson(u), obs=x[:, 1:].T)

    def guide(x, seen):
        with pyro.plate("data", len(x), dim=-1):
            pyro.sample("z", dist.Gamma(a + x[:, 0], b + 1))
            inside = pyro.poutine.mask(mask=seen[:, 1:].T)
            with pyro.plate("replicates", 2, dim=-2), inside:
                pyro.sample("u", dist.Gamma(a + x[:, 1:].T, b + 1))

    def evidence(k):
        value = math.lgamma(a + k) - math.lgamma(a) - math.lgamma(k + 1)
        return value + a * math.log(b / (b + 1)) - k * math.log(b + 1)

    exact = np.array(
        [
            sum(evidence(k) for k, on in zip(row, mask, strict=True) if on)
            for row, mask in zip(x.tolist(), seen.tolist(), strict=True)
        ]
    )
    return Pair(
        model, guide, (x, seen), exact, lambda z: torch.cat([z["z"].flatten(), z["u"].flatten()])
    )


def dependent_bounds():
    """Uniform on [0, a] with a latent a; the guide is no posterior, only something inside."""
    x = torch.tensor([0.2, 1.4], dtype=torch.float64)

    def model(x):
        with pyro.plate("data", len(x)):
            a = pyro.sample("a", dist.Uniform(x.new_tensor(0.5), x.new_tensor(2.0)))
            b = pyro.sample("b", dist.Uniform(torch.zeros_like(a), a))
            pyro.sample("x", dist.Normal(b, 0.5), obs=x)

    def guide(x):
        with pyro.plate("data", len(x)):
            a = pyro.sample("a", dist.Uniform(x.new_tensor(0.5), x.new_tensor(2.0)))
            share = dist.Beta(1 + 0 * x, 1.5 + 0 * x)
            scaled = dist.transforms.AffineTransform(torch.zeros_like(a), a)
            pyro.sample("b", dist.TransformedDistribution(share, [scaled]))

    def log_density(a, v):
        phi = np.vectorize(lambda t: 0.5 * math.erfc(-t / math.sqrt(2)))
        return np.log((phi((a - v) / 0.5) - phi(-v / 0.5)) / a / 1.5)

    exact = [
        oracles.integrate(lambda a, v=v: log_density(a, v), 0.5, 2.0, 20_001) for v in x.tolist()
    ]
    free = lambda z: torch.cat([z["a"].flatten(), z["b"].flatten()])  # noqa: E731
    return Pair(model, guide, (x,), np.array(exact), free)


def correlation():
    """A Cholesky factor of a correlation matrix, two by two: a single correlation r."""
    eta, x = 1.5, torch.tensor([-0.5, 0.9], dtype=torch.float64)

    def model(x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.LKJCholesky(2, x.new_tensor(eta)))
            pyro.sample("x", dist.Normal(z[..., 1, 0], 0.5), obs=x)

    def guide(x):
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.LKJCholesky(2, x.new_tensor(1.0)))

    constant = log_beta(eta, eta) + (2 * eta - 1) * math.log(2)

    def log_density(r, v):
        return (eta - 1) * np.log1p(-(r**2)) - constant + oracles.normal_logpdf(v, r, 0.5)

    exact = [
        oracles.integrate(lambda r, v=v: log_density(r, v), -1 + 1e-9, 1 - 1e-9, 200_001)
        for v in x.tolist()
    ]
    return Pair(model, guide, (x,), np.array(exact), lambda z: z["z"][..., 1, 0].reshape(-1))


CONJUGATE = [gamma_poisson, beta_binomial, log_normal, dirichlet_multinomial, mask_and_plates]
ALL = [*CONJUGATE, dependent_bounds, correlation]


def named(cases):
    return {"argvalues": cases, "ids": [case.__name__ for case in cases]}


def target_of(pair, way="auto", guided=True):
    guide = pair.guide if guided else None
    with torch.no_grad():
        return Target(
            pair.model, guide, pair.args, plan_particles(pair.model, guide, pair.args, way)
        )


def points(target, count=4, scale=1.0):
    return scale * torch.randn(count, target.num_data, target.dim, dtype=target.dtype)


# --- densities -----------------------------------------------------------------------------------


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("case", **named(CONJUGATE))
def test_the_joint_less_the_posterior_is_the_evidence_everywhere(case, way):
    pair = case()
    target = target_of(pair, way)
    found = target.log_densities(points(target, 7, scale=2.0), "joint", "guide")
    difference = found["joint"] - found["guide"]
    np.testing.assert_allclose(difference, np.broadcast_to(pair.exact, (7, len(pair.exact))), 1e-8)


@pytest.mark.parametrize("case", **named([c for c in ALL if c is not mask_and_plates]))
def test_on_a_grid_the_joint_integrates_to_the_evidence_and_the_others_to_one(case):
    pair = case()
    target = target_of(pair)
    # logistic tails as light as exp(-0.7 |u|) ask for a wide grid
    line = torch.linspace(-40, 40, 4001 if target.dim == 1 else 401, dtype=torch.float64)
    cell = target.dim * math.log(float(line[1] - line[0]))
    grid = torch.cartesian_prod(*[line] * target.dim).reshape(-1, 1, target.dim)
    with torch.no_grad():
        found = target.log_densities(
            grid.expand(-1, target.num_data, -1), "joint", "prior", "guide"
        )
    for kind, exact in (("joint", pair.exact), ("prior", 0.0), ("guide", 0.0)):
        mass = found[kind].nan_to_num(nan=-math.inf).logsumexp(0) + cell
        np.testing.assert_allclose(mass, np.broadcast_to(exact, mass.shape), atol=2e-3)


@pytest.mark.parametrize("case", **named(ALL))
def test_a_heavy_tailed_proposal_finds_every_integral(case):
    """E_q[density / q] over Student's t, for what has too many dimensions for a grid too."""
    pair = case()
    target = target_of(pair)
    size, dim, count = target.num_data, target.dim, 20_000
    wide = Local(torch.zeros(size, dim).double(), 2 * torch.eye(dim).double().expand(size, -1, -1))
    wide = wide.with_tails(3.0)
    with torch.no_grad():
        u = wide.draw(count)
        found = target.log_densities(u, "joint", "prior", "guide")
    own = wide.log_density(u)
    for kind, exact in (("joint", np.exp(pair.exact)), ("prior", 1.0), ("guide", 1.0)):
        weight = (found[kind] - own).exp().numpy()
        error = weight.std(0, ddof=1) / math.sqrt(count)
        assert np.all(np.abs(weight.mean(0) - exact) < 5 * error), kind


def test_a_larger_correlation_matrix_has_a_density_that_integrates_to_one():
    x = torch.zeros(1, dtype=torch.float64)

    def model(x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.LKJCholesky(4, x.new_tensor(2.0)))
            pyro.sample("x", dist.Normal(z[..., 3, 0], 1.0), obs=x)

    target = target_of(Pair(model, model, (x,), np.zeros(1), None), guided=False)
    assert target.dim == 6
    wide = Local(torch.zeros(1, 6).double(), 0.6 * torch.eye(6).double()[None]).with_tails(5.0)
    with torch.no_grad():
        u = wide.draw(20_000)
        weight = (target.log_densities(u, "prior")["prior"] - wide.log_density(u)).exp()
    assert abs(weight.mean() - 1) < 5 * weight.std() / math.sqrt(20_000)


@pytest.mark.parametrize("case", **named(ALL))
def test_draws_of_the_guide_weigh_the_evidence(case):
    """E_guide[exp(joint - guide)] = p(x), the draws as coordinates."""
    pair = case()
    target = target_of(pair)
    with torch.no_grad():
        u = target.draw("guide", 4000)
        found = target.log_densities(u, "joint", "guide")
    weight = (found["joint"] - found["guide"]).exp().numpy()
    error = weight.std(0, ddof=1) / math.sqrt(4000)
    assert np.all(np.abs(weight.mean(0) - np.exp(pair.exact)) < 5 * error + 1e-12)


@pytest.mark.parametrize("case", **named(ALL))
def test_draws_of_the_prior_weigh_the_evidence(case):
    pair = case()
    target = target_of(pair, guided=False)
    with torch.no_grad():
        u = target.draw("prior", 20_000)
        found = target.log_densities(u, "joint", "prior")
    weight = (found["joint"] - found["prior"]).exp().numpy()
    error = weight.std(0, ddof=1) / math.sqrt(20_000)
    assert np.all(np.abs(weight.mean(0) - np.exp(pair.exact)) < 5 * error)


def test_a_masked_coordinate_is_standard_normal():
    pair = mask_and_plates()
    target = target_of(pair)
    u = points(target, 5)
    moved = u.clone()
    moved[:, 1, 2] = 1.7  # the second datum's second replicate is masked
    for kind in ("joint", "prior", "guide"):
        change = target.log_densities(moved, kind)[kind] - target.log_densities(u, kind)[kind]
        torch.testing.assert_close(change[:, 0], torch.zeros(5).double())
        normal = 0.5 * (u[:, 1, 2] ** 2 - 1.7**2)
        torch.testing.assert_close(change[:, 1], normal)
    drawn = target.draw("guide", 4000)[:, 1, 2]
    assert abs(drawn.mean()) < 5 / math.sqrt(4000)
    assert abs(drawn.var() - 1) < 5 * math.sqrt(2 / 4000)


def _masked_by_the_distribution(event):
    """``fn.mask(...)``, as against ``poutine.mask``; by choice within the event."""
    x = torch.tensor([0.5, -1.0, 2.0], dtype=torch.float64)
    mask = torch.tensor([[True, False], [True, True], [True, False]])

    def prior(loc, scale):
        fn = dist.Normal(loc, scale)
        return fn.mask(mask).to_event(1) if event else fn.mask(mask.T)

    def model(x, mask):
        with pyro.plate("data", len(x), dim=-1):
            if event:
                z = pyro.sample("z", prior(x.new_zeros(len(x), 2), 1.0))
                pyro.sample("x", dist.Normal(z[..., 0], 1.0), obs=x)
            else:
                with pyro.plate("parts", 2, dim=-2):
                    z = pyro.sample("z", prior(x.new_zeros(2, len(x)), 1.0))
                    loc = z * torch.tensor([[1.0], [0.0]], dtype=x.dtype)
                    first = torch.tensor([[True], [False]])
                    pyro.sample("x", dist.Normal(loc, 1.0).mask(first), obs=x.expand(2, -1))

    def guide(x, mask):
        with pyro.plate("data", len(x), dim=-1):
            if event:
                pyro.sample("z", prior(x[:, None] / 2 + torch.zeros(2).double(), 0.9))
            else:
                with pyro.plate("parts", 2, dim=-2):
                    pyro.sample("z", prior(x.expand(2, -1) / 2, 0.9))

    return model, guide, (x, mask), oracles.normal_logpdf(x.numpy(), 0.0, math.sqrt(2))


@pytest.mark.parametrize("event", [False, True])
def test_what_a_distribution_masks_itself_is_given_a_density_too(event):
    """Or it is refused: a coordinate without one has no integral, and proposals no meaning."""
    model, guide, args, exact = _masked_by_the_distribution(event)
    plain = ImportanceSampling(num_samples=2000)(model, guide, *args)
    assert ((plain.log_evidence - torch.tensor(exact)).abs() < 5 * plain.stderr + 1e-3).all()
    try:
        scaled = ImportanceSampling(num_samples=2000, proposal=Scaled(1.1))(model, guide, *args)
    except ProgramError as error:
        assert "'z'" in str(error)  # noqa: PT017
        assert "mask" in str(error)  # noqa: PT017
    else:
        assert ((scaled.log_evidence - torch.tensor(exact)).abs() < 5 * scaled.stderr + 1e-3).all()


# --- coordinates ---------------------------------------------------------------------------------


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("case", **named(ALL))
def test_coordinates_of_values_are_the_coordinates(case, way):
    target = target_of(case(), way)
    u = points(target, 5)
    again = target.coordinates(target.values(u))
    if case is mask_and_plates:  # fresh numbers where it is masked
        assert not torch.equal(again[:, 1, 2], u[:, 1, 2])
        again[:, 1, 2] = u[:, 1, 2]
    torch.testing.assert_close(again, u, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("case", **named(ALL))
def test_values_lie_inside_the_support(case):
    pair = case()
    target = target_of(pair)
    values = target.values(points(target, 50, scale=2.0))
    if case is dependent_bounds:
        assert ((values["b"] > 0) & (values["b"] < values["a"])).all()
        assert ((values["a"] > 0.5) & (values["a"] < 2)).all()
    elif case is dirichlet_multinomial:
        torch.testing.assert_close(values["z"].sum(-1), torch.ones(50, 2).double())
    elif case is correlation:
        assert torch.distributions.constraints.corr_cholesky.check(values["z"]).all()
    else:
        assert (values["z"] > 0).all()


@pytest.mark.parametrize("case", **named([c for c in ALL if c is not mask_and_plates]))
def test_the_volume_is_the_jacobians(case):
    pair = case()
    args = tuple(arg[:1] for arg in pair.args)
    target = target_of(Pair(pair.model, pair.guide, args, pair.exact[:1], pair.free))

    def constrained(u):
        return pair.free(target.values(u.reshape(1, 1, -1)))

    for u in points(target, 4):
        jacobian = torch.autograd.functional.jacobian(constrained, u.flatten())
        # log |det| of the map alone: the densities' difference must not hold anything else
        prior = target.log_densities(u[None], "prior")["prior"].item()
        values = target.values(u[None])
        plain = sum(
            term.item() for term in _prior_terms(pair, args, {n: v[0] for n, v in values.items()})
        )
        expected = torch.linalg.slogdet(jacobian.reshape(target.dim, target.dim)).logabsdet
        assert prior - plain == pytest.approx(float(expected), rel=1e-7, abs=1e-7)


def _prior_terms(pair, args, values):
    """The latents' log-probabilities as Pyro has them, of a single datum."""
    program = pyro.poutine.condition(pair.model, data=values)
    trace = pyro.poutine.trace(program).get_trace(*args)
    return [trace.nodes[n]["fn"].log_prob(v).sum() for n, v in values.items()]


@pytest.mark.parametrize("case", **named(ALL))
def test_all_ways_give_the_same_densities_and_values(case):
    pair = case()
    targets = [target_of(pair, way) for way in WAYS]
    u = points(targets[0], 6)
    first, *others = [
        target.log_densities(u, "joint", "prior", "guide") | target.values(u) for target in targets
    ]
    for other in others:
        assert other.keys() == first.keys()
        for name, value in first.items():
            torch.testing.assert_close(other[name], value, rtol=1e-10, atol=1e-10)


# --- gradients -----------------------------------------------------------------------------------


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("case", **named(ALL))
def test_gradients_agree_with_central_differences(case, way):
    target = target_of(case(), way)
    u, step = points(target, 3), 1e-5
    found = target.gradients(u, "joint", "prior", "guide")
    for axis in range(target.dim):
        shift = torch.zeros(target.dim).double()
        shift[axis] = step
        up = target.log_densities(u + shift, "joint", "prior", "guide")
        down = target.log_densities(u - shift, "joint", "prior", "guide")
        for kind, (value, gradient) in found.items():
            difference = (up[kind] - down[kind]) / (2 * step)
            torch.testing.assert_close(gradient[..., axis], difference, rtol=1e-5, atol=1e-6)
            assert not value.requires_grad
            assert value.shape == (3, target.num_data)


def test_gradients_are_found_where_none_are_kept():
    """Scoring runs without gradients; moving the latents needs them all the same."""
    target = target_of(gamma_poisson())
    with torch.no_grad():
        ((_, gradient),) = target.gradients(points(target), "joint").values()
    assert (gradient != 0).all()


def test_runs_and_gradients_are_counted_per_datum():
    target = target_of(gamma_poisson())
    assert (target.num_evaluations, target.num_gradients) == (0, 0)
    target.log_densities(points(target, 5), "joint", "guide")
    target.gradients(points(target, 3), "joint", "guide")
    assert (target.num_evaluations, target.num_gradients) == (8, 3)


# --- enumerated latents, autoguides, odd programs ------------------------------------------------


def from_case(case, way="auto"):
    found = case()
    with torch.no_grad():
        plan = plan_particles(found.model, found.guide, found.args, way)
        return found, Target(found.model, found.guide, found.args, plan)


@pytest.mark.parametrize("way", ["plate", "loop", "tile"])
def test_a_component_enumerated_in_the_model_is_summed_out_of_the_prior(way):
    case, target = from_case(programs.enumerated_mixture, way)
    u, x = points(target, 5, scale=2.0), case.args[0]
    z = u[..., 0].numpy()
    parts = oracles.normal_logpdf(z[..., None], np.array([-2.0, 0.0, 3.0]), 1.0)
    prior = oracles.logsumexp(parts + np.log([0.2, 0.3, 0.5]), -1)
    found = target.log_densities(u, "joint", "prior", "guide")
    np.testing.assert_allclose(found["prior"], prior, rtol=1e-9)
    likelihood = oracles.normal_logpdf(x.numpy(), z, 1.0)
    np.testing.assert_allclose(found["joint"], prior + likelihood, rtol=1e-9)
    np.testing.assert_allclose(
        found["guide"], oracles.normal_logpdf(z, x.numpy() / 2, 1.2), rtol=1e-9
    )


@pytest.mark.parametrize("way", ["plate", "loop", "tile"])
def test_a_component_enumerated_in_the_guide_is_summed_out_of_both(way):
    case, target = from_case(programs.enumerated_guide, way)
    u, x = points(target, 5, scale=2.0), case.args[0]
    z, loc = u[..., 0].numpy(), np.array([-2.0, 0.0, 3.0])
    means = (x.numpy()[:, None] + loc) / 2
    guide = oracles.logsumexp(
        oracles.normal_logpdf(z[..., None], means, 0.5**0.5) - math.log(3), -1
    )
    prior = oracles.logsumexp(
        oracles.normal_logpdf(z[..., None], loc, 1.0) + np.log([0.2, 0.3, 0.5]), -1
    )
    found = target.log_densities(u, "joint", "prior", "guide")
    np.testing.assert_allclose(found["guide"], guide, rtol=1e-9)
    np.testing.assert_allclose(found["prior"], prior, rtol=1e-9)
    np.testing.assert_allclose(
        found["joint"], prior + oracles.normal_logpdf(x.numpy(), z, 1.0), rtol=1e-9
    )


@pytest.mark.parametrize("kind", ["prior", "guide"])
@pytest.mark.parametrize("case", [programs.enumerated_mixture, programs.enumerated_guide])
def test_draws_with_enumerated_latents_have_the_density_that_is_given(case, kind):
    """E_q[f / q] = 1 for any normalised f: here a normal, narrow enough for bounded weights."""
    _, target = from_case(case)
    with torch.no_grad():
        u = target.draw(kind, 1500)
        own = target.log_densities(u, kind)[kind]
    centre, scale = u.mean(0), 0.4 * u.std(0)
    weight = (dist.Normal(centre, scale).log_prob(u)[..., 0] - own).exp()
    error = weight.std(0) / math.sqrt(len(u))
    assert ((weight.mean(0) - 1).abs() < 5 * error).all()


def test_where_all_is_summed_out_nothing_is_left_to_move():
    case, target = from_case(programs.hidden_markov)
    assert target.dim == 0
    u = target.draw("guide", 1).expand(3, -1, -1)
    found = target.log_densities(u, "joint", "prior", "guide")
    np.testing.assert_allclose(found["joint"], np.broadcast_to(case.exact, (3, 4)), rtol=1e-9)
    assert found["prior"].abs().max() < 1e-9
    assert (found["guide"] == 0).all()
    ((_, gradient),) = target.gradients(u, "joint").values()
    assert gradient.shape == (3, 4, 0)


@pytest.mark.parametrize("way", ["plate", "loop"])
def test_an_autoguides_density_is_that_of_its_base_draw(way):
    case, target = from_case(programs.autoguide, way)
    u = points(target)
    found = target.log_densities(u, "guide")["guide"]
    expected = oracles.normal_logpdf(u[..., 0].numpy(), case.args[0].numpy() / 2, 0.6)
    np.testing.assert_allclose(found.detach(), expected, rtol=1e-6)


def test_an_autoguide_of_positive_latents_is_normal_in_their_coordinates():
    pair = gamma_poisson()
    guide = AutoNormal(pair.model, init_scale=0.7)
    guide(*pair.args)
    target = target_of(Pair(pair.model, guide, pair.args, pair.exact, pair.free))
    u = points(target)
    loc = guide.locs.z.detach()
    expected = dist.Normal(loc, 0.7).log_prob(u[..., 0])
    torch.testing.assert_close(
        target.log_densities(u, "guide")["guide"].detach(), expected, rtol=1e-6, atol=1e-6
    )
    drawn = target.draw("guide", 4000)[..., 0].detach()
    assert ((drawn.mean(0) - loc).abs() < 5 * 0.7 / math.sqrt(4000)).all()


def test_an_autoguide_over_all_data_at_once_is_refused():
    pair = gamma_poisson()
    guide = AutoMultivariateNormal(pair.model)
    guide(*pair.args)
    with pytest.raises(ProgramError, match="_AutoMultivariateNormal_latent"):
        target_of(Pair(pair.model, guide, pair.args, pair.exact, pair.free))


def test_single_precision_is_added_up_in_double():
    def model(x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Gamma(x.new_tensor(2.0), x.new_tensor(1.0)))
            pyro.sample("x", dist.Poisson(z), obs=x)

    target = target_of(Pair(model, None, (torch.ones(3),), np.zeros(3), None), guided=False)
    assert target.dtype == torch.float32
    u = points(target)
    assert u.dtype == torch.float32
    found = target.gradients(u, "joint", "prior")
    assert all(value.dtype == torch.float64 for value, _ in found.values())
    assert all(gradient.dtype == torch.float32 for _, gradient in found.values())


def test_draws_outside_the_models_support_have_no_coordinates():
    x = torch.tensor([0.1, 0.3], dtype=torch.float64)

    def model(x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Exponential(x.new_ones(())))
            pyro.sample("x", dist.Normal(z, 1.0), obs=x)

    def guide(x):
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(x, 1.0))

    with torch.no_grad(), pyro.validation_enabled(False):
        target = target_of(Pair(model, guide, (x,), np.zeros(2), None))
        u = target.draw("guide", 2000)[..., 0]
    share = (~u.isfinite()).double().mean(0)
    expected = dist.Normal(x, 1.0).cdf(torch.zeros(2).double())
    error = (expected * (1 - expected) / 2000).sqrt()
    assert ((share - expected).abs() < 5 * error).all()


def test_a_discrete_latent_is_refused_by_name():
    x = torch.zeros(3, dtype=torch.float64)

    def model(x):
        with pyro.plate("data", len(x)):
            count = pyro.sample("count", dist.Poisson(x.new_tensor(2.0)))
            pyro.sample("x", dist.Normal(count, 1.0), obs=x)

    with pytest.raises(ProgramError, match=r"latent 'count' is discrete.*sum it out"):
        target_of(Pair(model, None, (x,), np.zeros(3), None), guided=False)


def test_a_support_without_a_bijection_is_refused_by_name():
    x = torch.zeros(3, dtype=torch.float64)

    def model(x):
        with pyro.plate("data", len(x)):
            way = pyro.sample("way", dist.ProjectedNormal(torch.ones(3, dtype=x.dtype)))
            pyro.sample("x", dist.Normal(way[..., 0], 1.0), obs=x)

    with pytest.raises(ProgramError, match=r"latent 'way' has the support .*no bijection"):
        target_of(Pair(model, None, (x,), np.zeros(3), None), guided=False)


# --- models without a gradient -------------------------------------------------------------------


def _through(step):
    def model(x):
        with pyro.plate("data", len(x)):
            good = pyro.sample("good", dist.Normal(x.new_zeros(()), 1.0))
            z = pyro.sample("z", dist.Normal(x.new_zeros(()), 1.0))
            pyro.sample("x", dist.Normal(good + 3 * step(z), 0.5), obs=x)

    return model


@pytest.mark.parametrize(
    "step",
    [
        lambda z: z.detach(),
        lambda z: torch.as_tensor(z.detach().numpy()),
        torch.round,
        lambda z: (z > 0).double(),
    ],
    ids=["detached", "numpy", "rounded", "compared"],
)
def test_a_latent_without_a_gradient_of_the_likelihood_is_refused_by_name(step):
    """Its prior has a gradient all the same, so that a gradient of zero is not what to look for."""
    x = torch.linspace(-2, 2, 6, dtype=torch.float64)
    target = target_of(Pair(_through(step), None, (x,), np.zeros(6), None), guided=False)
    with pytest.raises(ProgramError, match="latent 'z'"):
        check_differentiable(target, points(target, 8))


@pytest.mark.parametrize("case", **named(ALL))
def test_what_has_a_gradient_is_let_through(case):
    target = target_of(case())
    for scale in (0.01, 1.0, 5.0):
        check_differentiable(target, points(target, 8, scale))
