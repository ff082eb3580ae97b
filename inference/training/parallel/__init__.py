"""One model trained by several processes, each of which takes a part of every batch."""

from .processes import Processes
from .together import Together

__all__ = ["Processes", "Together"]
