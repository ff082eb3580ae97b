"""Whether two evaluations of a program pair at the same latents gave the same densities."""

from __future__ import annotations

import torch

from .ways import Evaluation


def agree(expected: Evaluation, got: Evaluation) -> bool:
    """Whether two evaluations at the same latents have the same densities."""
    return first_difference(expected, got) is None


def first_difference(expected: Evaluation, got: Evaluation) -> str | None:
    """The first site whose log-probabilities differ."""
    precise = all(value.dtype == torch.float64 for value in expected.values.values())
    # in another order, sums over a thousand pixels differ by about 1e-6 in single precision
    rtol, atol = (1e-9, 1e-8) if precise and expected.values else (2e-5, 1e-3)
    for role, ours, theirs in (
        ("model", got.model_sites, expected.model_sites),
        ("guide", got.guide_sites, expected.guide_sites),
    ):
        for name, reference in theirs.items():
            found = ours.get(name)
            if found is None or not torch.allclose(
                found, reference, rtol=rtol, atol=atol, equal_nan=True
            ):
                return f"{role} site '{name}'"
    return None
