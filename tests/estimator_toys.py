"""Every estimator at its smallest, and a pair that any of them scores."""

from __future__ import annotations

import pyro
import pyro.distributions as dist
import torch

from pyrovae.inference import (
    HMC,
    AnnealedImportanceSampling,
    BidirectionalMonteCarlo,
    BridgeSampling,
    ChiUpperBound,
    EvidenceUpperBound,
    HarmonicMean,
    ImportanceSampling,
    JackknifeImportanceSampling,
    PriorMonteCarlo,
    RefinedImportanceSampling,
    Scaled,
    SequentialMonteCarlo,
    StudentT,
    ThermodynamicIntegration,
)

AIS, BDMC = AnnealedImportanceSampling, BidirectionalMonteCarlo
SMC, TI = SequentialMonteCarlo, ThermodynamicIntegration

ANNEALING = [AIS, BDMC, SMC, TI]
SAMPLING = [BridgeSampling, EvidenceUpperBound, HarmonicMean]
STREAMING = [ImportanceSampling, PriorMonteCarlo, JackknifeImportanceSampling, ChiUpperBound]
ALL = [*ANNEALING, *SAMPLING, *STREAMING, RefinedImportanceSampling]

ANNEAL = {"num_chains": 4, "num_temperatures": 5, "pilot_temperatures": 5, "kernel": HMC(2)}
CHAINS = {"num_chains": 4, "num_draws": 8, "num_warmup": 20, "kernel": HMC(2)}
SMALL = {
    **{kind: kind(**ANNEAL) for kind in ANNEALING},
    **{kind: kind(**CHAINS) for kind in SAMPLING},
    **{kind: kind(num_samples=20) for kind in STREAMING},
    RefinedImportanceSampling: RefinedImportanceSampling(num_samples=20, num_steps=5),
}
# those that take gradients along the latents
MOVING = [SMALL[kind] for kind in (*ANNEALING, *SAMPLING, RefinedImportanceSampling)]
PLACING = [  # and those that need their coordinates alone
    ImportanceSampling(num_samples=20, defensive=0.5),
    ImportanceSampling(num_samples=20, proposal=Scaled(1.5)),
    ImportanceSampling(num_samples=20, proposal=StudentT(5.0)),
]


def named(estimators):
    return {
        "argvalues": estimators,
        "ids": [getattr(e, "__name__", type(e).__name__) for e in estimators],
    }


def model(x):
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", dist.Normal(x.new_zeros(()), 1.0))
        pyro.sample("x", dist.Normal(z, 1.0), obs=x)


def guide(x):
    with pyro.plate("data", len(x)):
        pyro.sample("z", dist.Normal(x / 2, 0.8))


X = torch.linspace(-2, 2, 3, dtype=torch.float64)
