r"""The densities of a program pair as functions of points in an unconstrained space.

For C chains and N data the latents of a pair are a tensor u of shape ``(C, N, D)``, all sites and
nested plates of a datum side by side. With z = T(u) (:mod:`~pyrovae.inference.coordinates`),

.. math:: \log p(x, z) + \log|\det T'(u)|, \quad \log p(z) + \log|\det T'(u)|, \quad
          \log q(z \mid x) + \log|\det T'(u)|

are the joint, the prior's and the guide's density of u: ``(C, N)`` each, in float64. Enumerated
latents are summed out of all three.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass, replace
from typing import Any

import torch
from pyro import poutine
from pyro.poutine.messenger import Messenger
from pyro.poutine.runtime import Message
from torch import Tensor

from .frozen import thawed
from .particles import ParticlePlan
from .programs import Program, num_data
from .ways import Evaluation, data_axis, evaluate


@dataclass(frozen=True)
class _Site:
    """Where a latent's coordinates stand: how many, where the data are, and the other plates."""

    size: int
    axis: int
    rest: tuple[int, ...]
    dtype: torch.dtype


class Target:
    """Joint, prior and guide of one tile of data, over unconstrained coordinates.

    Args:
        model: the model.
        guide: the guide; None where only the prior is asked for.
        args: ``(x, *context)``.
        plan: a plan of the pair.

    Attributes:
        num_data: N.
        dim: D.
        num_evaluations: how many particles per datum the model was run for so far.
        num_gradients: for how many its gradient was taken.

    Raises:
        ProgramError: a latent is discrete and not summed out, or has a support without bijection.
    """

    def __init__(
        self, model: Program, guide: Program | None, args: tuple, plan: ParticlePlan
    ) -> None:
        self.args, self.plan = args, plan
        self.num_data = num_data(args[0])
        self.num_evaluations = self.num_gradients = 0
        whole = plan.layout
        self._auxiliary = whole.auxiliary
        latents = {n: latent for n, latent in whole.latents.items() if n not in whole.auxiliary}
        self._layout = replace(whole, latents=latents, auxiliary=frozenset())
        self._guide_layout = replace(whole, enumerated=whole.guide_enumerated)
        marked = whole.guide_enumerated
        self._model = model if not marked else poutine.infer_config(model, _marks(marked))
        self._guide = guide
        drawn = self._draw_prior(1) if guide is None else self._draw_guide(1)
        self._auxiliary_shapes = {name: drawn[name].shape[1:] for name in whole.auxiliary}
        asked = self._evaluate({n: drawn[n] for n in latents}, ask=True).coordinates
        self._sites: dict[str, _Site] = {}
        for name, u in asked.items():
            axis = data_axis(u, name, self._layout.flat())
            rest = u.movedim(axis, 1).shape[2:]
            size = int(torch.Size(rest).numel())
            self._sites[name] = _Site(size, axis, tuple(rest), u.dtype)
        self.dim = sum(site.size for site in self._sites.values())
        dtypes = [site.dtype for site in self._sites.values()]
        self.dtype = max(dtypes, key=lambda d: torch.finfo(d).bits) if dtypes else torch.float64
        self.device = whole.device or torch.device("cpu")
        self.num_evaluations = 0

    @property
    def spent(self) -> list[int]:
        """How often the model was run and its gradient taken: for a journal to keep."""
        return [self.num_evaluations, self.num_gradients]

    def take_up(self, spent: list[int]) -> None:
        """Count what an interrupted call had spent."""
        self.num_evaluations += spent[0]
        self.num_gradients += spent[1]

    def on(self, args: tuple) -> Target:
        """The same densities of other data of the same form, whose encoder has not run."""
        other = copy.copy(self)
        other.args, other._guide = args, thawed(self._guide)
        return other

    # --- draws -----------------------------------------------------------------------------------

    def draw(self, kind: str, count: int) -> Tensor:
        """Draws of guide or prior, ``(C, N, D)``; not finite outside the model's support."""
        drawn = self._draw_guide(count) if kind == "guide" else self._draw_prior(count)
        u = self.coordinates({name: drawn[name] for name in self._sites})
        # where all latents are summed out there is nothing to draw
        return u if len(u) == count else u.expand(count, *u.shape[1:])

    def _draw_guide(self, count: int) -> dict[str, Tensor]:
        guide, layout, way = self._guide, self._guide_layout, self.plan.guide_way
        if layout.enumerated:  # drawn like any other, and forgotten
            guide, way = poutine.block(guide, hide=list(layout.enumerated)), "loop"
            layout = replace(layout, enumerated=frozenset())
        return evaluate(way, None, guide, self.args, layout, count).values

    def _draw_prior(self, count: int) -> dict[str, Tensor]:
        model, layout, way = self._model, self._layout, self.plan.model_way
        if layout.enumerated:
            model, way = poutine.block(model, hide=list(layout.enumerated)), "loop"
            layout = replace(layout, enumerated=frozenset())
        return evaluate(way, model, None, self.args, layout, count).values

    # --- coordinates -----------------------------------------------------------------------------

    def coordinates(self, values: dict[str, Tensor]) -> Tensor:
        """Where latents lie, ``(C, N, D)``; fresh standard normal numbers where they are masked."""
        asked = self._evaluate(values, ask=True).coordinates
        parts = [
            asked[name].movedim(site.axis, 1).flatten(2).to(self.dtype)
            for name, site in self._sites.items()
        ]
        if not parts:
            return torch.zeros(1, self.num_data, 0, dtype=self.dtype, device=self.device)
        return torch.cat(parts, -1)

    def values(self, u: Tensor) -> dict[str, Tensor]:
        """The latents at coordinates, by site, as the program draws them."""
        return self._evaluate(self._split(u), count=len(u), free=True).values

    def by_datum(self, values: dict[str, Tensor]) -> dict[str, Tensor]:
        """Latents with their data next to the chains: ``(C, N, other plates, event)``."""
        layout = self._layout
        return {n: value.movedim(data_axis(value, n, layout), 1) for n, value in values.items()}

    def _split(self, u: Tensor) -> dict[str, Tensor]:
        sizes = [site.size for site in self._sites.values()]
        parts = zip(self._sites.items(), u.split(sizes, -1), strict=True)
        return {
            name: part.unflatten(-1, site.rest).movedim(1, site.axis).to(site.dtype)
            for (name, site), part in parts
        }

    def parts(self) -> dict[str, slice]:
        """Which of the D coordinates belong to which latent."""
        found, first = {}, 0
        for name, site in self._sites.items():
            found[name] = slice(first, first + site.size)
            first += site.size
        return found

    # --- densities -------------------------------------------------------------------------------

    def log_densities(self, u: Tensor, *kinds: str, slope: bool = False) -> dict[str, Tensor]:
        """Log-densities at u, ``(C, N)`` each, by kind: "joint", "prior", "guide", "volume".

        With ``slope`` their gradients alone are right.
        """
        count = len(u)
        split = self._split(u)
        run = self._evaluate(split, count=count, free=True, slope=slope)
        volume = self._total(run, count, lambda name: name.startswith("volume of "))
        found: dict[str, Tensor] = {}
        for kind in kinds:
            if kind == "volume":
                found[kind] = volume
            elif kind == "joint":
                found[kind] = self._total(run, count)
            elif kind == "guide":
                found[kind] = self._log_guide(run.values, split, count) + volume
            elif self._layout.enumerated:
                model = _unobserved(self._model)
                alone = self._evaluate(run.values, count=count, model=model)
                found[kind] = self._total(alone, count) + volume
            else:
                found[kind] = self._total(run, count, self._sites.__contains__) + volume
        return found

    def log_guide_across(self, values: dict[str, Tensor], u: Tensor) -> Tensor:
        """log q(z_m | x_n) of M draws under each of the N data, ``(M, N)``; without volumes.

        Args:
            values: the draws by site, ``(M, other plates, event)``.
            u: their coordinates, ``(M, D)``.
        """
        count, size = len(u), self.num_data
        split = self._split(u[:, None].expand(count, size, self.dim))
        layout = self._layout
        spread = {}
        for name, value in values.items():
            wide = value[:, None].expand(count, size, *value.shape[1:])
            spread[name] = wide.movedim(1, data_axis(wide, name, layout))
        return self._log_guide(spread, split, count)

    def _log_guide(self, values: dict[str, Tensor], split: dict[str, Tensor], count: int) -> Tensor:
        assert self._guide is not None
        base = {name.removesuffix("_unconstrained"): name for name in self._auxiliary}
        given = {
            # an autoguide's site follows from its base draw, which is its coordinate
            base.get(name, name): value
            if name not in base
            else split[name].reshape(count, *self._auxiliary_shapes[base[name]])
            for name, value in values.items()
        }
        scored = evaluate(
            self.plan.guide_way, self._guide, None, self.args, self._guide_layout, count, given
        )
        return self._total(scored, count)

    def _evaluate(
        self,
        values: dict[str, Tensor],
        *,
        count: int | None = None,
        model: Program | None = None,
        free: bool = False,
        ask: bool = False,
        slope: bool = False,
    ) -> Evaluation:
        if count is None:
            count = next((len(value) for value in values.values()), 1)
        self.num_evaluations += 0 if ask or model is not None else count
        return evaluate(
            self.plan.model_way,
            self._model if model is None else model,
            None,
            self.args,
            self._layout,
            count,
            values,
            free=free,
            ask=ask,
            slope=slope,
        )

    def _total(self, run: Evaluation, count: int, wanted: Any = lambda name: True) -> Tensor:
        start = torch.zeros(count, self.num_data, dtype=torch.float64, device=self.device)
        return sum((term for name, term in run.model_sites.items() if wanted(name)), start)

    # --- gradients -------------------------------------------------------------------------------

    def gradients(self, u: Tensor, *kinds: str) -> dict[str, tuple[Tensor, Tensor]]:
        """Log-densities at u and their gradients, ``(C, N, D)``, by kind."""
        with torch.enable_grad():
            at = u.detach().requires_grad_()
            densities = self.log_densities(at, *kinds)
            self.num_gradients += len(u)
            last = kinds[-1]
            return {
                kind: (value.detach(), gradient_of(value, at, keep_graph=kind != last))
                for kind, value in densities.items()
            }


def gradient_of(value: Tensor, at: Tensor, keep_graph: bool = False) -> Tensor:
    """Per-datum, per-chain gradient of log-densities ``(C, N)``; zero where they do not depend."""
    if not value.requires_grad:
        return torch.zeros_like(at)
    (gradient,) = torch.autograd.grad(value.sum(), at, retain_graph=keep_graph, allow_unused=True)
    return torch.zeros_like(at) if gradient is None else gradient


def _marks(names: frozenset[str]) -> Any:
    def config(site: dict) -> dict:
        return {"enumerate": "parallel"} if site["name"] in names else {}

    return config


class _Unobserved(Messenger):
    """Takes the observations out of the density, and leaves what was summed out over them."""

    def _pyro_sample(self, msg: Message) -> None:
        if msg["is_observed"]:
            msg["mask"] = False


def _unobserved(model: Program) -> Program:
    def prior(*args: object) -> None:
        with _Unobserved():
            model(*args)

    return prior
