"""Draws of the posterior as a result of their own: every latent and its diagnosis, for ArviZ.

The groups are those that ArviZ knows: ``posterior``, ``sample_stats`` and ``log_likelihood``, all
with the dimensions ``(chain, draw, datum, ...)``. The log-likelihood is log p(x | z), what
``az.loo`` asks for.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import arviz as az
import numpy as np
import torch
import xarray as xr
from torch import Tensor

from ..programs import Data, Program
from .parts import Scored, Scores, Tile
from .posterior import Sampling, mixing
from .scoring import score

_ARVIZ_IS_OLD = int(az.__version__.split(".")[0]) == 0


@dataclass(frozen=True)
class PosteriorDraws:
    """Draws of p(z | x) for every datum.

    Attributes:
        latents: by site, ``(chain, draw, datum, ...)``: nested plates and events come last.
        sample_stats: ``lp`` (log p(x, z), volumes included), ``acceptance_rate`` and
            ``diverging``, ``(chain, draw, datum)``.
        log_likelihood: log p(x | z), ``(chain, draw, datum)`` in nats.
        rhat: R̂ of ``lp``, ``(N,)``.
        ess: effective number of draws of ``lp``, ``(N,)``.
        provenance: settings, seed, versions, cost.
    """

    latents: Mapping[str, Tensor]
    sample_stats: Mapping[str, Tensor]
    log_likelihood: Tensor
    rhat: Tensor
    ess: Tensor
    provenance: Mapping[str, Any]

    def to_datasets(self) -> dict[str, xr.Dataset]:
        """The groups, as ``xarray`` datasets."""
        groups = {
            "posterior": {name: value.numpy() for name, value in self.latents.items()},
            "sample_stats": {name: value.numpy() for name, value in self.sample_stats.items()},
            "log_likelihood": {"x": self.log_likelihood.numpy()},
        }
        found = {}
        for group, arrays in groups.items():
            variables = {
                name: (
                    ("chain", "draw", "datum", *(f"{name}_dim_{i}" for i in range(a.ndim - 3))),
                    a,
                )
                for name, a in arrays.items()
            }
            found[group] = xr.Dataset(
                variables, attrs={"provenance": json.dumps(dict(self.provenance))}
            )
            for axis in ("chain", "draw", "datum"):
                found[group] = found[group].assign_coords(
                    {axis: np.arange(found[group].sizes[axis])}
                )
        return found

    def to_arviz(self) -> Any:
        """As ``InferenceData`` (ArviZ 0.2x) or ``DataTree`` (ArviZ 1.x)."""
        groups = self.to_datasets()
        if _ARVIZ_IS_OLD:
            return az.InferenceData(**groups)
        return xr.DataTree.from_dict({f"/{name}": one for name, one in groups.items()})

    def __repr__(self) -> str:
        chains, draws, size = self.log_likelihood.shape
        diverged = int(self.sample_stats["diverging"].sum())
        return (
            f"PosteriorDraws({size} data, {chains} chains of {draws} draws: R̂ up to "
            f"{float(self.rhat.max()):.2f}, at least {float(self.ess.min()):.0f} effective draws, "
            f"{diverged} divergences)"
        )


@dataclass(frozen=True)
class PosteriorSampling(Sampling):
    """Draws of the posterior by Hamiltonian chains, all data at once.

    Args:
        num_chains: see :class:`Sampling`, for this and the further settings.

    Example:
        >>> from pyrovae.models import LinearGaussianVAE
        >>> _ = torch.manual_seed(0)
        >>> linear = LinearGaussianVAE(data_dim=10, latent_dim=3)
        >>> x = linear.sample(4)
        >>> draws = PosteriorSampling(num_draws=100)(linear.model, linear.guide, x)
        >>> draws.latents["z"].shape
        torch.Size([8, 100, 4, 3])
        >>> mean = draws.latents["z"].mean((0, 1))
        >>> bool((mean - linear.posterior(x).mean).abs().max() < 0.1)
        True
        >>> import arviz
        >>> arviz.summary(draws.to_arviz(), var_names=["z"]).shape[0]  # four data of three latents
        12
    """

    num_chains: int = 8
    num_draws: int = 500

    direction = "consistent"

    def __call__(  # type: ignore[override]
        self, model: Program, guide: Program | None, x: Data, *context: object
    ) -> PosteriorDraws:
        """Draw from p(z | x) for every datum; see :class:`Estimator`."""
        (scored,) = score(self, model, self._proposal(guide), x, context)
        return _as_draws(scored)

    def _score(self, tile: Tile) -> Scores:
        path, drawn = self._draw(tile)
        target = path.target
        values = [target.by_datum(target.values(u)) for u in drawn["u"]]
        arrays = {
            # data first, then chains, draws
            f"latent {name}": torch.stack([v[name] for v in values]).movedim(2, 0).movedim(1, 2)
            for name in values[0]
        }
        per_draw = {
            "lp": drawn["log_joint"],
            "acceptance_rate": drawn["accepted"],
            "diverging": drawn["diverged"],
            "log_likelihood": drawn["log_joint"] - self._log_prior(path, drawn),
        }
        arrays |= {name: value.permute(2, 1, 0) for name, value in per_draw.items()}
        fields = {"log_evidence": torch.full_like(drawn["step_size"], torch.nan)}
        fields |= mixing(drawn["log_joint"])
        return Scores(fields, target.num_evaluations, target.num_gradients, arrays=arrays)


def _as_draws(scored: Scored) -> PosteriorDraws:
    arrays = {
        # (datum, chain, draw, ...) to (chain, draw, datum, ...)
        name: torch.cat([one.arrays[name].cpu() for one in scored.scores]).movedim(0, 2)
        for name in scored.scores[0].arrays
    }
    fields = {
        name: torch.cat([one.fields[name].cpu() for one in scored.scores])
        for name in ("rhat", "posterior_ess")
    }
    return PosteriorDraws(
        {n.removeprefix("latent "): a for n, a in arrays.items() if n.startswith("latent ")},
        {name: arrays[name] for name in ("lp", "acceptance_rate", "diverging")},
        arrays["log_likelihood"],
        fields["rhat"],
        fields["posterior_ess"],
        scored.provenance,
    )
