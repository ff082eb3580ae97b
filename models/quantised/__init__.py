"""The VQ-VAE: codes on a grid, each a number that a codebook has a vector for."""

from .codebook import Codebook
from .quantiser import VectorQuantiser
from .vqvae import VQVAE

__all__ = ["VQVAE", "Codebook", "VectorQuantiser"]
