"""Whether a model's gradient tells how its density changes along its latents."""

from __future__ import annotations

import torch
from torch import Tensor

from .programs import ProgramError
from .target import Target

_KNOTS = (9, 129)  # of the line along which a gradient is added up; more where few do not do
_UNEXPLAINED = 0.2  # share of the density's changes that its gradient may leave unexplained


def check_differentiable(target: Target, u: Tensor) -> None:
    """Refuse a model whose density changes along a latent in another way than its gradient says.

    Along a line through one latent the integral of the gradient must be what the density changes
    by. It is not where the model detaches, rounds or compares the latent, or leaves torch.

    Args:
        target: the densities.
        u: points to look at, ``(C, N, D)``, as the start draws them.

    Raises:
        ProgramError: names the latent.
    """
    for name, part in target.parts().items():
        line = torch.zeros_like(u)
        line[..., part] = torch.randn_like(line[..., part]) * u[..., part].std(0).nan_to_num(1.0)
        try:
            for knots in _KNOTS:
                off, allowed, change = _along(target, u, line, knots)
                if off <= allowed:
                    break
        except RuntimeError as error:
            raise ProgramError(
                f"the model has no gradient with respect to its latents, '{name}' among them: "
                f"{str(error).splitlines()[0]}"
            ) from error
        if off > allowed:
            raise ProgramError(
                f"the model's density changes along latent '{name}' by {change:.3g} nats, of which "
                f"its gradient leaves {off:.3g} unexplained: is it detached, rounded or compared, "
                "or random, as in training mode (call .eval())? It cannot be moved"
            )


def _along(target: Target, u: Tensor, line: Tensor, knots: int) -> tuple[float, float, float]:
    """Along a line: what the gradient leaves unexplained, what it may, and the change itself."""
    values, slopes = [], []
    for knot in range(knots):
        ((value, gradient),) = target.gradients(u + knot / (knots - 1) * line, "joint").values()
        values.append(value)
        slopes.append((gradient.double() * line.double()).sum(-1))
    change = values[-1] - values[0]
    explained = torch.trapezoid(torch.stack(slopes), dx=1 / (knots - 1), dim=0)
    usable = change.isfinite() & explained.isfinite()
    off, total = (change - explained)[usable].abs().sum(), change[usable].abs().sum()
    # what rounding makes of densities in single precision is no change
    rounding = 1e-5 * values[0][usable].abs().sum() if target.dtype != torch.float64 else 1e-6
    return float(off), float(_UNEXPLAINED * total + rounding), float(total)
