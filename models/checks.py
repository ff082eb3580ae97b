"""What constructors refuse: the argument by name, what it must be, and what it is."""

from __future__ import annotations

import operator


def check_counts(**counts: int) -> None:
    """Raise ValueError unless each number is at least 1, TypeError for no whole number.

    Example:
        >>> check_counts(latent_dim=2)
        >>> check_counts(num_components=0)
        Traceback (most recent call last):
        ...
        ValueError: num_components must be at least 1, but is 0
    """
    for name, count in counts.items():
        try:
            operator.index(count)
        except TypeError:
            raise TypeError(f"{name} must be a whole number, but is {count!r}") from None
        if count < 1:
            raise ValueError(f"{name} must be at least 1, but is {count}")
