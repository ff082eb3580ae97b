"""Running a Pyro program under a plate of particles, with given latents, and reading its sites."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from typing import Any

import pyro
from pyro import poutine
from pyro.poutine.messenger import Messenger
from pyro.poutine.runtime import Message
from pyro.poutine.util import site_is_subsample
from torch import Tensor

Program = Callable[..., Any]
Data = Tensor | tuple[Tensor, ...]
PARTICLE_PLATE = "_particles"


class ProgramError(ValueError):
    """A program that cannot have a per-datum marginal likelihood, or that fails on its data."""


class StructureVaries(ProgramError):
    """A program whose latents are not those that it had on the data which were looked at first."""


def num_data(x: Data) -> int:
    """The number N of data in ``x``: the leading dimension of the tensor, or of each in a tuple.

    Raises:
        TypeError: ``x`` is neither a tensor nor a tuple of tensors.
        ValueError: there is no datum, or the parts of a tuple disagree.

    Example:
        >>> import torch
        >>> num_data((torch.zeros(3, 2), torch.zeros(3)))
        3
    """
    parts = x if isinstance(x, tuple) else (x,)
    if not parts or not all(isinstance(part, Tensor) for part in parts):
        raise TypeError(f"x must be a tensor or a tuple of tensors, but is {type(x).__name__}")
    sizes = [part.shape[0] if part.dim() else 0 for part in parts]
    if len(set(sizes)) > 1:
        raise ValueError(f"the parts of x must hold the same number of data, but hold {sizes}")
    if sizes[0] == 0:
        raise ValueError(f"x must hold at least one datum, but has shape {tuple(parts[0].shape)}")
    return sizes[0]


def check_count(name: str, value: object) -> None:
    """Raise ValueError unless ``value`` is a whole number of at least 1."""
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise ValueError(f"{name} must be a whole number of at least 1, but is {value!r}")


def check_number(
    name: str,
    value: object,
    low: float = -math.inf,
    high: float = math.inf,
    *,
    strict: bool = False,
) -> None:
    """Raise unless ``value`` is a finite number between ``low`` and ``high``.

    With ``strict`` the limits are left out.

    Raises:
        TypeError: it is no number.
        ValueError: it is not in the range.

    Example:
        >>> check_number("beta", 0.5, 0, 1)
        >>> check_number("beta", 2.0, 0, 1)
        Traceback (most recent call last):
        ...
        ValueError: beta must be in [0, 1], but is 2.0
    """
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise TypeError(f"{name} must be a number, but is {value!r}")
    inside = low < value < high if strict else low <= value <= high
    if inside and math.isfinite(value):
        return
    if (low, high) == (-math.inf, math.inf):
        wanted = "finite"
    elif high == math.inf:
        wanted = f"finite and {'larger than' if strict else 'at least'} {low:g}"
    else:
        wanted = f"in {'(' if strict else '['}{low:g}, {high:g}{')' if strict else ']'}"
    raise ValueError(f"{name} must be {wanted}, but is {value}")


def map_tensors(function: Callable[[Tensor], Tensor], args: tuple) -> tuple:
    """Apply a function to every tensor among ``(x, *context)``; the rest stays as it is.

    Example:
        >>> import torch
        >>> map_tensors(lambda t: t + 1, (torch.zeros(1), "flag"))
        (tensor([1.]), 'flag')
    """
    return tuple(
        map_tensors(function, arg)
        if isinstance(arg, tuple)
        else function(arg)
        if isinstance(arg, Tensor)
        else arg
        for arg in args
    )


# makes the value of a latent of what was given for it, once its distribution is known
Place = Callable[[Message, Tensor], Tensor]


class _Substitute(Messenger):
    """Gives latents their values, and the enumeration marks that the guide's sites carry."""

    def __init__(
        self, values: Mapping[str, Tensor], infer: Mapping[str, dict], place: Place | None
    ) -> None:
        super().__init__()
        self.values, self.infer, self.place = values, infer, place

    def _pyro_sample(self, msg: Message) -> None:
        name = msg["name"]
        if name in self.values and not msg["is_observed"]:
            msg["done"] = True
            value = self.values[name]
            msg["value"] = value if self.place is None else self.place(msg, value)
            if name in self.infer:
                msg["infer"] = self.infer[name]


def run_program(
    program: Program,
    args: tuple,
    *,
    particles: int | None = None,
    particle_dim: int = -1,
    values: Mapping[str, Tensor] | None = None,
    infer: Mapping[str, dict] | None = None,
    enumerate_from: int | None = None,
    continue_enumeration: bool = False,
    inside: Messenger | None = None,
    place: Place | None = None,
) -> poutine.Trace:
    """Trace ``program(*args)``, by choice under a particle plate and with enumeration.

    ``values`` are the latents', or what ``place`` makes them of.
    ``inside`` is a handler placed within the particle plate: it sees each site's distribution
    before the plate has spread it over the particles.
    """
    with ExitStack() as stack:
        trace = stack.enter_context(poutine.trace())
        if values:
            # outside the enumeration, which notes what each site depends on before it is given
            stack.enter_context(_Substitute(values, infer or {}, place))
        if enumerate_from is not None:
            stack.enter_context(poutine.enum(first_available_dim=enumerate_from))
        elif continue_enumeration:
            stack.enter_context(poutine.enum())
        if particles is not None:
            stack.enter_context(pyro.plate(PARTICLE_PLATE, particles, dim=particle_dim))
        if inside is not None:
            stack.enter_context(inside)
        program(*args)
    return trace.trace


def draws_a_part(subsample: Any) -> bool:
    """Whether a plate's index is drawn, or is all there is."""
    size = subsample.subsample_size
    return size is not None and size < subsample.size


def is_enumerated(site: dict) -> bool:
    return not site["is_observed"] and site["infer"].get("enumerate") == "parallel"


def sample_sites(trace: poutine.Trace) -> dict[str, dict]:
    """The sites that carry probability: no plates' subsamples, no ``pyro.deterministic``."""
    return {
        name: site
        for name, site in trace.nodes.items()
        if site["type"] == "sample"
        and not site_is_subsample(site)
        and not site["infer"].get("_deterministic", False)
    }


def drawn_values(trace: poutine.Trace) -> dict[str, Tensor]:
    """Values to be given to the model: the latents, and the indices of subsampled plates."""
    return {
        name: site["value"]
        for name, site in trace.nodes.items()
        if site["type"] == "sample" and not site["is_observed"]
    }
