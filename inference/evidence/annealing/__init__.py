"""Estimators that lead chains from a start to the joint, and what they are made of."""

from .bidirectional import BidirectionalMonteCarlo, Sandwich
from .importance import AnnealedImportanceSampling
from .schedules import EqualLength, Linear, Schedule, Sigmoid
from .sequential import SequentialMonteCarlo
from .thermodynamic import ThermodynamicIntegration

__all__ = [
    "AnnealedImportanceSampling",
    "BidirectionalMonteCarlo",
    "EqualLength",
    "Linear",
    "Sandwich",
    "Schedule",
    "SequentialMonteCarlo",
    "Sigmoid",
    "ThermodynamicIntegration",
]
