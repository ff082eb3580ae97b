"""What a model's latents hold: rate, mutual information, active units, gaps, distortion."""

from .gaps import InferenceGaps, inference_gaps
from .rate_distortion import RateDistortion, RateDistortionCurve
from .surgery import Surgery, elbo_surgery
from .units import ActiveUnits, active_units

__all__ = [
    "ActiveUnits",
    "InferenceGaps",
    "RateDistortion",
    "RateDistortionCurve",
    "Surgery",
    "active_units",
    "elbo_surgery",
    "inference_gaps",
]
