"""What a gradient rule is: how the gradient of a bound is estimated from K particles."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass

from torch import Tensor

from ...layout import Layout
from ...programs import Program, ProgramError
from ..bounds import Bound
from ..step import Step


@dataclass(frozen=True)
class Ascent:
    """An estimate and the way up from it.

    Attributes:
        value: the bound of each datum, ``(N,)``.
        surrogate: a tensor whose summed gradient is the direction in which the parameters move; its
            value has no meaning.
    """

    value: Tensor
    surrogate: Tensor

    def total(self) -> Tensor:
        """The value summed over data, whose gradient is the surrogate's."""
        if self.surrogate is self.value:
            return self.value.sum()
        surrogate = self.surrogate.sum()
        return self.value.detach().sum() + surrogate - surrogate.detach()


class Gradient(ABC):
    """A rule for the gradient of a bound."""

    @property
    def rescores(self) -> bool:
        """Whether the guide's density is asked for again, at draws that are given."""
        return False

    @property
    def reparameterizes(self) -> bool:
        """Whether every latent must be reparameterised."""
        return True

    @abstractmethod
    def ascend(self, step: Step, bound: Bound) -> Ascent:
        """Estimate the bound and its gradient."""

    def check(self, bound: Bound, num_particles: int) -> None:  # noqa: B027 - some take all bounds
        """Raise ValueError, with the reason, where the rule makes no sense for a bound."""

    def check_latents(self, layout: Layout) -> None:
        """Raise ProgramError, naming the site, where it makes no sense for the program pair."""
        self.check_enumeration(layout)
        if not self.reparameterizes:
            return
        for name, latent in layout.latents.items():
            if not latent.reparameterized:
                raise ProgramError(
                    f"guide site '{name}' ({latent.distribution}) cannot be reparameterised, which "
                    f"{type(self).__name__} needs: use ScoreFunction, VIMCO or WakeSleep, a "
                    "relaxation, or sum it out by infer={'enumerate': 'parallel'}"
                )

    def check_enumeration(self, layout: Layout) -> None:
        if self.rescores and layout.guide_enumerated:
            name = min(layout.guide_enumerated)
            raise ProgramError(
                f"guide site '{name}' is summed out, so that it has no draw at which "
                f"{type(self).__name__} could hold it: use Pathwise"
            )

    def wrap(self, model: Program, guide: Program) -> tuple[Program, Program]:
        """The programs as the rule runs them."""
        return model, guide


def refuse_upper(gradient: Gradient, bound: Bound) -> None:
    """Raise the ValueError of a rule that takes the gradient of the K-particle estimate."""
    if bound.direction == "upper":
        refuse(
            gradient,
            bound,
            "the mean of its K-particle estimate has no lower limit, and falls without end as the "
            "guide leaves the posterior; use SelfNormalized",
        )


def refuse(gradient: Gradient, bound: Bound, reason: str) -> None:
    """Raise the ValueError of a pair that makes no sense."""
    raise ValueError(
        f"gradient: {type(gradient).__name__} makes no sense for {type(bound).__name__}: {reason}"
    )
