r"""A logistic variable rounded to one of L levels, with exact tails.

In units of levels, with mean :math:`c = (L - 1) \mu` and scale :math:`w = (L - 1) s`, level k
stands for the bin from :math:`k - \tfrac12` to :math:`k + \tfrac12`; the first takes all the mass
below, the last all above. With :math:`a = (k - \tfrac12 - c) / w` and
:math:`b = (k + \tfrac12 - c) / w`,

.. math:: P(0) = \sigma(b), \quad P(L - 1) = \sigma(-a), \quad
          P(k) = \sigma(b) - \sigma(a) = \sigma(b) \, \sigma(-a) \, (1 - e^{-1/w}).

The product does not cancel where the difference would, in either tail or where w is small or large,
and its logarithm is a sum of three terms each of which is exact.
"""

from __future__ import annotations

import torch
from pyro.distributions.torch_distribution import TorchDistribution
from torch import Tensor
from torch.distributions import constraints
from torch.nn.functional import logsigmoid

from .grid import UnitGrid, check_num_levels, nearest_level

# every such logistic is in one level, and beyond it the gradient would overflow
_NARROWEST = 1e-12
# levels that a mean adds up at a time
_CHUNK = 32


class RoundedLogistic(TorchDistribution):
    """Independent components on the grid k / (L - 1), k = 0 ... L - 1, of [0, 1].

    Args:
        loc: mean μ of the logistic before it is rounded, in the units of the data.
        scale: its scale s, likewise; one under 1e-12 levels counts as that. The batch shape is what
            both broadcast to.
        num_levels: L.

    References:
        Kingma, Salimans, Jozefowicz, Chen, Sutskever and Welling, *Improved variational inference
        with inverse autoregressive flow*, 2016. Salimans, Karpathy, Chen and Kingma,
        *PixelCNN++: improving the PixelCNN with discretized logistic mixture likelihood and other
        modifications*, 2017.

    Example:
        >>> levels = torch.arange(256) / 255
        >>> p = RoundedLogistic(torch.tensor(0.3), torch.tensor(0.05)).log_prob(levels).exp()
        >>> bool((p.sum() - 1).abs() < 1e-6), int(p.argmax())
        (True, 76)
    """

    arg_constraints = {  # noqa: RUF012 - the torch.distributions convention
        "loc": constraints.real,
        "scale": constraints.positive,
    }

    def __init__(
        self,
        loc: Tensor,
        scale: Tensor,
        num_levels: int = 256,
        validate_args: bool | None = None,
    ) -> None:
        check_num_levels(num_levels)
        self.loc, self.scale, self.num_levels = loc, scale, num_levels
        batch_shape = torch.broadcast_shapes(loc.shape, scale.shape)
        super().__init__(batch_shape, validate_args=validate_args)

    @constraints.dependent_property(is_discrete=True, event_dim=0)
    def support(self) -> UnitGrid:
        return UnitGrid(self.num_levels)

    def _in_levels(self) -> tuple[Tensor, Tensor]:
        """Mean and scale in units of levels."""
        last = self.num_levels - 1
        return self.loc * last, (self.scale * last).clamp(min=_NARROWEST)

    def log_prob(self, value: Tensor) -> Tensor:
        if self._validate_args:
            self._validate_sample(value)
        centre, width = self._in_levels()
        # from whole numbers, edges that two bins share are the same to the last bit
        level = nearest_level(value.to(centre.dtype), self.num_levels)
        is_first, is_last = level == 0, level == self.num_levels - 1
        below = logsigmoid((level + 0.5 - centre) / width).masked_fill(is_last, 0.0)
        above = logsigmoid((centre - level + 0.5) / width).masked_fill(is_first, 0.0)
        between = (-torch.expm1(-1 / width)).log()
        return below + above + torch.where(is_first | is_last, 0.0, between)

    @property
    def mean(self) -> Tensor:
        """Exactly: the sum over levels of P(x >= level), divided by L - 1."""
        centre, width = self._in_levels()
        total = self.loc.new_zeros(self.batch_shape)
        edges = torch.arange(0.5, self.num_levels - 1, dtype=self.loc.dtype, device=self.loc.device)
        for part in edges.split(_CHUNK):
            survival = ((centre[..., None] - part) / width[..., None]).sigmoid()
            total = total + survival.sum(-1)
        return total / (self.num_levels - 1)

    def sample(self, sample_shape: torch.Size = torch.Size()) -> Tensor:  # noqa: B008
        """Draw a logistic variable and round it."""
        with torch.no_grad():
            centre, width = self._in_levels()
            shape = self._extended_shape(sample_shape)
            uniform = torch.rand(shape, dtype=centre.dtype, device=centre.device)
            # the logit of a draw of exactly 0 is infinite, and in the first level like any low one
            drawn = centre + width * uniform.logit()
            return drawn.round().clamp(0, self.num_levels - 1) / (self.num_levels - 1)
