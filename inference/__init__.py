"""Training and scoring of Pyro programs: per-datum weights, objectives, estimators of log p(x)."""

from .evidence import Estimate, ImportanceSampling, MeanEstimate, PriorMonteCarlo
from .programs import ProgramError
from .training import History, NonFiniteLoss, TrainingInterrupted, fit
from .weights import Simulation, Weights, log_joint, log_weights, simulate

__all__ = [
    "Estimate",
    "History",
    "ImportanceSampling",
    "MeanEstimate",
    "NonFiniteLoss",
    "PriorMonteCarlo",
    "ProgramError",
    "Simulation",
    "TrainingInterrupted",
    "Weights",
    "fit",
    "log_joint",
    "log_weights",
    "simulate",
]
