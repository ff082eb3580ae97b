"""What is rewritten in a graph before it is compiled gives the same numbers."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from pyrovae.inference.compilation import products
from pyrovae.inference.compilation.fusions import fuse
from pyrovae.inference.compilation.products import by_onednn
from pyrovae.inference.compilation.tracing import trace

softplus = nn.functional.softplus


def traced(function, *inputs):
    return trace(lambda *given: (function(*given),), list(inputs))


def targets(graph):
    return [str(node.target) for node in graph.graph.nodes if node.op == "call_function"]


# --- softplus in blocks --------------------------------------------------------------------------


@pytest.mark.parametrize("size", [784, 64, 30, 2])
def test_a_sum_of_softplus_is_the_sum(size):
    torch.manual_seed(0)
    logits = 30 * torch.randn(5, 3, size, dtype=torch.float64)
    logits[0, 0, 0], logits[0, 0, 1], logits[1, 0] = 1000.0, -1000.0, 0.0
    found = traced(lambda t: softplus(t, threshold=40).sum(-1), logits)
    fused = fuse(found.graph)
    assert "aten.softplus.default" not in targets(fused)
    torch.testing.assert_close(
        fused(logits)[0], softplus(logits, threshold=40).sum(-1), rtol=1e-13, atol=1e-13
    )


def test_it_rounds_no_worse_than_the_sum():
    torch.manual_seed(0)
    logits = 5 * torch.randn(200, 784)
    exact = softplus(logits.double()).sum(-1)
    fused = fuse(traced(lambda t: softplus(t).sum(-1), logits).graph)
    plain = (softplus(logits).sum(-1).double() - exact).abs().max()
    assert (fused(logits)[0].double() - exact).abs().max() <= 1.5 * plain


@pytest.mark.parametrize("logit", [-8.0, -12.0, -16.0, -18.0, -40.0])
def test_small_terms_are_off_by_as_little_as_promised(logit):
    logits = torch.full((1, 784), logit) + 1e-3 * torch.arange(784)
    exact = softplus(logits.double()).sum(-1)
    fused = fuse(traced(lambda t: softplus(t).sum(-1), logits).graph)
    assert float((fused(logits)[0].double() - exact).abs()) < 784 / 2**24


@pytest.mark.parametrize(
    "function",
    [
        lambda t: softplus(t).sum(0),  # over another dimension
        lambda t: softplus(t, beta=2).sum(-1),
        lambda t: softplus(t, threshold=0.5).sum(-1),
        lambda t: softplus(t.bfloat16()).sum(-1).double(),
        lambda t: softplus(t).sum(-1) + softplus(t)[..., 0],
        lambda t: (lambda s: s.sum(-1) * s[..., 0])(softplus(t)),  # used again
        lambda t: softplus(t[..., :7]).sum(-1),  # seven components have no blocks
    ],
)
def test_other_sums_are_what_they_were(function):
    torch.manual_seed(0)
    logits = torch.randn(4, 8, dtype=torch.float64)
    fused = fuse(traced(function, logits).graph)
    torch.testing.assert_close(fused(logits)[0], function(logits), rtol=1e-13, atol=1e-13)


# --- matrix products -----------------------------------------------------------------------------


@pytest.fixture
def any_size(monkeypatch):
    if not torch.backends.mkldnn.is_available():
        pytest.skip("this torch has no oneDNN")
    monkeypatch.setattr(products, "_LEAST", 0)
    monkeypatch.setattr(products, "_LEAST_MADE", 0)


def step(net, x):
    """A forward and a backward pass: products of every kind."""
    with torch.enable_grad():
        at = x.detach().requires_grad_()
        loss = net(at).square().sum()
        return torch.cat([g.flatten() for g in torch.autograd.grad(loss, [at, *net.parameters()])])


@pytest.mark.usefixtures("any_size")
def test_products_by_onednn_are_the_products():
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(30, 20), nn.Tanh(), nn.Linear(20, 7, bias=False))
    x = torch.randn(11, 30)
    found = trace(lambda x: (step(net, x),), [x])
    other = by_onednn(found.graph)
    assert targets(other).count("pyrovae.linear.default") == 6
    assert not {"aten.mm.default", "aten.addmm.default"} & set(targets(other))
    with torch.no_grad():
        made = other(x, *found.held)[0]
    torch.testing.assert_close(made, step(net, x), rtol=1e-5, atol=1e-4)


@pytest.mark.usefixtures("any_size")
@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_products_of_another_precision_are_left_alone(dtype):
    a, b = torch.randn(5, 6, dtype=dtype), torch.randn(6, 7, dtype=dtype)
    other = by_onednn(traced(lambda a, b: a @ b, a, b).graph)
    assert torch.equal(other(a, b)[0], a @ b)
    assert "pyrovae.linear.default" not in targets(other)


@pytest.mark.usefixtures("any_size")
def test_what_is_no_layer_is_left_alone():
    """A matrix added, and one times a number."""
    a, b, c = torch.randn(5, 6), torch.randn(6, 7), torch.randn(5, 7)

    def function(a, b, c):
        return torch.addmm(c, a, b), torch.addmm(c[0], a, b, beta=0.5)

    other = by_onednn(trace(function, [a, b, c]).graph)
    torch.testing.assert_close(other(a, b, c), function(a, b, c))
    assert "pyrovae.linear.default" not in targets(other)


def test_small_products_are_mkls():
    a, b = torch.randn(5, 6), torch.randn(6, 7)
    assert "pyrovae.linear.default" not in targets(by_onednn(traced(torch.mm, a, b).graph))
