r"""Proposals made of the moments of draws: normal and Student's t, in unconstrained coordinates.

.. math:: q(u) = \mathrm{St}_\nu(u \mid m, s^2 \Sigma), \quad u = T^{-1}(z),

with the mean m and the covariance Σ of the guide's draws for each datum, a factor s that widens it,
and ν degrees of freedom (ν = ∞ is the normal). A proposal whose tails are heavier than the
posterior's has weights that are bounded where the guide's are not.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from ..programs import check_number
from ..target import Target

_LEAST_DRAWS = 200


@dataclass(frozen=True)
class Scaled:
    """A normal proposal with the guide's mean, and its covariance times a factor's square.

    Args:
        factor: s; larger than 1 covers more than the guide does.

    Example:
        >>> from pyrovae.inference import ImportanceSampling
        >>> ImportanceSampling(num_samples=100, proposal=Scaled(1.5)).proposal
        Scaled(factor=1.5)
    """

    factor: float = 1.0

    def __post_init__(self) -> None:
        check_number("factor", self.factor, 0, strict=True)

    def build(self, target: Target) -> Local:
        return fit(draws_of_guide(target)).widened(self.factor)


@dataclass(frozen=True)
class StudentT:
    """A multivariate Student's t proposal about the guide's mean, with its scatter.

    Args:
        df: degrees of freedom ν; with ν ≤ 2 the proposal itself has no variance.
        factor: s, as in :class:`Scaled`.

    Example:
        >>> StudentT(df=5)
        StudentT(df=5, factor=1.0)
    """

    df: float = 5.0
    factor: float = 1.0

    def __post_init__(self) -> None:
        check_number("df", self.df, 0, strict=True)
        check_number("factor", self.factor, 0, strict=True)

    def build(self, target: Target) -> Local:
        return fit(draws_of_guide(target)).widened(self.factor).with_tails(self.df)


Proposal = Scaled | StudentT


def draws_of_guide(target: Target) -> Tensor:
    """Draws enough for a covariance matrix, ``(C, N, D)``."""
    return target.draw("guide", max(_LEAST_DRAWS, 20 * target.dim))


@dataclass(frozen=True)
class Local:
    """A normal, or Student's t, for each datum.

    Attributes:
        loc: ``(N, D)``.
        scale_tril: Cholesky factors of the scatter, ``(N, D, D)``.
        df: degrees of freedom; infinite for the normal.
    """

    loc: Tensor
    scale_tril: Tensor
    df: float = math.inf

    def widened(self, factor: float) -> Local:
        """The same, its scatter times ``factor`` squared."""
        return Local(self.loc, factor * self.scale_tril, self.df)

    def with_tails(self, df: float) -> Local:
        """The same, with the tails of Student's t."""
        return Local(self.loc, self.scale_tril, df)

    def draw(self, count: int) -> Tensor:
        """Draws, ``(C, N, D)``."""
        noise = torch.randn(count, *self.loc.shape, dtype=self.loc.dtype, device=self.loc.device)
        if math.isfinite(self.df):
            chi2 = torch.distributions.Chi2(self.loc.new_tensor(self.df))
            noise = noise * (self.df / chi2.sample((count, len(self.loc), 1))).sqrt()
        return self.loc + torch.einsum("nij,cnj->cni", self.scale_tril, noise)

    def log_density(self, u: Tensor) -> Tensor:
        """``(C, N)`` in float64."""
        dim = u.shape[-1]
        factor, off = self.scale_tril.double(), (u - self.loc).double()
        # one triangular system per datum, its chains side by side
        white = torch.linalg.solve_triangular(factor, off.permute(1, 2, 0), upper=False)
        square = white.square().sum(1).T
        log_det = factor.diagonal(dim1=-2, dim2=-1).log().sum(-1)
        if math.isinf(self.df):
            return -0.5 * square - 0.5 * dim * math.log(2 * math.pi) - log_det
        df = self.df
        constant = math.lgamma((df + dim) / 2) - math.lgamma(df / 2)
        constant -= 0.5 * dim * math.log(df * math.pi)
        return constant - log_det - 0.5 * (df + dim) * torch.log1p(square / df)


def fit(u: Tensor) -> Local:
    """Mean and covariance of draws ``(C, N, D)``; those that are not finite are left out."""
    usable = u.isfinite().all(-1, keepdim=True)
    count = usable.sum(0).clamp(min=1).double()
    clean = torch.where(usable, u, torch.zeros_like(u)).double()
    loc = clean.sum(0) / count
    off = torch.where(usable, clean - loc, torch.zeros_like(clean))
    covariance = torch.einsum("cni,cnj->nij", off, off) / (count[..., None] - 1).clamp(min=1)
    return Local(loc.to(u.dtype), cholesky(covariance).to(u.dtype))


def cholesky(covariance: Tensor) -> Tensor:
    """Factors of covariance matrices, which a little of their diagonal makes definite."""
    diagonal = covariance.diagonal(dim1=-2, dim2=-1).clamp(min=1e-12)
    found = torch.diag_embed(diagonal.sqrt())
    for share in (1e-3, 1e-6, 1e-9):  # the least that will do, for each datum by itself
        factor, info = torch.linalg.cholesky_ex(covariance + torch.diag_embed(share * diagonal))
        found = torch.where((info == 0)[..., None, None], factor, found)
    return found
