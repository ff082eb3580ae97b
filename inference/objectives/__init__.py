"""Objectives: a bound on log p(x), a rule for its gradient, and a number of particles."""

from . import bounds, gradients
from .kl import KL, FreeBits, WarmUp
from .named import (
    CHIVI,
    CIWAE,
    ELBO,
    IWAE,
    JVI,
    MIWAE,
    NVIL,
    PIWAE,
    REINFORCE,
    RWS,
    STL,
    TVO,
    VIMCO,
    BetaVAE,
    DReG,
    Renyi,
)
from .objective import MonteCarloObjective

__all__ = [
    "CHIVI",
    "CIWAE",
    "ELBO",
    "IWAE",
    "JVI",
    "KL",
    "MIWAE",
    "NVIL",
    "PIWAE",
    "REINFORCE",
    "RWS",
    "STL",
    "TVO",
    "VIMCO",
    "BetaVAE",
    "DReG",
    "FreeBits",
    "MonteCarloObjective",
    "Renyi",
    "WarmUp",
    "bounds",
    "gradients",
]
