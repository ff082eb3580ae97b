r"""Posteriors q(z | x): modules whose call returns a distribution over codes, event shape ``(Z,)``.

Amortised ones hold an encoder that maps x to the distribution's parameters; :class:`PerDatum` holds
the parameters of each datum instead, and so has no amortisation gap. :class:`BackwardPosterior`, of
a sequence, returns one distribution for each step.
"""

from .flow import FlowPosterior
from .mixture import MixturePosterior
from .normal import DiagonalNormal, FullRankNormal, LowRankNormal
from .per_datum import PerDatum
from .semi_amortised import SemiAmortised
from .sequential import BackwardPosterior
from .sphere import VonMisesFisherPosterior

__all__ = [
    "BackwardPosterior",
    "DiagonalNormal",
    "FlowPosterior",
    "FullRankNormal",
    "LowRankNormal",
    "MixturePosterior",
    "PerDatum",
    "SemiAmortised",
    "VonMisesFisherPosterior",
]
