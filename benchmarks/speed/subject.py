"""What is timed: one VAE for all, 784-200-200-50, tanh, Bernoulli, and images for it.

It is the model that importance weighted autoencoders were introduced with (Burda, Grosse and
Salakhutdinov, *Importance weighted autoencoders*, 2016), and that most numbers are known of.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from ...models import VAE
from ...models.likelihoods import Bernoulli
from ...models.nets import MLP
from ...models.posteriors import DiagonalNormal
from ...models.priors import StandardNormal

DATA_DIM, LATENT_DIM, HIDDEN = 784, 50, 200


def build(device: str | torch.device = "cpu") -> VAE:
    """The model, always from the same beginning."""
    torch.manual_seed(0)
    return VAE(
        StandardNormal(LATENT_DIM),
        DiagonalNormal(MLP(DATA_DIM, 2 * LATENT_DIM, hidden=(HIDDEN, HIDDEN))),
        Bernoulli(MLP(LATENT_DIM, DATA_DIM, hidden=(HIDDEN, HIDDEN))),
    ).to(device)


def nets(vae: VAE) -> tuple[nn.Module, nn.Module]:
    """Its encoder and its decoder, for those who do without Pyro."""
    return vae.posterior.get_submodule("net"), vae.likelihood.get_submodule("net")


def by_torch(function: Callable[..., Any], device: torch.device) -> Callable[..., Any]:
    """By ``torch.compile``, for one size, and on a GPU launched as one."""
    torch._dynamo.reset()  # what it has seen of other sizes makes it compile for any
    mode = "reduce-overhead" if device.type == "cuda" else None
    compiled: Callable[..., Any] = torch.compile(function, dynamic=False, mode=mode)
    return compiled


def noise(num_data: int, device: str | torch.device = "cpu") -> Tensor:
    """Binary images without a meaning: what a step takes does not depend on it."""
    generator = torch.Generator().manual_seed(1)
    grey = torch.full((num_data, DATA_DIM), 0.3)
    return torch.bernoulli(grey, generator=generator).to(device)


def digits(device: str | torch.device = "cpu") -> tuple[Tensor, Tensor]:
    """Real images for real numbers, training and test: scikit-learn's, enlarged to 28 × 28."""
    from ..datasets import load

    found = load("digits")
    size = nn.functional.interpolate

    def enlarged(x: Tensor) -> Tensor:
        grey = size(x.reshape(-1, 1, 8, 8), (28, 28), mode="bilinear", align_corners=False)
        generator = torch.Generator().manual_seed(2)
        return torch.bernoulli(grey.flatten(1).clamp(0, 1), generator=generator).to(device)

    return enlarged(found.train), enlarged(found.test)
