r"""The rate-distortion curve of a decoder, from one annealed path.

Between the prior and the posterior, :math:`\pi_\beta(z \mid x) \propto p(z) \, p(x \mid z)^\beta`
is the best code of x at the exchange rate β: no guide reaches a lower distortion at its rate,

.. math:: D_\beta = -\mathbb{E}_{\pi_\beta} \log p(x \mid z), \quad
          R_\beta = \mathrm{KL}(\pi_\beta \,\|\, p(z)) = -\beta D_\beta - \log Z_\beta.

Chains of annealed importance sampling give all of it in one run: their weights at β estimate
:math:`Z_\beta` and, normalised, weigh the chains in the expectation. At β = 1 the sum of both is
−log p(x).
"""

from __future__ import annotations

import json
import math
from dataclasses import dataclass, field

import numpy as np
import torch
import xarray as xr
from torch import Tensor

from ..evidence.annealing.anneal import Chains, Journey
from ..evidence.annealing.settings import Annealing
from ..evidence.parts import Scores, Tile
from ..evidence.scoring import score
from ..programs import Data, Program


@dataclass(frozen=True)
class RateDistortionCurve:
    """Rate and distortion of each datum along β, ``(N, T + 1)`` in nats.

    Attributes:
        betas: exchange rates, ``(N, T + 1)``.
        rate: KL of the best code to the prior.
        distortion: its negative expected log-likelihood.
        rate_stderr: Monte Carlo error, by the jackknife over chains.
        distortion_stderr: likewise.
        provenance: settings, seed, versions, cost.
    """

    betas: Tensor
    rate: Tensor
    distortion: Tensor
    rate_stderr: Tensor
    distortion_stderr: Tensor
    provenance: dict

    def mean(self) -> dict[str, Tensor]:
        """Means over data of rate and distortion and their Monte Carlo errors, ``(T + 1,)``."""
        size = len(self.rate)
        found = {"rate": self.rate.mean(0), "distortion": self.distortion.mean(0)}
        for name in ("rate", "distortion"):
            errors = getattr(self, f"{name}_stderr")
            found[f"{name}_stderr"] = errors.square().sum(0).sqrt() / size
        return found

    def to_dataset(self) -> xr.Dataset:
        """As an ``xarray.Dataset`` over ``datum`` and ``temperature``."""
        names = ("betas", "rate", "distortion", "rate_stderr", "distortion_stderr")
        return xr.Dataset(
            {name: (("datum", "temperature"), getattr(self, name).numpy()) for name in names},
            coords={"datum": np.arange(len(self.rate))},
            attrs={"units": "nats", "provenance": json.dumps(self.provenance)},
        )


@dataclass(frozen=True)
class RateDistortion(Annealing):
    """The rate-distortion curve of a model, by annealing from its prior.

    Args:
        num_chains: see :class:`Annealing`, for this and the further settings; ``start`` is the
            prior.

    References:
        Alemi, Poole, Fischer, Dillon, Saurous and Murphy, *Fixing a broken ELBO*, 2018. Huang,
        Makhzani, Cao and Grosse, *Evaluating lossy compression rates of deep generative models*,
        2020.

    Example:
        >>> from pyrovae.models import LinearGaussianVAE
        >>> _ = torch.manual_seed(0)
        >>> linear = LinearGaussianVAE(data_dim=10, latent_dim=3)
        >>> x = linear.sample(4)
        >>> curve = RateDistortion(num_chains=32, num_temperatures=50)(linear.model, x)
        >>> end = -(curve.rate + curve.distortion)[:, -1]
        >>> bool((end - linear.log_evidence(x)).abs().max() < 0.5)
        True
    """

    num_chains: int = 16
    num_temperatures: int = 200
    start: str = field(default="prior", kw_only=True)

    direction = "consistent"

    def _check(self) -> None:
        super()._check()
        if self.start != "prior":
            raise ValueError(f"start must be 'prior', whose rate is 0, but is {self.start!r}")
        if self.num_chains < 2:
            raise ValueError("num_chains must be at least 2, for an error, but is 1")

    def __call__(  # type: ignore[override]
        self, model: Program, x: Data, *context: object
    ) -> RateDistortionCurve:
        """Follow the curve of every datum; takes no guide."""
        (scored,) = score(self, model, None, x, context)
        arrays = {
            name: torch.cat([one.arrays[name].cpu() for one in scored.scores])
            for name in scored.scores[0].arrays
        }
        return RateDistortionCurve(**arrays, provenance=scored.provenance)

    def _score(self, tile: Tile) -> Scores:
        path = self._path(tile)
        frozen, chains, first = self._begin(tile, path)
        size = (len(frozen.betas), *chains.log_weight.shape)
        seen = {name: first.new_zeros(size) for name in ("ratio", "log_weight")}
        if (kept := tile.keeper.state) is not None:
            seen = {name: kept[name].clone() for name in seen}
        else:
            seen["ratio"][0], seen["log_weight"][0] = first, chains.log_weight

        def note(number: int, now: Chains) -> None:
            seen["ratio"][number] = now.point.log_ratio()
            seen["log_weight"][number] = now.log_weight

        journey = Journey(
            path,
            self.kernel,
            frozen,
            settle=True,
            keeper=tile.keeper,
            advance=tile.advance,
            observe=note,
            extra={"first": first, **seen},
        )
        chains = journey.lead(chains)
        arrays = _curve(seen["ratio"], seen["log_weight"], frozen.betas)
        fields = {"log_evidence": chains.log_weight.logsumexp(0) - math.log(self.num_chains)}
        target = path.target
        return Scores(
            fields | chains.diagnostics(),
            target.num_evaluations,
            target.num_gradients,
            arrays={name: value.T.contiguous() for name, value in arrays.items()},
        )


def _curve(ratio: Tensor, log_weight: Tensor, betas: Tensor) -> dict[str, Tensor]:
    """Rate and distortion along β, ``(T + 1, N)``, from log-likelihoods and weights of chains."""
    count = ratio.shape[1]

    def of(chains: Tensor) -> tuple[Tensor, Tensor]:
        weights = log_weight[:, chains]
        # a chain without weight has no part in it, be its likelihood zero; where none has any,
        # the softmax is not a number, and neither is what follows
        none = weights.isneginf() & ~weights.isneginf().all(1, keepdim=True)
        distortion = -torch.where(none, 0.0, weights.softmax(1) * ratio[:, chains]).sum(1)
        log_z = weights.logsumexp(1) - math.log(len(chains))
        # at β = 0 nothing is said about x, however far it is
        return -torch.where(betas == 0, 0.0, betas * distortion) - log_z, distortion

    everyone = torch.arange(count, device=ratio.device)
    rate, distortion = of(everyone)
    without = [of(everyone[everyone != c]) for c in range(count)]
    errors = [
        (torch.stack(parts).var(0, correction=0) * (count - 1)).sqrt()
        for parts in zip(*without, strict=True)
    ]
    return {
        "betas": betas,
        "rate": rate,
        "distortion": distortion,
        "rate_stderr": errors[0],
        "distortion_stderr": errors[1],
    }
