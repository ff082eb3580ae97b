"""What an experiment says of a claim."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

Z = 4.0  # standard errors that chance may take up: one false alarm in 16,000


@dataclass(frozen=True)
class Verdict:
    """One number that a claim stands on.

    Attributes:
        what: is measured.
        expected: in words or numbers.
        measured: the number, with units where it has some.
        holds: whether the claim does.
    """

    what: str
    expected: str
    measured: str
    holds: bool


@dataclass(frozen=True)
class Claim:
    """What the derivation of the VAE says, and the experiment that shows it.

    Attributes:
        name: short, for the command line.
        says: the claim, in a line.
        shown_by: the file of the code that does what is claimed.
        experiment: measures it.
    """

    name: str
    says: str
    shown_by: str
    experiment: Callable[[], list[Verdict]]


def near(what: str, value: float, error: float, exact: float, digits: int = 4) -> Verdict:
    """Within Z standard errors of an exact number.

    >>> near("a", 1.1, 0.1, 1.0).holds, near("a", 1.5, 0.1, 1.0).holds
    (True, False)
    """
    holds = error > 0 and abs(value - exact) <= Z * error
    return Verdict(what, f"{exact:.{digits}g}", f"{value:.{digits}g} ± {error:.2g}", holds)


def exactly(what: str, distance: float, tolerance: float) -> Verdict:
    """A difference that rounding alone may make.

    >>> exactly("a", 1e-12, 1e-10).holds, exactly("a", math.nan, 1e-10).holds
    (True, False)
    """
    return Verdict(what, f"under {tolerance:g}", f"{distance:.2g}", distance < tolerance)


def above(what: str, value: float, error: float, least: float = 0.0) -> Verdict:
    """Above a number, by more than Z standard errors.

    >>> above("a", 1.0, 0.1).holds, above("a", 0.1, 0.1).holds
    (True, False)
    """
    holds = math.isfinite(error) and value - Z * error > least
    return Verdict(what, f"above {least:g}", f"{value:.4g} ± {error:.2g}", holds)
