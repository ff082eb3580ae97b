r"""Sequential Monte Carlo: annealed chains that are resampled when few of them carry the weight.

.. math:: \hat p(x) = \prod_{r} \frac1C \sum_c w_c^{(r)},

over the stretches r between resamplings. Its mean is p(x) while temperatures and step sizes are
fixed beforehand, whatever decides on resampling (Whiteley, Lee and Heine, *On the role of
interaction in sequential Monte Carlo algorithms*, 2016). Temperatures chosen from the particles
themselves bias it.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ...programs import check_number
from ..parts import Scores, Tile
from .anneal import Chains, Journey
from .importance import elbo_of, summed
from .schedules import interpolate
from .settings import Annealing

_BISECTIONS = 40


@dataclass(frozen=True)
class SequentialMonteCarlo(Annealing):
    r"""log p(x) by a sequential Monte Carlo sampler.

    With temperatures fixed beforehand the estimate is low in expectation. With ``adaptive`` each
    next temperature of each datum is the one at which the conditional effective sample size,

    .. math:: \frac{C (\sum_c W_c v_c)^2}{\sum_c W_c v_c^2},
              \quad v_c = \Bigl(\frac{p(x, u_c)}{\pi_0(u_c)}\Bigr)^{\beta' - \beta},

    falls to that share of C: fewer temperatures, spent where they are needed, and no bound, but a
    consistent estimate. ESS and k̂ are those of the weights of the families that descend from the
    first particles, and so is the standard error, less what resampling rounded them to (Chan and
    Lai, *A general theory of particle filters in hidden Markov models and some applications*, 2013;
    Lee and Whiteley, *Variance estimation in the particle filter*, 2018).

    Args:
        num_chains: C, particles for each datum.
        num_temperatures: T, or with ``adaptive`` the most there may be.
        adaptive: the share of C that a step leaves; None for temperatures fixed by ``schedule``.
        threshold: resample where the effective sample size is below this share of C.
        start: see :class:`Annealing`, for this and the further settings.

    References:
        Del Moral, Doucet and Jasra, *Sequential Monte Carlo samplers*, 2006. Zhou, Johansen and
        Aston, *Toward automatic model comparison: an adaptive sequential Monte Carlo approach*,
        2016.

    Example:
        >>> from pyrovae.models import LinearGaussianVAE
        >>> _ = torch.manual_seed(0)
        >>> linear = LinearGaussianVAE(data_dim=10, latent_dim=3)
        >>> x = linear.sample(4)
        >>> smc = SequentialMonteCarlo(num_chains=64, num_temperatures=30, start="prior")
        >>> estimate = smc(linear.model, None, x)
        >>> error = (estimate.log_evidence - linear.log_evidence(x)).abs()
        >>> bool((error < 5 * estimate.stderr + 0.05).all())
        True
    """

    num_chains: int = 256
    num_temperatures: int = 100
    adaptive: float | None = None
    threshold: float = 0.5

    @property
    def direction(self) -> str:  # type: ignore[override]
        return "lower" if self.adaptive is None else "consistent"

    def _check(self) -> None:
        super()._check()
        if self.adaptive is not None:
            check_number("adaptive", self.adaptive, 0, 1, strict=True)
        check_number("threshold", self.threshold, 0, 1)

    def _score(self, tile: Tile) -> Scores:
        path = self._path(tile)
        frozen, chains, first = self._begin(tile, path)
        kept = tile.keeper.state or {}
        journey = Journey(
            path,
            self.kernel,
            frozen,
            threshold=self.threshold,
            keeper=tile.keeper,
            advance=tile.advance,
            extra={"first": first, **{n: kept[n] for n in ("beta", "taken") if n in kept}},
        )
        if self.adaptive is None:
            chains = journey.lead(chains)
            temperatures = torch.full_like(chains.log_mean, len(frozen.betas) - 1)
        else:
            temperatures = self._adapt(journey, chains, self.adaptive)
        sums = summed(chains.families())
        fields = {
            "log_evidence": sums.log_evidence(),
            "stderr": chains.stderr(),
            "ess": sums.ess(),
            **elbo_of(first),
            **chains.diagnostics(),
        }
        fields |= {"temperatures": temperatures, "resampled": chains.resampled}
        target = path.target
        return Scores(fields, target.num_evaluations, target.num_gradients, sums.largest())

    def _adapt(self, journey: Journey, chains: Chains, share: float) -> Tensor:
        """Lead the particles by temperatures of their own choice; how many each datum took."""
        frozen, path = journey.frozen, journey.path
        kept = journey.extra
        beta = kept.get("beta", torch.zeros_like(chains.log_mean))
        taken = kept.get("taken", torch.zeros_like(beta))
        while bool((beta < 1).any()):
            chains.step += 1
            left = 1 - beta
            if chains.step < self.num_temperatures:
                left = _next_step(chains, left, share)
            taken = taken + (beta < 1)
            chains.reweigh(left)
            beta = torch.where(left >= 1 - beta, torch.ones_like(beta), beta + left)
            if not bool((beta < 1).any()):
                break
            chains.resample(self.threshold)
            step = interpolate(beta[None], frozen.betas.contiguous(), frozen.step_size)[0]
            chains.move(path, self.kernel, beta, step, frozen.scale)
            journey.keeper.offer(
                chains=chains.state(),
                frozen=frozen.state(),
                spent=path.target.spent,
                first=kept["first"],
                beta=beta,
                taken=taken,
            )
            journey.advance(float(beta.mean()))
        return taken


def _next_step(chains: Chains, left: Tensor, share: float) -> Tensor:
    """How far β may grow until the conditional effective sample size falls to its share of C."""
    ratio = chains.point.log_ratio()
    ratio = torch.where(chains.log_weight > -torch.inf, ratio, -torch.inf)
    weight = chains.log_weight.log_softmax(0)

    def conditional(step: Tensor) -> Tensor:
        power = torch.where(step > 0, step * ratio, 0.0)
        first, second = (weight + power).logsumexp(0), (weight + 2 * power).logsumexp(0)
        return (2 * first - second).exp()  # as a share of C

    low, high = torch.zeros_like(left), left
    for _ in range(_BISECTIONS):
        middle = 0.5 * (low + high)
        far = conditional(middle) < share
        low, high = torch.where(far, low, middle), torch.where(far, middle, high)
    step = torch.where(conditional(left) >= share, left, low)
    # where no step is small enough to keep the share, the smallest is taken all the same
    return torch.minimum(torch.maximum(step, 1e-12 * torch.ones_like(step)), left)
