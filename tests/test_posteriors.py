"""Posteriors: densities against numpy, draws, gradients in hard cases, and what is refused."""

from __future__ import annotations

import math

import numpy as np
import oracles
import pytest
import torch
from torch import nn

from pyrovae.models.nets import MLP
from pyrovae.models.posteriors import DiagonalNormal, FullRankNormal, PerDatum

N, D = 5, 3


def constant(*output):
    """A network that returns the same output for every datum."""
    net = nn.Linear(D, len(output))
    with torch.no_grad():
        net.weight.zero_()
        net.bias.copy_(torch.tensor(output))
    return net


@pytest.mark.parametrize("leading", [(N,), (4, N)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_diagonal_normal_is_the_oracles(leading, dtype):
    torch.manual_seed(0)
    posterior = DiagonalNormal(MLP(D, 2 * 7)).to(dtype)
    q = posterior(torch.randn(*leading, D, dtype=dtype))
    assert q.batch_shape == leading
    z = q.rsample()
    exact = oracles.normal_logpdf(
        *(each.detach().double().numpy() for each in (z, q.mean, q.stddev))
    ).sum(-1)
    tolerance = 1e-5 if dtype == torch.float32 else 1e-12
    np.testing.assert_allclose(q.log_prob(z).detach(), exact, rtol=tolerance, atol=tolerance)
    assert q.log_prob(z).dtype == dtype


def test_the_networks_halves_are_mean_and_log_scale():
    q = DiagonalNormal(constant(1.0, 2.0, math.log(3.0), math.log(4.0)))(torch.zeros(N, D))
    torch.testing.assert_close(q.mean[0], torch.tensor([1.0, 2.0]))
    torch.testing.assert_close(q.stddev[0], torch.tensor([3.0, 4.0]))


@pytest.mark.parametrize("size", [1, 2, 7])
def test_full_rank_normal_is_the_oracles(size):
    torch.manual_seed(0)
    posterior = FullRankNormal(MLP(D, size + size * (size + 1) // 2)).double()
    q = posterior(torch.randn(N, D, dtype=torch.float64))
    z = torch.randn(N, size, dtype=torch.float64)
    exact = [
        oracles.gaussian_logpdf(z[n].numpy(), mean, factor @ factor.T)[0]
        for n, (mean, factor) in enumerate(
            zip(q.mean.detach().numpy(), q.scale_tril.detach().numpy(), strict=True)
        )
    ]
    np.testing.assert_allclose(q.log_prob(z).detach(), exact, rtol=1e-11)


def test_full_rank_entries_fill_the_triangle_row_by_row():
    log = math.log
    net = constant(1.0, -1.0, 0.5, log(2.0), 0.7, log(3.0), -0.4, 0.6, log(5.0))
    q = FullRankNormal(net)(torch.zeros(N, D))
    factor = torch.tensor([[2.0, 0.0, 0.0], [0.7, 3.0, 0.0], [-0.4, 0.6, 5.0]])
    torch.testing.assert_close(q.scale_tril[0], factor)
    torch.testing.assert_close(q.mean[0], torch.tensor([1.0, -1.0, 0.5]))


def test_full_rank_without_correlation_is_diagonal():
    full = FullRankNormal(constant(1.0, 2.0, 0.3, 0.0, -0.4))(torch.zeros(N, D))
    diagonal = DiagonalNormal(constant(1.0, 2.0, 0.3, -0.4))(torch.zeros(N, D))
    z = torch.randn(N, 2)
    torch.testing.assert_close(full.log_prob(z), diagonal.log_prob(z))


def test_full_rank_draws_have_its_covariance():
    net = constant(1.0, 2.0, math.log(0.5), -1.5, math.log(2.0))
    q = FullRankNormal(net.double())(torch.zeros(1, D, dtype=torch.float64))
    with torch.no_grad():
        z = q.sample(torch.Size((100_000,)))[:, 0] - q.mean[0]
        outer = z[:, :, None] * z[:, None] - q.covariance_matrix[0]
    assert (outer.mean(0) / (outer.std(0) / math.sqrt(len(z)))).abs().max() < 5


def test_a_huge_correlation_leaves_the_gradient_finite():
    """Off the diagonal the entries are not exponentiated, so 100 is no overflow, nor its slope."""
    net = constant(0.0, 0.0, 0.0, 100.0, 0.0)
    q = FullRankNormal(net)(torch.zeros(N, D))
    q.log_prob(q.rsample()).sum().backward()
    assert net.bias.grad.isfinite().all()
    # z - μ moves with L, so only the log-determinant is left
    torch.testing.assert_close(net.bias.grad[[2, 4]], torch.full((2,), -float(N)))


@pytest.mark.parametrize("kind", [DiagonalNormal, FullRankNormal])
def test_draws_carry_gradients_to_the_network(kind):
    posterior = kind(MLP(D, 4 if kind is DiagonalNormal else 5))
    posterior(torch.randn(N, D)).rsample().square().sum().backward()
    assert all(p.grad.any() for p in posterior.parameters())


def test_context_reaches_the_encoder():
    posterior = DiagonalNormal(MLP(D + 2, 4))
    x, context = torch.randn(N, D), torch.randn(N, 2)
    expected = posterior(torch.cat([x, context], -1)).mean
    torch.testing.assert_close(posterior(x, context).mean, expected)


def test_each_datum_has_its_own_parameters():
    posterior = PerDatum(N, 2).eval()
    with torch.no_grad():
        posterior.loc.copy_(torch.randn(N, 2))
        posterior.log_scale.copy_(torch.randn(N, 2))
    rows = torch.tensor([3, 0, 3])
    q = posterior(torch.zeros(3, D), torch.zeros(3, 4), rows)  # a context, and the index after it
    torch.testing.assert_close(q.mean, posterior.loc[rows])
    torch.testing.assert_close(q.stddev, posterior.log_scale[rows].exp())
    whole = posterior(torch.zeros(N, D))
    torch.testing.assert_close(whole.mean, posterior.loc)


def test_a_fresh_per_datum_posterior_is_the_standard_normal():
    z = torch.randn(N, 2)
    exact = oracles.normal_logpdf(z.numpy()).sum(-1)
    np.testing.assert_allclose(PerDatum(N, 2).eval()(z).log_prob(z).detach(), exact, rtol=1e-6)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (
            lambda: DiagonalNormal(nn.Linear(D, 5))(torch.zeros(N, D)),
            r"net must return 2 Z features \(mean and log scale\), but returns 5",
        ),
        *(
            (
                lambda size=size: FullRankNormal(nn.Linear(D, size))(torch.zeros(N, D)),
                rf"net must return Z \+ Z \(Z \+ 1\) / 2 features .*, but returns {size}",
            )
            for size in (1, 3, 4, 6, 8, 10)
        ),
        (lambda: PerDatum(0, 2), "num_data must be at least 1, but is 0"),
        (lambda: PerDatum(3, 0), "latent_dim must be at least 1, but is 0"),
        (
            lambda: PerDatum(N, 2).eval()(torch.zeros(4, D)),
            "x must hold all 5 data or come with their index as the last context, but holds 4",
        ),
    ],
)
def test_bad_posteriors_are_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()


@pytest.mark.parametrize("size", [2, 5, 9, 14, 65])
def test_full_rank_finds_its_dimension(size):
    expected = {2: 1, 5: 2, 9: 3, 14: 4, 65: 10}[size]
    assert FullRankNormal(nn.Linear(D, size))(torch.zeros(N, D)).event_shape == (expected,)
