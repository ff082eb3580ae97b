"""Networks: leading dimensions, context, shapes and starts."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from pyrovae.models.nets import (
    MLP,
    ConvDecoder,
    ConvEncoder,
    GatedLinear,
    GatedMLP,
    WithoutContext,
)

IMAGE = (2, 7, 5)
# inputs of one datum, the size of the context, and a network that takes both
NETS = {
    "mlp": ((4,), 3, lambda context: MLP(4 + context, 6, hidden=(8, 5))),
    "linear": ((4,), 3, lambda context: MLP(4 + context, 6, hidden=())),
    "relu": ((4,), 3, lambda context: MLP(4 + context, 6, (8,), activation=nn.ReLU)),
    "gated": ((4,), 3, lambda context: GatedMLP(4 + context, 6, hidden=(8, 5))),
    "encoder": (IMAGE, 3, lambda context: ConvEncoder(IMAGE, 6, (3, 4), context)),
    "decoder": ((4,), 3, lambda context: ConvDecoder(4 + context, IMAGE, (3, 4))),
}


@pytest.fixture(params=NETS)
def case(request):
    torch.manual_seed(0)
    return NETS[request.param]


def test_leading_dimensions_are_a_batch(case):
    shape, _, make = case
    net, x = make(0).double(), torch.randn(3, 5, *shape, dtype=torch.float64)
    one_by_one = torch.stack([torch.stack([net(datum) for datum in row]) for row in x])
    torch.testing.assert_close(net(x), one_by_one)


def test_context_is_shared_by_particles(case):
    shape, size, make = case
    net, x = make(size).double(), torch.randn(3, 5, *shape, dtype=torch.float64)
    context = torch.randn(5, size, dtype=torch.float64)
    together = net(x, context)
    torch.testing.assert_close(together, torch.stack([net(particle, context) for particle in x]))
    parts = net(x, context[:, :1], context[:, 1:])  # and may come in parts
    torch.testing.assert_close(together, parts)
    assert ((together - net(x, context + 1)).flatten(2).abs().amax(-1) > 0).all()


def test_gradients_reach_every_parameter(case):
    shape, size, make = case
    net = make(size)
    net(torch.randn(5, *shape), torch.randn(5, size)).square().sum().backward()
    assert [name for name, p in net.named_parameters() if not p.grad.any()] == []


def test_one_context_may_serve_all_data():
    net, x, context = MLP(4 + 3, 6), torch.randn(5, 4), torch.randn(3)
    torch.testing.assert_close(net(x, context), net(x, context.expand(5, 3)))


def test_without_hidden_layers_an_mlp_is_affine():
    net = MLP(4, 6, hidden=())
    a, b = torch.randn(2, 4)
    torch.testing.assert_close(net(a) + net(b) - net(torch.zeros(4)), net(a + b))
    assert [name for name, _ in net.named_parameters()] == ["layers.0.weight", "layers.0.bias"]


def test_an_mlp_has_the_layers_it_was_asked_for():
    net = MLP(4, 6, hidden=[8, 5], activation=nn.ReLU)
    kinds = [type(layer) for layer in net.layers]
    assert kinds == [nn.Linear, nn.ReLU, nn.Linear, nn.ReLU, nn.Linear]
    sizes = [(layer.in_features, layer.out_features) for layer in net.layers[::2]]
    assert sizes == [(4, 8), (8, 5), (5, 6)]


def test_a_gated_layer_is_its_formula():
    layer, x = GatedLinear(4, 3), torch.randn(5, 4)
    value, gate = layer.both(x).chunk(2, -1)
    torch.testing.assert_close(layer(x), value * torch.sigmoid(gate))


@pytest.mark.parametrize("net", [MLP(100, 50, hidden=(80,)), GatedMLP(100, 50, hidden=(80,))])
def test_weights_start_in_glorots_range(net):
    """Uniform in ±√(6 / (in + out)), each gate and value as a layer of its own; no bias."""
    for name, p in net.named_parameters():
        if name.endswith("bias"):
            assert (p == 0).all()
            continue
        for half in p.chunk(2) if "both" in name else (p,):
            bound = math.sqrt(6 / sum(half.shape))
            assert half.abs().max() <= bound
            assert half.abs().max() > 0.98 * bound
            assert abs(half.std() / (bound / math.sqrt(3)) - 1) < 0.05


@pytest.mark.parametrize("shape", [(1, 28, 28), (3, 32, 20), (1, 7, 5), (1, 1, 1), (2, 2, 9)])
@pytest.mark.parametrize("channels", [(3,), (3, 4), (3, 4, 5)])
def test_decoders_return_the_shape_that_encoders_take(shape, channels):
    x = torch.randn(2, *shape)
    code = ConvEncoder(shape, 6, channels)(x)
    assert code.shape == (2, 6)
    assert ConvDecoder(6, shape, channels)(code).shape == x.shape


def test_every_pixel_of_a_decoder_is_reached_and_every_pixel_is_seen():
    """None lies outside the range of the strided kernels."""
    encoder, decoder = ConvEncoder(IMAGE, 6, (8, 16)), ConvDecoder(6, IMAGE, (8, 16))
    x = torch.randn(4, *IMAGE, requires_grad=True)
    encoder(x).square().sum().backward()
    assert (x.grad.abs().amax(0) > 0).all()
    assert (decoder(torch.randn(50, 6)).std(0) > 1e-4).all()


def test_what_is_hidden_makes_no_difference():
    net, x = MLP(4, 6), torch.randn(5, 4)
    torch.testing.assert_close(WithoutContext(net)(x, torch.arange(5)), net(x))


def test_labels_are_not_taken_for_features():
    with pytest.raises(ValueError, match=r"context must be floating .*int64 of shape \(10,\)"):
        MLP(4 + 10, 3)(torch.randn(10, 4), torch.arange(10) % 3)
