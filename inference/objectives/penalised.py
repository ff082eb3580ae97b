r"""An objective and what the guide's distributions ask for besides.

.. math:: \ell = \ell_0 + \sum_n \sum_{\text{sites}} \mathrm{penalty}(q_n).

A VQ-VAE draws encodings to their codes, a semi-supervised VAE teaches its classifier the labels it
knows: neither is a term of a bound on log p(x). So they stand in no program, whose densities stay
what they are, but with the distribution that the guide draws from: one that has a method
``penalty()`` returns what is to be added for each datum, in nats.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

import pyro
import torch
from pyro.distributions.util import scale_and_mask
from pyro.infer import ELBO as PyroELBO
from pyro.infer import Trace_ELBO
from pyro.infer.elbo import ELBOModule
from pyro.poutine.indep_messenger import CondIndepStackFrame
from pyro.poutine.messenger import Messenger
from pyro.poutine.runtime import Message
from torch import Tensor

from ..programs import PARTICLE_PLATE, Program

_PARTICLES = (PARTICLE_PLATE, "num_particles_vectorized")  # ours, and Pyro's


class Penalised(PyroELBO):
    """Adds to the loss of an objective, where gradients are taken, the penalties of the guide.

    ``loss``, by which ``fit`` validates, is the objective's alone.

    Args:
        objective: any ``pyro.infer.ELBO`` that has a differentiable loss; ``Trace_ELBO()`` by
            default.

    Raises:
        TypeError: the objective has no differentiable loss, or adds penalties itself.

    Example:
        >>> import pyro, pyro.distributions as dist
        >>> class Drawn(dist.Normal):  # towards 1
        ...     def penalty(self):
        ...         return (self.loc - 1) ** 2
        >>> def model(x):
        ...     with pyro.plate("data", len(x)):
        ...         z = pyro.sample("z", dist.Normal(0.0, 1.0))
        ...         pyro.sample("x", dist.Normal(z, 1.0), obs=x)
        >>> def guide(x):
        ...     with pyro.plate("data", len(x)):
        ...         pyro.sample("z", Drawn(torch.zeros(len(x)), 1.0))
        >>> x = torch.zeros(5)
        >>> losses = []
        >>> for objective in (Trace_ELBO(), Penalised(Trace_ELBO())):
        ...     _ = torch.manual_seed(0)
        ...     losses.append(objective.differentiable_loss(model, guide, x))
        >>> losses[1] - losses[0]
        tensor(5.)
    """

    def __init__(self, objective: Any = None) -> None:
        objective = Trace_ELBO() if objective is None else objective
        if isinstance(objective, type) or not hasattr(objective, "differentiable_loss"):
            raise TypeError(
                "objective must be a pyro.infer.ELBO with a differentiable loss, but is "
                f"{objective!r}"
            )
        if isinstance(objective, Penalised):
            raise TypeError(
                "objective must be without penalties, which would be added twice, but is "
                f"{objective!r}"
            )
        super().__init__(num_particles=getattr(objective, "num_particles", 1))
        self.objective = objective

    def __repr__(self) -> str:
        return f"Penalised({self.objective!r})"

    def __call__(self, model: Any, guide: Any) -> ELBOModule:
        """A module that maps the programs' arguments to the loss, with all that the objective's."""
        module = self.objective(model, guide)
        module.elbo = self
        return module

    def differentiable_loss(
        self, model: Program, guide: Program, *args: Any, **kwargs: Any
    ) -> Tensor:
        """The loss with its penalties, a scalar to differentiate."""
        collector = _Collector()
        with collector:
            loss = self.objective.differentiable_loss(model, guide, *args, **kwargs)
        plans = getattr(self.objective, "_plans", None)  # ours has: it may repeat the data
        repeats = self.num_particles if plans and plans.wrapped.guide_way == "tile" else 1
        for one in collector.found.values():
            loss = loss + one * (collector.scale / repeats)
        return loss

    def loss(self, model: Program, guide: Program, *args: Any, **kwargs: Any) -> float:
        """The objective's own loss."""
        value: float = self.objective.loss(model, guide, *args, **kwargs)
        return value

    def _get_trace(self, model: Program, guide: Program, args: Any, kwargs: Any) -> Any:
        return self.objective._get_trace(model, guide, args, kwargs)

    def loss_and_grads(self, model: Program, guide: Program, *args: Any, **kwargs: Any) -> float:
        """Differentiate the loss with its penalties; return its value."""
        network = getattr(self.objective, "network", None)  # of a baseline of ours
        if network is not None:  # pyro.infer.SVI trains what is named
            pyro.module(f"baseline_{self.objective._number}", network)
        loss = self.differentiable_loss(model, guide, *args, **kwargs)
        if loss.requires_grad:
            loss.backward()
        return float(loss.detach())


def without_penalties(objective: Any) -> Any:
    """The objective that penalties are added to, or that is given if none are."""
    return objective.objective if isinstance(objective, Penalised) else objective


class _Collector(Messenger):
    """Notes the penalties of a run by site, for all data of the plates, and the scale beyond these.

    That is the one that the whole program has; a warm-up weighs the latents of a bound alone.
    """

    def __init__(self) -> None:
        super().__init__()
        self.found: dict[str, Tensor] = {}
        self.scale: float | Tensor = 1.0

    def _pyro_post_sample(self, msg: Message) -> None:
        share = _share(msg["cond_indep_stack"])
        if msg["is_observed"]:
            self.scale = msg["scale"] * share  # a latent's holds the weight of a warm-up, too
            return
        penalty = getattr(msg["fn"], "penalty", None)
        if penalty is None or not torch.is_grad_enabled():
            return
        # the first run is on the data: wake-sleep runs the guide on dreams, too
        if msg["name"] in self.found:
            return
        value = scale_and_mask(penalty(), mask=msg["mask"])
        # particles share their data: those of a plate are averaged; those of a loop come one by
        # one, and the first stands for all
        for frame in msg["cond_indep_stack"]:
            if frame.name in _PARTICLES and value.dim() >= -frame.dim:
                value = value.mean(frame.dim, keepdim=True)
        self.found[msg["name"]] = value.sum() / share


def _share(frames: Iterable[CondIndepStackFrame]) -> float:
    """Of all that plates stand for, what they have drawn: their part in a scale is its inverse."""
    sizes = ((frame.size, frame.full_size) for frame in frames)
    return math.prod(size / full for size, full in sizes if full and size > 0)
