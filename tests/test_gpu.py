"""On a GPU: every family, objective and estimator gives what it gives on the CPU."""

from __future__ import annotations

import warnings

import contract_members as members
import pyro
import pyro.distributions as dist
import pytest
import torch
from objective_toys import CONTINUOUS
from test_estimators_exact import ESTIMATORS

from pyrovae.inference import (
    BidirectionalMonteCarlo,
    NonFiniteLoss,
    RateDistortion,
    elbo_surgery,
    fit,
    log_joint,
    log_weights,
    simulate,
)
from pyrovae.inference.compilation import NotCompiled
from pyrovae.models import LinearGaussianVAE, load, save

pytestmark = [pytest.mark.gpu, pytest.mark.filterwarnings("ignore:.*k̂.*")]

GPU = "cuda"


@pytest.fixture(params=members.FAMILIES)
def member(request):
    """On the CPU, in double precision."""
    torch.manual_seed(0)
    make, x, context, objective = members.FAMILIES[request.param]
    return make().double().eval(), x.double(), context, objective


def moved(context):
    return tuple(part.to(GPU) for part in context)


def test_a_family_has_the_densities_of_the_cpu(member):
    model, x, context, _ = member
    drawn = log_weights(model.model, model.guide, x, *context, num_particles=3)
    if "y" in drawn.model_sites or "summed out" in drawn.model_sites:
        pytest.skip("what is summed out with a draw of its own has no joint of latents alone")
    there = {name: value.to(GPU) for name, value in drawn.values.items()}
    model.to(GPU)
    found = log_joint(model.model, there, x.to(GPU), *moved(context))
    assert found.device.type == GPU
    # the normaliser of a resampled prior is estimated by draws of the device's own
    tolerance = 0.2 if any("Resampled" in type(m).__name__ for m in model.modules()) else 1e-8
    torch.testing.assert_close(found.cpu(), drawn.log_joint, rtol=1e-8, atol=tolerance)


def test_a_family_is_trained_weighed_simulated_and_saved(member, tmp_path):
    model, x, context, objective = member
    model.to(GPU)
    history = fit(
        model.model, model.guide, x, *context, objective=objective, epochs=2, progress=False
    )
    assert len(history) == 2
    x, context = x.to(GPU), moved(context)
    weights = log_weights(model.model, model.guide, x, *context, num_particles=3)
    assert weights.log_weight.device.type == GPU
    assert weights.log_weight.isfinite().all()
    assert simulate(model.model, x, *context).observations["x"].device.type == GPU
    save(model, tmp_path / "model")
    again = load(tmp_path / "model", device=GPU)
    assert all(p.device.type == GPU for p in again.parameters())


def linear_gaussian(device):
    """Exact answers, and a guide wider than the posterior."""
    torch.manual_seed(1)
    linear = LinearGaussianVAE(20, 4, scale=0.8).double().to(device)
    x = linear.sample(8)

    def guide(x):
        exact = linear.posterior(x)
        with pyro.plate("data", len(x), dim=-1):
            wide = dist.MultivariateNormal(exact.mean, scale_tril=1.2 * exact.scale_tril)
            pyro.sample("z", wide)

    return linear, guide, x


@pytest.mark.parametrize("name", [n for n in ESTIMATORS if n not in ("harmonic", "chi upper")])
def test_an_estimator_finds_the_exact_number(name):
    linear, guide, x = linear_gaussian(GPU)
    estimate = ESTIMATORS[name](linear.model, guide, x)
    assert estimate.provenance["device"].startswith(GPU)
    error = estimate.log_evidence.cpu() - linear.log_evidence(x).cpu()
    allowed = 5 * estimate.stderr.cpu() + 1e-6
    if name == "evidence upper":
        assert (error > -allowed).all()
    else:
        assert (error.abs() < allowed).all()


def test_the_sandwich_holds_the_exact_number():
    linear, guide, x = linear_gaussian(GPU)
    found = BidirectionalMonteCarlo(
        num_chains=16, num_temperatures=50, posterior=linear.exact_guide
    )(linear.model, guide, x)
    exact = float(linear.log_evidence(x).detach().mean())
    assert found.lower.mean().value - 0.1 < exact < found.upper.mean().value + 0.1


def test_information_is_that_of_the_cpu():
    rates = []
    for device in ("cpu", GPU):
        linear, guide, _ = linear_gaussian("cpu")
        x = linear.sample(8).to(device)
        linear.to(device)
        surgery = elbo_surgery(linear.model, guide, x, num_samples=200)
        rates.append((surgery.rate, surgery.rate_stderr))
        curve = RateDistortion(num_chains=32, num_temperatures=100)(linear.model, x)
        end = -(curve.rate + curve.distortion)[:, -1].cpu()
        assert (end - linear.log_evidence(x).detach().cpu()).abs().max() < 1.0
    (first, one), (second, other) = rates
    assert abs(first - second) < 5 * (one**2 + other**2) ** 0.5 + 1e-6


@pytest.mark.parametrize("name", CONTINUOUS)
def test_an_objective_trains(name):
    make, *_ = members.FAMILIES["prior StandardNormal"]
    torch.manual_seed(0)
    vae, x = make().to(GPU), members.data().to(GPU)
    history = fit(vae.model, vae.guide, x, objective=CONTINUOUS[name](), epochs=3, progress=False)
    assert all(p.device.type == GPU for p in vae.parameters())
    assert len(history) == 3


COMPILED = {
    "prior StandardNormal",
    "prior VampPrior",
    "prior FlowPrior",
    "HierarchicalVAE",
    "DeepMarkovModel",
    "VQVAE",
    "posterior MixturePosterior",
    "likelihood DiscretizedLogisticMixture",
}


@pytest.mark.parametrize("name", sorted(COMPILED))
def test_a_compiled_run_is_the_run(name):
    """Steps by captured graphs, the optimizer's among them, against steps one by one."""
    make, x, context, objective = members.FAMILIES[name]
    x, context = x.repeat(8, *[1] * (x.dim() - 1)), [c.repeat(8) for c in context]
    found = []
    for compiled in (False, True):
        torch.manual_seed(0)
        model = make().to(GPU)
        with warnings.catch_warnings():
            warnings.simplefilter("error", NotCompiled)
            history = fit(
                model.model,
                model.guide,
                x,
                *context,
                objective=objective,
                epochs=6,
                batch_size=6,
                warm_up=2,
                seed=1,
                progress=False,
                compile=compiled,
            )
        parameters = torch.cat([p.detach().flatten() for p in model.parameters()])
        found.append((torch.as_tensor(history.loss), parameters.cpu()))
    (loss, parameters), (again, others) = found
    torch.testing.assert_close(again, loss, rtol=1e-3, atol=1e-3)
    torch.testing.assert_close(others, parameters, rtol=1e-2, atol=2e-3)


def test_a_compiled_step_that_is_not_finite_is_found():
    make, *_ = members.FAMILIES["prior StandardNormal"]
    torch.manual_seed(0)
    vae, x = make().to(GPU), members.data().repeat(8, 1)

    def worse(x, generator):
        worse.epochs += 1
        return torch.where(torch.tensor(worse.epochs > 3, device=x.device), 1e38 * x, x)

    worse.epochs = 0
    with pytest.raises(NonFiniteLoss) as caught:
        fit(
            vae.model,
            vae.guide,
            x,
            epochs=9,
            batch_size=6,
            transform=worse,
            seed=0,
            progress=False,
            compile=True,
        )
    assert caught.value.epoch > 1
    assert all(p.isfinite().all() for p in vae.parameters())
