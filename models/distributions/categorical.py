"""A categorical variable whose draws are of the dtype of its logits, as those of a Bernoulli are.

torch's draws are of type long, which no encoder takes, and its mean is not a number.
"""

from __future__ import annotations

import pyro.distributions as dist
import torch
from torch import Tensor


class FloatCategorical(dist.Categorical):
    """``Categorical(logits=logits)`` with draws and a mean in floating point.

    Values may be of any dtype. The mean is that of the class's number, and means something where
    the classes are in order.

    Example:
        >>> one = FloatCategorical(logits=torch.tensor([0.0, 0.0, -100.0]))
        >>> one.mean, one.sample().dtype
        (tensor(0.5000), torch.float32)
        >>> one.log_prob(torch.tensor(1)) == one.log_prob(torch.tensor(1.0))
        tensor(True)
    """

    @property
    def mean(self) -> Tensor:
        number = torch.arange(self._num_events, dtype=self.probs.dtype, device=self.probs.device)
        return self.probs @ number

    @property
    def variance(self) -> Tensor:
        number = torch.arange(self._num_events, dtype=self.probs.dtype, device=self.probs.device)
        return (self.probs * (number - self.mean[..., None]).square()).sum(-1)

    def sample(self, sample_shape: torch.Size = torch.Size()) -> Tensor:  # noqa: B008
        return super().sample(sample_shape).to(self.probs.dtype)
