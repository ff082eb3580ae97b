"""Layers in bfloat16: which they are, and that what this does to log p(x) is told."""

from __future__ import annotations

import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from pyrovae.inference import ImportanceSampling, Scaled
from pyrovae.inference.precision import InBfloat16
from pyrovae.models import VAE
from pyrovae.models.likelihoods import Bernoulli
from pyrovae.models.nets import MLP
from pyrovae.models.posteriors import DiagonalNormal
from pyrovae.models.priors import StandardNormal

pytestmark = pytest.mark.usefixtures("one_thread")


def vae(dtype=torch.float32):
    torch.manual_seed(0)
    posterior = DiagonalNormal(MLP(12, 6, hidden=(20,)))
    return VAE(StandardNormal(3), posterior, Bernoulli(MLP(3, 12, hidden=(20,)))).to(dtype)


def images(num_data=40):
    torch.manual_seed(1)
    return torch.bernoulli(torch.full((num_data, 12), 0.4))


def test_a_layer_rounds_what_goes_in_and_comes_out():
    torch.manual_seed(0)
    net, x = nn.Linear(50, 20), torch.randn(8, 50)
    rounded = [value.bfloat16().float() for value in (x, net.weight, net.bias)]
    expected = nn.functional.linear(*rounded).bfloat16().float()
    found = InBfloat16()(lambda: net(x))()
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, expected, rtol=0.01, atol=0.01)
    assert torch.equal(found, found.bfloat16().float())
    assert not torch.equal(found, net(x))


def test_what_is_no_layer_is_exact():
    a, b = torch.randn(5, 5), torch.randn(5, 5)
    assert torch.equal(InBfloat16()(lambda: (a @ b).exp())(), (a @ b).exp())


def test_convolutions_are_layers():
    net, x = nn.Conv2d(1, 2, 3), torch.randn(3, 1, 8, 8)
    found = InBfloat16()(lambda: net(x))()
    assert found.dtype == torch.float32
    assert torch.equal(found, found.bfloat16().float())


def test_gradients_pass_through():
    net, x = nn.Linear(50, 20), torch.randn(8, 50)
    InBfloat16()(lambda: net(x).square().sum())().backward()
    rounded = net.weight.grad.clone()
    net.zero_grad()
    net(x).square().sum().backward()
    alike = torch.nn.functional.cosine_similarity(rounded.flatten(), net.weight.grad.flatten(), 0)
    assert alike > 0.999


@pytest.mark.parametrize("how", [{}, {"compile": True}, {"proposal": Scaled(1.2)}], ids=str)
def test_its_shift_is_measured_with_the_same_draws(how):
    model, x = vae(), images()
    settings = {"num_samples": 50, "memory": 1} | how
    single = ImportanceSampling(**settings)(model.model, model.guide, x)
    found = ImportanceSampling(**settings, bfloat16=True)(model.model, model.guide, x)
    assert found.direction == "consistent"
    known = found.diagnostics["log_evidence_float32"]
    assert known[:32].isfinite().all()
    assert known[32:].isnan().all()
    torch.testing.assert_close(known[:32], single.log_evidence[:32], rtol=1e-6, atol=1e-6)
    shift = (found.log_evidence - single.log_evidence)[:32]
    assert 0 < shift.abs().max() < 0.2
    (told,) = [one for one in found.warnings() if one.startswith("bfloat16")]
    assert f"{float(shift.mean()):+.4f} ± " in told
    assert "first 32 data" in told
    assert "bfloat16 shifts it by" in repr(found)


def test_the_first_data_of_a_call_are_compared_and_not_of_each_batch():
    model, x = vae(), images(80)
    loader = DataLoader(TensorDataset(x), batch_size=16)
    found = ImportanceSampling(20, memory=1, bfloat16=True)(model.model, model.guide, loader)
    known = found.diagnostics["log_evidence_float32"].isfinite()
    assert known.tolist() == [True] * 32 + [False] * 48
    assert "first 32 data" in str(found.warnings())


def test_a_model_without_layers_is_refused():
    with pytest.raises(ValueError, match="bfloat16 must be False for this model: it runs no"):
        ImportanceSampling(10, bfloat16=True)(product, normal, images())


def normal(x):
    with pyro.plate("data", len(x)):
        pyro.sample("latent", dist.Normal(torch.zeros(3), 1.0).to_event(1))


def product(x):
    """A decoder that is no layer."""
    weight = torch.ones(3, 12)
    with pyro.plate("data", len(x)):
        z = pyro.sample("latent", dist.Normal(torch.zeros(3), 1.0).to_event(1))
        pyro.sample("x", dist.Bernoulli(logits=z @ weight).to_event(1), obs=x)


def test_a_network_of_another_precision_is_refused():
    model = vae(torch.float64)
    with pytest.raises(TypeError, match=r"bfloat16: takes networks in torch.float32, .*float64"):
        ImportanceSampling(10, bfloat16=True)(model.model, model.guide, images().double())


@pytest.mark.parametrize("name", ["bfloat16", "compile"])
def test_a_setting_that_is_no_truth_value_is_refused(name):
    with pytest.raises(TypeError, match=f"{name} must be True or False, but is 'yes'"):
        ImportanceSampling(**{name: "yes"})
