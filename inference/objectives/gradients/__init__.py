"""Gradient rules: how the gradient of a bound is estimated. One file for each idea."""

from .baselines import Baseline, LeaveOneOut, MovingAverage, NetworkBaseline, NoBaseline
from .covariance import Covariance
from .gradient import Gradient
from .pathwise import DoublyReparameterized, Pathwise, StickingTheLanding
from .relaxation import Relaxed, StraightThrough
from .score import VIMCO, ScoreFunction
from .split import Split
from .wake_sleep import WakeSleep

__all__ = [
    "VIMCO",
    "Baseline",
    "Covariance",
    "DoublyReparameterized",
    "Gradient",
    "LeaveOneOut",
    "MovingAverage",
    "NetworkBaseline",
    "NoBaseline",
    "Pathwise",
    "Relaxed",
    "ScoreFunction",
    "Split",
    "StickingTheLanding",
    "StraightThrough",
    "WakeSleep",
]
