r"""The posterior of a VQ-VAE: the encoder's vectors, each replaced by the nearest code.

With a temperature τ it is a distribution around them,

.. math:: q(k_g \mid x) \propto \exp(-\|z_e(x)_g - e_{k_g}\|^2 / \tau),

whose importance weights estimate log p(x); at τ = 0 it is the nearest code for sure.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from pyro import distributions as dist
from torch import Tensor, nn

from ..checks import check_counts
from ..distributions.embedded import Embedded, distances, embed
from .codebook import Codebook


class Quantised(Embedded):
    """Codes chosen by an encoder, and what training asks of it.

    Args:
        numbers: see :class:`Embedded`, for this, the codebook and the encoding.
        commitment: weight of the term that keeps encodings near their codes.
        moves_codes: whether the codes are drawn to the encodings, by gradient.
    """

    commitment: float = 0.0
    moves_codes: bool = False

    def penalty(self) -> Tensor:
        """What is added to the loss of each datum, in nats, ``batch_shape``.

        The squared distance of its encodings to the nearest codes: once with a gradient for the
        codes, where these are parameters, and ``commitment`` times with one for the encodings.
        """
        assert self.encoded is not None
        encoded, grid_dim = self.encoded, self.grid_dim
        nearest = distances(encoded.detach(), self.codebook.detach(), grid_dim).argmin(-1)
        codes = embed(nearest, self.codebook, grid_dim)
        away = self.commitment * (encoded - codes.detach()).square()
        if self.moves_codes:
            away = away + (encoded.detach() - codes).square()
        return away.flatten(-1 - grid_dim).sum(-1)

    def expand(self, batch_shape: torch.Size, _instance: object = None) -> Quantised:
        new = super().expand(batch_shape)
        assert isinstance(new, Quantised)
        new.commitment, new.moves_codes = self.commitment, self.moves_codes
        return new


class VectorQuantiser(nn.Module):
    """A posterior over grids of codes.

    In training, a step teaches the codebook what it was given before codes are chosen.

    Args:
        net: the encoder, from ``(x, *context)`` to ``(..., D, *grid)``.
        codebook: which vectors there are.
        grid: the shape of a code: ``(G,)``, or ``(H, W)`` for images.
        commitment: weight of the commitment term, β in the paper.
        temperature: τ; 0 for the nearest codes.

    Raises:
        ValueError: the encoder's output is not of that shape.

    References:
        van den Oord, Vinyals and Kavukcuoglu, *Neural discrete representation learning*, 2017.
        Sønderby, Poole and Mnih, *Continuous relaxation training of discrete latent variable image
        models*, 2017.

    Example:
        >>> encoder = nn.Sequential(nn.Linear(64, 8 * 4), nn.Unflatten(-1, (8, 4)))
        >>> quantiser = VectorQuantiser(encoder, Codebook(num_codes=16, code_dim=8), grid=(4,))
        >>> quantiser(torch.rand(5, 64)).sample().shape  # four codes, as vectors
        torch.Size([5, 8, 4])
    """

    def __init__(
        self,
        net: nn.Module,
        codebook: Codebook,
        grid: Sequence[int],
        commitment: float = 0.25,
        temperature: float = 0.0,
    ) -> None:
        super().__init__()
        if not isinstance(codebook, Codebook):
            raise TypeError(f"codebook must be a Codebook, but is a {type(codebook).__name__}")
        if not isinstance(grid, Sequence) or len(grid) == 0:
            raise ValueError(f"grid must be a shape, as (4,) or (2, 2), but is {grid!r}")
        check_counts(**{f"grid[{i}]": size for i, size in enumerate(grid)})
        for name, value in (("commitment", commitment), ("temperature", temperature)):
            if not (isinstance(value, int | float) and 0 <= value < math.inf):
                raise ValueError(f"{name} must be finite and at least 0, but is {value}")
        self.net, self.codebook, self.grid = net, codebook, tuple(grid)
        self.commitment, self.temperature = commitment, temperature

    def forward(self, x: Tensor, *context: Tensor) -> Quantised:
        encoded = self.net(x, *context)
        codebook, grid_dim = self.codebook, len(self.grid)
        wanted = (codebook.code_dim, *self.grid)
        if encoded.shape[-len(wanted) :] != wanted:
            raise ValueError(
                f"net must return (code_dim, *grid) = {wanted} for each datum, but returns shape "
                f"{tuple(encoded.shape)}"
            )
        taught = self.training and torch.is_grad_enabled()
        if taught:
            with torch.no_grad():
                numbers = distances(encoded, codebook.vectors, grid_dim).argmin(-1)
                rows = encoded.movedim(-1 - grid_dim, -1)
                codebook.learn(rows.reshape(-1, codebook.code_dim), numbers.reshape(-1))
        # of its own for each run: the next one moves the codebook in place
        vectors = codebook.vectors.clone() if taught else codebook.vectors
        away = distances(encoded, vectors, grid_dim)
        if self.temperature:
            logits = away / -self.temperature
        else:
            nearest = away.argmin(-1, keepdim=True)
            logits = torch.full_like(away, -torch.inf).scatter(-1, nearest, 0.0)
        numbers = dist.Categorical(logits=logits).to_event(grid_dim)
        quantised = Quantised(numbers, vectors, encoded)
        quantised.commitment, quantised.moves_codes = self.commitment, codebook.is_learned
        return quantised

    def at(self, temperature: float) -> VectorQuantiser:
        """The same encoder and codebook, by reference, at another temperature, in the same mode."""
        other = type(self)(self.net, self.codebook, self.grid, self.commitment, temperature)
        other.training = self.training
        return other
