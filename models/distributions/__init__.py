"""Distributions that torch and Pyro lack, or have in a slower or less exact form."""

from .categorical import FloatCategorical
from .counts import BetaBinomialByMean, GammaPoisson, ZeroInflated
from .discretized_logistic import RoundedLogistic
from .independent import BernoulliVector, NormalVector
from .mixtures import DiagonalNormalMixture
from .student import StableStudentT
from .tilted import TiltedUniform
from .von_mises_fisher import SphereUniform, VonMisesFisher

__all__ = [
    "BernoulliVector",
    "BetaBinomialByMean",
    "DiagonalNormalMixture",
    "FloatCategorical",
    "GammaPoisson",
    "NormalVector",
    "RoundedLogistic",
    "SphereUniform",
    "StableStudentT",
    "TiltedUniform",
    "VonMisesFisher",
    "ZeroInflated",
]
