"""Proposals made of moments: their densities against torch's and Pyro's, their draws, their fit."""

from __future__ import annotations

import math

import pyro.distributions as dist
import pytest
import torch

from pyrovae.inference import Scaled, StudentT
from pyrovae.inference.evidence.proposals import Local, cholesky, draws_of_guide, fit


def local(size=3, dim=4, df=math.inf, seed=0, dtype=torch.float64):
    """A random scatter for each datum."""
    generator = torch.Generator().manual_seed(seed)
    loc = 3 * torch.randn(size, dim, generator=generator, dtype=torch.float64)
    square = torch.randn(size, dim, dim + 2, generator=generator, dtype=torch.float64)
    return Local(loc.to(dtype), torch.linalg.cholesky(square @ square.mT).to(dtype), df)


def points(q, count=50):
    return q.loc + 3 * torch.randn(count, *q.loc.shape, dtype=q.loc.dtype)


# --- densities -----------------------------------------------------------------------------------


@pytest.mark.parametrize("dim", [1, 2, 7])
def test_the_normal_has_torchs_density(dim):
    q = local(dim=dim)
    u = points(q)
    expected = dist.MultivariateNormal(q.loc, scale_tril=q.scale_tril).log_prob(u)
    torch.testing.assert_close(q.log_density(u), expected)


@pytest.mark.parametrize("df", [0.5, 1.0, 2.5, 30.0])
@pytest.mark.parametrize("dim", [1, 2, 7])
def test_students_t_has_pyros_density(dim, df):
    q = local(dim=dim, df=df)
    u = points(q)
    reference = dist.MultivariateStudentT(torch.tensor(df).double(), q.loc, q.scale_tril)
    torch.testing.assert_close(q.log_density(u), reference.log_prob(u))


def test_many_degrees_of_freedom_are_a_normal():
    q = local()
    u = points(q)
    torch.testing.assert_close(
        q.with_tails(1e9).log_density(u), q.log_density(u), rtol=1e-5, atol=1e-5
    )


@pytest.mark.parametrize("df", [math.inf, 4.0])
def test_a_wider_proposal_has_the_density_of_scaled_points(df):
    q = local(df=df)
    u = points(q)
    expected = q.log_density(q.loc + (u - q.loc) / 1.7) - 4 * math.log(1.7)
    torch.testing.assert_close(q.widened(1.7).log_density(u), expected)
    assert q.widened(1.7).df == df


def test_tails_leave_place_and_scatter():
    q = local()
    heavy = q.with_tails(3.0)
    assert heavy.df == 3.0
    assert heavy.loc is q.loc
    assert heavy.scale_tril is q.scale_tril
    assert heavy.widened(2.0).df == 3.0


def test_a_density_of_single_precision_is_computed_in_double():
    q = local(dtype=torch.float32)
    u = points(q)
    found = q.log_density(u)
    assert found.dtype == torch.float64
    double = Local(q.loc.double(), q.scale_tril.double())
    torch.testing.assert_close(found, double.log_density(u.double()), rtol=1e-6, atol=1e-5)


@pytest.mark.parametrize("df", [math.inf, 4.0])
def test_a_density_has_a_gradient(df):
    q = local(df=df)
    u = points(q, 2).requires_grad_()
    assert torch.autograd.gradcheck(lambda v: q.log_density(v), u)


def test_a_point_without_dimensions_has_a_density_of_one():
    q = Local(torch.zeros(3, 0).double(), torch.zeros(3, 0, 0).double())
    assert torch.equal(q.log_density(q.draw(5)), torch.zeros(5, 3).double())


# --- draws ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("df", [math.inf, 12.0])
def test_draws_have_the_moments_of_the_density(df):
    torch.manual_seed(0)
    q, count = local(dim=3, df=df), 40_000
    u = q.draw(count)
    assert u.shape == (count, 3, 3)
    factor = 1.0 if math.isinf(df) else df / (df - 2)
    covariance = factor * q.scale_tril @ q.scale_tril.mT
    off = u - q.loc
    assert (off.mean(0).abs() < 5 * off.std(0) / math.sqrt(count)).all()
    product = off[..., :, None] * off[..., None, :]
    error = product.std(0) / math.sqrt(count)
    assert ((product.mean(0) - covariance).abs() < 5 * error).all()


@pytest.mark.parametrize("df", [math.inf, 1.0, 3.0])
def test_draws_have_the_density_that_is_given(df):
    """E_q[f / q] = 1 for a normal f that lies well inside."""
    torch.manual_seed(1)
    q, count = local(dim=3, df=df), 40_000
    u = q.draw(count)
    inside = Local(q.loc, 0.6 * q.scale_tril)
    weight = (inside.log_density(u) - q.log_density(u)).exp()
    assert ((weight.mean(0) - 1).abs() < 5 * weight.std(0) / math.sqrt(count)).all()


@pytest.mark.parametrize("df", [math.inf, 1.0, 3.0])
def test_the_distance_of_draws_has_its_distribution(df):
    """|L⁻¹(u − m)|² / D is F(D, ν), or χ²(D) / D: its ranks are uniform."""
    torch.manual_seed(2)
    q, count = local(size=1, dim=2, df=df), 40_000
    white = torch.linalg.solve_triangular(
        q.scale_tril[0], (q.draw(count)[:, 0] - q.loc).T, upper=False
    )
    square = white.square().sum(0)
    # in two dimensions both have a survival function in closed form
    survival = (-square / 2).exp() if math.isinf(df) else (1 + square / df) ** (-df / 2)
    ordered = survival.sort().values
    rank = torch.arange(1, count + 1).double() / count
    assert (ordered - rank).abs().max() < 2.75 / math.sqrt(count)


# --- the fit -------------------------------------------------------------------------------------


def test_a_fit_is_the_mean_and_the_covariance_of_the_draws():
    u = points(local(), 60)
    q = fit(u)
    torch.testing.assert_close(q.loc, u.mean(0))
    for n in range(3):
        torch.testing.assert_close(
            q.scale_tril[n] @ q.scale_tril[n].T, u[:, n].T.cov(), rtol=1e-6, atol=1e-6
        )
    assert q.df == math.inf


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_a_fit_leaves_out_draws_that_are_not_finite(value):
    u = points(local(), 60)
    clean = fit(u[5:])
    spoiled = u.clone()
    spoiled[:5, 0, 2] = value  # of one datum, in one coordinate
    found = fit(spoiled)
    torch.testing.assert_close(found.loc[0], clean.loc[0])
    torch.testing.assert_close(found.scale_tril[0], clean.scale_tril[0])
    whole = fit(u)
    assert torch.equal(found.loc[1:], whole.loc[1:])
    assert torch.equal(found.scale_tril[1:], whole.scale_tril[1:])


def test_a_fit_is_found_again_from_its_own_draws():
    torch.manual_seed(3)
    q = local(dim=2)
    found = fit(q.draw(40_000))
    torch.testing.assert_close(found.loc, q.loc, rtol=0, atol=0.15)
    torch.testing.assert_close(found.scale_tril, q.scale_tril, rtol=0.05, atol=0.1)


def test_a_fit_keeps_the_dtype():
    assert fit(points(local(dtype=torch.float32))).scale_tril.dtype == torch.float32


@pytest.mark.parametrize(
    "u",
    [
        torch.zeros(10, 2, 3).double(),
        torch.ones(1, 2, 3).double(),
        torch.randn(3, 2, 8).double(),
        torch.full((10, 2, 3), math.nan).double(),
        torch.randn(50, 2, 1).double() * torch.tensor([1.0, 1.0, 2.0]).double(),
        1e-30 * torch.randn(50, 2, 3).double(),
        1e30 * torch.randn(50, 2, 3).double(),
    ],
    ids=["constant", "one draw", "few draws", "no finite draw", "collinear", "tiny", "huge"],
)
def test_draws_that_say_little_still_make_a_proposal(u):
    q = fit(u)
    assert q.loc.isfinite().all()
    assert q.scale_tril.isfinite().all()
    assert (q.scale_tril.diagonal(dim1=-2, dim2=-1) > 0).all()
    assert q.log_density(q.draw(5)).isfinite().all()


def test_a_datum_whose_covariance_is_singular_does_not_touch_the_others():
    good = points(local(size=1, dim=2), 60)
    singular = good[..., :1].expand(60, 1, 2)
    both = cholesky(torch.stack([good[:, 0].T.cov(), singular[:, 0].T.cov()]))
    torch.testing.assert_close(
        both[0], torch.linalg.cholesky(good[:, 0].T.cov()), rtol=1e-5, atol=0
    )


def test_a_datum_whose_covariance_has_no_factor_does_not_touch_the_others():
    good = points(local(size=1, dim=2), 60)[:, 0].T.cov()
    indefinite = torch.tensor([[1.0, 5.0], [5.0, 1.0]]).double()
    both = cholesky(torch.stack([good, indefinite]))
    torch.testing.assert_close(both[0], torch.linalg.cholesky(good), rtol=1e-3, atol=1e-3)


def test_draws_too_large_to_be_squared_cost_the_other_data_nothing():
    """Draws of 1e200 have no covariance in double precision: theirs alone is made up."""
    u = points(local(size=2, dim=2), 60)
    alone = fit(u[:, :1])
    u[:, 1] *= 1e200
    torch.testing.assert_close(fit(u).scale_tril[0], alone.scale_tril[0], rtol=1e-3, atol=1e-3)


# --- from the guide ------------------------------------------------------------------------------


class Guide:
    """What a proposal asks of a target: draws, and how many coordinates there are."""

    dim = 2

    def draw(self, kind, count):
        assert kind == "guide"
        self.count = count
        generator = torch.Generator().manual_seed(0)
        return 2.0 + 0.5 * torch.randn(count, 3, 2, generator=generator, dtype=torch.float64)


@pytest.mark.parametrize(
    ("make", "factor", "df"),
    [(Scaled(), 1.0, math.inf), (Scaled(1.5), 1.5, math.inf), (StudentT(4.0, 0.8), 0.8, 4.0)],
)
def test_a_proposal_has_the_guides_moments(make, factor, df):
    guide = Guide()
    q = make.build(guide)
    plain = fit(guide.draw("guide", guide.count))
    torch.testing.assert_close(q.loc, plain.loc)
    torch.testing.assert_close(q.scale_tril, factor * plain.scale_tril)
    assert q.df == df


def test_the_guide_is_drawn_often_enough_for_its_covariance():
    guide = Guide()
    draws_of_guide(guide)
    assert guide.count == 200
    guide.dim = 50
    draws_of_guide(guide)
    assert guide.count == 1000


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: Scaled(0), ValueError, "factor must be finite and larger than 0, but is 0"),
        (lambda: Scaled(math.inf), ValueError, "factor must be finite and larger than 0"),
        (lambda: Scaled("wide"), TypeError, "factor must be a number, but is 'wide'"),
        (lambda: StudentT(0), ValueError, "df must be finite and larger than 0, but is 0"),
        (lambda: StudentT(df=math.nan), ValueError, "df must be finite and larger than 0"),
        (lambda: StudentT(5, -1.0), ValueError, r"factor must be finite .* but is -1\.0"),
    ],
)
def test_bad_settings_are_refused(make, error, message):
    with pytest.raises(error, match=message):
        make()
