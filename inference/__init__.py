"""Training and scoring of Pyro programs: per-datum weights, objectives, estimators of log p(x)."""

from .programs import ProgramError
from .weights import Simulation, Weights, log_joint, log_weights, simulate

__all__ = ["ProgramError", "Simulation", "Weights", "log_joint", "log_weights", "simulate"]
