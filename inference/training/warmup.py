r"""KL warm-up: the latents' terms enter the objective with a weight that grows to one.

.. math:: \mathcal{L}_\beta(x) = \mathbb{E}_{q(z \mid x)}\bigl[\log p(x \mid z)
          + \beta\,(\log p(z) - \log q(z \mid x))\bigr],
          \qquad \beta_e = \min(1, e / E), \quad e = 1, 2, \ldots

Pyro multiplies a site's log-probability by the site's scale, and every ``pyro.infer.ELBO`` honours
it, so the weight is a scale on the latent sites and on nothing else.

Sønderby, Raiko, Maaløe, Sønderby and Winther, *Ladder variational autoencoders*, 2016. Bowman and
others, *Generating sentences from a continuous space*, 2016.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from pyro.poutine.messenger import Messenger
from pyro.poutine.runtime import Message
from torch import Tensor


def beta(epoch: int, warm_up: int) -> float:
    """The weight in epoch 1, 2, ...: ``min(1, epoch / warm_up)``, and 1 without warm-up.

    Example:
        >>> [beta(epoch, warm_up=4) for epoch in (1, 2, 4, 9)]
        [0.25, 0.5, 1.0, 1.0]
    """
    return min(1.0, epoch / warm_up) if warm_up else 1.0


class ScaleLatents(Messenger):
    """Multiply the scale of sample sites by ``weight``: of latent ones, or of all with ``every``.

    In the model only latents are weighted. In the guide everything is: an observed site there is
    a ``pyro.factor``, a part of log q.
    """

    def __init__(self, weight: float | Tensor, every: bool = False) -> None:
        super().__init__()
        self.weight = weight
        self.every = every

    def _pyro_sample(self, msg: Message) -> None:
        if self.every or not msg["is_observed"]:
            msg["scale"] = msg["scale"] * self.weight


def weighted(
    model: Callable[..., Any], guide: Callable[..., Any], weight: float | Tensor
) -> tuple[Callable[..., Any], Callable[..., Any]]:
    """The pair with its KL weighted. The programs themselves stay as they are.

    Example:
        >>> import pyro, torch
        >>> import pyro.distributions as dist
        >>> from pyro.infer import Trace_ELBO
        >>> def model(x):
        ...     pyro.sample("z", dist.Normal(0.0, 1.0))
        >>> def guide(x):
        ...     pyro.sample("z", dist.Delta(torch.tensor(0.0)))
        >>> full = Trace_ELBO().loss(model, guide, None)
        >>> half = Trace_ELBO().loss(*weighted(model, guide, 0.5), None)
        >>> half == full / 2
        True
    """
    return ScaleLatents(weight)(model), ScaleLatents(weight, every=True)(guide)
