r"""Annealed importance sampling: log p(x) from chains that walk from a start to the posterior.

An importance weight whose proposal is a whole annealed trajectory: its mean is p(x), so the
logarithm of the mean is low in expectation, and the more temperatures the less so.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from ..accumulator import Strata, WeightSums
from ..parts import Scores, Tile
from .anneal import Journey
from .settings import Annealing


@dataclass(frozen=True)
class AnnealedImportanceSampling(Annealing):
    r"""log p(x) by annealed importance sampling (AIS): low in expectation.

    .. math:: \log \hat p(x) = \log \frac1C \sum_c w_c

    over C chains (:mod:`~pyrovae.inference.evidence.annealing.anneal`). All latents move in
    unconstrained space, enumerated ones summed out. Step sizes, and the temperatures of
    ``EqualLength()``, come from a pilot run and are frozen: the bound holds. It is low where modes
    are missed; :class:`BidirectionalMonteCarlo` says by how much. The diagnostics hold the mean
    acceptance, and the number of moves whose energy diverged.

    Args:
        num_chains: see :class:`Annealing`, for this and the further settings.

    References:
        Neal, *Annealed importance sampling*, 2001. Wu, Burda, Salakhutdinov and Grosse, *On the
        quantitative analysis of decoder-based generative models*, 2017.

    Example:
        >>> import torch
        >>> from pyrovae.models import LinearGaussianVAE
        >>> _ = torch.manual_seed(0)
        >>> linear = LinearGaussianVAE(data_dim=10, latent_dim=3)
        >>> x = linear.sample(4)
        >>> ais = AnnealedImportanceSampling(32, num_temperatures=50, start="prior")
        >>> estimate = ais(linear.model, None, x)
        >>> error = (estimate.log_evidence - linear.log_evidence(x)).abs()
        >>> bool((error < 5 * estimate.stderr + 0.01).all())
        True
    """

    direction = "lower"

    def _score(self, tile: Tile) -> Scores:
        path = self._path(tile)
        frozen, chains, first = self._begin(tile, path)
        journey = Journey(
            path,
            self.kernel,
            frozen,
            keeper=tile.keeper,
            advance=tile.advance,
            extra={"first": first},
        )
        chains = journey.lead(chains)
        sums = summed(chains.log_weight)
        fields = Strata.of(sums).fields() | elbo_of(first) | chains.diagnostics()
        return Scores(
            fields, path.target.num_evaluations, path.target.num_gradients, sums.largest()
        )


def summed(log_weight: Tensor) -> WeightSums:
    """Sums over all weights at once, ``(C, N)``."""
    sums = WeightSums(len(log_weight))
    sums.add(log_weight)
    return sums


def elbo_of(first: Tensor) -> dict[str, Tensor]:
    """The ELBO of the start, from the log-weights of its draws, ``(C, N)``."""
    sums = summed(first)
    return {"elbo": sums.elbo(), "elbo_stderr": sums.elbo_stderr()}
