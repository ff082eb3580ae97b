r"""A bound, a rule for its gradient and a number of particles make an objective.

For a batch B of the N data, with the draws of the guide,

.. math:: \ell = -\frac{N}{|B|} \sum_{n \in B} L(\log w_{1n}, \dots, \log w_{Kn}),

one bound for each datum, whose sum is what the mini-batch scale multiplies: so that value and
gradient are unbiased for all data. Everything a bound sees is unscaled (DESIGN: weights).
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable
from typing import Any

import pyro
import torch
from pyro.infer import ELBO as PyroELBO
from pyro.infer.elbo import ELBOModule
from torch import Tensor, nn

from ..particles import check_way
from ..programs import Program, ProgramError, StructureVaries, check_count
from .bounds import ELBO, Bound
from .gradients import Gradient, NetworkBaseline, Pathwise, Split
from .kl import KL, Divergences
from .planning import Plans, form, make_plans
from .step import Step


class MonteCarloObjective(PyroELBO):
    """A Monte Carlo objective: works wherever a ``pyro.infer.ELBO`` does, and in ``fit``.

    Args:
        bound: what is raised (an upper bound: lowered), per datum.
        gradient: how its gradient is estimated.
        num_particles: K, all of them: ``MIWAE(num_groups=8)`` of 64 makes 8 groups of 8.
        kl: how the KL of the latents enters; with the ELBO only.
        particles: how K particles are drawn, "auto", "plate", "tile" or "loop".

    Attributes:
        steps: steps of training that were taken, which a :class:`WarmUp` counts.
        kl_factor: multiplies the weight of the KL; ``fit`` sets it in its warm-up.
        kl_forms: by latent site, whether the last step's KL was "analytic" or "monte-carlo".

    Raises:
        ValueError: bound and gradient do not go together; says why.
        TypeError: they are something else.

    Example:
        >>> from pyrovae.models import LinearGaussianVAE
        >>> from pyrovae.inference.objectives.bounds import IWAE
        >>> from pyrovae.inference.objectives.gradients import DoublyReparameterized
        >>> _ = torch.manual_seed(0)
        >>> linear = LinearGaussianVAE(data_dim=4, latent_dim=2).double()
        >>> x = linear.sample(10)
        >>> objective = MonteCarloObjective(IWAE(), DoublyReparameterized(), num_particles=5)
        >>> loss = objective(linear.model, linear.exact_guide)(x)  # tight: minus log p(x), summed
        >>> bool((loss + linear.log_evidence(x).sum()).abs() < 1e-9)
        True
    """

    def __init__(
        self,
        bound: Bound | MonteCarloObjective,
        gradient: Gradient | None = None,
        num_particles: int = 1,
        kl: KL | None = None,
        particles: str = "auto",
    ) -> None:
        check_count("num_particles", num_particles)
        super().__init__(num_particles=num_particles)
        self.bound = _as_bound(bound)
        self.gradient = Pathwise() if gradient is None else gradient
        if not isinstance(self.gradient, Gradient):
            raise TypeError(f"gradient must be a gradient rule, but is {gradient!r}")
        self.kl = KL() if kl is None else kl
        if not isinstance(self.kl, KL):
            raise TypeError(f"kl must be a KL or None, but is {kl!r}")
        check_way(particles)
        self.particles = particles
        self.bound.check(num_particles)
        self.gradient.check(self.bound, num_particles)
        self._check_kl()
        self.steps = 0
        self.kl_factor: float | Tensor = 1.0
        self.kl_forms: dict[str, str] = {}
        self._memory: dict[str, Tensor] = {}
        self._number = next(_numbers)
        self._plans: Plans | None = None

    def check_kl_term(self, asked: str) -> None:
        """Refuse what is ``asked`` of the KL where there is none.

        Raises:
            ValueError: a bound is not the ELBO; names it.
        """
        bounds = [self.bound]
        if isinstance(self.gradient, Split):
            bounds.append(self.gradient.guide_bound)
        for bound in bounds:
            if not isinstance(bound, ELBO):
                raise ValueError(
                    f"{asked}: {type(bound).__name__} has no KL term to be changed; only the ELBO "
                    "has"
                )

    def _check_kl(self) -> None:
        if self.kl != KL():
            self.check_kl_term("kl")
        if self.kl.by_site and not isinstance(self.gradient, Pathwise):
            raise ValueError(
                f"kl: a KL in closed form or with free bits needs Pathwise, but gradient is "
                f"{type(self.gradient).__name__}: its signal is the log-weight"
            )

    def __repr__(self) -> str:
        kl = "" if self.kl == KL() else f", {self.kl}"
        return (
            f"MonteCarloObjective({self.bound}, {self.gradient}, "
            f"num_particles={self.num_particles}{kl})"
        )

    def __call__(self, model: Any, guide: Any) -> ELBOModule:
        """A module that maps the programs' arguments to the loss, and holds a network baseline."""
        module = ELBOModule(model, guide, self)
        module.baseline = self.network
        return module

    @property
    def network(self) -> nn.Module | None:
        """The network of the baseline, which whoever trains the programs has to train too."""
        baseline = getattr(self.gradient, "baseline", None)
        return baseline.net if isinstance(baseline, NetworkBaseline) else None

    # --- the three ways in which Pyro calls an objective -----------------------------------------

    def differentiable_loss(
        self, model: Program, guide: Program, *args: Any, **kwargs: Any
    ) -> Tensor:
        """The loss in nats, summed over data, whose gradient is the rule's."""
        pair = _bind(model, guide, kwargs)
        beta = self.kl.beta(self.steps) * self.kl_factor

        def estimate(plans: Plans) -> Tensor:
            wrapped = self.gradient.wrap(*pair)
            step = Step(*wrapped, args, plans.wrapped, self.num_particles, beta, self._memory)
            if self.kl.by_site:
                total = self._with_kl(step).sum()
            else:
                total = self.gradient.ascend(step, self.bound).total()
            return self._as_loss(total, step)

        loss = self._planned(model, guide, args, kwargs, estimate)
        self.steps += torch.is_grad_enabled()
        return loss

    def loss_and_grads(self, model: Program, guide: Program, *args: Any, **kwargs: Any) -> float:
        """The loss, its gradient added to that of the parameters."""
        if self.network is not None:  # pyro.infer.SVI trains what is named
            pyro.module(f"baseline_{self._number}", self.network)
        loss = self.differentiable_loss(model, guide, *args, **kwargs)
        if loss.requires_grad:
            loss.backward(retain_graph=self.retain_graph)
        return loss.item()

    @torch.no_grad()
    def loss(self, model: Program, guide: Program, *args: Any, **kwargs: Any) -> float:
        """The bound with the opposite sign (CUBO: with its own), without what ``kl`` made of it.

        That is what can be compared: at β = 1, without free bits, with hard draws.
        """
        pair = _bind(model, guide, kwargs)

        def estimate(plans: Plans) -> Tensor:
            step = Step(*pair, args, plans.plain, self.num_particles)
            return self._as_loss(self.bound(step.joint().log_weight).sum(), step)

        return float(self._planned(model, guide, args, kwargs, estimate))

    def _as_loss(self, total: Tensor, step: Step) -> Tensor:
        """A sum over the batch as what is to be lowered, for all the data that it stands for."""
        scale = step.scale()
        return total * (-scale if self.bound.direction == "lower" else scale)

    # --- what is kept from step to step ----------------------------------------------------------

    @property
    def is_warming_up(self) -> bool:
        """Whether the weight of the KL is still rising."""
        return self.kl.is_rising(self.steps)

    def state_dict(self) -> dict[str, Any]:
        """What an objective knows besides its settings: steps, and a moving average."""
        return {"steps": self.steps, "memory": dict(self._memory)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from what :meth:`state_dict` gave."""
        self.steps, self._memory = int(state["steps"]), dict(state["memory"])

    def reset(self) -> None:
        """Begin anew, as if no step had been taken."""
        self.steps, self._memory, self.kl_factor = 0, {}, 1.0

    # --- within ----------------------------------------------------------------------------------

    def _get_trace(self, model: Any, guide: Any, args: Any, kwargs: Any) -> Any:
        # abstract in Pyro's class, and called by Pyro's own losses only
        raise NotImplementedError("particles come from a plan, not one trace at a time")

    def _with_kl(self, step: Step) -> Tensor:
        """The ELBO from its two terms, ``(N,)``."""
        layout = step.plan.layout
        if layout.auxiliary or layout.enumerated:
            name = min(layout.auxiliary | layout.enumerated)
            raise ProgramError(
                f"site '{name}' is summed out, or an autoguide's base draw: its KL is not that of "
                "one site to another; take KL(form='monte-carlo') without free bits"
            )
        probe = Divergences(self.kl, layout)
        beta, step.beta = step.beta, 0.0
        drawn = step.probe(probe)
        self.kl_forms = probe.forms
        divergence = torch.cat(list(drawn.probed.values()), -1).mean(0)
        free = self.kl.free_bits
        total = divergence.sum(-1) if free is None else free(divergence)
        return drawn.log_joint.mean(0) - beta * total

    def _planned(
        self,
        model: Program,
        guide: Program,
        args: tuple,
        kwargs: dict[str, Any],
        use: Callable[[Plans], Tensor],
    ) -> Tensor:
        """What ``use`` makes of the plans for a pair: those there are, or else new ones."""
        key = (model, guide, form(args), frozenset(kwargs))
        if self._plans is not None and self._plans.key == key:
            try:
                return use(self._plans)
            except StructureVaries:
                pass  # this batch has other latents than the one before
        pair = _bind(model, guide, kwargs)
        self._plans = make_plans(
            key, *pair, args, self.bound, self.gradient, self.num_particles, self.particles
        )
        return use(self._plans)


_numbers = itertools.count()


def _as_bound(bound: Bound | MonteCarloObjective) -> Bound:
    if isinstance(bound, MonteCarloObjective):
        if isinstance(bound.gradient, Pathwise) and bound.kl == KL():
            return bound.bound  # IWAE() and the like, the bounds' own names for an objective
        raise TypeError(f"bound must be a bound, but is a whole objective, {bound!r}")
    if not isinstance(bound, Bound):
        raise TypeError(f"bound must be a bound, as bounds.IWAE(), but is {bound!r}")
    return bound


def _bind(model: Program, guide: Program, kwargs: dict[str, Any]) -> tuple[Program, Program]:
    if not kwargs:
        return model, guide
    return functools.partial(model, **kwargs), functools.partial(guide, **kwargs)
