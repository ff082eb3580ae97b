r"""Built-in models for images in [0, 1]: which prior, which nets, and how they begin.

Each factory takes the training data ``(N, D)`` and returns a VAE with a diagonal normal posterior
and a Bernoulli likelihood, as the papers it follows do. Training data set two beginnings:

- the decoder's output bias is the logit of the pixels' mean, so that at first every image is as
  likely as independent pixels make it (Burda, Grosse and Salakhutdinov, *Importance weighted
  autoencoders*, 2016);
- a VampPrior's pseudo-inputs are training images, drawn without replacement by torch's generator,
  which the caller seeds.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from ..models import VAE
from ..models.flows import AutoregressiveFlow
from ..models.likelihoods import Bernoulli
from ..models.nets import MLP, ConvDecoder, ConvEncoder, GatedMLP
from ..models.posteriors import DiagonalNormal
from ..models.priors import (
    FlowPrior,
    GaussianMixture,
    ResampledPrior,
    StandardNormal,
    VampPrior,
)

PIXEL_MARGIN = 1e-3  # pixels that are never (or always) on get a finite logit


def vae(x_train: Tensor, *, latent_dim: int = 40, hidden: Sequence[int] = (200, 200)) -> VAE:
    """Standard normal prior, tanh nets.

    >>> vae(torch.rand(50, 64), latent_dim=8).sample(3).shape
    torch.Size([3, 64])
    """
    posterior, likelihood = _parts(MLP, x_train, latent_dim, hidden)
    return _finish(VAE(StandardNormal(latent_dim), posterior, likelihood), x_train)


def mixture_vae(
    x_train: Tensor,
    *,
    latent_dim: int = 40,
    hidden: Sequence[int] = (200, 200),
    num_components: int = 100,
) -> VAE:
    """A learned mixture of diagonal normals as prior, tanh nets."""
    _check(num_components=num_components)
    posterior, likelihood = _parts(MLP, x_train, latent_dim, hidden)
    return _finish(VAE(GaussianMixture(latent_dim, num_components), posterior, likelihood), x_train)


def vamp_vae(
    x_train: Tensor,
    *,
    latent_dim: int = 40,
    hidden: Sequence[int] = (200, 200),
    num_pseudo_inputs: int = 500,
) -> VAE:
    """VampPrior, tanh nets."""
    posterior, likelihood = _parts(MLP, x_train, latent_dim, hidden)
    return _with_vamp_prior(posterior, likelihood, x_train, num_pseudo_inputs)


def gated_vae(x_train: Tensor, *, latent_dim: int = 40, hidden: Sequence[int] = (300, 300)) -> VAE:
    """Standard normal prior, gated nets: the VAE of *VAE with a VampPrior*, 2018."""
    posterior, likelihood = _parts(GatedMLP, x_train, latent_dim, hidden)
    return _finish(VAE(StandardNormal(latent_dim), posterior, likelihood), x_train)


def gated_vamp_vae(
    x_train: Tensor,
    *,
    latent_dim: int = 40,
    hidden: Sequence[int] = (300, 300),
    num_pseudo_inputs: int = 500,
) -> VAE:
    """VampPrior, gated nets (Tomczak and Welling, *VAE with a VampPrior*, 2018)."""
    posterior, likelihood = _parts(GatedMLP, x_train, latent_dim, hidden)
    return _with_vamp_prior(posterior, likelihood, x_train, num_pseudo_inputs)


def gated_mixture_vae(
    x_train: Tensor,
    *,
    latent_dim: int = 40,
    hidden: Sequence[int] = (300, 300),
    num_components: int = 500,
) -> VAE:
    """A learned mixture of diagonal normals as prior, gated nets."""
    _check(num_components=num_components)
    posterior, likelihood = _parts(GatedMLP, x_train, latent_dim, hidden)
    return _finish(VAE(GaussianMixture(latent_dim, num_components), posterior, likelihood), x_train)


def gated_flow_vae(
    x_train: Tensor,
    *,
    latent_dim: int = 40,
    hidden: Sequence[int] = (300, 300),
    num_layers: int = 4,
    flow_hidden: Sequence[int] = (200,),
) -> VAE:
    """A masked autoregressive flow as prior, gated nets (*Variational lossy autoencoder*, 2017)."""
    _check(num_layers=num_layers, flow_hidden=flow_hidden)
    posterior, likelihood = _parts(GatedMLP, x_train, latent_dim, hidden)
    prior = FlowPrior(AutoregressiveFlow(latent_dim, num_layers, tuple(flow_hidden)))
    return _finish(VAE(prior, posterior, likelihood), x_train)


def gated_resampled_vae(
    x_train: Tensor,
    *,
    latent_dim: int = 40,
    hidden: Sequence[int] = (300, 300),
    acceptance_hidden: Sequence[int] = (100, 100),
) -> VAE:
    """A resampled standard normal as prior, gated nets (*Resampled priors*, 2019)."""
    _check(acceptance_hidden=acceptance_hidden)
    posterior, likelihood = _parts(GatedMLP, x_train, latent_dim, hidden)
    net = MLP(latent_dim, 1, tuple(acceptance_hidden))
    return _finish(
        VAE(ResampledPrior(StandardNormal(latent_dim), net), posterior, likelihood), x_train
    )


def conv_vae(
    x_train: Tensor,
    *,
    shape: Sequence[int] | None = None,
    latent_dim: int = 40,
    channels: Sequence[int] = (32, 64),
) -> VAE:
    """Standard normal prior, convolutional nets.

    ``shape`` is ``(C, H, W)``; without it, an image is taken for a square one of one channel.
    """
    _check_data(x_train)
    _check(latent_dim=latent_dim, channels=channels)
    num_pixels = x_train.shape[1]
    side = math.isqrt(num_pixels)
    shape = (1, side, side) if shape is None else tuple(shape)
    if len(shape) != 3 or math.prod(shape) != num_pixels:
        raise ValueError(
            f"shape should be (C, H, W) with C * H * W = {num_pixels}, the pixels of x_train; "
            f"found {shape}"
        )
    decoder = ConvDecoder(latent_dim, shape, tuple(channels))
    last = decoder.layers[-1]
    assert isinstance(last, nn.ConvTranspose2d)
    assert last.bias is not None
    with torch.no_grad():
        last.bias.copy_(_logit(x_train.reshape(len(x_train), *shape).mean((0, 2, 3))))
    encoder = ConvEncoder(shape, 2 * latent_dim, tuple(channels))
    return _finish(
        VAE(
            StandardNormal(latent_dim),
            DiagonalNormal(nn.Sequential(nn.Unflatten(-1, shape), encoder)),
            Bernoulli(nn.Sequential(decoder, nn.Flatten(-3))),
        ),
        x_train,
    )


MODELS: dict[str, Callable[..., VAE]] = {
    "vae": vae,
    "mixture-vae": mixture_vae,
    "vamp-vae": vamp_vae,
    "gated-vae": gated_vae,
    "gated-vamp-vae": gated_vamp_vae,
    "gated-mixture-vae": gated_mixture_vae,
    "gated-flow-vae": gated_flow_vae,
    "gated-resampled-vae": gated_resampled_vae,
    "conv-vae": conv_vae,
}


def _parts(
    net: type[MLP] | type[GatedMLP], x_train: Tensor, latent_dim: int, hidden: Sequence[int]
) -> tuple[DiagonalNormal, Bernoulli]:
    """Posterior and likelihood around two nets of one kind."""
    _check_data(x_train)
    _check(latent_dim=latent_dim, hidden=hidden)
    num_pixels = x_train.shape[1]
    decoder = net(latent_dim, num_pixels, tuple(hidden))
    _begin_at_the_mean(decoder, x_train)
    return DiagonalNormal(net(num_pixels, 2 * latent_dim, tuple(hidden))), Bernoulli(decoder)


def _with_vamp_prior(
    posterior: DiagonalNormal, likelihood: Bernoulli, x_train: Tensor, num_pseudo_inputs: int
) -> VAE:
    _check(num_pseudo_inputs=num_pseudo_inputs)
    prior = VampPrior.from_data(posterior, x_train, num_pseudo_inputs, bounds=(0.0, 1.0))
    return _finish(VAE(prior, posterior, likelihood), x_train)


def _finish(model: VAE, x_train: Tensor) -> VAE:
    return model.to(device=x_train.device, dtype=x_train.dtype)


def _begin_at_the_mean(decoder: MLP | GatedMLP, x_train: Tensor) -> None:
    last = decoder.layers[-1]
    assert isinstance(last, nn.Linear)
    with torch.no_grad():
        last.bias.copy_(_logit(x_train.mean(0)))


def _logit(mean: Tensor) -> Tensor:
    return torch.logit(mean.clamp(PIXEL_MARGIN, 1 - PIXEL_MARGIN))


def _check_data(x_train: Tensor) -> None:
    if x_train.dim() != 2 or not len(x_train):
        raise ValueError(
            f"x_train should be of shape (N, D), one row per image; found {tuple(x_train.shape)}"
        )
    if not bool(((x_train >= 0) & (x_train <= 1)).all()):
        raise ValueError(
            "x_train should be pixels in [0, 1], which the Bernoulli likelihood of the built-in "
            f"models takes; found values from {x_train.min():g} to {x_train.max():g}"
        )


def _check(**sizes: int | Sequence[int]) -> None:
    """Each is a whole number of at least 1, or a list of such."""
    for name, value in sizes.items():
        listed = isinstance(value, list | tuple)
        for size in value if isinstance(value, list | tuple) else (value,):
            if isinstance(size, bool) or not isinstance(size, int) or size < 1:
                kind = "a list of whole numbers" if listed else "a whole number"
                raise ValueError(f"{name} should be {kind} of at least 1; found {value!r}")
        if not listed and name.endswith(("hidden", "channels")):
            raise ValueError(f"{name} should be a list of whole numbers; found {value!r}")
