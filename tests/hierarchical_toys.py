"""Models with layers in every arrangement, and the normal that a linear one is, in numpy.

Every code, feature and path has a size of its own, so that no two can be mistaken.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import nn

from pyrovae.models import HierarchicalVAE
from pyrovae.models.likelihoods import Gaussian
from pyrovae.models.nets import MLP
from pyrovae.models.posteriors import DiagonalNormal
from pyrovae.models.priors import StandardNormal

D = 6
ARRANGEMENTS = [
    (inference, paths) for inference in ("bottom-up", "top-down", "ladder") for paths in (0, 1)
]


@dataclass(frozen=True)
class Sizes:
    """From the bottom up: of the codes z_1, ..., the features d_1, ... and the path h_0, ..."""

    codes: tuple[int, ...] = (3, 2, 4)
    features: tuple[int, ...] = (5, 8, 7)
    path: tuple[int, ...] = (10, 9, 11)
    data: int = D
    context: int = 0


ONES = Sizes(codes=(1, 1, 1), features=(3, 3, 3), path=(3, 2, 1), data=3)
SMALL = Sizes(codes=(2, 2, 1), features=(5, 4, 6), path=(3, 4, 2), data=3)


def build(
    inference: str,
    paths: bool,
    layers: int = 3,
    sizes: Sizes = Sizes(),
    hidden: tuple[int, ...] = (7,),
    likelihood: type[nn.Module] = Gaussian,
    **options,
) -> HierarchicalVAE:
    torch.manual_seed(1)
    codes, features = sizes.codes[:layers], sizes.features[:layers]
    path = sizes.path[:layers] if paths else codes  # h_0, h_1, ...
    whole = sizes.data + sizes.context

    def normal(in_features: int, code: int) -> DiagonalNormal:
        return DiagonalNormal(MLP(in_features, 2 * code, hidden))

    if inference == "bottom-up":
        inputs = (whole, *codes)
    elif inference == "top-down":
        inputs = tuple(f + h for f, h in zip(features, (*path[1:], 0), strict=True))
    else:
        inputs = features
    encoders = [MLP(a, b, hidden) for a, b in zip((whole, *features), features, strict=False)]
    over = (*path[1:], 0)
    return HierarchicalVAE(
        StandardNormal(codes[-1]),
        [normal(h, code) for h, code in zip(path[1:], codes, strict=False)],
        [normal(size, code) for size, code in zip(inputs, codes, strict=False)],
        likelihood(MLP(path[0] + sizes.context, sizes.data, hidden), **options),
        encoders=None if inference == "bottom-up" else encoders,
        paths=[MLP(z + h, out, hidden) for z, h, out in zip(codes, over, path, strict=True)]
        if paths
        else None,
        ladder=inference == "ladder",
    )


# --- linear: a normal in every variable ----------------------------------------------------------


def set_normal(module: DiagonalNormal, weight, bias, scale) -> None:
    """Make a linear module N(weight input + bias, diag scale²)."""
    (layer,) = module.net.layers
    with torch.no_grad():
        layer.weight.zero_()
        layer.weight[: len(bias)] = torch.as_tensor(weight)
        layer.bias[: len(bias)] = torch.as_tensor(bias)
        layer.bias[len(bias) :] = torch.as_tensor(np.asarray(scale)).log()


def linear(inference: str, paths: bool, layers: int, sizes: Sizes, scale: float = 1.0):
    """In double precision; the guide hardly looks at its input, and has the scale given."""
    vae = build(inference, paths, layers, sizes, hidden=(), scale=0.8).double()
    generator = torch.Generator().manual_seed(2)
    for parts, factor, spread in ((vae.conditionals, 1.0, 0.7), (vae.posteriors, 0.2, scale)):
        for part in parts:
            weight = part.net.layers[0].weight.detach()
            rows = len(weight) // 2
            bias = 0.3 * torch.randn(rows, generator=generator, dtype=weight.dtype)
            set_normal(part, factor * weight[:rows], bias, torch.full((rows,), spread))
    return vae


@dataclass(frozen=True)
class Affine:
    """mean + noise · ε of a variable, ε standard normal and shared by all of them."""

    noise: np.ndarray
    mean: np.ndarray

    def cov(self, other: Affine) -> np.ndarray:
        return self.noise @ other.noise.T


def stacked(*parts: Affine) -> Affine:
    return Affine(np.concatenate([p.noise for p in parts]), np.concatenate([p.mean for p in parts]))


def variables(vae: HierarchicalVAE, noise: float = 0.8) -> dict[str, Affine]:
    """z_l, h_l and x of a linear model as affine functions of its noise."""
    layers = len(vae.posteriors)
    top = vae.prior.latent_dim
    rows = [len(c.net.layers[0].bias) // 2 for c in vae.conditionals] + [top]
    data = vae.likelihood.net.out_features
    total = sum(rows) + data
    fresh = np.eye(total)
    places = np.cumsum([0, *rows])

    def through(net: MLP, of: Affine) -> Affine:
        weight, bias = (p.detach().numpy() for p in net.layers[0].parameters())
        return Affine(weight @ of.noise, weight @ of.mean + bias)

    found: dict[str, Affine] = {}
    h = None
    for layer in range(layers, 0, -1):
        own = fresh[places[layer - 1] : places[layer]]
        if h is None:
            z = Affine(own, np.zeros(len(own)))
        else:
            both = through(vae.conditionals[layer - 1].net, h)
            size = len(own)
            scale = np.exp(both.mean[size:])
            z = Affine(both.noise[:size] + scale[:, None] * own, both.mean[:size])
        found[f"z_{layer}"] = z
        if vae.paths is not None:
            z = through(vae.paths[layer - 1], z if h is None else stacked(z, h))
        found[f"h_{layer - 1}"] = h = z
    mean = through(vae.likelihood.net, h)
    found["x"] = Affine(mean.noise + noise * fresh[-data:], mean.mean)
    return found


def regress(target: Affine, given: Affine):
    """Weight, bias and covariance of the target's normal given the other."""
    weight = np.linalg.solve(given.cov(given), given.cov(target)).T
    bias = target.mean - weight @ given.mean
    return weight, bias, target.cov(target) - weight @ given.cov(target)


def exact(inference: str, paths: bool, layers: int, cut: bool = False) -> HierarchicalVAE:
    """A linear model whose guide is its posterior: codes are numbers, and d_l is x.

    Where it is cut, z_1 does not depend on what is above it.
    """
    vae = linear(inference, paths, layers, ONES)
    if cut:
        set_normal(vae.conditionals[0], np.zeros((1, 1)), np.zeros(1), np.ones(1))
    if vae.encoders is not None:
        vae.encoders = nn.ModuleList(nn.Identity() for _ in range(layers))
    of = variables(vae)
    for layer, posterior in enumerate(vae.posteriors, 1):
        z, is_top = of[f"z_{layer}"], layer == layers
        if inference == "bottom-up":
            weight, bias, cov = regress(z, of["x" if layer == 1 else f"z_{layer - 1}"])
        else:
            h = () if is_top else (of[f"h_{layer}"],)
            weight, bias, cov = regress(z, stacked(of["x"], *h))
        if inference == "ladder" and not is_top:  # what is left when the prior is divided out
            of_prior, prior_bias, prior_cov = regress(z, *h)
            left = 1 / (1 / cov - 1 / prior_cov)
            rest = left * (weight[:, 3:] / cov - of_prior / prior_cov)
            assert np.abs(rest).max() < 1e-9  # in a chain, x says the same whatever is above
            weight = left * weight[:, :3] / cov
            bias, cov = (left * (bias / cov - prior_bias / prior_cov))[0], left
        set_normal(posterior, weight, bias, np.sqrt(np.diag(cov)))
    return vae
