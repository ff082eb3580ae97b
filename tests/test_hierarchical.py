"""Layers of codes: against the VAE, linear models in closed form, and formulas; refusals."""

from __future__ import annotations

import copy
import math

import numpy as np
import oracles
import pyro.distributions as dist
import pytest
import torch
from hierarchical_toys import (
    ARRANGEMENTS,
    SMALL,
    D,
    build,
    exact,
    linear,
    regress,
    stacked,
    variables,
)
from pyro.infer import Trace_ELBO
from torch import nn

from pyrovae.inference import AnnealedImportanceSampling, ImportanceSampling, fit, log_weights
from pyrovae.models import VAE, HierarchicalVAE
from pyrovae.models.distributions import NormalVector
from pyrovae.models.hierarchical.ladder import precision_weighted
from pyrovae.models.likelihoods import Bernoulli, Gaussian
from pyrovae.models.nets import MLP
from pyrovae.models.posteriors import DiagonalNormal, FullRankNormal
from pyrovae.models.priors import StandardNormal

N = 5


@pytest.fixture(params=ARRANGEMENTS, ids=lambda one: one[0] + (" with a path" if one[1] else ""))
def arrangement(request, one_thread):
    return request.param


def data(num_data=N, dtype=torch.float32):
    return torch.randn(num_data, D, generator=torch.Generator().manual_seed(2), dtype=dtype)


# --- one layer is a VAE --------------------------------------------------------------------------


def one_layer(arrangement):
    """A model of one layer, and the VAE of the same parts."""
    inference, paths = arrangement
    one = build(inference, paths, layers=1)
    posterior, net = one.posteriors[0], one.likelihood.net
    if inference != "bottom-up":
        posterior = DiagonalNormal(nn.Sequential(one.encoders[0], posterior.net))
    if paths:
        net = nn.Sequential(one.paths[0], net)
    return one, VAE(one.prior, posterior, Gaussian(net))


def test_one_layer_has_the_numbers_of_a_vae(arrangement):
    both, x = one_layer(arrangement), data()
    seen = []
    for vae in both:
        torch.manual_seed(3)
        weights = log_weights(vae.model, vae.guide, x, num_particles=4)
        loss = Trace_ELBO().loss(vae.model, vae.guide, x)
        seen.append((weights.log_weight, torch.tensor(loss), vae.sample(7), vae.reconstruct(x)))
    assert all(torch.equal(a, b) for a, b in zip(*seen, strict=True))


def test_one_layer_trains_as_a_vae(arrangement):
    one, vae = copy.deepcopy(one_layer(arrangement))
    vae = copy.deepcopy(vae)  # else the two would share what is trained
    losses = [
        fit(each.model, each.guide, data(20), epochs=3, batch_size=7, seed=0, progress=False).loss
        for each in (one, vae)
    ]
    np.testing.assert_array_equal(*losses)
    assert losses[0][-1] != losses[0][0]


# --- linear models are normal --------------------------------------------------------------------


def evidence(vae, x):
    of_x = variables(vae)["x"]
    return torch.as_tensor(oracles.gaussian_logpdf(x.numpy(), of_x.mean, of_x.cov(of_x)))


@pytest.mark.parametrize("layers", [2, 3])
def test_importance_sampling_finds_the_evidence(arrangement, layers):
    vae = linear(*arrangement, layers, SMALL, scale=3.0 if arrangement[0] == "ladder" else 1.5)
    x = vae.sample(4)
    estimate = ImportanceSampling(20_000, defensive=0.2)(vae.model, vae.guide, x)
    assert ((estimate.log_evidence - evidence(vae, x)).abs() < 5 * estimate.stderr).all()
    assert estimate.stderr.max() < 0.1


@pytest.mark.parametrize(("layers", "paths"), [(2, False), (3, True)])
def test_annealing_finds_the_evidence(layers, paths, one_thread):
    """From the prior, without a guide: of the model alone."""
    vae = linear("top-down", paths, layers, SMALL)
    x = vae.sample(2)
    annealing = AnnealedImportanceSampling(32, num_temperatures=15, start="prior")
    estimate = annealing(vae.model, None, x)
    assert ((estimate.log_evidence - evidence(vae, x)).abs() < 5 * estimate.stderr).all()
    assert estimate.stderr.max() < 0.3


EXACT = [(i, p, layers) for i, p in ARRANGEMENTS for layers in (2, 3) if i == "top-down" or not p]


@pytest.mark.parametrize(("inference", "paths", "layers"), EXACT)
def test_each_arrangement_holds_the_posterior_of_its_model(inference, paths, layers):
    """Then every weight is p(x)."""
    vae = exact(inference, paths, layers)
    x = vae.sample(6)
    weights = log_weights(vae.model, vae.guide, x, num_particles=4)
    assert (weights.log_weight - evidence(vae, x)).abs().max() < 1e-9


@pytest.mark.parametrize("paths", [False, True])
def test_draws_have_the_models_moments(paths):
    vae = linear("top-down", paths, 3, SMALL)
    of = variables(vae)
    joint = stacked(of["z_1"], of["z_2"], of["z_3"])
    codes = vae.sample_codes(50_000)
    z = torch.cat([codes["z_1"], codes["z_2"], codes["z_3"]], -1)
    for draws, of_these in ((z, joint), (vae.sample(50_000), of["x"])):
        centred = draws.numpy() - of_these.mean
        outer = centred[:, :, None] * centred[:, None] - of_these.cov(of_these)
        for error in (centred, outer.reshape(len(z), -1)):
            assert (abs(error.mean(0)) / (error.std(0) / math.sqrt(len(z)))).max() < 5


@pytest.mark.parametrize("inference", ["bottom-up", "top-down", "ladder"])
def test_encoding_draws_from_the_posterior(inference):
    vae = exact(inference, False, 3)
    of, x = variables(vae), vae.sample(1)
    codes = vae.encode(x.expand(50_000, -1))
    weight, bias, cov = regress(stacked(of["z_1"], of["z_2"], of["z_3"]), of["x"])
    z = torch.cat([codes[f"z_{layer}"] for layer in (1, 2, 3)], -1).numpy()
    centred = z - (weight @ x[0].numpy() + bias)
    outer = centred[:, :, None] * centred[:, None] - cov
    for error in (centred, outer.reshape(len(z), -1)):
        assert (abs(error.mean(0)) / (error.std(0) / math.sqrt(len(z)))).max() < 5


# --- densities, written out ----------------------------------------------------------------------


def normal(net, *inputs):
    rows = torch.broadcast_shapes(*(one.shape[:-1] for one in inputs))
    together = torch.cat([one.expand(*rows, one.shape[-1]) for one in inputs], -1)
    loc, log_scale = net.layers(together).chunk(2, -1)
    return torch.distributions.Normal(loc, log_scale.exp())


def written_out(vae, inference, x, z_1, z_2, z_3):
    """log p(x, z) and log q(z | x) of three layers."""
    codes = (z_1, z_2, z_3)
    h = {2: z_3, 1: z_2, 0: z_1}
    if vae.paths is not None:
        f = [path.layers for path in vae.paths]
        h[2] = f[2](z_3)
        h[1] = f[1](torch.cat([z_2, h[2]], -1))
        h[0] = f[0](torch.cat([z_1, h[1]], -1))
    p = [normal(c.net, h[i + 1]) for i, c in enumerate(vae.conditionals)]
    p.append(torch.distributions.Normal(torch.zeros_like(z_3), 1.0))
    q_nets = [posterior.net for posterior in vae.posteriors]
    if inference == "bottom-up":
        q = [normal(q_nets[0], x), normal(q_nets[1], z_1), normal(q_nets[2], z_2)]
    else:
        e = [encoder.layers for encoder in vae.encoders]
        d = [e[0](x), e[1](e[0](x)), e[2](e[1](e[0](x)))]
        if inference == "top-down":
            q = [normal(q_nets[0], d[0], h[1]), normal(q_nets[1], d[1], h[2])]
        else:
            q = []
            for i in (0, 1):
                of_data = normal(q_nets[i], d[i])
                precision = of_data.variance**-1 + p[i].variance ** -1
                weighted = of_data.mean / of_data.variance + p[i].mean / p[i].variance
                q.append(torch.distributions.Normal(weighted / precision, precision**-0.5))
        q.append(normal(q_nets[2], d[2]))
    likelihood = torch.distributions.Normal(vae.likelihood.net.layers(h[0]), 1.0)
    log_p = sum(one.log_prob(z).sum(-1) for one, z in zip(p, codes, strict=True))
    log_q = sum(one.log_prob(z).sum(-1) for one, z in zip(q, codes, strict=True))
    return log_p + likelihood.log_prob(x).sum(-1), log_q


@pytest.mark.parametrize("way", ["plate", "tile", "loop"])
def test_particles_have_the_densities_of_the_formulas(arrangement, way):
    vae, x = build(*arrangement).double(), data(dtype=torch.float64)
    weights = log_weights(vae.model, vae.guide, x, num_particles=3, particles=way)
    assert {site: z.shape for site, z in weights.values.items()} == {
        "z_1": (3, N, 3),
        "z_2": (3, N, 2),
        "z_3": (3, N, 4),
    }
    with torch.no_grad():
        log_p, log_q = written_out(vae, arrangement[0], x, **weights.values)
    torch.testing.assert_close(weights.log_joint, log_p, rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(weights.log_guide, log_q, rtol=1e-10, atol=1e-10)


def test_gradients_reach_every_parameter(arrangement):
    vae = build(*arrangement)
    Trace_ELBO().differentiable_loss(vae.model, vae.guide, data()).backward()
    assert [n for n, p in vae.named_parameters() if p.grad is None or not p.grad.any()] == []


# --- the ladder's product ------------------------------------------------------------------------


def test_the_product_is_renormalised():
    """Against the product of densities on a line, divided by its own sum."""
    line = np.linspace(-30.0, 30.0, 200_001)
    for loc_d, scale_d, loc_p, scale_p in ((1.0, 0.5, -2.0, 2.0), (0.3, 4.0, 0.1, 0.2)):
        of_data, of_prior = (
            dist.Normal(torch.tensor([[loc]], dtype=torch.float64), scale).to_event(1)
            for loc, scale in ((loc_d, scale_d), (loc_p, scale_p))
        )
        found = precision_weighted("[0]", of_data, of_prior)
        log_both = oracles.normal_logpdf(line, loc_d, scale_d)
        log_both += oracles.normal_logpdf(line, loc_p, scale_p)
        log_both -= oracles.logsumexp(log_both + np.log(line[1] - line[0]), 0)
        ours = found.log_prob(torch.as_tensor(line)[:, None, None]).squeeze(-1).numpy()
        np.testing.assert_allclose(ours, log_both, atol=1e-9)


def test_the_product_of_sharp_and_wide_is_the_sharp_one():
    """The sharp one's precision, 1e40, is no number in single precision."""
    log_scale = torch.tensor([1e-20, 1e10]).log().requires_grad_()
    sharp, wide = (
        NormalVector(dist.Normal(torch.tensor([loc]), scale), 1)
        for loc, scale in zip((3.0, -5.0), log_scale.exp(), strict=True)
    )
    for pair in ((sharp, wide), (wide, sharp)):
        product = precision_weighted("[0]", *pair)
        torch.testing.assert_close(product.mean, sharp.mean)
        scale = product.base_dist.scale
        torch.testing.assert_close(scale, sharp.base_dist.scale, rtol=1e-6, atol=0)
        density = product.log_prob(product.mean.detach())
        (slope,) = torch.autograd.grad(density, log_scale, retain_graph=True)
        torch.testing.assert_close(slope, torch.tensor([-1.0, 0.0]))


def test_the_product_is_between_leading_dimensions():
    """The encoder's normal has no particles: it is asked for once per datum."""
    of_data = dist.Normal(torch.zeros(N, 2), 1.0).to_event(1)
    of_prior = dist.Normal(torch.ones(3, N, 2), 1.0).to_event(1)
    product = precision_weighted("[0]", of_data, of_prior)
    assert (product.batch_shape, product.event_shape) == ((3, N), (2,))


# --- refusals ------------------------------------------------------------------------------------


def parts(**changed):
    torch.manual_seed(0)
    return {
        "prior": StandardNormal(2),
        "conditionals": [DiagonalNormal(MLP(2, 6, hidden=()))],
        "posteriors": [DiagonalNormal(MLP(5, 6, ())), DiagonalNormal(MLP(4, 4, ()))],
        "likelihood": Gaussian(MLP(3, D, ())),
        "encoders": [MLP(D, 5, ()), MLP(5, 4, ())],
        "ladder": True,
    } | changed


@pytest.mark.parametrize(
    ("changed", "kind", "message"),
    [
        ({"posteriors": []}, ValueError, "posteriors must be a list of one for each layer"),
        (
            {"posteriors": nn.Identity()},
            TypeError,
            "posteriors must be a list of modules, but is a Identity",
        ),
        (
            {"posteriors": [nn.Identity(), len]},
            TypeError,
            r"posteriors\[1\] must be a module, but is a builtin_function_or_method",
        ),
        (
            {"conditionals": [nn.Identity()] * 2},
            ValueError,
            "conditionals must be a list of 1, to fit posteriors, but is one of 2",
        ),
        (
            {"encoders": [nn.Identity()]},
            ValueError,
            "encoders must be a list of 2, to fit posteriors, but is one of 1",
        ),
        (
            {"encoders": []},
            ValueError,
            "encoders must be a list of 2, to fit posteriors, but is one of 0",
        ),
        (
            {"paths": [nn.Identity()]},
            ValueError,
            "paths must be a list of 2, to fit posteriors, but is one of 1",
        ),
        ({"encoders": None}, ValueError, "encoders must be given where ladder=True, but are None"),
    ],
)
def test_parts_that_do_not_fit_are_refused(changed, kind, message):
    with pytest.raises(kind, match=message):
        HierarchicalVAE(**parts(**changed))


class Plain(nn.Module):
    """A batch of normals where there should be a vector."""

    def forward(self, h):
        return dist.Normal(h, 1.0)


@pytest.mark.parametrize(
    ("changed", "kind", "message"),
    [
        (
            {"posteriors": [FullRankNormal(MLP(5, 9, ())), DiagonalNormal(MLP(4, 4, ()))]},
            TypeError,
            r"posteriors\[0\] must return independent normals for ladder=True, as DiagonalNormal "
            r"does, but returns a MultivariateNormal over codes of shape \(3,\)",
        ),
        (
            {"conditionals": [Plain()]},
            TypeError,
            r"conditionals\[0\] must return .* but returns a Normal over codes of shape \(\)",
        ),
        (
            {"posteriors": [Bernoulli(MLP(5, 3, ())), DiagonalNormal(MLP(4, 4, ()))]},
            TypeError,
            r"posteriors\[0\] must return independent normals .* but returns a Bernoulli",
        ),
        (
            {"posteriors": [DiagonalNormal(MLP(5, 2, ())), DiagonalNormal(MLP(4, 4, ()))]},
            ValueError,
            r"posteriors\[0\] must be over codes of shape \(3,\), as conditionals\[0\] is, but is "
            r"over \(1,\)",
        ),
    ],
)
def test_a_ladder_of_something_else_is_refused(changed, kind, message):
    vae = HierarchicalVAE(**parts(**changed))
    with pytest.raises(kind, match=message):
        vae.guide(data())


def test_data_of_another_shape_are_refused():
    vae = HierarchicalVAE(**parts())
    with pytest.raises(ValueError, match=r"x must hold data of shape \(6,\), as the likelihood"):
        vae.model(torch.zeros(3, 4))
