r"""Latents that carry nothing: their posterior has collapsed onto the prior.

.. math:: \mathrm{rate} = \frac1N \sum_n \mathrm{KL}(q(z \mid x_n) \,\|\, p(z)),

from one draw of all latents for each datum, in closed form where that draw decides both densities.
It is all that z can say about x; where it is next to nothing, the decoder does without z, whatever
the ELBO.
"""

from __future__ import annotations

from contextlib import suppress
from typing import Any

import pyro.distributions as dist
import torch
from pyro.poutine import Trace
from torch import Tensor
from torch.distributions import kl_divergence

from ..programs import is_enumerated, sample_sites

COLLAPSED = 0.01  # nats


class PosteriorCollapse(UserWarning):
    """Training ended with a latent that tells nothing about the data."""


def collapsed(model_trace: Trace, guide_trace: Trace, num_data: int) -> dict[str, float]:
    """The latents whose rate is below 0.01 nats, with their rates.

    Latents that are summed out, and those that the guide gives a point, have none.
    """
    latents = sample_sites(model_trace)
    drawn = sample_sites(guide_trace)
    order = [name for name in latents if name in drawn]
    rates = {}
    for number, (name, site) in enumerate(drawn.items()):
        if name not in latents or is_enumerated(site) or _is_point(site["fn"]):
            continue
        # what the prior of a latent depends on is drawn before it: else the KL at that draw is not
        # the share of the latent, and the draw itself has to serve
        in_order = set(order[: order.index(name)]) <= set(list(drawn)[:number])
        rates[name] = _total_kl(site, latents[name], in_order) / num_data
    return {name: rate for name, rate in rates.items() if abs(rate) < COLLAPSED}


def explain(rates: dict[str, float], num_epochs: int) -> str:
    """What the user is told."""
    found = ", ".join(f"'{name}' ({abs(rate):.4f} nats)" for name, rate in rates.items())
    return (
        f"posterior collapse after {num_epochs} epochs: the latents {found} tell nothing about the "
        "data, which the decoder models without them. A warm-up of the KL (warm_up=), free bits, "
        "or a weaker decoder may help"
    )


def _is_point(fn: Any) -> bool:
    while hasattr(fn, "base_dist"):
        fn = fn.base_dist
    return isinstance(fn, dist.Delta)


@torch.no_grad()
def _total_kl(guide: dict, model: dict, in_order: bool) -> float:
    q, p, z = guide["fn"], model["fn"], guide["value"]
    kl: Tensor | None = None
    if in_order:
        with suppress(NotImplementedError):  # no closed form is known
            kl = kl_divergence(q, p)
    if kl is None:
        kl = q.log_prob(z) - p.log_prob(z)
    mask = guide["mask"]
    return float((kl if mask is None else torch.where(mask, kl, 0.0)).double().sum())
