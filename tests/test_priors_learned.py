"""Priors of flows, exemplars and learned scales: quadrature, the oracle and scipy; refusals."""

from __future__ import annotations

import copy
import itertools
import math
import pickle

import numpy as np
import oracles
import pyro.distributions as dist
import pytest
import torch
from scipy import stats
from torch import nn
from torch.autograd.functional import jacobian

from pyrovae.models import VAE, load, save
from pyrovae.models.distributions import StableStudentT
from pyrovae.models.flows import AutoregressiveFlow, CouplingFlow, SplineFlow
from pyrovae.models.likelihoods import Bernoulli
from pyrovae.models.nets import MLP
from pyrovae.models.posteriors import DiagonalNormal, FullRankNormal
from pyrovae.models.priors import ExemplarPrior, FlowPrior, Laplace, LearnedNormal, StudentT

pytestmark = pytest.mark.usefixtures("one_thread")

Z, D = 2, 3
FIVE_SIGMA = 2 * stats.norm.sf(5)


def randn(*shape):
    return torch.randn(*shape, dtype=torch.float64)


# --- flows ---------------------------------------------------------------------------------------

FLOWS = {"autoregressive": AutoregressiveFlow, "coupling": CouplingFlow, "spline": SplineFlow}


@pytest.fixture(params=FLOWS)
def flow_prior(request):
    torch.manual_seed(3)
    prior = FlowPrior(FLOWS[request.param](Z, 2, hidden=(8,))).double()
    with torch.no_grad():
        for parameter in prior.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
    return prior


def test_a_flows_density_integrates_to_one(flow_prior):
    # the kinks of a spline leave the rule a larger error
    is_spline = isinstance(flow_prior.flow, SplineFlow)
    bound, points = (10, 301) if is_spline else (16, 401)
    side = torch.linspace(-bound, bound, points, dtype=torch.float64)
    with torch.no_grad():
        density = flow_prior().log_prob(torch.cartesian_prod(side, side)).exp()
    total = float(density.sum() * (side[1] - side[0]) ** 2)
    assert total == pytest.approx(1.0, abs=5e-3 if is_spline else 1e-4)
    plain = oracles.normal_logpdf(side.numpy())
    assert (
        abs(density.reshape(points, points).numpy() - np.exp(plain[:, None] + plain)).max() > 0.05
    )


def test_a_flows_draws_have_the_density_of_the_change_of_variables(flow_prior):
    one = flow_prior()
    with torch.no_grad():
        z = one.sample(torch.Size((20,)))
        remembered = one.log_prob(z)

    def to_base(z):
        for transform in flow_prior.flow():
            z = transform(z)
        return z

    found = []
    for each in z:
        log_det = torch.linalg.slogdet(jacobian(to_base, each)).logabsdet
        base = oracles.normal_logpdf(to_base(each).detach().numpy()).sum()
        found.append(base + float(log_det))
    np.testing.assert_allclose(remembered, found, rtol=1e-8, atol=1e-8)
    np.testing.assert_allclose(flow_prior().log_prob(z.clone()).detach(), found, rtol=1e-9)


def density_ratio(prior, count=50_000):
    """p'(z) / p(z), whose mean under draws of p is 1 for any density p'."""
    with torch.no_grad():
        z = prior().sample(torch.Size((count,)))
        other = oracles.gaussian_logpdf(z.numpy(), np.array([0.2, -0.1]), 0.1 * np.eye(Z))
        return np.exp(other - prior().log_prob(z).numpy())


def test_a_flows_draws_follow_its_density(flow_prior):
    ratio = density_ratio(flow_prior)
    stderr = ratio.std() / math.sqrt(len(ratio))
    assert abs(ratio.mean() - 1) < 5 * stderr
    assert stderr < 0.05


# --- exemplars -----------------------------------------------------------------------------------


def exemplar(kind=DiagonalNormal, num_exemplars=4, **options):
    torch.manual_seed(5)
    posterior = kind(MLP(D, 2 * Z if kind is DiagonalNormal else Z + 3, hidden=(8,)))
    prior = ExemplarPrior(posterior, 2 * torch.randn(num_exemplars, D), **options).double()
    nn.init.constant_(prior.log_scale, -0.5)
    return prior


def around(prior, rows, z):
    """The mixture of normals around the codes of these exemplars."""
    loc = prior.posterior(prior.exemplars[list(rows)]).mean.detach().numpy()
    scale = np.full_like(loc, math.exp(-0.5))
    return oracles.mixture_logpdf(z.numpy(), np.zeros(len(loc)), loc, scale)


@pytest.mark.parametrize("kind", [DiagonalNormal, FullRankNormal])
def test_an_exemplar_prior_is_the_mean_of_normals_around_the_codes(kind):
    prior, z = exemplar(kind), randn(2, 5, Z)
    found = prior().log_prob(z).detach()
    assert found.shape == (2, 5)
    np.testing.assert_allclose(found, around(prior, range(4), z), rtol=1e-12)
    ratio = density_ratio(prior)
    assert abs(ratio.mean() - 1) < 5 * ratio.std() / math.sqrt(len(ratio))


def test_some_exemplars_at_random_stand_for_all_in_training():
    prior, z = exemplar(num_used=2), randn(5, Z)
    pairs = list(itertools.combinations(range(4), 2))
    known = np.stack([around(prior, pair, z) for pair in pairs])
    counts = np.zeros(len(pairs))
    for _ in range(600):
        gap = abs(known - prior().log_prob(z).detach().numpy()).max(1)
        assert gap.min() < 1e-10
        counts[gap.argmin()] += 1
    assert stats.chisquare(counts).pvalue > FIVE_SIGMA


def test_what_is_scored_sees_all_exemplars():
    prior, z = exemplar(num_used=2), randn(5, Z)
    expected = around(prior, range(4), z)
    with torch.no_grad():
        np.testing.assert_allclose(prior().log_prob(z), expected, rtol=1e-12)
    np.testing.assert_allclose(prior.eval()().log_prob(z).detach(), expected, rtol=1e-12)


def test_the_posterior_is_shared_with_the_vae_and_counts_once(tmp_path):
    prior = exemplar()
    vae = VAE(prior, prior.posterior, Bernoulli(nn.Linear(Z, D))).double()
    mine = list(prior.posterior.parameters())
    assert len(list(vae.parameters())) == len(mine) + 1 + 2  # the scale; the decoder's
    prior().log_prob(randn(5, Z)).sum().backward()
    assert all(one.grad.any() for one in [*mine, prior.log_scale])
    assert prior.exemplars.grad is None
    save(vae, tmp_path / "vae")
    again, z = load(tmp_path / "vae"), randn(5, Z)
    assert again.prior.posterior is again.posterior
    assert torch.equal(again.prior().log_prob(z), prior().log_prob(z))


def test_exemplars_are_a_copy():
    x = torch.rand(4, D)
    prior = ExemplarPrior(DiagonalNormal(nn.Linear(D, 2 * Z)), x)
    before = prior().log_prob(torch.zeros(Z))
    x.zero_()
    assert torch.equal(prior().log_prob(torch.zeros(Z)), before)


# --- centres and scales --------------------------------------------------------------------------

DF = 9.0
LOCATED = {
    "normal": (LearnedNormal, stats.norm),
    "laplace": (lambda z: Laplace(z, learned=True), stats.laplace),
    "student": (lambda z: StudentT(z, DF, learned=True), stats.t(DF)),
}
LOC, LOG_SCALE = np.array([0.7, -2.0]), np.array([-1.0, 0.6])


def located(kind):
    make, reference = LOCATED[kind]
    prior = make(Z).double()
    with torch.no_grad():
        prior.loc.copy_(torch.as_tensor(LOC))
        prior.log_scale.copy_(torch.as_tensor(LOG_SCALE))
    df = (DF,) if kind == "student" else ()
    family = stats.t if kind == "student" else reference
    return prior, lambda loc=LOC, log_scale=LOG_SCALE: family(*df, loc, np.exp(log_scale))


@pytest.mark.parametrize("kind", LOCATED)
def test_entries_have_scipys_densities_moments_and_draws(kind):
    prior, reference = located(kind)
    z, one, exact = 3 * randn(4, 6, Z), prior(), reference()
    np.testing.assert_allclose(
        one.log_prob(z).detach(), exact.logpdf(z.numpy()).sum(-1), rtol=1e-12
    )
    np.testing.assert_allclose(one.mean.detach(), exact.mean())
    np.testing.assert_allclose(one.variance.detach(), exact.var())
    draws = one.sample(torch.Size((40_000,))).numpy()
    for number in range(Z):
        entry = reference(LOC[number], LOG_SCALE[number])
        assert stats.kstest(draws[:, number], entry.cdf).pvalue > FIVE_SIGMA
    errors = (draws.mean(0) - exact.mean()) / np.sqrt(exact.var() / len(draws))
    assert abs(errors).max() < 5
    squares = (draws - exact.mean()) ** 2
    stderr = squares.std(0) / math.sqrt(len(draws))
    assert (abs(squares.mean(0) - exact.var()) < 5 * stderr).all()


@pytest.mark.parametrize("kind", LOCATED)
def test_centres_and_scales_get_the_gradient_of_scipys_density(kind):
    prior, reference = located(kind)
    z, step = randn(5, Z), 1e-6
    prior().log_prob(z).sum().backward()
    slope = lambda up, down: (up.logpdf(z) - down.logpdf(z)).sum(0) / (2 * step)  # noqa: E731
    for_loc = slope(reference(LOC + step), reference(LOC - step))
    for_scale = slope(reference(LOC, LOG_SCALE + step), reference(LOC, LOG_SCALE - step))
    np.testing.assert_allclose(prior.loc.grad, for_loc, rtol=1e-6, atol=1e-8)
    np.testing.assert_allclose(prior.log_scale.grad, for_scale, rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize("make", [Laplace, StudentT])
def test_a_prior_that_is_not_learned_has_no_parameters(make):
    assert list(make(Z).parameters()) == []
    assert make(Z).state_dict() == {}
    assert make(Z).double()().sample().dtype == torch.float64


@pytest.mark.parametrize("df", [0.3, 1.0, 5.0, 19.9, 20.0, 21.0, 300.0])
def test_students_density_is_scipys(df):
    x = 10 * randn(200)
    ours = StableStudentT(torch.tensor(df, dtype=torch.float64), 0.3, 1.7).log_prob(x)
    np.testing.assert_allclose(ours, stats.t(df, 0.3, 1.7).logpdf(x), rtol=1e-11)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("df", [1e4, 1e6, 1e8])
def test_with_many_degrees_of_freedom_students_density_goes_to_the_normal(dtype, df):
    """log t(y) = log N(y) + (y⁴ - 2 y² - 1) / 4ν + O(1 / ν²); also of the prior."""
    y = torch.linspace(-3, 3, 61, dtype=dtype)
    exact = oracles.normal_logpdf(y.double().numpy())
    exact = exact + (y.double() ** 4 - 2 * y.double() ** 2 - 1).numpy() / (4 * df)
    ours = StableStudentT(torch.tensor(df, dtype=dtype), torch.zeros(61, dtype=dtype), 1.0)
    error = 20 * torch.finfo(dtype).eps + 1e3 / df**2
    np.testing.assert_allclose(ours.log_prob(y), exact, atol=error, rtol=0)
    prior = StudentT(1, df).to(dtype)()
    np.testing.assert_allclose(prior.log_prob(y[:, None]), exact, atol=error, rtol=0)


# --- as modules, and refusals --------------------------------------------------------------------

MEMBERS = {
    "exemplar": exemplar,
    "laplace": lambda: Laplace(Z).double(),
    "student": lambda: StudentT(Z, df=3.5).double(),
    **{f"learned {kind}": lambda kind=kind: located(kind)[0] for kind in LOCATED},
}


@pytest.mark.parametrize("member", MEMBERS)
@pytest.mark.parametrize(
    "duplicate",
    [
        lambda prior, path: copy.deepcopy(prior),
        lambda prior, path: pickle.loads(pickle.dumps(prior)),
        lambda prior, path: (save(prior, path), load(path))[1],
    ],
    ids=["copied", "pickled", "loaded"],
)
def test_a_copy_has_the_same_density_and_its_own_parameters(member, duplicate, tmp_path):
    prior, z = MEMBERS[member](), randn(6, Z)
    expected = prior().log_prob(z)
    twin = duplicate(prior, tmp_path / "prior")
    if "learned" not in member and member != "exemplar":  # nothing says of which dtype it is
        twin.double()
    assert torch.equal(twin().log_prob(z), expected)
    for parameter in twin.parameters():
        nn.init.constant_(parameter, 0.3)
    assert torch.equal(prior().log_prob(z), expected)


class Scattered(nn.Module):
    """A posterior whose distributions have no mean."""

    def forward(self, x):
        base = dist.Normal(x.new_zeros(len(x), Z), 1.0).to_event(1)
        return dist.TransformedDistribution(base, [dist.transforms.TanhTransform()])


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: LearnedNormal(0), "latent_dim must be at least 1, but is 0"),
        (lambda: Laplace(-2), "latent_dim must be at least 1, but is -2"),
        (lambda: StudentT(0), "latent_dim must be at least 1, but is 0"),
        (lambda: StudentT(Z, df=0.0), "df must be positive and finite, but is 0.0"),
        (lambda: StudentT(Z, df=math.nan), "df must be positive and finite, but is nan"),
        (lambda: StudentT(Z, df=math.inf), "df must be positive and finite, but is inf"),
        (lambda: exemplar(num_used=0), "num_used must be between 1 and 4, .*, but is 0"),
        (lambda: exemplar(num_used=5), "num_used must be between 1 and 4, .*, but is 5"),
        (
            lambda: ExemplarPrior(nn.Identity(), torch.zeros(4, 3, dtype=torch.uint8)),
            r"exemplars must be floating .* but are torch.uint8 of shape \(4, 3\)",
        ),
        (
            lambda: ExemplarPrior(nn.Identity(), torch.zeros(4)),
            r"exemplars must be .* of shape \(M, ...\).* but are torch.float32 of shape \(4,\)",
        ),
        (lambda: ExemplarPrior(nn.Identity(), torch.zeros(0, 3)), r"exemplars must .* \(0, 3\)"),
    ],
)
def test_impossible_values_are_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_what_is_no_posterior_and_no_tensor_is_refused():
    with pytest.raises(TypeError, match=r"posterior must .* have a mean, but gives a Transformed"):
        ExemplarPrior(Scattered(), torch.rand(4, D))()
    with pytest.raises(TypeError, match=r"posterior must .* have a mean, but gives a Tensor"):
        ExemplarPrior(nn.Linear(D, 2 * Z), torch.rand(4, D))()
    with pytest.raises(TypeError, match="exemplars must be a tensor, but is a list"):
        ExemplarPrior(nn.Identity(), [[0.0, 1.0]])


@pytest.mark.parametrize("member", [*MEMBERS, *FLOWS])
@pytest.mark.parametrize("shape", [(4, 1), (4, Z + 1), ()])
def test_codes_of_another_shape_are_refused_where_they_would_broadcast(member, shape):
    prior = FlowPrior(FLOWS[member](Z)).double() if member in FLOWS else MEMBERS[member]()
    with pytest.raises(ValueError, match=r"value|event.shape"):
        prior().log_prob(torch.zeros(shape, dtype=torch.float64))
