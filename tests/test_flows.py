"""Flows: inverses, Jacobians, what they remember, where they begin, and what is refused."""

from __future__ import annotations

import copy
import pickle

import pytest
import torch
from torch.autograd import gradcheck
from torch.autograd.functional import jacobian

from pyrovae.models import load, save
from pyrovae.models.flows import AutoregressiveFlow, CouplingFlow, SplineFlow
from pyrovae.models.priors import FlowPrior

Z, H, N = 3, 2, 6
KINDS = {"autoregressive": AutoregressiveFlow, "coupling": CouplingFlow, "spline": SplineFlow}


def randomised(module, spread=0.5):
    """Parameters far from where they begin."""
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.normal_(0, spread)
    return module


def forth(stack, x):
    """The flow's output, and log|det| by the maps."""
    total = torch.zeros(x.shape[:-1], dtype=x.dtype)
    for one in stack:
        y = one(x)
        total = total + one.log_abs_det_jacobian(x, y)
        x = y
    return x, total


def back(stack, y):
    return forth([one.inv for one in reversed(stack)], y)


@pytest.fixture(params=[(kind, told) for kind in KINDS for told in (0, H)], ids=str)
def flow(request):
    kind, context_dim = request.param
    return randomised(KINDS[kind](Z, 3, hidden=(8, 7), context_dim=context_dim))


def context_of(flow, dtype=torch.float64):
    return torch.randn(N, H, dtype=dtype) if flow.context_dim else None


# --- the maps ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("dtype", "tolerance"), [(torch.float32, 2e-4), (torch.float64, 1e-10)], ids=str
)
def test_back_and_forth_is_the_identity(flow, dtype, tolerance):
    if dtype == torch.float32:  # it cannot tell what a steep map was given
        randomised(flow, 0.2)
    flow, x = flow.to(dtype), 3 * torch.randn(N, Z, dtype=dtype)
    context = context_of(flow, dtype)
    # stacks of their own, so that nothing is remembered
    y, _ = forth(flow(context), x)
    assert y.dtype == dtype
    assert (y - x).abs().max() > 0.1
    torch.testing.assert_close(back(flow(context), y)[0], x, rtol=tolerance, atol=tolerance)
    x_first, _ = back(flow(context), x)
    torch.testing.assert_close(forth(flow(context), x_first)[0], x, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("way", [forth, back])
def test_log_det_is_that_of_the_jacobian(flow, way):
    flow, x = flow.double(), 2 * torch.randn(N, Z, dtype=torch.float64)
    context = context_of(flow)
    _, log_det = way(flow(context), x)
    for n in range(N):
        told = None if context is None else context[n]
        matrix = jacobian(lambda at, told=told: way(flow(told), at)[0], x[n])
        torch.testing.assert_close(log_det[n], torch.linalg.slogdet(matrix).logabsdet)
    assert log_det.abs().max() > 0.1


@pytest.mark.parametrize("way", [forth, back])
def test_outputs_and_log_dets_have_the_right_gradients(flow, way):
    flow, context = flow.double(), context_of(flow)
    x = torch.randn(N, Z, dtype=torch.float64, requires_grad=True)
    assert gradcheck(lambda at: way(flow(context), at), (x,))


@pytest.mark.parametrize("inverse", [False, True])
def test_what_a_map_remembers_is_what_it_would_compute(flow, inverse):
    """Also once it has seen other codes since, and for the pair in either order."""
    context = context_of(flow.double())
    first, second = torch.randn(2, N, Z, dtype=torch.float64)
    for one, anew in zip(flow(context), flow(context), strict=True):
        if inverse:
            one, anew = one.inv, anew.inv
        y = one(first)
        log_det = one.log_abs_det_jacobian(first, y)
        fresh = anew.log_abs_det_jacobian(first.clone(), y.clone())
        torch.testing.assert_close(log_det, fresh)
        torch.testing.assert_close(one.inv(y), first)
        later = one(second)
        torch.testing.assert_close(one.log_abs_det_jacobian(first, y), fresh)
        assert not torch.allclose(one.log_abs_det_jacobian(second, later), fresh) or not fresh.any()


def test_codes_may_have_particles_that_their_context_lacks(flow):
    context = context_of(flow.double())
    x = torch.randn(4, N, Z, dtype=torch.float64)
    for way in (forth, back):
        together = way(flow(context), x)
        apart = [way(flow(context), each) for each in x]
        for part, pieces in zip(together, zip(*apart, strict=True), strict=True):
            torch.testing.assert_close(part, torch.stack(pieces))


def test_the_context_matters():
    for kind in KINDS.values():
        flow = randomised(kind(Z, hidden=(8,), context_dim=H))
        x = torch.randn(N, Z)
        one, other = (forth(flow(torch.randn(N, H)), x)[0] for _ in range(2))
        assert (one - other).abs().max() > 0.1


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("context_dim", [0, H])
def test_a_flow_begins_near_the_identity(kind, context_dim):
    distances, log_dets = [], []
    for seed in range(10):
        torch.manual_seed(seed)
        flow = KINDS[kind](5, 3, hidden=(20,), context_dim=context_dim)
        x = torch.randn(50, 5)
        y, log_det = forth(flow(torch.randn(50, H) if context_dim else None), x)
        distances.append((y - x).abs().mean())  # two reversals cancel
        log_dets.append(log_det.abs().mean())
    assert torch.stack(distances).mean() < 0.15
    assert torch.stack(log_dets).mean() < 0.25


def test_the_order_is_reversed_between_two_maps():
    """So the last entry, which one map leaves to all others, is what the next one begins with."""
    for kind in KINDS.values():
        flow = randomised(kind(Z, 2, hidden=(8,)))
        matrix = jacobian(lambda at, flow=flow: forth(flow(), at)[0], torch.randn(Z))
        upper = torch.triu(torch.ones(Z, Z), 1).bool()
        assert matrix.flip(0)[upper].abs().max() > 1e-3
        assert matrix.flip(0)[~upper].abs().max() > 1e-3


def test_the_scale_of_an_affine_map_is_bounded():
    flow = randomised(AutoregressiveFlow(Z, 1, hidden=(8,)), spread=100.0)
    y, log_det = forth(flow(), torch.randn(50, Z))
    assert y.isfinite().all()
    assert log_det.abs().max() <= 5.0001 * Z
    assert log_det.abs().max() > 4


def test_a_spline_is_the_identity_outside_its_box():
    flow = randomised(SplineFlow(Z, 1, hidden=(8,), num_bins=4, bound=2.0), spread=2.0)
    outside = torch.tensor([[2.1, -7.0, 30.0], [-2.5, 2.5, -100.0]])
    y, log_det = forth(flow(), outside)
    assert torch.equal(y, outside)
    assert (log_det == 0).all()
    inside = torch.tensor([[0.3, -1.0, 1.5]])
    assert (forth(flow(), inside)[0] - inside).abs().max() > 0.1
    assert forth(flow(), inside)[0].abs().max() <= 2


def test_one_bin_is_enough_for_a_spline():
    flow = randomised(SplineFlow(Z, 1, hidden=(8,), num_bins=1)).double()
    x = torch.randn(N, Z, dtype=torch.float64)
    torch.testing.assert_close(back(flow(), forth(flow(), x)[0])[0], x)


# --- as modules ----------------------------------------------------------------------------------


@pytest.fixture(params=KINDS)
def trained(request):
    """A prior after a few steps, whose maps have been used."""
    prior = FlowPrior(KINDS[request.param](Z, 2, hidden=(8,)))
    optimizer = torch.optim.Adam(prior.parameters(), lr=0.05)
    z = torch.randn(50, Z).abs()
    before = prior().log_prob(z).mean().item()
    for _ in range(30):
        optimizer.zero_grad()
        (-prior().log_prob(z).mean()).backward()
        optimizer.step()
    assert prior().log_prob(z).mean().item() > before + 0.1
    return prior


def saved_and_loaded(prior, folder):
    save(prior, folder / "prior")
    return load(folder / "prior")


@pytest.mark.parametrize(
    "duplicate",
    [
        lambda prior, folder: copy.deepcopy(prior),
        lambda prior, folder: pickle.loads(pickle.dumps(prior)),
        saved_and_loaded,
    ],
    ids=["copied", "pickled", "loaded"],
)
def test_a_copy_has_the_same_density_and_its_own_parameters(trained, duplicate, tmp_path):
    z = torch.randn(N, Z)
    expected = trained().log_prob(z)
    twin = duplicate(trained, tmp_path)
    assert torch.equal(twin().log_prob(z), expected)
    randomised(twin)
    assert torch.equal(trained().log_prob(z), expected)
    assert not torch.allclose(twin().log_prob(z), expected)


def test_gradients_reach_every_parameter(flow):
    context = context_of(flow, torch.float32)
    for way in (forth, back):
        flow.zero_grad()
        y, log_det = way(flow(context), torch.randn(N, Z))
        (y.square().sum() + log_det.sum()).backward()
        missed = [n for n, p in flow.named_parameters() if p.grad is None or not p.grad.any()]
        assert missed == []


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: CouplingFlow(1), "latent_dim must be at least 2 for a flow, but is 1"),
        (lambda: SplineFlow(3, num_layers=0), "num_layers must be at least 1, but is 0"),
        (lambda: CouplingFlow(3, hidden=(5, 0)), r"hidden\[1\] must be at least 1, but is 0"),
        (lambda: CouplingFlow(3, hidden=()), r"hidden must hold at least one size, but is \(\)"),
        (
            lambda: AutoregressiveFlow(3, hidden=(5, 2)),
            r"hidden must be at least latent_dim = 3 .*, but is \(5, 2\)",
        ),
        (lambda: SplineFlow(3, hidden=(2,)), "hidden must be at least latent_dim = 3"),
        (lambda: CouplingFlow(3, context_dim=-1), "context_dim must be at least 0, but is -1"),
        (lambda: SplineFlow(3, num_bins=0), "num_bins must be at least 1, but is 0"),
        (lambda: SplineFlow(3, bound=0.0), "bound must be positive, but is 0.0"),
        (lambda: SplineFlow(3, bound=float("nan")), "bound must be positive, but is nan"),
        (
            lambda: CouplingFlow(3)(torch.zeros(5, 2)),
            r"context must have context_dim = 0 features, but there is one of shape \(5, 2\)",
        ),
        (
            lambda: CouplingFlow(3, context_dim=2)(),
            "context must have context_dim = 2 features, but there is none",
        ),
        (
            lambda: FlowPrior(CouplingFlow(3, context_dim=2)),
            "flow must have context_dim = 0, but has 2",
        ),
    ],
)
def test_bad_flows_are_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_a_context_of_another_size_is_refused():
    for kind in KINDS.values():
        with pytest.raises(ValueError, match=r"context must .* context_dim = 2 .* shape \(5, 3\)"):
            kind(3, context_dim=2)(torch.zeros(5, 3))


def test_a_prior_from_no_flow_is_refused():
    with pytest.raises(TypeError, match="flow must be a Flow, but is Linear"):
        FlowPrior(torch.nn.Linear(2, 2))
