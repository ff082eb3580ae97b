r"""Priors of grids of numbers: what a code of a VQ-VAE costs.

Uniform numbers cost log M nats each. A prior that has learned which come together,

.. math:: p(k) = \prod_g p(k_g \mid k_{<g}),

saves KL(q(k) ‖ uniform) of them, with q(k) what encoders make of the data.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, ClassVar

import pyro.distributions as dist
import torch
from pyro.distributions.torch_distribution import TorchDistribution, TorchDistributionMixin
from torch import Tensor, nn
from torch.distributions import constraints

from ..checks import check_counts
from ..distributions.independent import Vector


def _check_sizes(grid: Sequence[int], **counts: int) -> None:
    if not isinstance(grid, Sequence):
        raise TypeError(f"grid must be a sequence of sizes, but is {grid!r}")
    check_counts(**counts, **{f"grid[{i}]": size for i, size in enumerate(grid)})


class UniformCodes(nn.Module):
    """Independent numbers, all equally likely.

    Args:
        grid: the shape of a code.
        num_codes: M; numbers are 0 to M − 1.

    Example:
        >>> log_prob = UniformCodes((2, 2), num_codes=16)().log_prob(torch.zeros(5, 2, 2))
        >>> (log_prob.exp() * 16**4).round()
        tensor([1., 1., 1., 1., 1.])
    """

    logits: Tensor

    def __init__(self, grid: Sequence[int], num_codes: int) -> None:
        super().__init__()
        _check_sizes(grid, num_codes=num_codes)
        self.grid, self.num_codes = tuple(grid), num_codes
        self.register_buffer("logits", torch.zeros(*self.grid, num_codes), persistent=False)

    def forward(self) -> TorchDistributionMixin:
        return Vector(dist.Categorical(logits=self.logits), len(self.grid))


class AutoregressivePrior(nn.Module):
    """Numbers in the order of rows, each given all before it, by a recurrent network.

    Args:
        grid: the shape of a code.
        num_codes: M.
        hidden: size of the network's state.

    References:
        van den Oord, Kalchbrenner and Kavukcuoglu, *Pixel recurrent neural networks*, 2016. Cho and
        others, *Learning phrase representations using RNN encoder-decoder*, 2014.

    Example:
        >>> prior = AutoregressivePrior((2, 2), num_codes=16)
        >>> prior().sample(torch.Size((5,))).shape
        torch.Size([5, 2, 2])
    """

    def __init__(self, grid: Sequence[int], num_codes: int, hidden: int = 64) -> None:
        super().__init__()
        _check_sizes(grid, num_codes=num_codes, hidden=hidden)
        self.grid, self.num_codes, self.hidden = tuple(grid), num_codes, hidden
        places = math.prod(self.grid)
        self.previous = nn.Embedding(num_codes + 1, hidden)  # the last stands before the first
        self.place = nn.Parameter(torch.zeros(places, hidden))
        self.state = nn.GRU(hidden, hidden, batch_first=True)
        self.head = nn.Linear(hidden, num_codes)

    def forward(self) -> TorchDistributionMixin:
        return _InOrder(self)

    def logits(self, numbers: Tensor) -> Tensor:
        """Of all numbers given those before: ``(R, G)`` to ``(R, G, M)``."""
        first = numbers.new_full((len(numbers), 1), self.num_codes)
        before = torch.cat([first, numbers[:, :-1]], 1)
        states, _ = self.state(self.previous(before) + self.place)
        return self.head(states)

    @torch.no_grad()
    def draw(self, count: int) -> Tensor:
        """Draws, ``(count, G)``."""
        number = torch.full((count, 1), self.num_codes, device=self.place.device)
        state, drawn = None, []
        for place in self.place:
            out, state = self.state(self.previous(number) + place, state)
            number = dist.Categorical(logits=self.head(out)).sample()
            drawn.append(number)
        return torch.cat(drawn, 1)


class _InOrder(TorchDistribution):
    """What an :class:`AutoregressivePrior` says of numbers."""

    arg_constraints: ClassVar[dict[str, Any]] = {}

    def __init__(self, prior: AutoregressivePrior, validate_args: bool | None = None) -> None:
        self.prior = prior
        super().__init__(torch.Size(), torch.Size(prior.grid), validate_args=validate_args)

    @property
    def support(self) -> constraints.Constraint:
        whole = constraints.integer_interval(0, self.prior.num_codes - 1)
        return constraints.independent(whole, len(self.prior.grid))

    def sample(self, sample_shape: torch.Size = torch.Size()) -> Tensor:  # noqa: B008
        drawn = self.prior.draw(math.prod(sample_shape))
        return drawn.reshape(*sample_shape, *self.prior.grid)

    def log_prob(self, value: Tensor) -> Tensor:
        if self._validate_args:
            self._validate_sample(value)
        leading = value.shape[: value.dim() - len(self.prior.grid)]
        numbers = value.reshape(-1, math.prod(self.prior.grid)).long()
        logits = self.prior.logits(numbers)
        taken = logits.log_softmax(-1).gather(-1, numbers[..., None])
        return taken.squeeze(-1).sum(-1).reshape(leading)
