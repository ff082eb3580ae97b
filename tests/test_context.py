"""Networks that are told a context: labels as vectors, encoders, and what is refused."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from pyrovae.inference import log_joint
from pyrovae.models import VAE, ConditionalVAE
from pyrovae.models.likelihoods import Bernoulli
from pyrovae.models.nets import MLP, EncodedContext, OneHot, WithoutContext
from pyrovae.models.posteriors import DiagonalNormal
from pyrovae.models.priors import StandardNormal

pytestmark = pytest.mark.usefixtures("one_thread")

N, D, Z, C = 5, 4, 2, 3


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int32, torch.int64, torch.float32])
def test_labels_of_any_type_are_ones_among_zeros(dtype):
    labels = torch.tensor([[2, 0], [1, 1]])
    found = OneHot(C).double()(labels.to(dtype))
    assert torch.equal(found, nn.functional.one_hot(labels, C).double())


@pytest.mark.parametrize(
    ("labels", "kind", "message"),
    [
        (torch.tensor([0, 3]), ValueError, "whole numbers between 0 and 2, but go from 0 to 3"),
        (torch.tensor([-1, 1]), ValueError, "whole numbers between 0 and 2, but go from -1 to 1"),
        (torch.tensor([0.5, 1.0]), ValueError, "between 0 and 2, but go from 0.5 to 1"),
        (torch.tensor([torch.nan]), ValueError, "between 0 and 2, but go from nan to nan"),
        ([0, 1], TypeError, "labels must be a tensor, but are a list"),
        (None, TypeError, "labels must be a tensor, but are a NoneType"),
    ],
)
def test_labels_of_no_class_are_refused(labels, kind, message):
    with pytest.raises(kind, match=message):
        OneHot(C)(labels)


def test_encoders_that_are_no_list_are_refused():
    with pytest.raises(ValueError, match="num_classes must be at least 1, but is 0"):
        OneHot(0)
    for encoders, found in ((OneHot(C), "OneHot"), (None, "NoneType")):
        with pytest.raises(TypeError, match=f"encoders must be a list of modules.*is a {found}"):
            EncodedContext(MLP(D + C, 2), encoders)


def test_a_network_without_context_is_told_none():
    """The likelihood's must not see what its posterior is told: an index of the datum, say."""
    torch.manual_seed(0)
    net = MLP(Z, D, (7,))
    parts = StandardNormal(Z), DiagonalNormal(MLP(D + C, 2 * Z, (7,)))
    blind = ConditionalVAE(*parts, Bernoulli(WithoutContext(net)))
    z = torch.randn(3, N, Z)
    found = log_joint(blind.model, {"z": z}, torch.ones(N, D), torch.eye(C)[[0, 2, 1, 2, 0]])
    plain = VAE(*parts, Bernoulli(net))
    assert torch.equal(found, log_joint(plain.model, {"z": z}, torch.ones(N, D)))


@pytest.mark.parametrize("alone", [False, True])
def test_contexts_are_encoded_each_by_its_own_network(alone):
    """And the vectors joined in the order of the contexts, after the input where there is one."""
    torch.manual_seed(0)
    net, encoder = MLP(D * (not alone) + C + 2, 6), MLP(3, 2)
    told = EncodedContext(net, [OneHot(C), encoder], alone)
    x, labels, other = torch.randn(4, N, D), torch.tensor([0, 2, 1, 2, 0]), torch.randn(N, 3)
    vectors = nn.functional.one_hot(labels, C).float(), encoder(other)
    inputs = () if alone else (x,)
    lead = () if alone else (4,)
    whole = torch.cat([*inputs, *(v.expand(*lead, *v.shape) for v in vectors)], -1)
    torch.testing.assert_close(told(*inputs, labels, other), net(whole))


def test_a_class_that_is_enumerated_stands_left_of_the_particles():
    """(C, 1, 1, C) with codes (K, N, Z): a row for each class, particle and datum."""
    torch.manual_seed(0)
    net, z = MLP(Z + C, 6), torch.randn(4, N, Z)
    found = net(z, torch.eye(C)[:, None, None])
    assert found.shape == (C, 4, N, 6)
    for k in range(C):
        torch.testing.assert_close(found[k], net(z, torch.eye(C)[k]))


@pytest.mark.parametrize("rows", [2, N + 1])
def test_a_context_of_another_length_is_refused(rows):
    message = rf"context must have one entry for each .* \(4, 5\), or one for all.*\[\({rows},\)\]"
    with pytest.raises(ValueError, match=message):
        MLP(D + C, 3)(torch.zeros(4, N, D), torch.zeros(rows, C))
