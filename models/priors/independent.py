r"""Priors of independent entries whose scales, and centres, may be learned.

.. math:: p(z) = \prod_j \frac{1}{s_j} f\Bigl(\frac{z_j - m_j}{s_j}\Bigr),

with f normal, Laplace (a sharper peak) or Student's t (heavier tails).
"""

from __future__ import annotations

import math

import pyro.distributions as dist
import torch
from pyro.distributions.torch_distribution import TorchDistributionMixin
from torch import Tensor, nn

from ..checks import check_counts
from ..distributions import NormalVector, StableStudentT
from ..distributions.independent import Vector


class _Located(nn.Module):
    """A centre and a scale for each entry, which are parameters where they are learned."""

    loc: Tensor
    log_scale: Tensor

    def __init__(self, latent_dim: int, learned: bool) -> None:
        super().__init__()
        check_counts(latent_dim=latent_dim)
        self.latent_dim, self.learned = latent_dim, learned
        for name in ("loc", "log_scale"):
            zeros = torch.zeros(latent_dim)
            if learned:
                self.register_parameter(name, nn.Parameter(zeros))
            else:
                self.register_buffer(name, zeros, persistent=False)


class LearnedNormal(_Located):
    """N(m, diag s²) with m and s learned.

    Example:
        >>> LearnedNormal(3)().event_shape
        torch.Size([3])
    """

    def __init__(self, latent_dim: int) -> None:
        super().__init__(latent_dim, learned=True)

    def forward(self) -> TorchDistributionMixin:
        return NormalVector(dist.Normal(self.loc, self.log_scale.exp()), 1)


class Laplace(_Located):
    """Independent Laplace entries, of centre 0 and scale 1 or learned.

    Example:
        >>> Laplace(3)().log_prob(torch.zeros(3)).exp().round(decimals=3)
        tensor(0.1250)
    """

    def __init__(self, latent_dim: int, learned: bool = False) -> None:
        super().__init__(latent_dim, learned)

    def forward(self) -> TorchDistributionMixin:
        return Vector(dist.Laplace(self.loc, self.log_scale.exp()), 1)


class StudentT(_Located):
    """Independent entries of Student's t, of centre 0 and scale 1 or learned.

    Args:
        latent_dim: Z.
        df: degrees of freedom, positive and finite.
        learned: whether centres and scales are learned.

    Example:
        >>> StudentT(3, df=4.0)().event_shape
        torch.Size([3])
    """

    def __init__(self, latent_dim: int, df: float = 5.0, learned: bool = False) -> None:
        super().__init__(latent_dim, learned)
        if not 0 < df < math.inf:
            raise ValueError(f"df must be positive and finite, but is {df}")
        self.df = df

    def forward(self) -> TorchDistributionMixin:
        df = self.loc.new_tensor(self.df)
        return Vector(StableStudentT(df, self.loc, self.log_scale.exp()), 1)
