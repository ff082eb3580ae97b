r"""A posterior with several modes, whose draws move along with its parameters.

The distribution function of an entry given those before it is, with the shares of the components
that these leave,

.. math:: F_j(z_j \mid z_{<j}) = \sum_m w_{mj} \,
          \Phi\Bigl(\frac{z_j - \mu_{mj}}{\sigma_{mj}}\Bigr), \quad
          w_{mj} \propto \pi_m \prod_{i<j} N(z_i; \mu_{mi}, \sigma_{mi}).

A draw moves such that every :math:`F_j` stays what it is:
:math:`dz_j = -dF_j / p(z_j \mid z_{<j})`, where :math:`z_{<j}` has moved already.

Graves, *Stochastic backpropagation through mixture density distributions*, 2016. Pyro's own
``MixtureOfDiagNormals`` errs in the gradient of the logits where scales are small, and its
densities underflow there.
"""

from __future__ import annotations

import math

import pyro.distributions as dist
import torch
from pyro.distributions.torch_distribution import TorchDistributionMixin
from torch import Tensor, nn
from torch.special import ndtr

from ..checks import check_counts


class MixturePosterior(nn.Module):
    r"""A mixture of M diagonal normals, :math:`\sum_m \pi_m(x) N(\mu_m(x), \sigma_m(x)^2)`.

    Its draws are reparameterised, the choice among components too. That takes Z steps, one after
    the other; the gradient of a logit has a large variance where modes are far apart.

    Args:
        net: maps ``(x, *context)`` to ``(..., M (2 Z + 1))``: for each component its mean, its log
            scale and its logit.
        num_components: M, at least 2.

    Raises:
        ValueError: the network's output has another size.

    References:
        Graves, *Stochastic backpropagation through mixture density distributions*, 2016.

    Example:
        >>> posterior = MixturePosterior(nn.Linear(784, 3 * (2 * 4 + 1)), num_components=3)
        >>> posterior(torch.zeros(5, 784)).rsample().shape
        torch.Size([5, 4])
    """

    def __init__(self, net: nn.Module, num_components: int) -> None:
        super().__init__()
        check_counts(num_components=num_components)
        if num_components < 2:
            raise ValueError("num_components must be at least 2, but is 1: that is DiagonalNormal")
        self.net, self.num_components = net, num_components

    def forward(self, x: Tensor, *context: Tensor) -> TorchDistributionMixin:
        output = self.net(x, *context)
        size, left = divmod(output.shape[-1], self.num_components)
        if left or size % 2 == 0 or size < 3:
            raise ValueError(
                f"net must return num_components = {self.num_components} times 2 Z + 1 features, "
                f"but returns {output.shape[-1]}"
            )
        parts = output.unflatten(-1, (self.num_components, size))
        loc, log_scale, logit = parts.split([size // 2, size // 2, 1], -1)
        components = dist.Normal(loc, log_scale.exp()).to_event(1)
        return _MovingMixture(dist.Categorical(logits=logit.squeeze(-1)), components)


class _MovingMixture(dist.MixtureSameFamily):
    """A mixture of independent normals, reparameterised."""

    has_rsample = True

    def rsample(self, sample_shape: torch.Size = torch.Size()) -> Tensor:  # noqa: B008
        components = self.component_distribution.base_dist
        loc, scale = components.loc.unbind(-1), components.scale.unbind(-1)
        log_share = self.mixture_distribution.logits
        entries: list[Tensor] = []
        for z, mean, width in zip(self.sample(sample_shape).unbind(-1), loc, scale, strict=True):
            share = log_share.softmax(-1)
            below = (share * ndtr((z[..., None] - mean) / width)).sum(-1)
            density = (share * _log_density(z[..., None], mean, width).exp()).sum(-1)
            # equal to z, with the gradient of -F / p
            entries.append(z - (below - below.detach()) / density.detach())
            log_share = log_share + _log_density(entries[-1][..., None], mean, width)
        return torch.stack(entries, -1)


def _log_density(z: Tensor, loc: Tensor, scale: Tensor) -> Tensor:
    return -0.5 * ((z - loc) / scale).square() - scale.log() - 0.5 * math.log(2 * math.pi)
