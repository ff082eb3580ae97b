"""What values must be and are not: finite, and inside the support of their site."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.distributions import Independent, constraints


def not_finite(value: Tensor) -> str | None:
    """The first NaN or infinity of a tensor and the datum that holds it; None when all is finite.

    Example:
        >>> import torch
        >>> not_finite(torch.tensor([[0.0, 1.0], [0.0, float("nan")]]))
        'datum 1 holds nan'
    """
    if not value.is_floating_point() or value.isfinite().all():
        return None
    bad = ~value.isfinite()
    row = int(bad.nonzero()[0, 0]) if value.dim() else 0
    return f"datum {row} holds {value[bad][0].item()}"


def bytes_hint(x: object) -> str:
    """What to do with images that are still bytes, to be added to a message; else nothing.

    Example:
        >>> import torch
        >>> bytes_hint(torch.zeros(2, 784, dtype=torch.uint8)), bytes_hint(torch.zeros(2, 784))
        ('; bytes of images become pixels in [0, 1] by x / 255', '')
    """
    is_bytes = isinstance(x, Tensor) and x.dtype == torch.uint8
    return "; bytes of images become pixels in [0, 1] by x / 255" if is_bytes else ""


def base_support(fn: Any) -> Any:
    """The constraint on single components; None where a distribution does not say."""
    while isinstance(fn, Independent):  # whose own support is built anew at each question
        fn = fn.base_dist
    try:
        support = fn.support
    except (NotImplementedError, AttributeError):
        return None
    while hasattr(support, "base_constraint"):
        support = support.base_constraint
    return support


def unbounded(fn: Any) -> bool:
    """Whether every real number is in the support of a component, or the support is not known."""
    support = base_support(fn)
    return support is None or support is constraints.real


def support_varies(fn: Any) -> bool:
    """Whether the support is given by tensors, and so may depend on a latent.

    Example:
        >>> import torch, pyro.distributions as dist
        >>> support_varies(dist.Uniform(0.0, torch.ones(3))), support_varies(dist.Gamma(1.0, 1.0))
        (True, False)
    """
    support = base_support(fn)
    return support is not None and any(isinstance(v, Tensor) for v in vars(support).values())


@contextmanager
def unvalidated(fn: Any) -> Iterator[None]:
    """Let a distribution take any value: what lies outside its support is for the caller to see."""
    layers = [fn]
    while (base := getattr(layers[-1], "base_dist", None)) is not None:
        layers.append(base)
    before = [layer._validate_args for layer in layers]
    try:
        for layer in layers:
            layer._validate_args = False
        yield
    finally:
        for layer, flag in zip(layers, before, strict=True):
            layer._validate_args = flag


def outside_support(site: Mapping[str, Any]) -> str | None:
    """The support that a site's value lies outside of, and one number that does; else None.

    Example:
        >>> import torch, pyro.distributions as dist
        >>> site = {"fn": dist.Bernoulli(torch.tensor(0.5)), "value": torch.tensor([0.0, 0.3])}
        >>> outside_support(site)
        'values in Boolean(), but holds 0.3'
    """
    support = base_support(site["fn"])
    value = site["value"]
    if support is None or not isinstance(value, Tensor):
        return None
    inside = support.check(value)
    if inside.all():
        return None
    if inside.shape == value.shape:
        bad = value[~inside].reshape(-1)[0].item()
        return f"values in {support}, but holds {bad:g}"
    row = value.broadcast_to(*inside.shape, *value.shape[inside.dim() :])[~inside][0]
    shown = ", ".join(f"{number:g}" for number in row.reshape(-1)[:4].tolist())
    return f"values in {support}, but holds ({shown}{', ...' if row.numel() > 4 else ''})"
