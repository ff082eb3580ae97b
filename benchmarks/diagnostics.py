r"""What a trained VAE does with its latent dimensions, and how two of them differ.

A dimension is *active* when the posterior's mean moves with the data,

.. math:: \mathrm{Var}_x \bigl( \mathbb{E}_{q(z \mid x)} [z_u] \bigr) > 0.01

(Burda, Grosse and Salakhutdinov, *Importance weighted autoencoders*, 2016). One that is not carries
nothing about x. Here the means are those that a posterior of ours knows, without any noise; those
of any other program `inference.active_units` estimates.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from ..inference import Estimate
from ..inference.information.units import ACTIVE


@torch.no_grad()
def posterior_means(posterior: Callable[..., Any], x: Tensor, batch_size: int = 1000) -> Tensor:
    """The mean of q(z | x) for each datum, ``(N, Z)``.

    Args:
        posterior: ``posterior(x)`` returns a distribution.
        x: data, ``(N, D)``.
        batch_size: data encoded at once.
    """
    return torch.cat([mean_of(posterior(part)) for part in x.split(batch_size)])


def mean_of(q: Any, num_draws: int = 100) -> Tensor:
    """The mean of a distribution; of one that does not know it, as of a flow, that of draws.

    >>> mean_of(torch.distributions.Normal(torch.tensor([1.0, 2.0]), 1.0))
    tensor([1., 2.])
    """
    try:
        mean: Tensor = q.mean
    except NotImplementedError:
        return q.sample(torch.Size((num_draws,))).mean(0)
    return mean


def active_units(means: Tensor, threshold: float = ACTIVE) -> int:
    """How many latent dimensions are active, from the posterior means ``(N, Z)`` of N >= 2 data.

    >>> active_units(torch.tensor([[0.0, 1.0], [0.001, -1.0]]))
    1

    Raises:
        ValueError: fewer than two data.
    """
    if means.dim() != 2 or len(means) < 2:
        raise ValueError(
            f"means should be of shape (N, Z) with N at least 2; found {tuple(means.shape)}"
        )
    return int((means.double().var(0) > threshold).sum())


def paired_difference(first: Estimate, second: Estimate) -> tuple[float, float]:
    """Mean of second - first over the same data, and its standard error.

    What makes an image hard is common to both and cancels, so this error is smaller than either's.
    It holds the Monte Carlo noise of both, which differs from image to image.
    """
    difference = second.log_evidence - first.log_evidence
    return float(difference.mean()), float(difference.std()) / math.sqrt(len(difference))
