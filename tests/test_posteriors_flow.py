"""Posteriors bent by a flow: mass, change of variables and reparameterised gradients."""

from __future__ import annotations

from functools import partial

import pytest
import torch
from posterior_toys import DOUBLE, GIVEN, Z, assert_mean, on_a_grid, randomised, smooth
from torch.autograd.functional import jacobian
from torch.distributions import Normal as TorchNormal

from pyrovae.models.flows import AutoregressiveFlow, CouplingFlow, SplineFlow
from pyrovae.models.posteriors import FlowPosterior

pytestmark = pytest.mark.usefixtures("one_thread")

H = 2
FLOWS = {  # and how far from 0 their parameters are: what is steep takes a fine grid
    "IAF": (AutoregressiveFlow, 0.2),
    "coupling": (CouplingFlow, 0.2),
    "spline": (partial(SplineFlow, num_bins=3), 0.15),
}


@pytest.fixture(params=[(kind, told) for kind in FLOWS for told in (0, H)], ids=str)
def flow_posterior(request):
    kind, context_dim = request.param
    make, spread = FLOWS[kind]
    flow = make(Z, 2, hidden=(8,), context_dim=context_dim)
    return FlowPosterior(GIVEN, randomised(flow, spread)).double()


def given_to(posterior, num_data):
    """Means, log scales and what a flow is told, for each of the data."""
    return 0.3 * torch.randn(num_data, 2 * Z + posterior.flow.context_dim, dtype=DOUBLE)


def test_a_flows_density_integrates_to_one(flow_posterior):
    nodes, volume = on_a_grid(Z, -12.0, 12.0, 301)
    q = flow_posterior(given_to(flow_posterior, 2))
    assert (q.batch_shape, q.event_shape) == ((2,), (Z,))
    with torch.no_grad():
        mass = q.log_prob(nodes[:, None]).exp().sum(0) * volume
    torch.testing.assert_close(mass, torch.ones(2, dtype=DOUBLE), rtol=0, atol=1e-3)  # it has kinks


@pytest.mark.parametrize("leading", [(), (3,)])
def test_a_flows_draws_have_the_density_of_a_change_of_variables(flow_posterior, leading):
    given = given_to(flow_posterior, 4)
    loc, log_scale, _ = given.split([Z, Z, flow_posterior.flow.context_dim], -1)
    torch.manual_seed(1)
    q = flow_posterior(given)
    z = q.rsample(torch.Size(leading))
    torch.manual_seed(1)
    noise = torch.randn(*leading, 4, Z, dtype=DOUBLE)

    def push(noise):
        z = loc + log_scale.exp() * noise
        for one in flow_posterior(given).transforms:
            z = one(z)
        return z

    torch.testing.assert_close(z, push(noise))
    # of all outputs by all inputs: data and particles do not see one another
    matrix = jacobian(push, noise).reshape(noise.numel(), noise.numel())
    blocks = [matrix[i : i + Z, i : i + Z] for i in range(0, noise.numel(), Z)]
    log_det = torch.linalg.slogdet(torch.stack(blocks)).logabsdet.reshape(noise.shape[:-1])
    expected = TorchNormal(0.0, 1.0).log_prob(noise).sum(-1) - log_det
    assert matrix.abs().sum() == pytest.approx(sum(b.abs().sum() for b in blocks))
    torch.testing.assert_close(q.log_prob(z), expected)
    # also of what the maps do not remember
    torch.testing.assert_close(flow_posterior(given).log_prob(z.detach()), expected)


def test_a_flows_reparameterised_gradient_is_that_of_quadrature(flow_posterior):
    """Of all parameters, to the precision of a grid on which networks and splines have kinks."""
    given = given_to(flow_posterior, 1).requires_grad_()
    wanted = [given, *flow_posterior.flow.parameters()]

    def gradient(value):
        return torch.cat([part.flatten() for part in torch.autograd.grad(value, wanted)])

    def quadrature(points):
        nodes, volume = on_a_grid(Z, -9.0, 9.0, points)
        return gradient(
            (flow_posterior(given).log_prob(nodes).exp() * smooth(nodes)).sum() * volume
        )

    exact = quadrature(331)
    error = (exact - quadrature(201)).abs()
    assert error.norm() < 0.06 * exact.norm()
    draws = [
        gradient(smooth(flow_posterior(given).rsample(torch.Size((1000,)))).mean())
        for _ in range(40)
    ]
    # Student's t of 39 degrees; units that see no draw have no standard error
    assert_mean(torch.stack(draws), exact, level=6, error_of_expected=error.max())
