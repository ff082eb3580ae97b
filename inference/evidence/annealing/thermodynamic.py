r"""Thermodynamic integration: log p(x) as the area under a curve of expectations.

.. math:: \log p(x) = \int_0^1 \mathbb{E}_{\pi_\beta} \bigl[\log p(x, u) - \log \pi_0(u)\bigr] \,
          d\beta.

The integrand grows with β (its derivative is a variance, V), so the left sum over a grid lies below
log p(x) and the right sum above it; the trapezoid is better than either, and its error of second
order is taken off by

.. math:: -\sum_t \frac{(\beta_t - \beta_{t-1})^2}{12} (V_t - V_{t-1}).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ...programs import check_count
from ..parts import Scores, Tile
from .anneal import Chains, Journey
from .importance import elbo_of
from .settings import Annealing


@dataclass(frozen=True)
class ThermodynamicIntegration(Annealing):
    r"""log p(x) by thermodynamic integration along chains that are led from the start to the joint.

    At each temperature the chains make ``num_moves`` moves and the first half of them is left out.
    The estimate is the corrected trapezoid, which is on no known side; ``left``, ``right`` and
    ``trapezoid`` stand in the diagnostics, each with its standard error (``left_stderr``, ...).
    Errors are those of independent chains.

    Args:
        num_chains: C.
        num_temperatures: T.
        num_moves: of the kernel at each temperature.
        start: see :class:`Annealing`, for this and the further settings.

    References:
        Gelman and Meng, *Simulating normalizing constants*, 1998. Friel, Hurn and Wyse, *Improving
        power posterior estimation of statistical evidence*, 2014.

    Example:
        >>> from pyrovae.models import LinearGaussianVAE
        >>> _ = torch.manual_seed(0)
        >>> linear = LinearGaussianVAE(data_dim=10, latent_dim=3)
        >>> x = linear.sample(4)
        >>> integral = ThermodynamicIntegration(num_chains=32, num_temperatures=40, start="prior")
        >>> estimate = integral(linear.model, None, x)
        >>> below = estimate.diagnostics["left"] < estimate.diagnostics["right"]
        >>> bool(below.all())
        True
    """

    num_chains: int = 32
    num_temperatures: int = 50
    num_moves: int = 8

    direction = "consistent"
    bias_weight = 0.0

    def _check(self) -> None:
        super()._check()
        check_count("num_moves", self.num_moves)
        if self.num_chains < 2:
            raise ValueError("num_chains must be at least 2, for an error, but is 1")

    def _score(self, tile: Tile) -> Scores:
        path = self._path(tile)
        frozen, chains, first = self._begin(tile, path)
        records = _Records(self.num_moves, len(frozen.betas), chains)
        if chains.step == 0:
            records.add(0, chains)
        else:
            records.restore(tile)
        journey = Journey(
            path,
            self.kernel,
            frozen,
            moves=self.num_moves,
            settle=True,
            keeper=tile.keeper,
            advance=tile.advance,
            observe=records.add,
            extra={"first": first, **records.tensors},
        )
        chains = journey.lead(chains)
        target = path.target
        fields = records.integrate(frozen.betas, first) | elbo_of(first) | chains.diagnostics()
        return Scores(fields, target.num_evaluations, target.num_gradients)


class _Records:
    """What the log-ratio was at each temperature: means and mean squares by chain."""

    def __init__(self, num_moves: int, num_betas: int, chains: Chains) -> None:
        self.left_out, self.num_moves = num_moves // 2, num_moves
        ratio = chains.point.log_ratio()
        self.tensors = {
            name: ratio.new_zeros(num_betas, *ratio.shape) for name in ("means", "squares")
        }
        self._now, self._move = -1, 0

    def restore(self, tile: Tile) -> None:
        """Take up what a journal kept."""
        assert tile.keeper.state is not None
        for name in self.tensors:
            self.tensors[name].copy_(tile.keeper.state[name])

    def add(self, number: int, chains: Chains) -> None:
        """Note the ratio after a move at a temperature; the start's draws are independent."""
        self._move = self._move + 1 if number == self._now else 0
        self._now = number
        counted = 1 if number == 0 else self.num_moves - self.left_out
        first = 0 if number == 0 else self.left_out
        if self._move < first:
            return
        ratio = chains.point.log_ratio()
        for name, value in (("means", ratio), ("squares", ratio.square())):
            row = self.tensors[name][number]
            before = 0.0 if self._move == first else row.clone()
            row.copy_(before + value / counted)

    def integrate(self, betas: Tensor, first: Tensor) -> dict[str, Tensor]:
        """The sums over the grid, with the errors that independent chains show.

        Where the joint is zero at some of the start's draws, the path begins at the start confined
        to the others: the share of these is a factor of p(x).
        """
        inside = first > -torch.inf
        share = inside.double().mean(0)
        for values in self.tensors.values():
            kept = torch.where(inside, values[0], 0.0).sum(0) / inside.sum(0)
            values[0] = torch.where(inside, values[0], kept)
        means, width = self.tensors["means"], betas.diff(dim=0)[:, None]
        count = means.shape[1]
        variance = self.tensors["squares"].mean(1) - means.mean(1).square()
        correction = (betas.diff(dim=0).square() * variance.diff(dim=0)).sum(0) / 12
        left, right = (width * means[:-1]).sum(0), (width * means[1:]).sum(0)
        fields = {}
        for name, sums in (("left", left), ("right", right), ("trapezoid", 0.5 * (left + right))):
            fields[name] = sums.mean(0) + share.log()
            error = sums.var(0) / count + (1 - share) / (share * count)
            fields[f"{name}_stderr"] = error.sqrt()
        return fields | {
            "log_evidence": fields["trapezoid"] - correction,
            "stderr": fields["trapezoid_stderr"],
            "ess": torch.full_like(fields["left"], torch.nan),
        }
