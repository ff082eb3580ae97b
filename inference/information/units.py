r"""Which dimensions of the latents are used: activity and KL of each.

.. math:: A_u = \mathrm{Var}_{x} \bigl(\mathbb{E}_{q(u \mid x)} u\bigr), \quad
          \mathrm{KL}_u = \frac1N \sum_n \mathrm{KL}(q(z_u \mid x_n) \,\|\, p(z_u)).

A dimension is active where :math:`A_u > 0.01` (``ACTIVE``). Posterior means are means of draws
here, whose own variance is taken off :math:`A_u`.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ..objectives.kl import KL, Divergences, FreeBits
from ..particles import ParticlePlan
from ..programs import Data, Program, ProgramError, check_count, check_number
from ..ways import data_axis, evaluate
from .prepared import blocks, part, prepared

ACTIVE = 0.01  # variance of the posterior's mean
_BLOCK = 256


@dataclass(frozen=True)
class ActiveUnits:
    """Activity and KL by latent site and dimension.

    Attributes:
        variance: by site, over data, of the posterior mean of each dimension; flattened.
        active: by site, where that is above the threshold.
        kl: by site, mean KL of each dimension to the prior in nats, where the dimensions of both
            distributions are independent of one another; else of the site as a whole.
        threshold: above which a dimension is active.
    """

    variance: dict[str, Tensor]
    active: dict[str, Tensor]
    kl: dict[str, Tensor]
    threshold: float

    @property
    def num_active(self) -> int:
        """How many dimensions are active, of all sites."""
        return sum(int(active.sum()) for active in self.active.values())

    @property
    def num_units(self) -> int:
        """How many dimensions there are."""
        return sum(active.numel() for active in self.active.values())

    def __repr__(self) -> str:
        nats = sum(float(kl.sum()) for kl in self.kl.values())
        return (
            f"ActiveUnits({self.num_active} of {self.num_units} dimensions active, "
            f"{nats:.2f} nats in all)"
        )


def active_units(
    model: Program,
    guide: Program,
    x: Data,
    *context: object,
    num_samples: int = 100,
    threshold: float = ACTIVE,
    seed: int = 0,
) -> ActiveUnits:
    """Count the dimensions of the latents that tell data apart.

    Args:
        model: the model.
        guide: the guide.
        x: the data.
        context: what else both programs take.
        num_samples: draws that a posterior mean is the mean of; at least 2. With few of them, and
            few data, the noise of a collapsed dimension may pass the threshold.
        threshold: on the variance.
        seed: of the draws.

    Raises:
        ProgramError: the pair has no per-datum weights.
        ValueError: data that are empty or not finite.

    References:
        Burda, Grosse and Salakhutdinov, *Importance weighted autoencoders*, 2016.

    Example:
        >>> from pyrovae.models import LinearGaussianVAE
        >>> _ = torch.manual_seed(0)
        >>> linear = LinearGaussianVAE(data_dim=10, latent_dim=3)
        >>> units = active_units(linear.model, linear.exact_guide, linear.sample(200))
        >>> units.num_active
        3
    """
    check_count("num_samples", num_samples)
    check_number("threshold", threshold, 0)
    if num_samples < 2:
        raise ValueError("num_samples must be at least 2, to know the noise of a mean, but is 1")

    def use(args: tuple, plan: ParticlePlan) -> ActiveUnits:
        means: dict[str, list[Tensor]] = {}
        noise: dict[str, list[Tensor]] = {}
        kls: dict[str, list[Tensor]] = {}
        for rows in blocks(args, plan, _BLOCK):
            some = part(args, plan, rows)
            drawn, divergence = _look(model, guide, some, plan, num_samples)
            for name, value in drawn.items():
                means.setdefault(name, []).append(value.mean(0))
                noise.setdefault(name, []).append(value.var(0) / num_samples)
            for name, kl in divergence.items():
                kls.setdefault(name, []).append(kl.mean(0))
        variance = {}
        for name, parts in means.items():
            whole = torch.cat(parts)
            spread = whole.var(0) if len(whole) > 1 else torch.full_like(whole[0], torch.nan)
            variance[name] = (spread - torch.cat(noise[name]).mean(0)).clamp(min=0).cpu()
        return ActiveUnits(
            variance,
            {name: value > threshold for name, value in variance.items()},
            {name: torch.cat(parts).mean(0).cpu() for name, parts in kls.items()},
            threshold,
        )

    return prepared(model, guide, (x, *context), seed, use)


def _look(
    model: Program, guide: Program, args: tuple, plan: ParticlePlan, count: int
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Draws ``(S, N, dims)`` of each latent, and divergences ``(S, N, dims or 1)``."""
    layout = plan.layout
    # one way for both programs: the divergence reads the sites of both in one run
    way = plan.model_way if plan.model_way == plan.guide_way else "loop"
    for per in ("dimension", "site"):
        probe = Divergences(KL(free_bits=FreeBits(0.0, per=per), form="auto"), layout)
        try:
            run = evaluate(way, model, guide, args, layout, count, probe=probe)
            break
        except ProgramError:
            if per == "site":
                raise
    values = {
        # a dimension at the end, lest a latent without any have none to flatten
        name: value.movedim(data_axis(value, name, layout), 1)[..., None].flatten(2).double()
        for name, value in run.values.items()
        if name not in layout.auxiliary
    }
    return values, {n: kl for n, kl in run.probed.items() if n not in layout.auxiliary}
