r"""Temperatures :math:`0 = \beta_0 < \dots < \beta_T = 1` between the start and the joint."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ...programs import check_number


@dataclass(frozen=True)
class Linear:
    r"""Equal steps: :math:`\beta_t = t / T`.

    Example:
        >>> Linear().betas(4)
        tensor([0.0000, 0.2500, 0.5000, 0.7500, 1.0000], dtype=torch.float64)
    """

    def betas(self, num_temperatures: int) -> Tensor:
        """``(T + 1,)`` in float64."""
        return torch.linspace(0, 1, num_temperatures + 1, dtype=torch.float64)


@dataclass(frozen=True)
class Sigmoid:
    r"""Small steps at both ends: a logistic curve between −δ and δ, stretched to [0, 1].

    Args:
        sharpness: δ.

    References:
        Grosse, Ghahramani and Adams, *Sandwiching the marginal likelihood using bidirectional
        Monte Carlo*, 2015.

    Example:
        >>> Sigmoid().betas(4).round(decimals=3)
        tensor([0.0000, 0.1050, 0.5000, 0.8950, 1.0000], dtype=torch.float64)
    """

    sharpness: float = 4.0

    def __post_init__(self) -> None:
        check_number("sharpness", self.sharpness, 0, strict=True)

    def betas(self, num_temperatures: int) -> Tensor:
        """``(T + 1,)`` in float64."""
        line = self.sharpness * torch.linspace(-1, 1, num_temperatures + 1, dtype=torch.float64)
        curve = line.sigmoid()
        return (curve - curve[0]) / (curve[-1] - curve[0])


@dataclass(frozen=True)
class EqualLength:
    r"""Steps of equal thermodynamic length, found for each datum in a pilot run and then frozen.

    The length of a path is :math:`\int \sqrt{\mathrm{Var}_{\pi_\beta}(\log p - \log \pi_0)} \,
    d\beta`; equal shares of it are what makes the variance of an annealed weight smallest. The
    pilot's variances are noisy, so its length is averaged with that of ``initial``.

    Args:
        initial: temperatures of the pilot run.

    References:
        Gelman and Meng, *Simulating normalizing constants: from importance sampling to bridge
        sampling to path sampling*, 1998.

    Example:
        >>> EqualLength(initial=Linear())
        EqualLength(initial=Linear())
    """

    initial: Linear | Sigmoid = Sigmoid()

    def __post_init__(self) -> None:
        if not isinstance(self.initial, Linear | Sigmoid):
            raise TypeError(f"initial must be Linear() or Sigmoid(), but is {self.initial!r}")

    def betas(self, num_temperatures: int) -> Tensor:
        """The pilot's, ``(T + 1,)``."""
        return self.initial.betas(num_temperatures)

    def freeze(self, pilot: Tensor, variance: Tensor, num_temperatures: int) -> Tensor:
        """Temperatures ``(T + 1, N)`` from the variances ``(P + 1, N)`` met at those of a pilot."""
        speed = variance.clamp(min=0).sqrt()
        width = pilot.diff()[:, None]
        length = (0.5 * (speed[1:] + speed[:-1]) * width).cumsum(0)
        length = torch.cat([torch.zeros_like(length[:1]), length])
        whole = length[-1:].clamp(min=torch.finfo(length.dtype).tiny)
        even = torch.linspace(0, 1, len(pilot), dtype=torch.float64, device=length.device)[:, None]
        progress = 0.5 * length / whole + 0.5 * even
        progress = progress / progress[-1:].clamp(min=torch.finfo(length.dtype).tiny)
        wanted = torch.linspace(0, 1, num_temperatures + 1, dtype=torch.float64)
        wanted = wanted.to(length.device)[:, None].expand(-1, length.shape[1])
        betas = interpolate(wanted, progress, pilot[:, None].expand_as(progress))
        betas[0], betas[-1] = 0.0, 1.0
        return betas


Schedule = Linear | Sigmoid | EqualLength


def check_schedule(schedule: object) -> None:
    """Refuse what is no schedule."""
    if not isinstance(schedule, Linear | Sigmoid | EqualLength):
        raise TypeError(
            f"schedule must be Linear(), Sigmoid() or EqualLength(), but is {schedule!r}"
        )


def interpolate(at: Tensor, x: Tensor, y: Tensor) -> Tensor:
    """Piecewise linear curves, one for each column: values at ``at`` of the points ``(x, y)``.

    Example:
        >>> line = torch.tensor([[0.0], [1.0], [2.0]])
        >>> interpolate(torch.tensor([[0.5], [1.5]]), line, line**2).flatten()
        tensor([0.5000, 2.5000])
    """
    right = torch.searchsorted(x.T.contiguous(), at.T.contiguous()).T.clamp(1, len(x) - 1)
    x0, x1 = x.gather(0, right - 1), x.gather(0, right)
    y0, y1 = y.gather(0, right - 1), y.gather(0, right)
    share = (at - x0) / (x1 - x0).clamp(min=torch.finfo(x.dtype).tiny)
    return y0 + share.clamp(0, 1) * (y1 - y0)
