"""Training of program pairs: :func:`fit`, what it records, and how it may stop."""

from .collapse import PosteriorCollapse
from .diagnosis import NonFiniteLoss
from .fitting import fit
from .history import History
from .interrupt import TrainingInterrupted

__all__ = ["History", "NonFiniteLoss", "PosteriorCollapse", "TrainingInterrupted", "fit"]
