"""A posterior refined by steps: against exact posteriors of linear models, and what is taught."""

from __future__ import annotations

import math

import pyro
import pytest
import torch
from posterior_toys import (
    DOUBLE,
    NOISE,
    D,
    Z,
    exact_posterior,
    linear_gaussian,
    posterior_gap,
    randomised,
)
from pyro.infer import Trace_ELBO
from torch import nn
from torch.autograd import gradcheck

from pyrovae.inference import fit, log_joint, log_weights
from pyrovae.models import VAE
from pyrovae.models.likelihoods import Bernoulli, Gaussian
from pyrovae.models.nets import MLP
from pyrovae.models.posteriors import DiagonalNormal, FullRankNormal, SemiAmortised
from pyrovae.models.priors import GaussianMixture, LearnedNormal, StandardNormal

pytestmark = pytest.mark.usefixtures("one_thread")


def constant(*output):
    """A network that returns the same for every datum."""
    net = randomised(nn.Linear(D, len(output)).double(), 0.0)
    with torch.no_grad():
        net.bias.copy_(torch.tensor(output, dtype=DOUBLE))
    return net


def nonlinear(prior=None, **options):
    """A small VAE of networks, in double precision."""
    prior = LearnedNormal(Z) if prior is None else prior
    likelihood = Bernoulli(randomised(MLP(Z, D, (5,)), 0.8))
    inner = DiagonalNormal(randomised(MLP(D, 2 * Z, (5,)), 0.4))
    posterior = SemiAmortised(inner, prior, likelihood, **{"num_steps": 3} | options)
    return VAE(prior, posterior, likelihood).double()


def bits(num_data=5):
    return torch.rand(num_data, D, dtype=DOUBLE).round()


# --- where the steps go --------------------------------------------------------------------------


def test_steps_of_no_length_leave_the_encoders_posterior():
    vae, x = nonlinear(step_size=1e-14), bits()
    q, inner = vae.posterior(x), vae.posterior.posterior(x)
    torch.testing.assert_close(q.mean, inner.mean)
    torch.testing.assert_close(q.stddev, inner.stddev)
    assert (q.batch_shape, q.event_shape) == ((5,), (Z,))


@pytest.mark.parametrize("width", [0.2, 0.5, 1.0, 2.0, 3.0, 10.0, 100.0])
@pytest.mark.parametrize("step_size", [0.05, 0.3, 1.0])
def test_each_step_raises_the_elbo_on_average(step_size, width):
    """The ELBO is log p(x) less the gap; begun with scales too narrow or too wide."""
    prior, likelihood, x = linear_gaussian(loadings=(4.0, 1.0), num_data=20)
    _, sd = exact_posterior(likelihood, x)
    inner = DiagonalNormal(constant(1.0, -1.0, *(width * sd[0]).log().tolist()))
    gaps = [posterior_gap(inner(x), likelihood, x).mean()]
    for num_steps in range(1, 9):
        posterior = SemiAmortised(inner, prior, likelihood, num_steps, step_size).eval()
        gaps.append(posterior_gap(posterior(x), likelihood, x).mean())
    gaps = torch.stack(gaps)
    assert (gaps.diff() < 1e-12).all()
    assert gaps[-1] < gaps[0] * 0.999


@pytest.mark.parametrize("num_draws", [2, 6])
def test_at_rest_it_is_the_exact_posterior(num_draws):
    prior, likelihood, x = linear_gaussian()
    inner = DiagonalNormal(randomised(nn.Linear(D, 2 * Z).double(), 0.3))
    posterior = SemiAmortised(
        inner, prior, likelihood, num_steps=100, step_size=0.3, num_draws=num_draws
    )
    with torch.no_grad():
        q, before = posterior(x), posterior_gap(inner(x), likelihood, x)
    mean, sd = exact_posterior(likelihood, x)
    torch.testing.assert_close(q.mean, mean)
    torch.testing.assert_close(q.stddev, sd)
    assert before.min() > 0.01
    vae = VAE(prior, posterior.eval(), likelihood)
    weights = log_weights(vae.model, vae.guide, x, num_particles=4)
    assert weights.log_weight.std(0).max() < 1e-9


def test_a_whole_step_from_the_right_scale_is_newtons():
    prior, likelihood, x = linear_gaussian()
    mean, sd = exact_posterior(likelihood, x)
    inner = DiagonalNormal(constant(3.0, -2.0, *sd[0].log().tolist()))
    posterior = SemiAmortised(inner, prior, likelihood, num_steps=1, step_size=1.0)
    q = posterior(x)
    torch.testing.assert_close(q.mean.detach(), mean)
    torch.testing.assert_close(q.stddev.detach(), sd)


def test_with_many_draws_correlated_codes_get_the_best_independent_normals():
    """Means of the posterior, and precisions of its diagonal: Λ = I + WᵀW / σ²."""
    prior, likelihood, x = linear_gaussian()
    weight = likelihood.net.weight
    with torch.no_grad():
        weight.copy_(torch.randn(D, Z, dtype=DOUBLE))
        precision = torch.eye(Z, dtype=DOUBLE) + weight.T @ weight / NOISE**2
    assert precision[0, 1].abs() > 0.3
    inner = DiagonalNormal(constant(0.0, 0.0, 0.0, 0.0))
    num_draws = 4000
    with torch.no_grad():
        q = SemiAmortised(inner, prior, likelihood, 120, num_draws=num_draws)(x)
    torch.testing.assert_close(q.mean, exact_posterior(likelihood, x)[0])
    # antithetic pairs have one product of two entries each, with mean 0 and variance 1
    slack = 5 * precision[0, 1].abs() / math.sqrt(num_draws / 2)
    assert ((q.variance.reciprocal() - precision.diagonal()).abs() < slack).all()


def test_refinement_helps_where_nothing_is_normal():
    """On average over data, with draws of its own to tell: a paired difference of ELBOs."""
    prior = GaussianMixture(Z, 3)
    vae, x = nonlinear(prior, num_steps=10, num_draws=8).eval(), bits(40)
    plain = VAE(prior, vae.posterior.posterior, vae.likelihood)
    elbo = [
        log_weights(one.model, one.guide, x, num_particles=500).log_weight.mean(0)
        for one in (vae, plain)
    ]
    gain = elbo[0] - elbo[1]
    assert gain.mean() > 5 * gain.std() / math.sqrt(len(x))


def test_each_datum_is_refined_for_itself():
    vae, x = nonlinear().eval(), bits()
    together = vae.posterior(x)
    for n in range(len(x)):
        alone = vae.posterior(x[n : n + 1])
        torch.testing.assert_close(alone.mean[0], together.mean[n])
        torch.testing.assert_close(alone.stddev[0], together.stddev[n])
    assert torch.equal(vae.posterior(x).mean, together.mean)


def test_a_seed_has_noise_of_its_own_and_leaves_others_alone():
    state = torch.get_rng_state()
    means = []
    for seed in (0, 0, 1):
        torch.manual_seed(0)
        vae = nonlinear(seed=seed)
        x, state = bits(), torch.get_rng_state()
        means.append(vae.posterior(x).mean)
        assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(means[0], means[1])
    assert not torch.equal(means[0], means[2])


# --- what is taught ------------------------------------------------------------------------------


@pytest.mark.parametrize("step_size", [0.3, 1.0])
def test_the_gradient_through_the_steps_is_that_of_differences(step_size):
    """With respect to encoder, decoder and prior."""
    vae, x = nonlinear(step_size=step_size), bits(2)
    names = [
        name
        for name, _ in vae.posterior.named_parameters()
        if name.endswith(("layers.2.bias", "layers.0.weight", "loc", "log_scale"))
    ]

    def refined(*values):
        q = torch.func.functional_call(vae.posterior, dict(zip(names, values, strict=True)), (x,))
        return q.base_dist.loc, q.base_dist.scale

    given = dict(vae.posterior.named_parameters())
    assert {name.split(".")[0] for name in names} == {"posterior", "prior", "likelihood"}
    values = tuple(given[name].detach().clone().requires_grad_() for name in names)
    assert gradcheck(refined, values)
    for gradient in torch.autograd.grad(sum(one.sum() for one in refined(*values)), values):
        assert gradient.any()


def test_training_teaches_encoder_decoder_and_prior():
    vae, x = nonlinear(), bits(30)
    options = {"epochs": 15, "batch_size": 10, "learning_rate": 0.01, "seed": 0, "progress": False}
    before = {name: p.detach().clone() for name, p in vae.named_parameters()}
    history = fit(vae.model, vae.guide, x, **options)
    assert [n for n, p in vae.named_parameters() if torch.equal(p, before[n])] == []
    assert history.loss[-1] < history.loss[0] - 0.1


@pytest.mark.parametrize("frozen", ["posterior.posterior", "likelihood", "prior"])
def test_parts_may_be_frozen(frozen):
    vae, x = nonlinear(), bits()
    vae.get_submodule(frozen).requires_grad_(False)
    with pyro.settings.context(module_local_params=True):
        Trace_ELBO().differentiable_loss(vae.model, vae.guide, x).backward()
    for name, parameter in vae.named_parameters():
        assert (parameter.grad is not None and parameter.grad.any()) == parameter.requires_grad, (
            name
        )


def no_training(vae, x):
    return vae.eval().posterior(x)


def no_gradients(vae, x):
    with torch.no_grad():
        return vae.posterior(x)


def inference_mode(vae, x):
    with torch.inference_mode():
        return vae.posterior(x.clone())  # of its kind


@pytest.mark.parametrize("how", [no_training, no_gradients, inference_mode])
def test_elsewhere_the_steps_are_forgotten(how):
    """No graph, no gradients left behind, and the same posterior as in training."""
    vae, x = nonlinear(), bits().requires_grad_()
    taught = vae.posterior(x)
    q = how(vae, x)
    assert taught.mean.requires_grad
    assert torch.equal(q.mean, taught.mean)
    assert torch.equal(q.stddev, taught.stddev)
    assert not q.mean.requires_grad
    assert not q.stddev.requires_grad
    assert torch.is_grad_enabled()
    assert x.grad is None
    assert all(p.grad is None and p.requires_grad for p in vae.parameters())


# --- with particles and contexts -----------------------------------------------------------------


@pytest.mark.parametrize("way", ["plate", "tile", "loop"])
def test_particles_are_drawn_from_the_refined_posterior(way):
    vae, x = nonlinear().eval(), bits()
    weights = log_weights(vae.model, vae.guide, x, num_particles=6, particles=way)
    z = weights.values["z"]
    assert z.shape == (6, 5, Z)
    torch.testing.assert_close(weights.log_guide, vae.posterior(x).log_prob(z))
    torch.testing.assert_close(weights.log_joint, log_joint(vae.model, {"z": z}, x))


def test_contexts_reach_encoder_and_decoder():
    prior = StandardNormal(Z).double()
    likelihood = Gaussian(MLP(Z + 3, D, ()).double())
    posterior = SemiAmortised(DiagonalNormal(MLP(D + 3, 2 * Z, ())).double(), prior, likelihood)
    vae = VAE(prior, posterior, likelihood).eval()
    x, label = bits(), torch.eye(3, dtype=DOUBLE)[[0, 1, 2, 0, 1]]
    told, other = posterior(x, label), posterior(x, label.roll(1, 0))
    assert (told.mean - other.mean).abs().min() > 0
    weights = log_weights(vae.model, vae.guide, x, label, num_particles=3)
    torch.testing.assert_close(weights.log_guide, told.log_prob(weights.values["z"]))


# --- refusals ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_steps": 0}, "num_steps must be at least 1, but is 0"),
        ({"num_draws": 0}, "num_draws must be at least 1, but is 0"),
        ({"num_draws": 3}, "num_draws must be even, but is 3"),
        *(
            ({"step_size": size}, rf"step_size must be in \(0, 1\], but is {size}")
            for size in (0.0, -0.1, 1.5, math.nan)
        ),
    ],
)
def test_bad_settings_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        nonlinear(**options)


def test_something_else_than_normals_is_refused():
    posterior = SemiAmortised(
        FullRankNormal(MLP(D, 5, ())), StandardNormal(Z), Bernoulli(MLP(Z, D, ()))
    )
    with pytest.raises(TypeError, match=r"posterior must give .* but gives a MultivariateNormal"):
        posterior(torch.zeros(3, D))


def test_codes_of_another_size_are_refused():
    posterior = SemiAmortised(
        DiagonalNormal(MLP(D, 6, ())), StandardNormal(Z), Bernoulli(MLP(Z, D, ()))
    )
    with pytest.raises(ValueError, match=r"value must end in the event shape \(2,\), but has"):
        posterior(torch.zeros(3, D))
