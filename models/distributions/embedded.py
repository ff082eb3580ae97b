r"""Codes of a grid as the vectors that a codebook has for them.

A code is a grid of numbers :math:`k_g \in \{1, \dots, M\}`; what a decoder sees is the grid of
vectors :math:`e_{k_g}`. A distribution over numbers is one over vectors, with the same
probabilities: a vector tells its number, as the nearest one of the codebook.
"""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from pyro.distributions.torch_distribution import TorchDistribution
from torch import Tensor
from torch.distributions import constraints


def embed(numbers: Tensor, codebook: Tensor, grid_dim: int) -> Tensor:
    """Vectors ``(..., D, *grid)`` of numbers ``(..., *grid)``."""
    return codebook[numbers].movedim(-1, -1 - grid_dim)


def distances(vectors: Tensor, codebook: Tensor, grid_dim: int) -> Tensor:
    """Squared distances ``(..., *grid, M)`` of vectors ``(..., D, *grid)`` to the M codes."""
    rows = vectors.movedim(-1 - grid_dim, -1)
    squares = rows.square().sum(-1, keepdim=True) + codebook.square().sum(-1)
    return squares - 2 * rows @ codebook.T


def lookup(vectors: Tensor, codebook: Tensor, grid_dim: int) -> Tensor:
    """Numbers ``(..., *grid)`` of vectors ``(..., D, *grid)`` that stand in the codebook.

    Of others, the nearest code's. In double precision and about the codebook's centre: else of two
    codes that lie close to each other and far from the origin, one passes for the other.
    """
    wide = codebook.double()
    centre = wide.mean(0)
    about = vectors.double() - centre.reshape(-1, *(1,) * grid_dim)
    return distances(about, wide - centre, grid_dim).argmin(-1)


class _Codes(constraints.Constraint):
    """Grids of vectors that all stand in the codebook."""

    is_discrete = True

    def __init__(self, codebook: Tensor, grid_dim: int) -> None:
        self.codebook, self.grid_dim = codebook, grid_dim
        self.event_dim = 1 + grid_dim

    def check(self, value: Tensor) -> Tensor:
        numbers = lookup(value, self.codebook, self.grid_dim)
        same = embed(numbers, self.codebook, self.grid_dim) == value
        return same.flatten(-1 - self.grid_dim).all(-1)


class _StraightThrough(torch.autograd.Function):
    """The chosen vectors, whose gradient goes to the encoded ones as if nothing were between."""

    generate_vmap_rule = True

    @staticmethod
    def forward(encoded: Tensor, chosen: Tensor) -> Tensor:
        return chosen.clone()

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple, output: Tensor) -> None:
        ctx.shape = inputs[0].shape

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        return gradient.sum_to_size(ctx.shape), None


class Embedded(TorchDistribution):
    """Numbers of a grid, as vectors.

    Two codes that are equal cannot be told apart: the first has its own probability, and what the
    second has is lost to :meth:`log_prob`.

    Args:
        numbers: a distribution over grids of numbers, event shape ``grid``.
        codebook: ``(M, D)``.
        encoded: what an encoder gave, ``(..., D, *grid)``: gradients of draws go there.

    Example:
        >>> import pyro.distributions as dist
        >>> numbers = dist.Categorical(logits=torch.zeros(4, 3)).to_event(1)  # four of three codes
        >>> one = Embedded(numbers, torch.eye(3))
        >>> one.sample(torch.Size((5,))).shape
        torch.Size([5, 3, 4])
        >>> one.log_prob(one.sample()).exp().round(decimals=4)  # 3 ** -4
        tensor(0.0123)
    """

    arg_constraints: ClassVar[dict[str, Any]] = {}

    def __init__(
        self,
        numbers: Any,
        codebook: Tensor,
        encoded: Tensor | None = None,
        validate_args: bool | None = None,
    ) -> None:
        self.numbers, self.codebook, self.encoded = numbers, codebook, encoded
        event = torch.Size((codebook.shape[-1], *numbers.event_shape))
        super().__init__(numbers.batch_shape, event, validate_args=validate_args)

    @property
    def grid_dim(self) -> int:
        return len(self.event_shape) - 1

    @property
    def has_rsample(self) -> bool:
        return self.encoded is not None

    @property
    def support(self) -> constraints.Constraint:
        return _Codes(self.codebook, self.grid_dim)

    def expand(self, batch_shape: Any, _instance: Any = None) -> Embedded:
        batch = torch.Size(batch_shape)
        encoded = None if self.encoded is None else self.encoded.expand(batch + self.event_shape)
        return type(self)(self.numbers.expand(batch), self.codebook, encoded, validate_args=False)

    def sample(self, sample_shape: torch.Size = torch.Size()) -> Tensor:  # noqa: B008
        with torch.no_grad():
            return embed(self.numbers.sample(sample_shape), self.codebook, self.grid_dim)

    def rsample(self, sample_shape: torch.Size = torch.Size()) -> Tensor:  # noqa: B008
        if self.encoded is None:
            raise NotImplementedError("draws have a gradient where there is an encoder")
        return _StraightThrough.apply(self.encoded, self.sample(sample_shape))

    def log_prob(self, value: Tensor) -> Tensor:
        if self._validate_args:
            self._validate_sample(value)
        with torch.no_grad():
            numbers = lookup(value, self.codebook, self.grid_dim)
        return self.numbers.log_prob(numbers)
