"""A guide that knows one of two modes: the chains must not agree on it."""

import pyro
import pytest
import torch
from pyro import distributions as dist

from pyrovae.inference import (
    BridgeSampling,
    EvidenceUpperBound,
    ImportanceSampling,
    compare_evidence,
)

X = torch.tensor([[1.0], [2.0]])


def model(x):
    """x = z² and a little noise: modes at ±√x."""
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", dist.Normal(torch.zeros(len(x), 1), 1.0).to_event(1))
        pyro.sample("x", dist.Normal(z.square(), 0.05).to_event(1), obs=x)


def one_sided(x):
    with pyro.plate("data", len(x)):
        pyro.sample("z", dist.Normal(x.sqrt(), 0.1).to_event(1))


@pytest.mark.parametrize("estimator", [BridgeSampling, EvidenceUpperBound])
def test_chains_find_what_the_guide_does_not_know(estimator):
    found = estimator(num_draws=100)(model, one_sided, X)
    assert not found.reliable.any()
    assert "R̂ too high for 100%" in found.warnings()


def test_the_verdict_trusts_no_such_chains():
    """Importance sampling from one mode is log 2 too low, with fine weights; no row denies it."""
    compared = compare_evidence(
        bridge=BridgeSampling(num_draws=100)(model, one_sided, X),
        sampling=ImportanceSampling(500)(model, one_sided, X),
    )
    assert any("R̂ is above 1.05 for 100%" in line for line in compared.verdict())


def test_estimators_work_in_inference_mode():
    with torch.inference_mode():
        inside = BridgeSampling(num_draws=20)(model, one_sided, X.clone())
    outside = BridgeSampling(num_draws=20)(model, one_sided, X)
    assert torch.equal(inside.log_evidence, outside.log_evidence)
