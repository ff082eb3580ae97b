"""Programs traced once and compiled: what a step does, without asking Python again.

A program pair and its objective are run once on a batch; the operations, those of the gradient
among them, are recorded as a graph, which is compiled and replayed on batches of the same form. The
random numbers are those that an eager run would draw.
"""

from .backends import CAPTURING
from .gain import Gain, NoGain
from .gradients import CompiledGradients
from .replayed import Doubtful, Replays
from .told import NotCompiled, tell

__all__ = [
    "CAPTURING",
    "CompiledGradients",
    "Doubtful",
    "Gain",
    "NoGain",
    "NotCompiled",
    "Replays",
    "tell",
]
