r"""One estimate of an objective: draws of the guide, and densities at draws, with their graph.

A gradient rule needs three things of a program pair, for K particles and N data:

* draws :math:`z_{kn} \sim q_\phi`, differentiable where the guide reparameterises them;
* :math:`\log p_\theta(x_n, z_{kn})` and :math:`\log q_\phi(z_{kn} \mid x_n)` at draws of its
  choice: the same ones, held fixed, or with a hand on the gradient that flows into them.

They are what :mod:`~pyrovae.inference.weights` is made of, taken in the same three ways. The
latents' terms may carry a weight β (warm-up, β-VAE), which enters nowhere else.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass

import torch
from pyro.poutine.messenger import Messenger
from pyro.poutine.runtime import Message
from pyro.poutine.util import site_is_subsample
from torch import Tensor

from ..frozen import freeze_guide
from ..particles import ParticlePlan, draw
from ..programs import Program, ProgramError, draws_a_part, num_data
from ..ways import Evaluation, Probe, Sites, data_axis, evaluate

Values = dict[str, Tensor]


@dataclass(frozen=True)
class Drawn:
    """K particles and their log-densities, ``(K, N)``, in nats and in float64.

    Attributes:
        log_joint: with the latents' terms weighted by β.
        log_guide: likewise.
        sites: the guide's terms by site, unweighted.
        probed: what the probe of the run found.
    """

    values: Values
    log_joint: Tensor
    log_guide: Tensor
    sites: Mapping[str, Tensor]
    probed: Mapping[str, Tensor]

    @property
    def log_weight(self) -> Tensor:
        return self.log_joint - self.log_guide


class OneSubsample(Messenger):
    """Every run within it sees the parts that plates drew in the first one.

    Only of plates that draw a part: the index of one that takes all grows when data are tiled.
    """

    def __init__(self) -> None:
        super().__init__()
        self.drawn: dict[str, Tensor] = {}

    def _pyro_sample(self, msg: Message) -> None:
        if msg["name"] in self.drawn and site_is_subsample(msg):
            msg["value"] = self.drawn[msg["name"]]
            msg["done"] = True

    def _pyro_post_sample(self, msg: Message) -> None:
        if site_is_subsample(msg) and draws_a_part(msg["fn"]):
            self.drawn[msg["name"]] = msg["value"]


class Step:
    """A program pair on one batch, for one estimate.

    Args:
        model: the model.
        guide: the guide.
        args: ``(x, *context)``.
        plan: how particles are drawn.
        num_particles: K.
        beta: the weight of the latents' terms.
        memory: what the objective keeps from step to step, for a gradient rule to read and write.

    Attributes:
        shape: (K, N).
    """

    def __init__(
        self,
        model: Program,
        guide: Program,
        args: tuple,
        plan: ParticlePlan,
        num_particles: int,
        beta: float | Tensor = 1.0,
        memory: dict[str, Tensor] | None = None,
    ) -> None:
        self.model, self.guide, self.args, self.plan = model, guide, args, plan
        self.beta = beta
        self.memory = {} if memory is None else memory
        self.shape = (num_particles, plan.layout.subsample or num_data(args[0]))
        self._frozen: Program | None = None
        layout = plan.layout
        draws_parts = layout.subsample is not None or layout.nested_subsamples
        once: AbstractContextManager = OneSubsample() if draws_parts else nullcontext()
        self._same_data = once
        self._scales: dict[tuple[str, str], float | Tensor] = {}
        if is_weight(beta) and plan.layout.enumerated:
            raise ProgramError(
                f"latent {', '.join(sorted(plan.layout.enumerated))} is summed out, and has no "
                "term of its own that a weight other than 1 could stand on"
            )

    def joint(self) -> Drawn:
        """Draw, and evaluate both programs at the draws, in one run of each."""
        with self._same_data:
            return self._drawn(
                draw(self.model, self.guide, self.args, self.plan, self.shape[0], self._read)
            )

    def probe(self, probe: Probe) -> Drawn:
        """The same in one run of the pair as a whole, for a probe to read."""

        def read(of_model: Sites, of_guide: Sites) -> dict[str, Tensor]:
            return self._read(of_model, of_guide) | probe(of_model, of_guide)

        way, layout = self.plan.model_way, self.plan.layout
        with self._same_data:
            return self._drawn(
                evaluate(way, self.model, self.guide, self.args, layout, self.shape[0], probe=read)
            )

    def sample(self) -> Values:
        """Draw from the guide, whose encoder has then run, where its draws are independent."""
        if self._frozen is None:
            with self._same_data:
                self._frozen = freeze_guide(self.guide, self.args, self.plan)
        return self._evaluate(self.plan.guide_way, None, self._frozen).values

    def log_joint(self, values: Values) -> Tensor:
        """log p(x, z) at given draws, ``(K, N)``, the latents' terms weighted by β."""
        return self._sum_model(self._evaluate(self.plan.model_way, self.model, None, values))

    def log_guide(self, values: Values) -> Tensor:
        """log q(z | x) at given draws, ``(K, N)``, unweighted."""
        guide = self.guide if self._frozen is None else self._frozen
        run = self._evaluate(self.plan.guide_way, None, guide, values)
        return self._sum(run.guide_sites, 1.0)

    def scale(self) -> float | Tensor:
        """What each datum of the batch stands for: N / B of a subsampled plate, outside of all.

        Raises:
            ProgramError: the sites have different scales; names two of them.
        """
        first, *others = self._scales
        for other in others:
            ours, theirs = self._scales[first], self._scales[other]
            if ours is not theirs and not math.isclose(ours, theirs, rel_tol=1e-6):
                raise ProgramError(
                    f"{first[0]} site '{first[1]}' has scale {float(ours):g} and {other[0]} site "
                    f"'{other[1]}' {float(theirs):g}: no bound on log p(x) weighs its terms "
                    "differently; a weight of the latents belongs to the objective, as kl="
                )
        return self._scales[first]

    def align(self, per_particle: Tensor, name: str, value: Tensor) -> Tensor:
        """A number per particle and datum, shaped to multiply a latent's value."""
        shape = [1] * value.dim()
        shape[0] = self.shape[0]
        shape[data_axis(value, name, self.plan.layout)] = self.shape[1]
        return per_particle.reshape(shape).to(value.dtype)

    def _evaluate(
        self,
        way: str,
        model: Program | None,
        guide: Program | None,
        values: Values | None = None,
    ) -> Evaluation:
        layout, count = self.plan.layout, self.shape[0]
        with self._same_data:
            return evaluate(way, model, guide, self.args, layout, count, values, probe=self._read)

    def _read(self, of_model: Sites, of_guide: Sites) -> dict[str, Tensor]:
        """Note the scales of a run's sites."""
        for role, sites in (("model", of_model), ("guide", of_guide)):
            for name, site in sites.items():
                scale = site["scale"]
                if isinstance(scale, Tensor):
                    if scale.numel() != 1:
                        raise ProgramError(
                            f"site '{name}' has a scale of shape {tuple(scale.shape)}"
                        )
                    scale = scale.reshape(())
                self._scales[role, name] = scale
        return {}

    def _drawn(self, run: Evaluation) -> Drawn:
        log_guide = self._sum(run.guide_sites, self.beta)
        return Drawn(run.values, self._sum_model(run), log_guide, run.guide_sites, run.probed)

    def _sum_model(self, run: Evaluation) -> Tensor:
        observed = set(self.plan.layout.observed)
        if not is_weight(self.beta):
            return self._sum(run.model_sites, 1.0)
        seen = {name: term for name, term in run.model_sites.items() if name in observed}
        latent = {name: term for name, term in run.model_sites.items() if name not in observed}
        return self._sum(seen, 1.0) + self._sum(latent, self.beta)

    def _sum(self, sites: Mapping[str, Tensor], weight: float | Tensor) -> Tensor:
        # whatever they are: zero times infinity is not a number
        if not sites or (not isinstance(weight, Tensor) and weight == 0):
            return torch.zeros(self.shape, dtype=torch.float64, device=self.plan.layout.device)
        first, *others = sites.values()
        total = sum(others, first)
        return weight * total if is_weight(weight) else total


def is_weight(beta: float | Tensor) -> bool:
    """Whether a weight changes anything; that of a graph to come, a tensor, may."""
    return isinstance(beta, Tensor) or beta != 1


def hold(values: Values) -> Values:
    """The draws without the graph they were made in."""
    return {name: value.detach() for name, value in values.items()}


def leaves(values: Values) -> Values:
    """The draws as the beginning of a new graph."""
    return {
        name: value.detach().requires_grad_(value.is_floating_point())
        for name, value in values.items()
    }


def hooked(values: Values, hook: Callable[[str, Tensor], Tensor]) -> Values:
    """The draws, with ``hook(name, gradient)`` in the way of the gradient back to them."""

    def watched(name: str, value: Tensor) -> Tensor:
        if not value.requires_grad:
            return value
        copy = value.view_as(value)
        copy.register_hook(lambda gradient: hook(name, gradient))
        return copy

    return {name: watched(name, value) for name, value in values.items()}
