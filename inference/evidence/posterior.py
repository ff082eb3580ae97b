r"""Draws of the posterior p(z | x) for every datum, by chains of all data at once.

Chains begin at draws of the start and, half of them, of the prior; they are annealed to the
posterior, and adapt: the step size of each datum to the acceptance wanted, the scale of each
coordinate to its standard deviation over the chains. Then both are frozen and the draws begin. R̂
and effective sample sizes are ArviZ's. Chains that all came from a guide would agree on the mode
that it knows; those from the prior may find another, and R̂ shows it.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable
from dataclasses import dataclass, field

import arviz as az
import numpy as np
import torch
from torch import Tensor

from ..kernels import Kernel
from ..paths import Path
from ..programs import check_count
from .annealing.anneal import Chains
from .annealing.pilot import Adapting
from .annealing.schedules import Sigmoid
from .journal import Keeper
from .moving import Moving
from .parts import Tile

_LEAST_MOVES = 20


@dataclass(frozen=True)
class Sampling(Moving):
    """Settings of estimators that need draws of the posterior.

    Args:
        num_chains: C, chains for each datum.
        num_draws: S, draws of each chain that are used.
        num_warmup: moves of each chain before them: annealing, then adaptation.
        start: where chains begin, and what the joint is compared to; see
            :class:`~pyrovae.inference.evidence.moving.Moving`, for this and the kernel.
    """

    num_draws: int = 200
    num_warmup: int = 200

    def _check(self) -> None:
        super()._check()
        for name in ("num_draws", "num_warmup"):
            check_count(name, getattr(self, name))
        if self.num_warmup < _LEAST_MOVES:
            raise ValueError(
                f"num_warmup must be at least {_LEAST_MOVES}, to adapt in, but is {self.num_warmup}"
            )
        if self.num_draws < 4:  # ArviZ knows no effective sample size of fewer
            raise ValueError(f"num_draws must be at least 4, but is {self.num_draws}")

    @property
    def num_samples(self) -> int:
        return self.num_chains * self.num_draws

    def _draw(self, tile: Tile) -> tuple[Path, dict[str, Tensor]]:
        """The path of a tile, and what :meth:`PosteriorChains.run` gives along it."""
        path = self._path(tile)
        chains = PosteriorChains(
            path,
            self.kernel,
            self.num_chains,
            self.num_warmup,
            self.num_draws,
            tile.keeper,
            tile.advance,
        )
        return path, chains.run()

    def _log_prior(self, path: Path, drawn: dict[str, Tensor]) -> Tensor:
        """The prior's density at draws, ``(S, C, N)``: the start's, where that is the prior."""
        if self.start == "prior":
            return drawn["log_start"]
        return torch.stack([path.target.log_densities(u, "prior")["prior"] for u in drawn["u"]])


@dataclass
class PosteriorChains:
    """Chains that have been warmed up, and are run for draws.

    Args:
        path: from the start to the joint.
        kernel: what moves the chains.
        num_chains: C.
        num_warmup: moves before the draws.
        num_draws: S.
    """

    path: Path
    kernel: Kernel
    num_chains: int
    num_warmup: int
    num_draws: int
    keeper: Keeper = field(default_factory=Keeper)
    advance: Callable[[float], None] = lambda share: None

    def run(self) -> dict[str, Tensor]:
        """Draws ``u`` ``(S, C, N, D)``, ``log_joint`` and ``log_start`` there, ``(S, C, N)``.

        Of the moves ``accepted`` and ``diverged``, ``(S, C, N)``; per datum ``acceptance``,
        ``divergences`` and ``step_size``.
        """
        kept = self.keeper.resume()
        if kept is None:
            step, scale, u = self._warm_up()
            kept = {"step": step, "scale": scale, "draws": []}
            chains = Chains.begin(self.path.point(u))
        else:
            self.path.target.take_up(kept["spent"])
            step, scale = kept["step"], kept["scale"]
            chains = Chains.restore(kept["chains"], self.path)
        one = torch.ones_like(step)
        draws: list[tuple[Tensor, ...]] = list(kept["draws"])
        while len(draws) < self.num_draws:
            made = chains.move(self.path, self.kernel, one, step, scale)
            point = chains.point
            sure = torch.ones_like(point.log_joint)
            accepted = sure if made is None else made.acceptance
            diverged = sure < 0 if made is None else made.diverged
            draws.append((point.u, point.log_joint, point.log_start, accepted, diverged))
            state = {
                "chains": chains.state(),
                "draws": draws.copy(),
                "spent": self.path.target.spent,
            }
            self.keeper.offer(**(kept | state))
            self.advance(0.5 + 0.5 * len(draws) / self.num_draws)
        names = ("u", "log_joint", "log_start", "accepted", "diverged")
        stacked = (torch.stack(part) for part in zip(*draws, strict=True))
        return {
            **dict(zip(names, stacked, strict=True)),
            "step_size": step,
            **chains.diagnostics(),
        }

    def _warm_up(self) -> tuple[Tensor, Tensor, Tensor]:
        """Step sizes ``(N,)``, scales ``(N, D)`` and where the chains are."""
        anneal, adapt = self.num_warmup // 2, self.num_warmup - self.num_warmup // 2
        chains = self._annealed(anneal)
        one = torch.ones_like(chains.log_step)
        seen: list[Tensor] = []
        for number in range(adapt):
            if number == adapt // 2:
                self._rescale(chains, torch.cat(seen))
            # steps that shrink, so that what is frozen is an average
            chains.move(one, 0.5 / math.sqrt(1 + number % max(adapt // 2, 1)))
            if number < adapt // 2:
                seen.append(chains.point.u)
            self.advance(0.5 * (anneal + number) / self.num_warmup)
        return chains.log_step.exp(), chains.scale, chains.point.u

    def _annealed(self, num_moves: int) -> Adapting:
        """Chains led to the joint along the path and, half of them, from the prior."""
        from_prior = 0 if self.path.start == "prior" else self.num_chains // 2
        groups = [Adapting.begin(self.path, self.kernel, self.num_chains - from_prior)]
        if from_prior:
            prior = Path(self.path.target, "prior")
            groups.append(Adapting.begin(prior, self.kernel, from_prior))
        for group in groups:
            group.settle()
        for number, beta in enumerate(Sigmoid().betas(num_moves)[1:]):
            for group in groups:
                group.move(beta.to(group.log_step.device).expand_as(group.log_step))
            self.advance(0.5 * number / self.num_warmup)
        return Adapting(
            self.path,
            self.kernel,
            self.path.point(torch.cat([group.point.u for group in groups])),
            torch.stack([group.log_step for group in groups]).mean(0),
            torch.stack([group.scale.log() for group in groups]).mean(0).exp(),
        )

    @staticmethod
    def _rescale(chains: Adapting, seen: Tensor) -> None:
        """Measure coordinates in what they vary by; step sizes keep the mean length they had."""
        if seen.shape[-1] == 0:
            return
        spread = seen.std(0)
        spread = torch.where(spread > 0, spread, chains.scale)
        chains.log_step = chains.log_step - (spread / chains.scale).double().log().mean(-1)
        chains.scale = spread


def of_chains(drawn: dict[str, Tensor]) -> dict[str, Tensor]:
    """What chains say of themselves, by datum."""
    return {name: drawn[name] for name in ("acceptance", "divergences", "step_size")}


def mixing(values: Tensor) -> dict[str, Tensor]:
    """R̂ and the effective number of draws of a quantity, ``(S, C, N)``, for each datum."""
    array = values.detach().cpu().numpy()
    found: dict[str, list[float]] = {"rhat": [], "posterior_ess": []}
    with warnings.catch_warnings(), np.errstate(all="ignore"):
        warnings.simplefilter("ignore")
        for datum in range(array.shape[-1]):
            chains = array[..., datum].T
            if not np.isfinite(chains).all():
                found["rhat"].append(math.inf)
                found["posterior_ess"].append(1.0)
                continue
            if np.ptp(chains) <= 1e-12 * max(1.0, float(np.abs(chains).max())):
                # a quantity that does not vary, as a weight at the posterior, is known after one
                found["rhat"].append(1.0)
                found["posterior_ess"].append(float(chains.size))
                continue
            several = len(chains) > 1
            found["rhat"].append(float(az.rhat(chains)) if several else math.nan)
            # of draws that avoid one another more may come out than there are: too good to count on
            found["posterior_ess"].append(min(float(az.ess(chains, method="mean")), chains.size))
    return {n: torch.tensor(v, dtype=torch.float64) for n, v in found.items()}
