"""Whether a guide draws a latent where the model has it: in the same space, and in all of it.

Densities are numbers per unit of a space's own measure: one on a sphere and one in the room around
it say nothing about each other, and their ratio is no weight. And of values that a guide never
draws no weight can tell: what it misses there shows in no diagnosis of the weights.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from pyro.distributions import constraints
from torch import Tensor
from torch.distributions import biject_to

from .programs import ProgramError
from .refusals import base
from .support import base_support


def refuse_other_space(name: str, of_guide: Any, of_model: Any) -> None:
    """Refuse a latent that guide and model have in different spaces.

    Raises:
        ProgramError: events of two shapes; discrete and continuous values; other dimensions.
    """
    ours, theirs = of_guide.event_shape, of_model.event_shape
    if len(ours) == len(theirs) and ours != theirs:
        raise ProgramError(
            f"latent '{name}' has event shape {tuple(ours)} in the guide, but {tuple(theirs)} in "
            "the model: one would broadcast to the other"
        )
    kinds = [_is_discrete(fn) for fn in (of_guide, of_model)]
    if None not in kinds and kinds[0] != kinds[1] and not _is_certain(of_guide):
        words = ["discrete" if kind else "continuous" for kind in kinds]
        raise ProgramError(
            f"latent '{name}' is {words[0]} in the guide, but {words[1]} in the model"
        )
    sizes = [_dimensions(fn) for fn in (of_guide, of_model)]
    if None not in sizes and sizes[0] != sizes[1] and not _is_certain(of_guide):
        raise ProgramError(
            f"latent '{name}' lies in a space of {sizes[0]} dimensions in the guide "
            f"({_word(of_guide)}), but of {sizes[1]} in the model ({_word(of_model)}): densities "
            "in the two cannot be compared"
        )


def reaches(of_guide: Any, of_model: Any) -> bool:
    """Whether a guide's distribution can draw all that the model's can, as far as they say.

    Example:
        >>> import pyro.distributions as dist
        >>> reaches(dist.Normal(0.0, 1.0), dist.Uniform(0.0, 1.0))
        True
        >>> reaches(dist.Uniform(0.0, 1.0), dist.Normal(0.0, 1.0))
        False
    """
    if _is_certain(of_guide):
        return _is_certain(of_model)
    ours, theirs = _logits(of_guide), _logits(of_model)
    if ours is not None and theirs is not None and ours.shape[-1:] == theirs.shape[-1:]:
        return not bool((ours.isneginf() & ~theirs.isneginf()).any())
    inner, outer = base_support(of_guide), base_support(of_model)
    if inner is None or outer is None or inner.is_discrete or outer.is_discrete:
        return True
    (low, high), (lowest, highest) = _bounds(inner), _bounds(outer)
    return bool((low <= lowest).all() and (high >= highest).all())


def _bounds(support: Any) -> tuple[Tensor, Tensor]:
    """The least and the largest number of a support; those of any other than an interval are not
    known, and taken for all."""
    low = getattr(support, "lower_bound", -math.inf)
    high = getattr(support, "upper_bound", math.inf)
    return torch.as_tensor(low), torch.as_tensor(high)


def _logits(fn: Any) -> Tensor | None:
    """Of a distribution over numbers, which may stand within another."""
    while True:
        inner = getattr(fn, "base_dist", None) or getattr(fn, "numbers", None)
        if inner is None:
            break
        fn = inner
    is_categorical = isinstance(fn, torch.distributions.Categorical)
    return fn.logits if is_categorical else None


def _is_certain(fn: Any) -> bool:
    return _word(fn) == "Delta"


def _is_discrete(fn: Any) -> bool | None:
    try:
        return bool(fn.support.is_discrete)
    except (NotImplementedError, AttributeError):
        return None


def _dimensions(fn: Any) -> int | None:
    """Of the space that draws fill; None where a distribution does not say."""
    try:
        support = fn.support
    except (NotImplementedError, AttributeError):
        return None
    if base_support(fn) is constraints.sphere:
        return math.prod(fn.event_shape) - 1
    if support.is_discrete:
        return None
    try:
        transform = biject_to(support)
        shape = transform.inverse_shape(fn.event_shape)
    except (NotImplementedError, ValueError):
        return None
    return math.prod(shape[len(shape) - transform.domain.event_dim :])


def _word(fn: Any) -> str:
    return type(base(fn)).__name__
