"""Generative models as Pyro programs: VAEs from a prior, a posterior and a likelihood."""

from .conditional import ConditionalVAE
from .hierarchical import HierarchicalVAE
from .linear_gaussian import LinearGaussianVAE
from .markov import DeepMarkovModel
from .mixture import MixtureVAE
from .quantised import VQVAE
from .saving import load, save
from .semi_supervised import SemiSupervisedVAE
from .vae import VAE

__all__ = [
    "VAE",
    "VQVAE",
    "ConditionalVAE",
    "DeepMarkovModel",
    "HierarchicalVAE",
    "LinearGaussianVAE",
    "MixtureVAE",
    "SemiSupervisedVAE",
    "load",
    "save",
]
