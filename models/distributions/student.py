r"""Student's t with a normaliser that does not cancel at many degrees of freedom.

With :math:`y = (x - \mu) / \sigma`, :math:`a = \nu / 2` and s from
:mod:`~pyrovae.models.distributions.stirling`,

.. math:: \log p(x) = s(a + \tfrac12) - s(a) + (a - \tfrac12) \log \bigl(1 + \tfrac{1}{2a}\bigr)
          - \tfrac12 - \tfrac12 \log 2\pi - \log\sigma
          - \tfrac{\nu + 1}{2} \log \Bigl(1 + \frac{y^2}{\nu}\Bigr),

which goes to the normal density as :math:`\nu \to \infty`. torch takes the difference of two
log-gamma functions, of which single precision has lost 0.03 nats at :math:`\nu = 10^5`.
"""

from __future__ import annotations

import math

import pyro.distributions as dist
from torch import Tensor

from .stirling import stirling


class StableStudentT(dist.StudentT):
    """``StudentT(df, loc, scale)``.

    Example:
        >>> import torch
        >>> one = StableStudentT(torch.tensor(1e6), torch.tensor(0.0), torch.tensor(1.0))
        >>> x = torch.tensor([0.0, 1.0, 3.0])
        >>> torch.allclose(one.log_prob(x), dist.Normal(0.0, 1.0).log_prob(x), atol=2e-5)
        True
    """

    def log_prob(self, value: Tensor) -> Tensor:
        if self._validate_args:
            self._validate_sample(value)
        y, a = (value - self.loc) / self.scale, self.df / 2
        normaliser = stirling(a + 0.5) - stirling(a) + (a - 0.5) * (0.5 / a).log1p() - 0.5
        tail = (a + 0.5) * (y.square() / self.df).log1p()
        return normaliser - 0.5 * math.log(2 * math.pi) - self.scale.log() - tail
