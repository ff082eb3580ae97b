r"""The continuous Bernoulli: the uniform density on [0, 1], tilted by a logit.

.. math:: \log p(x) = x l - A(l), \quad
          A(l) = \log \int_0^1 e^{l x} \, dx = \log \frac{e^l - 1}{l},

with mean :math:`A'(l)` and variance :math:`A''(l)`. torch's own computes :math:`A` from a clamped
probability (pytorch issue 72525): beyond logits of 16 in single precision, 36 in double, its
density no longer integrates to one (to 0.16 at a logit of 100). Here every logit is exact. Written
with :math:`a = |l|`, the formulas neither overflow nor cancel for large ones; around zero, where
they do cancel, the first terms of their series stand in.
"""

from __future__ import annotations

import torch
from pyro.distributions.torch_distribution import TorchDistribution
from torch import Tensor
from torch.distributions import constraints

# below it the next term of each series is under 1e-12
_SMALL = 0.1


def _split(logits: Tensor, small: float = _SMALL) -> tuple[Tensor, Tensor, Tensor]:
    """Where logits are small; those, zero elsewhere; the sizes of the others, one elsewhere.

    Each branch thus sees only logits it is fit for, and neither spoils the other's gradient.
    """
    is_small = logits.abs() < small
    return is_small, logits.masked_fill(~is_small, 0.0), logits.masked_fill(is_small, 1.0).abs()


class TiltedUniform(TorchDistribution):
    """Independent components on [0, 1] with density proportional to ``exp(logits * x)``.

    Args:
        logits: the tilt l of each component, any shape; that shape is the batch shape.

    References:
        Loaiza-Ganem and Cunningham, *The continuous Bernoulli: fixing a pervasive error in
        variational autoencoders*, 2019.

    Example:
        >>> tilted = TiltedUniform(torch.tensor([0.0, 20.0, 100.0]))
        >>> tilted.log_prob(torch.ones(3)).exp().round()
        tensor([  1.,  20., 100.])
    """

    arg_constraints = {"logits": constraints.real}  # noqa: RUF012 - the convention of torch
    support = constraints.unit_interval
    has_rsample = True

    def __init__(self, logits: Tensor, validate_args: bool | None = None) -> None:
        self.logits = logits
        super().__init__(logits.shape, validate_args=validate_args)

    def log_prob(self, value: Tensor) -> Tensor:
        if self._validate_args:
            self._validate_sample(value)
        is_small, small, size = _split(self.logits)
        square = (small / 2) ** 2
        series = small / 2 + square / 6 - square**2 / 180 + square**3 / 2835
        # at a logit of +a, A(a) = A(-a) + a: that a belongs to x, from which it may take all
        mirrored = value - (self.logits > 0).to(value.dtype)
        closed = mirrored * self.logits - (-torch.expm1(-size) / size).log()
        return torch.where(is_small, value * self.logits - series, closed)

    @property
    def mean(self) -> Tensor:
        is_small, small, size = _split(self.logits)
        series = 0.5 + small / 12 - small**3 / 720 + small**5 / 30240
        upper = -1 / torch.expm1(-size) - 1 / size  # at a logit of +a; at -a it is one less this
        return torch.where(is_small, series, torch.where(self.logits > 0, upper, 1 - upper))

    @property
    def variance(self) -> Tensor:
        is_small, small, size = _split(self.logits)
        series = 1 / 12 - small**2 / 240 + small**4 / 6048 - small**6 / 172800
        closed = size**-2 - (-size).exp() / torch.expm1(-size) ** 2
        return torch.where(is_small, series, closed)

    def rsample(self, sample_shape: torch.Size = torch.Size()) -> Tensor:  # noqa: B008
        """Draw by the inverse of the distribution function."""
        logits = self.logits.expand(self._extended_shape(sample_shape))
        uniform = torch.rand(logits.shape, dtype=logits.dtype, device=logits.device)
        # one draw in 2²⁴ is exactly 0: mirrored it would be 1, whose quantile here is a log of 0
        largest = 1 - torch.finfo(logits.dtype).eps
        is_small, small, size = _split(logits, small=1e-3)
        series = uniform + small * uniform * (1 - uniform) / 2
        lower = torch.log1p(uniform.clamp(max=largest) * torch.expm1(-size)) / -size
        return torch.where(is_small, series, torch.where(logits > 0, 1 - lower, lower))
