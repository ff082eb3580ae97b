r"""Latents as points of an unconstrained space, where kernels can move them.

A latent z with support S is T(u), with T the bijection from :math:`\mathbb{R}^d` that Pyro has for
S; the density of u is :math:`p(T(u)) \, |\det T'(u)|`. A latent that is masked has no density of
its own: its coordinates are given the standard normal's, so that what they add integrates to one.
The support is asked for in the run itself, so it may depend on other latents.
"""

from __future__ import annotations

import math
from typing import Any

import pyro.distributions as dist
import torch
from pyro.distributions.torch_distribution import ExpandedDistribution, MaskedDistribution
from pyro.poutine.runtime import Message
from torch import Tensor
from torch.distributions import Independent, biject_to, constraints
from torch.distributions.transforms import Transform

from .programs import ProgramError
from .refusals import base
from .support import unbounded


def bijection(fn: Any, name: str) -> Transform | None:
    """From the unconstrained space to the support of a latent; None for the identity.

    Raises:
        ProgramError: the latent is discrete, or its support has no bijection.
    """
    if isinstance(base(fn), dist.VonMises):  # says it lives on the line, and has no mass there
        return biject_to(constraints.interval(-math.pi, math.pi))
    try:
        if fn.support.is_discrete:
            raise ProgramError(
                f"latent '{name}' is discrete: it cannot be moved along a gradient; sum it out, "
                "with infer={'enumerate': 'parallel'}"
            )
        return None if unbounded(fn) else biject_to(fn.support)
    except NotImplementedError as error:
        if unbounded(fn):  # a distribution that names no support
            return None
        raise ProgramError(
            f"latent '{name}' has the support {fn.support}, to which no bijection is known from "
            "the real numbers: it cannot be moved"
        ) from error


def _event_shape(fn: Any, transform: Transform | None) -> torch.Size:
    """The event of a latent's coordinates."""
    if transform is None:
        return fn.event_shape
    # bounds that are tensors would lend an event without dimensions the shape of the batch
    whole = transform.inverse_shape(fn.batch_shape + fn.event_shape)
    return whole[len(fn.batch_shape) :]


def _mask(fn: Any, mask: Any, name: str, is_plain: bool) -> Tensor | None:
    """Which coordinates have a density of the program's own, ``(..., d)`` or ``(..., 1)``.

    A mask stands at the site, or in its distribution, outside its event dimensions or inside.

    Raises:
        ProgramError: a mask inside an event whose coordinates are not its components.
    """
    found = [] if mask is None or mask is True else [torch.as_tensor(mask)[..., None]]
    event = fn.event_shape
    inside = 0  # event dimensions that a mask further in sees as its batch
    while isinstance(fn, MaskedDistribution | ExpandedDistribution | Independent):
        if isinstance(fn, Independent):
            inside += fn.reinterpreted_batch_ndims
        elif isinstance(fn, MaskedDistribution) and fn._mask is not True:
            own = torch.as_tensor(fn._mask)
            if inside and not is_plain:
                raise ProgramError(
                    f"latent '{name}' is masked inside its event, and its support is bounded: mask "
                    "whole events, with poutine.mask"
                )
            whole = own.expand(torch.broadcast_shapes(own.shape, event)) if inside else own
            found.append(whole.flatten(-inside) if inside else whole[..., None])
        fn = fn.base_dist
    together = None
    for one in found:
        together = one if together is None else together & one
    return together


class Placement:
    """Places coordinates ``(..., d)`` at the sites of a run, and notes the volume they take."""

    def __init__(self) -> None:
        self._placed: dict[str, tuple[Tensor, Tensor | None]] = {}

    def __call__(self, msg: Message, coordinates: Tensor) -> Tensor:
        name, fn = str(msg["name"]), msg["fn"]
        transform = bijection(fn, name)
        event = _event_shape(fn, transform)
        u = coordinates.reshape(*coordinates.shape[:-1], *event)
        if transform is None:
            self._placed[name] = coordinates, None
            return u
        value = transform(u)
        log_det = transform.log_abs_det_jacobian(u, value)
        spare = log_det.dim() - (value.dim() - len(fn.event_shape))
        self._placed[name] = coordinates, log_det.flatten(-spare).sum(-1) if spare else log_det
        return value

    def log_volume(self, sites: dict[str, dict]) -> dict[str, Tensor]:
        """log |det T'| by site, once the run is over; what is masked has the standard normal's.

        Of the site's batch shape; sites that have none are left out.
        """
        volumes = {}
        for name, (coordinates, log_det) in self._placed.items():
            fn, plain = sites[name]["fn"], log_det is None
            mask = _mask(fn, sites[name]["mask"], name, plain)
            if mask is None:
                if log_det is not None:
                    volumes[name] = log_det
                continue
            normal = -0.5 * (coordinates.square() + math.log(2 * math.pi))
            alone = torch.where(mask, 0.0, normal).sum(-1)
            if log_det is not None:
                alone = alone + torch.where(mask[..., 0], log_det, 0.0)
            volumes[name] = alone
        return volumes


def coordinates_of(site: dict) -> Tensor:
    """The coordinates ``(..., d)`` of a site's value; fresh standard normal ones where masked.

    Not finite where the value lies on the edge of the support, or outside.
    """
    fn, value = site["fn"], site["value"]
    transform = bijection(fn, site["name"])
    event = _event_shape(fn, transform)
    u = value if transform is None else transform.inv(value)
    u = u.flatten(-len(event)) if event else u[..., None]
    mask = _mask(fn, site["mask"], site["name"], transform is None)
    return u if mask is None else torch.where(mask.to(u.device), u, torch.randn_like(u))
