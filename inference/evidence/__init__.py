"""Estimators of log p(x), each called ``(model, guide, x, *context)`` and returning an Estimate."""

from .estimate import Estimate, MeanEstimate, khat_threshold
from .importance import ImportanceSampling, PriorMonteCarlo

__all__ = ["Estimate", "ImportanceSampling", "MeanEstimate", "PriorMonteCarlo", "khat_threshold"]
