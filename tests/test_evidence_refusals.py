"""What estimators refuse, and how they say it; and what they take though there is little of it."""

from __future__ import annotations

import dataclasses
import math

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from estimator_toys import (
    ALL,
    ANNEAL,
    ANNEALING,
    MOVING,
    PLACING,
    SAMPLING,
    SMALL,
    STREAMING,
    X,
    guide,
    model,
    named,
)

from pyrovae.inference import (
    AnnealedImportanceSampling,
    BidirectionalMonteCarlo,
    ChiUpperBound,
    HarmonicMean,
    ImportanceSampling,
    JackknifeImportanceSampling,
    PriorMonteCarlo,
    ProgramError,
    RefinedImportanceSampling,
    SequentialMonteCarlo,
    StudentT,
    ThermodynamicIntegration,
)
from pyrovae.inference.evidence import khat_threshold

pytestmark = pytest.mark.usefixtures("one_thread")

AIS, BDMC = AnnealedImportanceSampling, BidirectionalMonteCarlo
SMC, TI = SequentialMonteCarlo, ThermodynamicIntegration

# --- guides and data -----------------------------------------------------------------------------

NEEDS_A_GUIDE = [SMALL[kind] for kind in ALL if kind is not PriorMonteCarlo] + PLACING


@pytest.mark.parametrize("estimator", **named(NEEDS_A_GUIDE))
@pytest.mark.parametrize("wrong", [None, 3])
def test_a_guide_is_asked_for_where_it_is_needed(estimator, wrong):
    with pytest.raises(TypeError, match=f"guide must be a Pyro program, but is {wrong}"):
        estimator(model, wrong, X)


@pytest.mark.parametrize("kind", **named([*ANNEALING, *SAMPLING]))
def test_from_the_prior_none_is_needed(kind):
    found = dataclasses.replace(SMALL[kind], start="prior")(model, None, X)
    found = getattr(found, "lower", found)
    assert found.log_evidence.isfinite().all()


@pytest.mark.parametrize("estimator", **named([*SMALL.values(), *PLACING]))
@pytest.mark.parametrize(
    ("x", "error", "message"),
    [
        (torch.tensor([0.0, math.nan, 1.0]), ValueError, "x must be finite, but datum 1 holds nan"),
        (torch.tensor([0.0, -math.inf]), ValueError, "x must be finite, but datum 1 holds -inf"),
        (torch.zeros(0), ValueError, r"x must hold at least one datum, but has shape \(0,\)"),
        (torch.tensor(1.0), ValueError, r"x must hold at least one datum, but has shape \(\)"),
        ([0.0, 1.0], TypeError, "x must be a tensor or a tuple of tensors, but is list"),
        (np.zeros(3), TypeError, "x must be a tensor or a tuple of tensors, but is ndarray"),
    ],
    ids=["nan", "infinity", "none", "scalar", "list", "array"],
)
def test_bad_data_are_refused(estimator, x, error, message):
    with pytest.raises(error, match=message):
        estimator(model, guide, x)


# --- latents that cannot be moved ----------------------------------------------------------------


def _with_a_discrete_latent(guided=True):
    def model(x):
        with pyro.plate("data", len(x)):
            count = pyro.sample("count", dist.Poisson(x.new_tensor(2.0)))
            z = pyro.sample("z", dist.Normal(x.new_zeros(()), 1.0))
            pyro.sample("x", dist.Normal(z + count, 1.0), obs=x)

    def guide(x):
        with pyro.plate("data", len(x)):
            pyro.sample("count", dist.Poisson(x.new_tensor(2.0)))
            pyro.sample("z", dist.Normal(x / 2, 1.0))

    return model, guide


@pytest.mark.parametrize("estimator", **named([*MOVING, *PLACING]))
def test_a_discrete_latent_that_is_not_summed_out_is_refused_by_name(estimator):
    program, proposal = _with_a_discrete_latent()
    with pytest.raises(
        ProgramError, match=r"latent 'count' is discrete.*infer=\{'enumerate': 'parallel'\}"
    ):
        estimator(program, proposal, X)


@pytest.mark.parametrize("kind", **named([*ANNEALING, *SAMPLING]))
def test_a_discrete_latent_is_refused_from_the_prior_too(kind):
    program, _ = _with_a_discrete_latent()
    with pytest.raises(ProgramError, match="latent 'count' is discrete"):
        dataclasses.replace(SMALL[kind], start="prior")(program, None, X)


@pytest.mark.parametrize("kind", **named(STREAMING))
def test_estimators_that_only_weigh_take_a_discrete_latent(kind):
    program, proposal = _with_a_discrete_latent()
    assert SMALL[kind](program, proposal, X).log_evidence.isfinite().all()


def _through(step):
    def program(x):
        with pyro.plate("data", len(x)):
            good = pyro.sample("good", dist.Normal(x.new_zeros(()), 1.0))
            z = pyro.sample("z", dist.Normal(x.new_zeros(()), 1.0))
            pyro.sample("x", dist.Normal(good + 3 * step(z), 0.5), obs=x)

    def proposal(x):
        with pyro.plate("data", len(x)):
            pyro.sample("good", dist.Normal(x.new_zeros(()), 1.0))
            pyro.sample("z", dist.Normal(x / 4, 0.8))

    return program, proposal


STEPS = {
    "detached": lambda z: z.detach(),
    "rounded": torch.round,
    "detached numpy": lambda z: torch.as_tensor(z.detach().numpy()),
    "numpy": lambda z: torch.as_tensor(z.numpy()),
    "item by item": lambda z: z.new_tensor(z.tolist()),
}


def _refused(estimator, step):
    program, proposal = _through(STEPS[step])
    if isinstance(estimator, BDMC):  # the data given are scored, not ones that are simulated
        estimator = dataclasses.replace(estimator, posterior=proposal)
    # torch's own complaint knows no latent, but says what happened
    message = "no gradient with respect to its latents" if step == "numpy" else "latent 'z'"
    with pytest.raises(ProgramError, match=message):
        estimator(program, proposal, torch.linspace(-3, 3, 20, dtype=torch.float64))


@pytest.mark.parametrize("step", ["detached", "numpy"])
@pytest.mark.parametrize("estimator", **named(MOVING))
def test_a_model_that_detaches_its_latent_is_refused(estimator, step):
    _refused(estimator, step)


@pytest.mark.parametrize("step", ["rounded", "detached numpy", "item by item"])
def test_whatever_cuts_the_gradient_is_refused(step):
    _refused(SMALL[AIS], step)


@pytest.mark.parametrize("kind", **named([*STREAMING]))
@pytest.mark.parametrize("step", STEPS)
def test_estimators_that_only_weigh_need_no_gradient(kind, step):
    assert SMALL[kind](*_through(STEPS[step]), X).log_evidence.isfinite().all()


def test_a_support_without_a_bijection_is_refused_by_name():
    def program(x):
        with pyro.plate("data", len(x)):
            way = pyro.sample("way", dist.ProjectedNormal(torch.ones(3, dtype=x.dtype)))
            pyro.sample("x", dist.Normal(way[..., 0], 1.0), obs=x)

    for estimator in (*MOVING[:1], *PLACING[:1]):
        with pytest.raises(ProgramError, match=r"latent 'way' has the support .*no bijection"):
            estimator(program, program_guide, X)


def program_guide(x):
    with pyro.plate("data", len(x)):
        pyro.sample("way", dist.ProjectedNormal(torch.ones(3, dtype=x.dtype)))


@pytest.mark.parametrize("estimator", **named([*MOVING, *PLACING]))
def test_a_simplex_is_moved(estimator):
    alpha = torch.tensor([1.5, 2.0, 0.7], dtype=torch.float64)
    x = torch.tensor([[3.0, 2.0, 1.0], [0.0, 6.0, 0.0]], dtype=torch.float64)

    def program(x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Dirichlet(alpha))
            pyro.sample("x", dist.Multinomial(6, z), obs=x)

    def proposal(x):
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Dirichlet(alpha + x))

    if isinstance(estimator, BDMC):
        estimator = dataclasses.replace(estimator, posterior=proposal)
    found = estimator(program, proposal, x)
    for side in (found.lower, found.upper) if hasattr(found, "lower") else (found,):
        assert side.log_evidence.isfinite().all()
        assert side.log_evidence.shape == (2,)


def test_a_posterior_outside_the_models_support_is_refused():
    def program(x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Exponential(x.new_ones(())))
            pyro.sample("x", dist.Normal(z, 1.0), obs=x)

    def wrong(x):
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(-5.0 + 0 * x, 1.0))

    with pytest.raises(ValueError, match="posterior must draw inside the support of the model"):
        BDMC(**ANNEAL, start="prior", posterior=wrong)(program, None, X)


# --- little of everything ------------------------------------------------------------------------


@pytest.mark.parametrize("estimator", **named([*SMALL.values(), *PLACING]))
def test_one_datum_is_enough(estimator):
    found = estimator(model, guide, X[:1])
    for side in (found.lower, found.upper) if hasattr(found, "lower") else (found,):
        assert side.log_evidence.shape == (1,)
        assert side.log_evidence.isfinite().all()
        assert math.isnan(side.mean().data_stderr)
        assert "1 data" in repr(side)
    assert repr(found)


@pytest.mark.parametrize("kind", **named([AIS, BDMC, SMC]))
def test_one_chain_has_no_error_to_report(kind):
    found = dataclasses.replace(SMALL[kind], num_chains=1)(model, guide, X)
    for side in (found.lower, found.upper) if hasattr(found, "lower") else (found,):
        assert side.log_evidence.isfinite().all()
        assert side.stderr.isnan().all()
        assert not side.reliable.any()
        assert "k̂ unknown: it needs 21 weights, and these are 1" in repr(side)


@pytest.mark.parametrize("kind", **named(SAMPLING))
def test_one_chain_of_the_posterior_says_nothing_about_mixing(kind):
    found = dataclasses.replace(SMALL[kind], num_chains=1)(model, guide, X)
    assert found.log_evidence.isfinite().all()
    assert found.diagnostics["rhat"].isnan().all()


@pytest.mark.parametrize(
    "estimator",
    **named(
        [
            ImportanceSampling(num_samples=1),
            PriorMonteCarlo(num_samples=1),
            ChiUpperBound(num_samples=1),
            RefinedImportanceSampling(num_samples=1, num_steps=2),
            ImportanceSampling(num_samples=1, smooth=True),
            ImportanceSampling(num_samples=1, proposal=StudentT()),
        ]
    ),
)
def test_one_sample_has_no_error_to_report(estimator):
    found = estimator(model, guide, X)
    assert found.log_evidence.isfinite().all()
    assert found.stderr.isnan().all()
    assert not found.reliable.any()
    assert "k̂ unknown: it needs 21 weights, and these are 1" in repr(found)


def test_two_samples_of_two_strata_have_no_error_to_report():
    found = ImportanceSampling(num_samples=2, defensive=0.5)(model, guide, X)
    assert found.log_evidence.isfinite().all()
    assert found.stderr.isnan().all()


@pytest.mark.parametrize("kind", **named(ANNEALING))
def test_one_temperature_is_one_step(kind):
    small = dataclasses.replace(SMALL[kind], num_temperatures=1, pilot_temperatures=1)
    found = small(model, guide, X)
    assert getattr(found, "lower", found).log_evidence.isfinite().all()


def test_annealing_in_one_step_is_importance_sampling():
    """The same weights, of another seed's draws: a z-test between both."""
    one = AIS(num_chains=2000, num_temperatures=1, pilot_temperatures=1)(model, guide, X)
    two = ImportanceSampling(num_samples=2000)(model, guide, X)
    z = (one.log_evidence - two.log_evidence) / (one.stderr**2 + two.stderr**2).sqrt()
    assert z.abs().max() < 5
    torch.testing.assert_close(one.log_evidence, one.log_evidence.clone())
    assert ((one.elbo - two.elbo).abs() < 5 * (one.elbo_stderr + two.elbo_stderr)).all()


# --- estimates that must not be believed ---------------------------------------------------------


def _narrow(x):
    """A guide with a third of the posterior's width: its weights have no variance."""
    with pyro.plate("data", len(x)):
        pyro.sample("z", dist.Normal((x / 2)[:, None].expand(-1, 4), 0.2).to_event(1))


def _four_times(x):
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", dist.Normal(x.new_zeros(4), 1.0).to_event(1))
        pyro.sample("x", dist.Normal(z.sum(-1) / 2, 1.0), obs=x)


@pytest.mark.parametrize(
    "estimator",
    **named(
        [
            ImportanceSampling(num_samples=2000),
            ImportanceSampling(num_samples=2000, smooth=True),
            JackknifeImportanceSampling(num_samples=2000),
            ChiUpperBound(num_samples=2000),
        ]
    ),
)
def test_a_guide_with_too_light_tails_is_told_by_its_shape(estimator):
    x = torch.linspace(-2, 2, 8, dtype=torch.float64)
    found = estimator(_four_times, _narrow, x)
    assert khat_threshold(2000) <= 0.7
    assert (found.khat > 0.7).double().mean() > 0.7
    share = float((~found.reliable).double().mean())
    assert f"k̂ too high for {share:.0%}" in repr(found)
    assert found.mean().unreliable == share


@pytest.mark.parametrize(
    "estimator",
    **named(
        [
            ImportanceSampling(num_samples=2000, defensive=0.3),
            ImportanceSampling(num_samples=2000, proposal=StudentT(5.0, 5.0)),
            RefinedImportanceSampling(num_samples=2000, full_rank=True, df=10.0),
        ]
    ),
)
def test_what_covers_the_posterior_is_believed_again(estimator):
    x = torch.linspace(-2, 2, 8, dtype=torch.float64)
    found = estimator(_four_times, _narrow, x)
    assert found.reliable.all()
    assert "k̂" not in repr(found)
    exact = dist.Normal(0.0, math.sqrt(2)).log_prob(x)
    assert ((found.log_evidence - exact).abs() < 5 * found.stderr + 1e-6).all()


def test_the_harmonic_mean_says_that_it_is_unreliable():
    x = torch.linspace(-2, 2, 4, dtype=torch.float64)

    def sharp(x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(x.new_zeros(4), 1.0).to_event(1))
            pyro.sample("x", dist.Normal(z, 0.2).to_event(1), obs=x[:, None].expand(-1, 4))

    found = HarmonicMean(num_chains=8, num_draws=100, num_warmup=60, start="prior")(sharp, None, x)
    assert found.direction == "upper"
    assert (found.khat > 0.7).all()
    assert "k̂ too high for 100%" in repr(found)
