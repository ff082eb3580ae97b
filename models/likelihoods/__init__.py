r"""Likelihoods p(x | z): modules whose call returns a distribution over data.

Each holds the decoder that maps z to the distribution's parameters, and the number of trailing
dimensions that make up one datum: 0 for single numbers, 1 for vectors, 3 for images ``(C, H, W)``.

============================  ================================================================
data                          likelihood
============================  ================================================================
real                          Gaussian, StudentT
in [0, 1]                     ContinuousBernoulli
levels k / (L - 1)            DiscretizedLogistic, DiscretizedLogisticMixture
0 or 1                        Bernoulli
0 ... C - 1                   Categorical
0 ... n, counts out of n      BetaBinomial
0, 1, 2, ..., counts          NegativeBinomial, ZeroInflatedNegativeBinomial
============================  ================================================================
"""

from .bernoulli import Bernoulli, ContinuousBernoulli
from .categorical import Categorical
from .counts import BetaBinomial, NegativeBinomial, ZeroInflatedNegativeBinomial
from .gaussian import Gaussian, LearnedScale
from .logistic import DiscretizedLogistic, DiscretizedLogisticMixture
from .student import LearnedDegrees, StudentT

__all__ = [
    "Bernoulli",
    "BetaBinomial",
    "Categorical",
    "ContinuousBernoulli",
    "DiscretizedLogistic",
    "DiscretizedLogisticMixture",
    "Gaussian",
    "LearnedDegrees",
    "LearnedScale",
    "NegativeBinomial",
    "StudentT",
    "ZeroInflatedNegativeBinomial",
]
