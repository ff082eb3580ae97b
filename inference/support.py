"""What a site's value must be and is not: the short form of a distribution's complaint."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor


def outside_support(site: Mapping[str, Any]) -> str | None:
    """The support that a site's value lies outside of, and one number that does; else None.

    Example:
        >>> import torch, pyro.distributions as dist
        >>> site = {"fn": dist.Bernoulli(torch.tensor(0.5)), "value": torch.tensor([0.0, 0.3])}
        >>> outside_support(site)
        'values in Boolean(), but holds 0.3'
    """
    try:
        support = site["fn"].support
    except (NotImplementedError, AttributeError):
        return None
    while hasattr(support, "base_constraint"):
        support = support.base_constraint
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
