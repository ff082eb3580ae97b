"""Generative models as Pyro programs: VAEs from a prior, a posterior and a likelihood."""

from .linear_gaussian import LinearGaussianVAE
from .saving import load, save
from .vae import VAE

__all__ = ["VAE", "LinearGaussianVAE", "load", "save"]
