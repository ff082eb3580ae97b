r"""Why the ELBO is below log p(x): what the family of guides lacks, and what amortisation costs.

.. math:: \log p(x) - \mathcal{L}[q] =
          \underbrace{\log p(x) - \mathcal{L}[q^*]}_{\text{approximation}} +
          \underbrace{\mathcal{L}[q^*] - \mathcal{L}[q]}_{\text{amortisation}},

with q* the best normal for each datum, diagonal or of full rank in unconstrained space, as
:class:`~pyrovae.inference.RefinedImportanceSampling` finds it. They are Cremer's gaps where the
guide is such a normal itself: refine with ``full_rank=True`` for a guide with correlations. Of a
guide beyond that family the second may be negative: it does better than any such normal.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from ..evidence.estimate import Estimate


@dataclass(frozen=True)
class InferenceGaps:
    """Both gaps, ``(N,)`` in nats; their means with the Monte Carlo and the data's error.

    Attributes:
        approximation: log p̂(x) − ELBO[q*], by datum.
        amortisation: ELBO[q*] − ELBO[q], by datum.
        approximation_stderr: Monte Carlo error by datum.
        amortisation_stderr: Monte Carlo error by datum.
    """

    approximation: Tensor
    amortisation: Tensor
    approximation_stderr: Tensor
    amortisation_stderr: Tensor

    def mean(self, gap: str) -> tuple[float, float, float]:
        """The mean of "approximation" or "amortisation", its Monte Carlo and its data error."""
        values, errors = getattr(self, gap), getattr(self, f"{gap}_stderr")
        size, noise = len(values), float(errors.square().mean())
        spread = float(values.var()) if size > 1 else math.nan
        of_data = math.sqrt(max(spread - noise, 0.0) / size) if size > 1 else math.nan
        return float(values.mean()), math.sqrt(noise / size), of_data

    def __repr__(self) -> str:
        parts = [
            "{} {:.3f} ± {:.3f} (Monte Carlo) ± {:.3f} (data)".format(gap, *self.mean(gap))
            for gap in ("approximation", "amortisation")
        ]
        return f"InferenceGaps({len(self.approximation)} data: {', '.join(parts)})"


def inference_gaps(refined: Estimate, best: Estimate | None = None) -> InferenceGaps:
    """The gaps that an estimate by refinement shows.

    Args:
        refined: of :class:`~pyrovae.inference.RefinedImportanceSampling`.
        best: a better estimate of log p(x) of the same data; by default the refined one.

    Raises:
        ValueError: the first holds no ELBO of a guide, or the two are of different data.

    References:
        Cremer, Li and Duvenaud, *Inference suboptimality in variational autoencoders*, 2018.

    Example:
        >>> from pyrovae.inference import RefinedImportanceSampling
        >>> from pyrovae.models import LinearGaussianVAE
        >>> _ = torch.manual_seed(0)
        >>> linear = LinearGaussianVAE(data_dim=10, latent_dim=3)
        >>> refined = RefinedImportanceSampling(num_samples=200, num_steps=100, full_rank=True)
        >>> gaps = inference_gaps(refined(linear.model, linear.exact_guide, linear.sample(4)))
        >>> bool(gaps.amortisation.abs().max() < 0.1)  # this guide lacks nothing
        True
    """
    if "guide_elbo" not in refined.diagnostics:
        raise ValueError(
            "refined must be an estimate by RefinedImportanceSampling, whose diagnostics hold "
            f"'guide_elbo', but holds {sorted(refined.diagnostics)}"
        )
    best = refined if best is None else best
    if len(best) != len(refined):
        raise ValueError(f"best must be of the same {len(refined)} data, but is of {len(best)}")
    errors = {
        "best": best.stderr,
        "local": refined.elbo_stderr,
        "guide": refined.diagnostics["guide_elbo_stderr"],
    }
    return InferenceGaps(
        best.log_evidence - refined.elbo,
        refined.elbo - refined.diagnostics["guide_elbo"],
        torch.hypot(errors["best"], errors["local"]),
        torch.hypot(errors["local"], errors["guide"]),
    )
