"""Estimators of log p(x), each called ``(model, guide, x, *context)`` and returning an Estimate."""

from .annealing import (
    AnnealedImportanceSampling,
    BidirectionalMonteCarlo,
    EqualLength,
    Linear,
    Sandwich,
    SequentialMonteCarlo,
    Sigmoid,
    ThermodynamicIntegration,
)
from .bridge import BridgeSampling
from .comparison import EvidenceComparison, compare_evidence
from .draws import PosteriorDraws, PosteriorSampling
from .estimate import Estimate, MeanEstimate, khat_threshold
from .importance import ImportanceSampling, PriorMonteCarlo
from .jackknife import JackknifeImportanceSampling
from .proposals import Scaled, StudentT
from .refined import RefinedImportanceSampling
from .upper import ChiUpperBound, EvidenceUpperBound, HarmonicMean

__all__ = [
    "AnnealedImportanceSampling",
    "BidirectionalMonteCarlo",
    "BridgeSampling",
    "ChiUpperBound",
    "EqualLength",
    "Estimate",
    "EvidenceComparison",
    "EvidenceUpperBound",
    "HarmonicMean",
    "ImportanceSampling",
    "JackknifeImportanceSampling",
    "Linear",
    "MeanEstimate",
    "PosteriorDraws",
    "PosteriorSampling",
    "PriorMonteCarlo",
    "RefinedImportanceSampling",
    "Sandwich",
    "Scaled",
    "SequentialMonteCarlo",
    "Sigmoid",
    "StudentT",
    "ThermodynamicIntegration",
    "compare_evidence",
    "khat_threshold",
]
