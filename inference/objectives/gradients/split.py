r"""Two bounds at once: the model follows the tighter one, the guide another.

The gradient of the IWAE's guide drowns in noise as K grows, while its model gains from every
particle (Rainforth and others, 2018). So of the same K particles θ takes the gradient of one bound
and φ that of another, for instance of a MIWAE with small groups: PIWAE. Where the two programs
share a parameter, as a VampPrior does, each takes its part.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ..bounds import Bound, slope, weigh
from ..step import Step, Values, leaves
from .gradient import Ascent, Gradient, refuse_upper
from .self_normalized import check_upper, coefficients


@dataclass(frozen=True)
class Split(Gradient):
    """The objective's bound for the model, ``guide_bound`` for the guide.

    Both are unbiased, but where the guide lowers an upper bound, which takes
    :class:`SelfNormalized`.

    Args:
        guide_bound: raised by the guide, or lowered where it is an upper bound.

    References:
        Rainforth, Kosiorek, Le, Maddison, Igl, Wood and Teh, *Tighter variational bounds are not
        necessarily better*, 2018.

    Example:
        >>> from pyrovae.inference import MonteCarloObjective, bounds
        >>> MonteCarloObjective(bounds.IWAE(), Split(bounds.MIWAE(4)), num_particles=8)  # PIWAE
        MonteCarloObjective(IWAE(), Split(guide_bound=MIWAE(num_groups=4)), num_particles=8)
    """

    rescores = True

    guide_bound: Bound

    def __post_init__(self) -> None:
        if not isinstance(self.guide_bound, Bound):
            raise TypeError(
                f"guide_bound must be a bound, as MIWAE(8), but is {self.guide_bound!r}"
            )

    def check(self, bound: Bound, num_particles: int) -> None:
        self.guide_bound.check(num_particles)
        check_upper(self.guide_bound)
        refuse_upper(self, bound)

    @property
    def reparameterizes(self) -> bool:
        return self.guide_bound.direction == "lower"

    def ascend(self, step: Step, bound: Bound) -> Ascent:
        values = step.sample()
        path = leaves(values)
        log_joint, log_guide = step.log_joint(path), step.log_guide(path)
        log_weight = log_joint - step.beta * log_guide
        if self.guide_bound.direction == "upper":
            _, weight = coefficients(self.guide_bound, log_weight.detach())
            guided = -weigh(weight, log_guide).sum()
        else:
            weight = slope(self.guide_bound, log_weight)
            score = step.beta * weigh(weight, log_guide)
            guided = _along_path(weigh(weight, log_weight).sum(), path, values) - score.sum()
        modelled = weigh(slope(bound, log_weight), log_joint)
        return Ascent(bound(log_weight.detach()), modelled.sum() + guided)


def _along_path(total: Tensor, path: Values, values: Values) -> Tensor:
    """A scalar whose gradient is that of ``total`` with respect to the draws alone."""
    names = [name for name, value in values.items() if value.requires_grad]
    if not (names and total.requires_grad):  # nothing to train there, or no gradient wanted
        return torch.zeros_like(total)
    gradients = torch.autograd.grad(
        total, [path[name] for name in names], retain_graph=True, allow_unused=True
    )
    terms = [
        (gradient * values[name]).sum()
        for name, gradient in zip(names, gradients, strict=True)
        if gradient is not None
    ]
    return torch.stack([torch.zeros_like(total), *(term.to(total.dtype) for term in terms)]).sum()
