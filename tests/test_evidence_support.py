"""Guides that cover more than the prior's support, and what a refused call leaves behind."""

from __future__ import annotations

import dataclasses

import numpy as np
import oracles
import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import nn

from pyrovae.inference import (
    AnnealedImportanceSampling,
    ImportanceSampling,
    ProgramError,
    SequentialMonteCarlo,
    ThermodynamicIntegration,
    compare_evidence,
)

X = torch.tensor([0.0, 0.5, 1.0, 0.2], dtype=torch.float64)


def half_normal(x):
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", dist.HalfNormal(x.new_tensor(1.0)))
        pyro.sample("x", dist.Normal(z, 1.0), obs=x)


def whole_line(x):
    """Half of its draws, or a little less, lie where the prior is zero."""
    with pyro.plate("data", len(x)):
        pyro.sample("z", dist.Normal(0.5 * x, x.new_tensor(0.7)))


@pytest.mark.parametrize(
    "estimator",
    [
        ImportanceSampling(5000),
        AnnealedImportanceSampling(256, 30),
        SequentialMonteCarlo(256, 30),
        ThermodynamicIntegration(256, 30),
    ],
    ids=lambda estimator: type(estimator).__name__,
)
def test_a_guide_on_the_whole_line_scores_a_latent_on_half_of_it(estimator):
    exact = [
        oracles.integrate(
            lambda z, x=x: np.where(
                z >= 0,
                np.log(2) + oracles.normal_logpdf(z) + oracles.normal_logpdf(x, z, 1.0),
                -np.inf,
            ),
            points=200_001,
        )
        for x in X.numpy()
    ]
    found = estimator(half_normal, whole_line, X)
    error = (found.log_evidence - torch.as_tensor(exact)).abs()
    assert (error < 5 * found.stderr + 1e-3).all()
    assert (found.stderr < 0.3).all()


def test_estimates_of_other_data_are_not_compared():
    first = ImportanceSampling(50)(half_normal, whole_line, X)
    other = ImportanceSampling(50)(half_normal, whole_line, X + 1)
    with pytest.raises(ValueError, match="estimates must be of the same data, but are not"):
        compare_evidence(first, other)
    assert compare_evidence(first, dataclasses.replace(first)).best_lower


def test_estimates_that_do_not_know_their_error_are_not_told_apart_by_chance():
    one, two = (ImportanceSampling(1, seed=s)(half_normal, whole_line, X.abs() + 1) for s in (0, 1))
    off = compare_evidence(one=one, two=two).difference("one", "two")
    assert off.stderr != 0


def test_a_refused_layer_has_its_statistics_back():
    net = nn.Sequential(nn.Linear(1, 4), nn.BatchNorm1d(4), nn.Linear(4, 2)).double()

    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.net = net

        def model(self, x):
            with pyro.plate("data", len(x)):
                z = pyro.sample("z", dist.Normal(x.new_zeros(1), 1.0).to_event(1))
                pyro.sample("x", dist.Normal(self.net(z), 1.0).to_event(1), obs=x)

    module = Model()
    before = {name: value.clone() for name, value in net.named_buffers()}

    def guide(x):
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(x[:, :1], 1.0).to_event(1))

    with pytest.raises(ProgramError, match="eval"):
        ImportanceSampling(10)(module.model, guide, torch.randn(6, 2, dtype=torch.float64))
    for name, value in net.named_buffers():
        assert torch.equal(value, before[name])
