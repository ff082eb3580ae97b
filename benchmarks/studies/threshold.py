"""Fashion-MNIST cut at half of the brightest: another data set than the one of random bits.

Its log p(x) is about −97 nats where that of random bits is about −228: numbers of one are never to
be compared with numbers of the other.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from ..datasets import Dataset, load


def fashion(folder: str | Path | None = None) -> Dataset:
    """The images of Fashion-MNIST as bits: 1 where a pixel is above 1/2."""
    grey = load("fashion-mnist", folder=folder, binarise=False)
    train, validation, test = (
        (x > 0.5).to(x.dtype) for x in (grey.train, grey.validation, grey.test)
    )
    return replace(
        grey,
        name="fashion-threshold",
        train=train,
        validation=validation,
        test=test,
        dynamic=False,
    )
