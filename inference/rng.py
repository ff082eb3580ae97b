"""Random numbers that can be stopped, kept and taken up again.

Two kinds of stream serve a training run. Draws that belong to an epoch (its order, its transform)
come from generators seeded by a hash of (seed, epoch, purpose), so an epoch can be begun again
anywhere. Draws inside the programs come from torch's ambient generators, which are forked for the
run, seeded by the same hash, and whose state stands in the checkpoint.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor


def derive(seed: int, *purpose: object) -> int:
    """A seed for one purpose: 63 bits of the SHA-256 of ``seed`` and ``purpose``.

    Example:
        >>> derive(0, "order", 1) == derive(0, "order", 1) != derive(0, "order", 2)
        True
    """
    digest = hashlib.sha256(repr((seed, *purpose)).encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 1


def capture(device: torch.device) -> dict[str, Tensor]:
    """The state of the generators that programs on ``device`` draw from."""
    states = {"cpu": torch.get_rng_state()}
    if device.type == "cuda":
        states["cuda"] = torch.cuda.get_rng_state(device)
    return states


def restore(states: Mapping[str, Tensor], device: torch.device) -> None:
    """Put the generators back to ``states``, as :func:`capture` returned them."""
    torch.set_rng_state(states["cpu"])
    if device.type == "cuda" and "cuda" in states:
        torch.cuda.set_rng_state(states["cuda"], device)


@contextmanager
def forked(device: torch.device, seed: int | None = None) -> Iterator[None]:
    """Leave the ambient generators afterwards as they were; inside, start them from ``seed``."""
    before = capture(device)
    try:
        if seed is not None:
            torch.default_generator.manual_seed(seed)
            if device.type == "cuda":
                with torch.cuda.device(device):
                    torch.cuda.manual_seed(seed)
        yield
    finally:
        restore(before, device)
