r"""Priors p(z): modules whose call returns a distribution over codes, event shape ``(Z,)``.

The prior decides what the rate of a code costs, :math:`\mathrm{KL}(q(z \mid x) \| p(z))`. The
best one for a given encoder is the aggregate posterior :math:`\frac1N \sum_n q(z \mid x_n)`;
mixtures and the VampPrior move towards it.
"""

from .codes import AutoregressivePrior, UniformCodes
from .flow import FlowPrior
from .independent import Laplace, LearnedNormal, StudentT
from .mixture import GaussianMixture
from .resampled import ResampledPrior
from .sphere import UniformSphere
from .standard import StandardNormal
from .vamp import ExemplarPrior, VampPrior

__all__ = [
    "AutoregressivePrior",
    "ExemplarPrior",
    "FlowPrior",
    "GaussianMixture",
    "Laplace",
    "LearnedNormal",
    "ResampledPrior",
    "StandardNormal",
    "StudentT",
    "UniformCodes",
    "UniformSphere",
    "VampPrior",
]
