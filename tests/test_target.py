"""Densities over unconstrained coordinates: they integrate to what they must, in all three ways."""

from __future__ import annotations

import math

import numpy as np
import oracles
import programs
import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer.autoguide import AutoMultivariateNormal, AutoNormal
from target_toys import (
    ALL,
    CONJUGATE,
    WAYS,
    Pair,
    gamma_poisson,
    mask_and_plates,
    named,
    points,
    target_of,
)

from pyrovae.inference import ImportanceSampling, ProgramError, Scaled
from pyrovae.inference.evidence.proposals import Local
from pyrovae.inference.particles import plan_particles
from pyrovae.inference.target import Target

pytestmark = pytest.mark.usefixtures("one_thread")


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
    """A coordinate without one has no integral, and proposals no meaning."""
    model, guide, args, exact = _masked_by_the_distribution(event)
    plain = ImportanceSampling(num_samples=2000)(model, guide, *args)
    assert ((plain.log_evidence - torch.tensor(exact)).abs() < 5 * plain.stderr + 1e-3).all()
    scaled = ImportanceSampling(num_samples=2000, proposal=Scaled(1.1))(model, guide, *args)
    assert ((scaled.log_evidence - torch.tensor(exact)).abs() < 5 * scaled.stderr + 1e-3).all()


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
