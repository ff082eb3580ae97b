"""Steps taken at once are torch's steps, to the bit, whatever happens in between."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from pyrovae.inference.training.adam import Adam

pytestmark = pytest.mark.usefixtures("one_thread")


def twins(**settings):
    """A network and its copy, ours and torch's optimizer for them."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(5, 7), nn.Tanh(), nn.Linear(7, 3))
    other = copy.deepcopy(net)
    settings = {"lr": 0.1, "fused": True} | settings
    ours, torchs = (
        Adam(net.parameters(), **settings),
        torch.optim.Adam(other.parameters(), **settings),
    )
    return (net, ours, ours.step_at_once), (other, torchs, lambda: torchs.step())


def descend(net, step, seed, without=()):
    """A step, after which some parameters had no gradient."""
    torch.manual_seed(seed)
    net.zero_grad()
    net(torch.randn(4, 5)).square().sum().backward()
    for number, tensor in enumerate(net.parameters()):
        if number in without:
            tensor.grad = None
    step()


def assert_same(one, other):
    for a, b in zip(one[0].parameters(), other[0].parameters(), strict=True):
        assert torch.equal(a, b)
    states = [optimizer.state_dict()["state"] for _, optimizer, _ in (one, other)]
    assert states[0].keys() == states[1].keys()
    for key, state in states[0].items():
        for name, value in state.items():
            assert torch.equal(value, states[1][key][name])


@pytest.mark.parametrize("settings", [{}, {"weight_decay": 0.1, "betas": (0.5, 0.9)}], ids=str)
def test_steps_are_torchs(settings):
    both = twins(**settings)
    for seed in range(6):
        for net, _, step in both:
            descend(net, step, seed)
    assert_same(*both)


def test_a_learning_rate_may_change():
    both = twins()
    schedules = [torch.optim.lr_scheduler.ExponentialLR(one[1], 0.5) for one in both]
    for seed in range(6):
        for (net, _, step), schedule in zip(both, schedules, strict=True):
            descend(net, step, seed)
            schedule.step()
    assert_same(*both)


def test_a_parameter_may_have_no_gradient_at_times():
    both = twins()
    for seed, without in enumerate([(), (), (1,), (1,), (), (), (0, 3), ()]):
        for net, _, step in both:
            descend(net, step, seed, without)
    assert_same(*both)


def test_a_state_may_be_loaded():
    both = twins()
    for net, optimizer, step in both:
        for seed in range(6):
            if seed == 2:
                kept = copy.deepcopy(optimizer.state_dict())
            descend(net, step, seed)
            if seed == 4:
                optimizer.load_state_dict(kept)
    assert_same(*both)


def test_another_parameter_may_join():
    both = twins()
    added = [nn.Parameter(torch.ones(2)) for _ in both]
    for seed in range(6):
        for (net, optimizer, step), extra in zip(both, added, strict=True):
            if seed == 3:
                optimizer.param_groups[0]["params"].append(extra)
            extra.grad = torch.full((2,), float(seed))
            descend(net, step, seed)
    assert torch.equal(*added)
    assert_same(*both)


def test_hooks_are_called():
    both = twins()
    called = [[], []]
    for seed in range(6):
        for number, (net, optimizer, step) in enumerate(both):
            if seed == 3:
                optimizer.register_step_post_hook(lambda *_, n=number: called[n].append(1))
            descend(net, step, seed)
    assert [len(one) for one in called] == [3, 3]
    assert_same(*both)


def test_a_step_without_any_gradient_moves_nothing():
    both = twins()
    for seed, without in enumerate([(), range(4), range(4), ()]):
        for net, _, step in both:
            descend(net, step, seed, without)
    assert_same(*both)


def test_a_parameter_may_take_anothers_place():
    both = twins()
    for net, optimizer, step in both:
        for seed in range(3):
            descend(net, step, seed, (1,))
        newcomer = nn.Parameter(torch.ones(7))
        optimizer.param_groups[0]["params"][1] = newcomer
        newcomer.grad = torch.ones(7)
        step()
        newcomer.grad = torch.ones(7)
        step()
        net[0].bias = newcomer
    assert not torch.equal(both[0][0][0].bias, torch.ones(7))
    assert_same(*both)


def test_it_can_be_copied():
    (_, optimizer, _), _ = twins()
    copied = copy.deepcopy(optimizer)
    for tensor in copied.param_groups[0]["params"]:
        tensor.grad = torch.ones_like(tensor)
    copied.step_at_once()
    assert copied.state_dict()["state"][0]["step"] == 1


@pytest.mark.parametrize(
    "settings", [{"fused": False}, {"amsgrad": True}, {"maximize": True}], ids=str
)
def test_what_is_not_plain_is_left_to_torch(settings):
    both = twins(**settings)
    for seed in range(4):
        for net, _, step in both:
            descend(net, step, seed)
    assert both[0][1]._kept is None
    assert_same(*both)
