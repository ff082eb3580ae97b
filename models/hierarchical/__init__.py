"""Models with layers of codes: a chain or a shared path down to the data, inferred up or down."""

from .vae import HierarchicalVAE

__all__ = ["HierarchicalVAE"]
