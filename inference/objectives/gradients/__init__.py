"""Gradient rules: how the gradient of a bound is estimated. One file for each idea."""

from .baselines import Baseline, LeaveOneOut, MovingAverage, NetworkBaseline, NoBaseline
from .gradient import Gradient
from .pathwise import DoublyReparameterized, Pathwise, StickingTheLanding
from .relaxation import Relaxed, StraightThrough
from .score import VIMCO, ScoreFunction
from .self_normalized import SelfNormalized
from .split import Split
from .wake_sleep import WakeSleep

__all__ = [
    "VIMCO",
    "Baseline",
    "DoublyReparameterized",
    "Gradient",
    "LeaveOneOut",
    "MovingAverage",
    "NetworkBaseline",
    "NoBaseline",
    "Pathwise",
    "Relaxed",
    "ScoreFunction",
    "SelfNormalized",
    "Split",
    "StickingTheLanding",
    "StraightThrough",
    "WakeSleep",
]
