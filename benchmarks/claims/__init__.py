"""What the derivation of the VAE claims, each as an experiment with a number."""

from .run import CLAIMS, claims
from .verdict import Claim, Verdict

__all__ = ["CLAIMS", "Claim", "Verdict", "claims"]
