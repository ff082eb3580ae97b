"""Objectives: a bound on log p(x), a rule for its gradient, and a number of particles.

Which rule goes with which bound (u: unbiased for the mean of the K-particle bound, b: biased, as
the rule's docstring says; a pair that is not here is refused, with the reason):

======================  ====  ====  =====  =====  =====  ===  =========  ====
rule                    ELBO  IWAE  MIWAE  CIWAE  Renyi  TVO  Jackknife  CUBO
======================  ====  ====  =====  =====  =====  ===  =========  ====
Pathwise                u     u     u      u      u      u    u
StickingTheLanding      u     b     b      b      b
DoublyReparameterized   u     u     u      u      u
ScoreFunction           u     u     u      u      u      u    u
VIMCO                         u
WakeSleep                     u, b
Split                   u     u     u      u      u      u    u
SelfNormalized                                           b               b
StraightThrough         b     b     b      b      b      b    b
Relaxed                 b     b     b      b      b      b    b
======================  ====  ====  =====  =====  =====  ===  =========  ====

WakeSleep and Split are unbiased for the model, each for its bound; the wake update of the guide is
biased by O(1/K), the sleep update is not, and Split's guide is unbiased for its own bound, or
lowers CUBO as SelfNormalized does. Relaxed is unbiased for the bound at relaxed draws.
"""

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
from .penalised import Penalised, without_penalties

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
    "Penalised",
    "Renyi",
    "WarmUp",
    "bounds",
    "gradients",
    "without_penalties",
]
