r"""Gradients through the density of the draws: for latents that cannot be reparameterised.

.. math:: \nabla_\phi \mathbb{E}_q[L] = \mathbb{E}_q \Bigl[ \sum_k (L - b_k) \, \nabla_\phi
          \log q_\phi(z_k) \Bigr] + \mathbb{E}_q \Bigl[ \sum_k a_k \nabla_\phi \log w_k \Bigr],

with baselines :math:`b_k` that do not depend on :math:`z_k`, and the bound's slopes :math:`a_k`. In
the last sum, :math:`\log w_k` holds :math:`-\log q_\phi(z_k)`, whose weight is centred here by its
mean :math:`1/K`: that takes away noise only, and with it all of the noise at the posterior.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from ...layout import Layout
from ...programs import ProgramError
from ..bounds import IWAE, Bound
from ..step import Step, hold
from .baselines import Baseline, LeaveOneOut, NoBaseline
from .gradient import Ascent, Gradient, refuse, refuse_upper


@dataclass(frozen=True)
class ScoreFunction(Gradient):
    """The score-function gradient (REINFORCE), by choice for all latents: unbiased.

    Latents that can be reparameterised are, unless told otherwise; which cannot is found from the
    program.

    Args:
        baseline: :class:`NoBaseline`, :class:`MovingAverage`, :class:`LeaveOneOut` or
            :class:`NetworkBaseline`.
        everywhere: take it for every latent.

    References:
        Williams, *Simple statistical gradient-following algorithms for connectionist reinforcement
        learning*, 1992. Ranganath, Gerrish and Blei, *Black box variational inference*, 2014. Mnih
        and Gregor, *Neural variational inference and learning in belief networks*, 2014.

    Example:
        >>> from pyrovae.inference import MonteCarloObjective, bounds
        >>> objective = MonteCarloObjective(bounds.ELBO(), ScoreFunction(LeaveOneOut()), 4)
        >>> objective.gradient
        ScoreFunction(baseline=LeaveOneOut(), everywhere=False)
    """

    reparameterizes = False

    baseline: Baseline = field(default_factory=NoBaseline)
    everywhere: bool = False

    def __post_init__(self) -> None:
        if not isinstance(self.baseline, Baseline):
            raise TypeError(
                f"baseline must be a Baseline, as NoBaseline(), but is {self.baseline!r}"
            )

    @property
    def rescores(self) -> bool:
        return self.everywhere

    def check(self, bound: Bound, num_particles: int) -> None:
        self.baseline.check(num_particles)
        refuse_upper(self, bound)

    def check_latents(self, layout: Layout) -> None:
        self.check_enumeration(layout)
        if not self.everywhere and all(one.reparameterized for one in layout.latents.values()):
            raise ProgramError(
                f"every latent ({', '.join(layout.latents)}) can be reparameterised, which leaves "
                "nothing to the score function: use Pathwise, or ScoreFunction(everywhere=True)"
            )

    def ascend(self, step: Step, bound: Bound) -> Ascent:
        if self.everywhere:
            held = hold(step.sample())
            log_joint, score = step.log_joint(held), step.log_guide(held)
            log_weight = log_joint - step.beta * score
        else:
            drawn = step.joint()
            latents = step.plan.layout.latents
            score = sum(
                (term for n, term in drawn.sites.items() if not latents[n].reparameterized),
                drawn.log_guide.new_zeros(()),
            )
            log_weight = drawn.log_weight
        value = bound(log_weight)
        advantage, own_loss = self.baseline.advantage(bound, log_weight.detach(), step)
        centred = advantage + step.beta / len(log_weight)
        surrogate = value.sum() + (centred * score).sum()
        return Ascent(value, surrogate - own_loss)


class VIMCO(ScoreFunction):
    """The leave-one-out score function of the IWAE, for discrete latents.

    As published but for the centred weight of the last term (see the module).

    References:
        Mnih and Rezende, *Variational inference for Monte Carlo objectives*, 2016.

    Example:
        >>> from pyrovae.inference import MonteCarloObjective, bounds
        >>> MonteCarloObjective(bounds.IWAE(), VIMCO(), num_particles=4).gradient
        VIMCO(baseline=LeaveOneOut(), everywhere=False)
    """

    def __init__(self, everywhere: bool = False) -> None:
        super().__init__(LeaveOneOut(), everywhere)

    def check(self, bound: Bound, num_particles: int) -> None:
        super().check(bound, num_particles)
        if not isinstance(bound, IWAE):
            refuse(self, bound, "it is the IWAE's; ScoreFunction(LeaveOneOut()) takes any bound")
