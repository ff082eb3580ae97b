r"""Importance sampling from a proposal that was fitted to each datum by itself.

An amortised guide gives every datum what it can give all of them. Here each datum gets a normal of
its own, in unconstrained space,

.. math:: q_n(u) = N(u \mid m_n, L_n L_n^\top), \quad
          (m_n, L_n) = \arg\max \, \mathbb{E}_{q_n} [\log p(x_n, u) - \log q_n(u)],

begun at the guide's moments. Draws that it was not fitted on then score it, so that the estimate is
low in expectation like any importance sampling. What the local ELBO gains on the guide's is the
amortisation gap, what log p(x) has beyond it the approximation gap.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from ..paths import Path
from ..programs import check_count, check_number
from ..target import Target
from .accumulator import WeightSums
from .annealing.importance import summed
from .moving import chain_tiles
from .parts import Scores, Tile
from .proposals import Local, draws_of_guide, fit
from .scoring import Estimator
from .tiles import Tiles

_AVERAGED = 0.25  # the last share of the steps, whose parameters are averaged
_TRIAL = 64  # draws by which the fitted proposal is held against the guide's moments
_CLIP = 10.0  # of a gradient, in standard deviations of the proposal, per root of D


@dataclass(frozen=True)
class RefinedImportanceSampling(Estimator):
    r"""log p(x) by importance sampling from a proposal fitted to each datum: low in expectation.

    The ``elbo`` of the estimate is the local one; ``guide_elbo`` and its error stand in the
    diagnostics, for :func:`~pyrovae.inference.information.inference_gaps`.

    Args:
        num_samples: K, fresh draws that score the proposal.
        num_steps: of Adam on its parameters.
        num_particles: draws of each step.
        full_rank: fit a covariance matrix, not only its diagonal.
        learning_rate: of Adam, in standard deviations of the guide; falls to a tenth by the end.
        df: degrees of freedom; where finite, the fitted normal is given Student's t tails.
        seed: see :class:`Estimator` for this and the further settings.

    References:
        Cremer, Li and Duvenaud, *Inference suboptimality in variational autoencoders*, 2018. Kim,
        Wiseman, Miller, Sontag and Rush, *Semi-amortized variational autoencoders*, 2018. Roeder,
        Wu and Duvenaud, *Sticking the landing*, 2017 (the gradient).

    Example:
        >>> from pyrovae.models import LinearGaussianVAE
        >>> _ = torch.manual_seed(0)
        >>> linear = LinearGaussianVAE(data_dim=10, latent_dim=3)
        >>> x = linear.sample(4)
        >>> refined = RefinedImportanceSampling(num_samples=500, num_steps=200, full_rank=True)
        >>> estimate = refined(linear.model, linear.guide, x)
        >>> bool((estimate.elbo > estimate.diagnostics["guide_elbo"]).all())
        True
    """

    num_samples: int = 5000
    num_steps: int = 500
    num_particles: int = 8
    full_rank: bool = False
    learning_rate: float = 0.1
    df: float = math.inf

    direction = "lower"

    def _check(self) -> None:
        for name in ("num_samples", "num_steps", "num_particles"):
            check_count(name, getattr(self, name))
        if not isinstance(self.full_rank, bool):
            raise TypeError(f"full_rank must be True or False, but is {self.full_rank!r}")
        check_number("learning_rate", self.learning_rate, 0, strict=True)
        if self.df != math.inf:
            check_number("df", self.df, 0, strict=True)

    def _sizes(self, few: Tile, size: int) -> Tiles:
        tiles = chain_tiles(few, self.num_particles, size, self.memory)
        return replace(tiles, particles=min(tiles.particles, self.num_samples))

    def _score(self, tile: Tile) -> Scores:
        target = Target(tile.model, tile.guide, tile.args, tile.plan)
        path = Path(target, "guide")
        guide_elbo = summed(_log_weight(path, *path.draw(_TRIAL)))
        begun = fit(draws_of_guide(target))
        if not self.full_rank:
            begun = Local(begun.loc, torch.diag_embed(_spread(begun)))
        fitted = self._fit(target, begun, tile)
        local = self._better(target, fitted, begun)
        sums, done = WeightSums(self.num_samples), 0
        path = Path(target, local, tile.replays)
        for count in tile.sizes.particle_counts(self.num_samples):
            sums.add(_log_weight(path, *path.draw(count)))
            done += count
            tile.advance(0.5 + 0.5 * done / self.num_samples)
        fields = {
            name: getattr(sums, name)()
            for name in ("log_evidence", "stderr", "ess", "elbo", "elbo_stderr")
        }
        fields |= {"guide_elbo": guide_elbo.elbo(), "guide_elbo_stderr": guide_elbo.elbo_stderr()}
        return Scores(fields, target.num_evaluations, target.num_gradients, sums.largest())

    def _fit(self, target: Target, begun: Local, tile: Tile) -> Local:
        """Follow the gradient of the local ELBO; coordinates are those in which ``begun`` is
        standard normal: u = loc + scale_tril (m + L ε)."""
        size, dim = begun.loc.shape
        mean = torch.zeros_like(begun.loc)
        # log of the diagonal of L, and what stands below it
        log_diagonal, below = torch.zeros_like(mean), torch.zeros_like(begun.scale_tril)
        parameters = [mean, log_diagonal, *([below] if self.full_rank else [])]
        for parameter in parameters:
            parameter.requires_grad_()
        optimizer = torch.optim.Adam(parameters, lr=self.learning_rate)
        decay = torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.1 ** (1 / self.num_steps))
        averaged = [torch.zeros_like(parameter) for parameter in parameters]
        path = Path(target, begun, tile.replays)
        last = max(int(_AVERAGED * self.num_steps), 1)
        lower = torch.ones_like(below).tril(-1)
        for step in range(self.num_steps):
            noise = torch.randn(self.num_particles, size, dim, dtype=mean.dtype, device=mean.device)
            factor = below.detach() * lower + torch.diag_embed(log_diagonal.detach().exp())
            white = mean.detach() + torch.einsum("nij,cnj->cni", factor, noise)
            u = begun.loc + torch.einsum("nij,cnj->cni", begun.scale_tril, white)
            slope = path.slope_of_joint(u)
            slope = torch.einsum("nji,cnj->cni", begun.scale_tril, slope)
            # with the path derivative alone the gradient has no noise where q is the posterior
            back = torch.linalg.solve_triangular(
                factor.mT, noise.permute(1, 2, 0), upper=True
            ).permute(2, 0, 1)
            ascent = _clipped((slope + back).nan_to_num(0.0, 0.0, 0.0))
            outer = torch.einsum("cni,cnj->nij", ascent, noise) / self.num_particles
            mean.grad = -ascent.mean(0)
            log_diagonal.grad = -outer.diagonal(dim1=-2, dim2=-1) * log_diagonal.detach().exp()
            if self.full_rank:
                below.grad = -outer * lower
            optimizer.step()
            decay.step()
            if step >= self.num_steps - last:
                for total, parameter in zip(averaged, parameters, strict=True):
                    total += parameter.detach() / last
            tile.advance(0.5 * (step + 1) / self.num_steps)
        if not self.full_rank:
            averaged.append(torch.zeros_like(below))
        mean, log_diagonal, below = averaged
        factor = below * lower + torch.diag_embed(log_diagonal.exp())
        loc = begun.loc + torch.einsum("nij,nj->ni", begun.scale_tril, mean)
        return Local(loc, begun.scale_tril @ factor, self.df)

    def _better(self, target: Target, fitted: Local, begun: Local) -> Local:
        """The fitted proposal, but for data where that went wrong: there the guide's moments."""
        paths = (Path(target, q) for q in (fitted, begun.with_tails(self.df)))
        ours, theirs = (_log_weight(path, *path.draw(_TRIAL)).mean(0) for path in paths)
        keep = ours.isfinite() & ~(ours < theirs)
        return Local(
            torch.where(keep[:, None], fitted.loc, begun.loc),
            torch.where(keep[:, None, None], fitted.scale_tril, begun.scale_tril),
            self.df,
        )


def _log_weight(path: Path, u: Tensor, outside: Tensor) -> Tensor:
    """Log-weights of draws of a path's start; zero weight off the support."""
    own = "guide" if isinstance(path.start, str) else "start"
    found = path.log_densities(u, "joint", own)
    log_weight = found["joint"] - found[own]
    return log_weight.masked_fill(outside | log_weight.isnan(), -torch.inf)


def _spread(local: Local) -> Tensor:
    """Standard deviations of the coordinates, ``(N, D)``."""
    return local.scale_tril.square().sum(-1).sqrt()


def _clipped(slope: Tensor) -> Tensor:
    """Gradients of single draws, none of them longer than ten standard deviations per root of D."""
    longest = _CLIP * math.sqrt(max(slope.shape[-1], 1))
    length = slope.norm(dim=-1, keepdim=True)
    return slope * (longest / length.clamp(min=longest))
