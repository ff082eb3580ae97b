r"""Latents as points of an unconstrained space, where kernels can move them.

A latent z with support S is T(u), with T the bijection from :math:`\mathbb{R}^d` that Pyro has for
S; the density of u is :math:`p(T(u)) \, |\det T'(u)|`. A latent that is masked has no density of
its own: its coordinates are given the standard normal's, so that what they add integrates to one.
The support is asked for in the run itself, so it may depend on other latents.
"""

from __future__ import annotations

from typing import Any

import torch
from pyro.poutine.runtime import Message
from torch import Tensor
from torch.distributions import biject_to
from torch.distributions.transforms import Transform

from .programs import ProgramError
from .support import unbounded


def bijection(fn: Any, name: str) -> Transform | None:
    """From the unconstrained space to the support of a latent; None for the identity.

    Raises:
        ProgramError: the latent is discrete, or its support has no bijection.
    """
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


class Placement:
    """Places coordinates ``(..., d)`` at the sites of a run, and notes the volume they take.

    Attributes:
        log_volume: by site, log |det T'| or, where it is masked, the standard normal density.
    """

    def __init__(self) -> None:
        self._placed: dict[str, tuple[Tensor, Tensor | None]] = {}

    def __call__(self, msg: Message, coordinates: Tensor) -> Tensor:
        name, fn = str(msg["name"]), msg["fn"]
        transform = bijection(fn, name)
        event = fn.event_shape if transform is None else transform.inverse_shape(fn.event_shape)
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
        """By site, once the run is over: of its batch shape; without those that have none."""
        volumes = {}
        for name, (coordinates, log_det) in self._placed.items():
            mask = sites[name]["mask"]
            if mask is None or mask is True:
                if log_det is not None:
                    volumes[name] = log_det
                continue
            normal = -0.5 * (coordinates.square() + _LOG_2PI).sum(-1)
            inside = torch.zeros_like(normal) if log_det is None else log_det
            volumes[name] = torch.where(torch.as_tensor(mask), inside, normal)
        return volumes


_LOG_2PI = float(torch.log(torch.tensor(2 * torch.pi, dtype=torch.float64)))


def coordinates_of(site: dict) -> Tensor:
    """The coordinates ``(..., d)`` of a site's value; fresh standard normal ones where masked.

    Not finite where the value lies on the edge of the support, or outside.
    """
    fn, value = site["fn"], site["value"]
    transform = bijection(fn, site["name"])
    u = value if transform is None else transform.inv(value)
    event = fn.event_shape if transform is None else transform.inverse_shape(fn.event_shape)
    u = u.flatten(-len(event)) if event else u[..., None]
    mask = site["mask"]
    if mask is not None and mask is not True:
        keep = torch.as_tensor(mask, device=u.device)[..., None]
        u = torch.where(keep, u, torch.randn_like(u))
    return u
