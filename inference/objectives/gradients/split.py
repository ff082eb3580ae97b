r"""Two bounds at once: the model follows the tighter one, the guide another.

The gradient of the IWAE's guide drowns in noise as K grows, while its model gains from every
particle (Rainforth and others, 2018). So of the same K particles θ takes the gradient of one bound
and φ that of another, for instance of a MIWAE with small groups: PIWAE. Where the two programs
share a parameter, as a VampPrior does, each takes its part.
"""

from __future__ import annotations

from dataclasses import dataclass

from ..bounds import Bound, slope
from ..step import Step
from .gradient import Ascent, Gradient, refuse
from .pathwise import along_path, at_leaves


@dataclass(frozen=True)
class Split(Gradient):
    """The objective's bound for the model, ``guide_bound`` for the guide: both unbiased.

    Args:
        guide_bound: raised by the guide, or lowered where it is an upper bound.

    References:
        Rainforth, Kosiorek, Le, Maddison, Igl, Wood and Teh, *Tighter variational bounds are not
        necessarily better*, 2018.
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
        if bound.direction == "upper":
            refuse(self, bound, "the model would be lowered")

    def ascend(self, step: Step, bound: Bound) -> Ascent:
        values = step.sample()
        log_joint, log_guide, path = at_leaves(step, values)
        log_weight = log_joint - log_guide
        weight = slope(self.guide_bound, log_weight)
        guided = along_path((weight * log_weight).sum(), path, values) - (weight * log_guide).sum()
        sign = 1 if self.guide_bound.direction == "lower" else -1
        modelled = (slope(bound, log_weight) * log_joint).sum()
        return Ascent(bound(log_weight.detach()), modelled + sign * guided)
