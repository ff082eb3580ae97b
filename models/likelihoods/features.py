"""How likelihoods divide a network's output, and where their positive parameters come from."""

from __future__ import annotations

from torch import Tensor

from .gaussian import LearnedScale


def split_features(output: Tensor, *names: str) -> tuple[Tensor, ...]:
    """Divide the last dimension into as many equal parts as there are names, side by side.

    Example:
        >>> import torch
        >>> mean, log_scale = split_features(torch.zeros(5, 6), "mean", "log scale")
        >>> mean.shape
        torch.Size([5, 3])
        >>> split_features(torch.zeros(5, 3), "mean", "log scale")
        Traceback (most recent call last):
        ...
        ValueError: net must return 2 D features (mean and log scale), but returns 3
    """
    count, found = len(names), output.shape[-1]
    if found % count:
        listed = " and ".join(part for part in (", ".join(names[:-1]), names[-1]) if part)
        raise ValueError(f"net must return {count} D features ({listed}), but returns {found}")
    return output.chunk(count, -1)


def group_features(output: Tensor, size: int, event_dim: int, what: str) -> Tensor:
    """Features ``(..., D * size)``, D groups one after another, as ``(..., D, size)``.

    A datum that is a single number has one group, ``(..., size)``, and no D.

    Example:
        >>> import torch
        >>> group_features(torch.zeros(5, 6), 3, event_dim=1, what="logits").shape
        torch.Size([5, 2, 3])
        >>> group_features(torch.zeros(5, 7), 3, event_dim=1, what="logits")
        Traceback (most recent call last):
        ...
        ValueError: net must return 3 features (logits) for each of D numbers, but returns 7 in all
    """
    found = output.shape[-1]
    if event_dim == 0:
        if found != size:
            raise ValueError(f"net must return {size} features ({what}), but returns {found}")
        return output
    if found % size:
        raise ValueError(
            f"net must return {size} features ({what}) for each of D numbers, "
            f"but returns {found} in all"
        )
    return output.unflatten(-1, (found // size, size))


def check_positive(name: str, value: float | LearnedScale | None) -> None:
    """Raise unless the value is a positive number, a :class:`LearnedScale` or None.

    Example:
        >>> check_positive("scale", 0)
        Traceback (most recent call last):
        ...
        ValueError: scale must be positive, but is 0
    """
    if not isinstance(value, int | float | LearnedScale | None):
        raise TypeError(
            f"{name} must be a number, a LearnedScale or None, but is a {type(value).__name__}"
        )
    if isinstance(value, int | float) and not value > 0:
        raise ValueError(f"{name} must be positive, but is {value}")


def positive_like(output: Tensor, value: float | LearnedScale) -> Tensor:
    """The positive parameter that does not come from the network, as a tensor beside its output."""
    return value() if isinstance(value, LearnedScale) else output.new_tensor(value)
