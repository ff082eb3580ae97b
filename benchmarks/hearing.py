"""What the numbers were warned of while they were made, so that it can be kept beside them."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any


def concerns(category: type[Warning]) -> bool:
    """Whether a warning is about the numbers, and not about some library's own future.

    >>> concerns(RuntimeWarning), concerns(DeprecationWarning)
    (True, False)
    """
    return issubclass(category, UserWarning | RuntimeWarning)


@contextmanager
def heard(told: list[str]) -> Iterator[None]:
    """Adds the warnings about the numbers to a list, each once; all are shown as ever.

    >>> told = []
    >>> with warnings.catch_warnings(record=True), heard(told):
    ...     warnings.simplefilter("always")
    ...     warnings.warn("the latent has collapsed")
    >>> told
    ['the latent has collapsed']
    """
    with warnings.catch_warnings():
        show = warnings.showwarning

        def listen(message: Any, category: type[Warning], *where: Any, **more: Any) -> None:
            if concerns(category) and str(message) not in told:
                told.append(str(message))
            show(message, category, *where, **more)

        warnings.showwarning = listen
        yield
