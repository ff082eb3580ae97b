"""Vectors of independent components against the components themselves."""

from __future__ import annotations

import pyro.distributions as dist
import pytest
import torch

from pyrovae.models.distributions import BernoulliVector, NormalVector


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("shape", [(3,), (7, 3), (2, 7, 3)])
def test_vectors_are_independent_components(dtype, shape):
    torch.manual_seed(0)
    plain = dist.Normal(torch.randn(7, 3, dtype=dtype), torch.rand(7, 3, dtype=dtype) + 0.1)
    z = torch.randn(*shape, dtype=dtype)
    for one in (NormalVector(plain, 1), NormalVector(plain, 1).expand(torch.Size((2, 7)))):
        torch.testing.assert_close(one.log_prob(z), one.base_dist.log_prob(z).sum(-1))
    shared = NormalVector(dist.Normal(torch.zeros(3, dtype=dtype), 2.0), 1)  # one scale for all
    torch.testing.assert_close(shared.log_prob(z), shared.base_dist.log_prob(z).sum(-1))
    logits = 30 * torch.randn(7, 3, dtype=dtype)
    x = torch.rand(*shape, dtype=dtype).round()
    ours = BernoulliVector(dist.Bernoulli(logits=logits), 1)
    torch.testing.assert_close(ours.log_prob(x), ours.base_dist.log_prob(x).sum(-1))
    spread = ours.expand(torch.Size((2, 7)))
    torch.testing.assert_close(spread.log_prob(x), spread.base_dist.log_prob(x).sum(-1))
