"""Layers of codes in use: drawn, trained, saved and looked into."""

from __future__ import annotations

import copy

import numpy as np
import oracles
import pyro
import pytest
import torch
from hierarchical_toys import (
    ARRANGEMENTS,
    D,
    Sizes,
    build,
    exact,
    regress,
    stacked,
    variables,
)
from pyro import poutine
from pyro.infer import SVI, Trace_ELBO
from torch import nn

from pyrovae.inference import (
    IWAE,
    ImportanceSampling,
    RefinedImportanceSampling,
    active_units,
    elbo_surgery,
    fit,
    inference_gaps,
    log_joint,
    log_weights,
    simulate,
)
from pyrovae.models import HierarchicalVAE, load, save
from pyrovae.models.likelihoods import Bernoulli
from pyrovae.models.nets import MLP, ConvDecoder
from pyrovae.models.posteriors import DiagonalNormal
from pyrovae.models.priors import StandardNormal, VampPrior

N = 5


@pytest.fixture(params=ARRANGEMENTS, ids=lambda one: one[0] + (" with a path" if one[1] else ""))
def arrangement(request, one_thread):
    return request.param


def data(num_data=N, dtype=torch.float32):
    return torch.randn(num_data, D, generator=torch.Generator().manual_seed(2), dtype=dtype)


# --- draws ---------------------------------------------------------------------------------------


def test_shapes_and_precision(arrangement):
    for dtype in (torch.float32, torch.float64):
        vae, x = build(*arrangement).to(dtype), data(dtype=dtype)
        codes = {"z_1": (3,), "z_2": (2,), "z_3": (4,)}
        for found, rows in ((vae.encode(x), N), (vae.sample_codes(7), 7)):
            assert {site: z.shape for site, z in found.items()} == {
                site: (rows, *size) for site, size in codes.items()
            }
            assert all(z.dtype == dtype for z in found.values())
        assert (vae.sample(7).shape, vae.sample(7).dtype) == ((7, D), dtype)
        assert (vae.reconstruct(x).shape, vae.reconstruct(x).dtype) == (x.shape, dtype)
        drawn = simulate(vae.model, x)
        assert drawn.observations["x"].dtype == dtype
        weights = log_weights(vae.model, vae.guide, x, num_particles=2)
        assert weights.log_weight.isfinite().all()


def test_layers_that_are_not_given_are_drawn_given_those_above():
    vae, x = build("top-down", True, scale=0.5), data()
    codes = vae.encode(x)
    whole = vae.decode(codes)
    assert torch.equal(vae.decode(codes), whole)  # nothing is left to draw
    h_2 = vae.paths[2](codes["z_3"])
    h_1 = vae.paths[1](codes["z_2"], h_2)
    for parts in vae.conditionals:  # a hair's breadth
        with torch.no_grad():
            bias = parts.net.layers[-1].bias
            bias[len(bias) // 2 :] = -40.0
            parts.net.layers[-1].weight[len(bias) // 2 :] = 0.0
    z_1 = vae.conditionals[0](h_1).mean
    expected = vae.likelihood(vae.paths[0](z_1, h_1)).mean
    found = vae.decode({site: codes[site] for site in ("z_3", "z_2")})
    torch.testing.assert_close(found, expected.detach())
    z_2 = vae.conditionals[1](h_2).mean
    h_1 = vae.paths[1](z_2, h_2)
    expected = vae.likelihood(vae.paths[0](vae.conditionals[0](h_1).mean, h_1)).mean
    many = codes["z_3"].expand(8, N, 4)
    torch.testing.assert_close(vae.decode({"z_3": many}), expected.detach().expand(8, N, D))


def test_reconstructions_of_a_narrow_posterior_are_the_decoders_mean(arrangement):
    vae, x = build(*arrangement), data()
    for posterior in vae.posteriors:
        with torch.no_grad():
            layer = posterior.net.layers[-1]
            layer.bias[len(layer.bias) // 2 :] = -40.0
    codes = vae.encode(x)
    assert all(torch.allclose(codes[site], z) for site, z in vae.encode(x).items())
    torch.testing.assert_close(vae.reconstruct(x), vae.decode(codes))


@pytest.mark.parametrize(
    ("sites", "named"), [(["z_2", "z_1"], "z_1"), (["z_3", "z_1"], "z_1"), ([], ""), (["z"], "z")]
)
def test_codes_with_a_gap_are_refused(sites, named):
    vae = build("bottom-up", False)
    codes = vae.sample_codes(3) | {"z": torch.zeros(3, 2)}
    message = r"codes must be of z_3 and of any layers that follow below it .* are of \[.*" + named
    with pytest.raises(ValueError, match=message):
        vae.decode({site: codes[site] for site in sites})


def test_nothing_is_drawn_from_less_than_one():
    vae = build("bottom-up", False)
    for draw in (vae.sample, vae.sample_codes):
        with pytest.raises(ValueError, match="num_samples must be at least 1, but is 0"):
            draw(0)


def test_pyros_own_tools_draw(arrangement):
    vae, x = build(*arrangement), data()
    drawn = pyro.infer.Predictive(
        poutine.uncondition(vae.model), guide=vae.guide, num_samples=3, parallel=True
    )(x)
    assert drawn["x"].shape == (3, N, D)
    objective = Trace_ELBO(num_particles=3, vectorize_particles=True, max_plate_nesting=1)
    svi = SVI(vae.model, vae.guide, pyro.optim.Adam({"lr": 0.03}), objective)
    losses = [svi.step(x) for _ in range(20)]
    assert np.mean(losses[-5:]) < np.mean(losses[:5])


# --- what parts see ------------------------------------------------------------------------------


def test_context_reaches_what_sees_x_and_the_likelihood(arrangement):
    vae = build(*arrangement, sizes=Sizes(context=3))
    x, label = data(), torch.eye(3)[[0, 1, 2, 0, 1]]
    weights = log_weights(vae.model, vae.guide, x, label, num_particles=4)
    other = log_joint(vae.model, weights.values, x, label.roll(1, 0))
    assert (other - weights.log_joint).abs().min() > 0
    torch.manual_seed(3)
    codes = vae.encode(x, label)
    torch.manual_seed(3)
    others = vae.encode(x, label.roll(1, 0))
    assert all(not torch.equal(codes[site], others[site]) for site in codes)
    assert vae.sample(3, label[:3]).shape == (3, D)
    assert vae.reconstruct(x, label).shape == (N, D)


class Flat(nn.Module):
    """Maps ``(..., C, H, W)``, made one vector, beside a path: no broadcasting."""

    def __init__(self, net):
        super().__init__()
        self.net = net

    def forward(self, d, *h):
        return self.net(torch.cat([d.flatten(-3), *h], -1))


class Convolution(nn.Conv2d):
    def forward(self, x):
        return super().forward(x).relu()


def test_features_may_be_maps():
    shape = (1, 6, 5)
    encoders = [Convolution(1, 2, 3, stride=2, padding=1), Convolution(2, 3, 3, 2, 1)]
    vae = HierarchicalVAE(
        StandardNormal(2),
        [DiagonalNormal(MLP(2, 6, hidden=()))],
        [
            DiagonalNormal(Flat(MLP(2 * 3 * 3 + 2, 6, hidden=()))),
            DiagonalNormal(Flat(MLP(3 * 2 * 2, 4, hidden=()))),
        ],
        Bernoulli(ConvDecoder(3, shape, channels=(3, 4)), event_dim=3),
        encoders=encoders,
    )
    x = torch.rand(N, *shape).round()
    assert vae.reconstruct(x).shape == x.shape
    weights = log_weights(vae.model, vae.guide, x, num_particles=3, particles="plate")
    assert weights.values["z_1"].shape == (3, N, 3)


class Whatever(nn.Module):
    """A prior that is not told what is above it."""

    def __init__(self, prior):
        super().__init__()
        self.prior = prior

    def forward(self, h):
        return self.prior()


@pytest.mark.parametrize("ladder", [False, True])
def test_layers_may_be_independent_but_for_their_path(ladder):
    """As in Zhao, Song and Ermon, *Learning hierarchical features from generative models*, 2017."""
    vae = build("ladder" if ladder else "bottom-up", True)
    vae.conditionals = nn.ModuleList(Whatever(StandardNormal(size)) for size in (3, 2))
    for codes in (vae.sample_codes(4), vae.encode(data(4))):
        assert all(len(z.unique(dim=0)) == 4 for z in codes.values())
    drawn = vae.decode({"z_3": codes["z_3"][:1].expand(8, 4, 4)})
    assert drawn.shape == (8, 4, D)
    assert len(drawn.reshape(32, D).unique(dim=0)) == 32
    x = data()
    for way in ("plate", "tile", "loop"):
        weights = log_weights(vae.model, vae.guide, x, num_particles=3, particles=way)
        assert weights.log_weight.isfinite().all()


def test_a_vamp_prior_shares_the_way_up(tmp_path):
    vae = build("top-down", True)
    top = nn.Sequential(*vae.encoders, vae.posteriors[-1])
    vae.prior = VampPrior(top, torch.randn(6, D))
    Trace_ELBO().differentiable_loss(vae.model, vae.guide, data()).backward()
    assert vae.prior.pseudo_inputs.grad.any()
    save(vae, tmp_path / "vae")
    again = load(tmp_path / "vae")
    assert again.prior.posterior[0] is again.encoders[0]
    assert again.prior.posterior[-1] is again.posteriors[-1]


# --- training, saving ----------------------------------------------------------------------------


@pytest.mark.filterwarnings("ignore:posterior collapse")  # a ladder may switch a layer off
@pytest.mark.parametrize("objective", [Trace_ELBO(), IWAE(5)], ids=["ELBO", "IWAE"])
def test_training_raises_the_evidence_of_new_data(arrangement, objective):
    truth = build(*arrangement, scale=0.5)
    torch.manual_seed(4)
    x, new = truth.sample(100), truth.sample(50)
    vae = copy.deepcopy(truth)
    with torch.no_grad():
        for parameter in vae.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    estimator = ImportanceSampling(100)
    before = estimator(vae.model, vae.guide, new).mean().value
    options = {"batch_size": 25, "learning_rate": 0.02, "seed": 0, "progress": False}
    history = fit(vae.model, vae.guide, x, objective=objective, epochs=4, **options)
    assert history.loss[-1] < history.loss[0] - 0.3
    assert estimator(vae.model, vae.guide, new).mean().value > before + 0.3


def test_saving_keeps_every_score(arrangement, tmp_path):
    vae, x = build(*arrangement), data()
    save(vae, tmp_path / "vae")
    again = load(tmp_path / "vae")
    one, two = (
        ImportanceSampling(num_samples=5)(each.model, each.guide, x) for each in (vae, again)
    )
    assert torch.equal(one.log_evidence, two.log_evidence)
    assert (again.num_layers, again.ladder, again.encoders is None, again.paths is None) == (
        3,
        arrangement[0] == "ladder",
        arrangement[0] == "bottom-up",
        not arrangement[1],
    )


def test_a_model_of_one_layer_is_saved(tmp_path):
    vae = build("bottom-up", False, layers=1)
    save(vae, tmp_path / "vae")
    torch.manual_seed(0)
    expected = vae.sample(3)
    torch.manual_seed(0)
    assert torch.equal(load(tmp_path / "vae").sample(3), expected)


# --- looked into ---------------------------------------------------------------------------------


@pytest.mark.parametrize("inference", ["bottom-up", "top-down", "ladder"])
def test_surgery_and_units_have_the_numbers_of_the_posterior(inference):
    """The KL of the layers adds up to that of the joint posterior, whatever the order of draws."""
    vae = exact(inference, False, 3)
    x = vae.sample(60)
    of = variables(vae)
    z = stacked(of["z_1"], of["z_2"], of["z_3"])
    weight, bias, cov = regress(z, of["x"])
    means = x.numpy() @ weight.T + bias
    rate = np.mean([oracles.gaussian_kl(m, cov, z.mean, z.cov(z)) for m in means])
    surgery = elbo_surgery(vae.model, vae.guide, x, num_samples=50)
    assert abs(surgery.rate - rate) < 5 * surgery.rate_stderr
    assert surgery.rate_stderr < 0.1
    units = active_units(vae.model, vae.guide, x, num_samples=400)
    assert abs(sum(float(kl.sum()) for kl in units.kl.values()) - rate) < 0.1
    for layer in (1, 2, 3):
        noise = np.sqrt(8 * cov[layer - 1, layer - 1] / 400 / 60 * means[:, layer - 1].var(ddof=1))
        found = float(units.variance[f"z_{layer}"])
        assert abs(found - means[:, layer - 1].var(ddof=1)) < 5 * noise + 1e-3


@pytest.mark.parametrize("inference", ["bottom-up", "top-down", "ladder"])
def test_a_layer_that_is_cut_off_is_not_active(inference):
    vae = exact(inference, False, 2, cut=True)
    units = active_units(vae.model, vae.guide, vae.sample(200), num_samples=400)
    assert units.active["z_1"].tolist() == [True]
    assert units.active["z_2"].tolist() == [False]
    assert abs(float(units.kl["z_2"].sum())) < 0.01 < float(units.kl["z_1"].sum())


def test_gaps_of_an_exact_guide_have_no_amortisation():
    vae = exact("top-down", False, 2)
    refined = RefinedImportanceSampling(num_samples=200, num_steps=100, full_rank=True)
    gaps = inference_gaps(refined(vae.model, vae.guide, vae.sample(3)))
    assert gaps.amortisation.abs().max() < 0.1


@pytest.mark.gpu
def test_the_device_follows_the_module(arrangement):
    vae, x = build(*arrangement).cuda(), data().cuda()
    assert log_weights(vae.model, vae.guide, x, num_particles=2).log_weight.is_cuda
    assert vae.sample(3).is_cuda
    assert vae.reconstruct(x).is_cuda
