r"""The product of two diagonal normals, renormalised: what a ladder makes of data and prior.

.. math:: N(z; \mu_d, \sigma_d^2) \, N(z; \mu_p, \sigma_p^2) \propto N(z; \mu, \sigma^2), \quad
          \sigma^{-2} = \sigma_d^{-2} + \sigma_p^{-2}, \quad
          \mu = \sigma^2 (\mu_d \sigma_d^{-2} + \mu_p \sigma_p^{-2}).

With :math:`r^2 = \sigma_d^2 + \sigma_p^2` that is :math:`\sigma = \sigma_d \sigma_p / r` and
:math:`\mu = \mu_p + (\sigma_p / r)^2 (\mu_d - \mu_p)`: no precision, of 1e40 for a scale of 1e-20,
is ever written out.
"""

from __future__ import annotations

import pyro.distributions as dist
import torch
from pyro.distributions.torch_distribution import TorchDistributionMixin
from torch.distributions import Independent, Normal


def precision_weighted(
    name: str, of_data: TorchDistributionMixin, of_prior: TorchDistributionMixin
) -> TorchDistributionMixin:
    """The product of the two, which broadcast, renormalised: of the kind of the first.

    Args:
        name: of the modules that returned them, for the error.
        of_data: independent normals.
        of_prior: likewise.

    Raises:
        TypeError: one of them is something else.
        ValueError: they are over codes of two shapes.

    Example:
        >>> of_data = dist.Normal(torch.tensor([25.0]), 3.0).to_event(1)
        >>> of_prior = dist.Normal(torch.tensor([0.0]), 4.0).to_event(1)
        >>> both = precision_weighted("[0]", of_data, of_prior)
        >>> torch.cat([both.mean, both.stddev])
        tensor([16.0000,  2.4000])
    """
    d, p = _normal(f"posteriors{name}", of_data), _normal(f"conditionals{name}", of_prior)
    if of_data.event_shape != of_prior.event_shape:  # they would broadcast
        raise ValueError(
            f"posteriors{name} must be over codes of shape {tuple(of_prior.event_shape)}, as "
            f"conditionals{name} is, but is over {tuple(of_data.event_shape)}"
        )
    share = p.scale / torch.hypot(d.scale, p.scale)
    product = dist.Normal(p.loc + share.square() * (d.loc - p.loc), d.scale * share)
    return type(of_data)(product, of_data.event_dim)


def _normal(name: str, found: TorchDistributionMixin) -> Normal:
    base = found.base_dist if isinstance(found, Independent) else None
    if not isinstance(base, Normal):
        kind = type(found if base is None else base).__name__
        raise TypeError(
            f"{name} must return independent normals for ladder=True, as DiagonalNormal does, but "
            f"returns a {kind} over codes of shape {tuple(found.event_shape)}"
        )
    return base
