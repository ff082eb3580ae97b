r"""The posterior of a sequence of codes, one code after the other.

Given z of the step before, the past of x says nothing more about a code of a Markov chain:

.. math:: p(z_{1:T} \mid x_{1:T}) = \prod_{t=1}^{T} p(z_t \mid z_{t-1}, x_{t:T}).

So an approximation needs :math:`z_{t-1}` and a summary of what is still to come, which a recurrent
net makes that reads x from its end backwards.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import pyro.distributions as dist
import torch
from pyro.distributions.torch_distribution import TorchDistributionMixin
from torch import Tensor, nn
from torch.nn.functional import softplus

from ..checks import check_counts
from ..distributions import NormalVector

# t, from 0, and z of the step before, or None at the first, to the distribution of z at t
Conditionals = Callable[[int, Tensor | None], TorchDistributionMixin]


class BackwardPosterior(nn.Module):
    r"""A normal :math:`q(z_t \mid z_{t-1}, x_{t:T})` from a backward recurrent net and a combiner.

    .. math:: c_t = \tfrac12 \bigl(\tanh(A z_{t-1} + a) + h_t\bigr), \quad
              z_t \sim N\bigl(B c_t + b, \; \mathrm{diag}\,\mathrm{softplus}(C c_t + c)\bigr),

    where :math:`h_t` is the net's state after it has read :math:`x_T, \dots, x_t`, and
    :math:`z_0` a parameter. A sequence shorter than T is read from its own end: no state depends
    on padding.

    Called with x of shape ``(N, T, D)`` and, where lengths differ, ``lengths`` of shape ``(N,)``,
    it returns the conditionals: a function q, so that ``q(t, z)`` is the distribution of the code
    at step t, counted from 0, given ``z``, the one before, ``(..., N, Z)``, or None at the first.

    Args:
        data_dim: D.
        latent_dim: Z.
        hidden_dim: size of the state.
        num_layers: of the recurrent net.
        cell: its class: ``nn.GRU``, ``nn.RNN`` or ``nn.LSTM``.

    Raises:
        ValueError: a size under 1; x of another shape, or of another dtype than the parameters.

    References:
        Krishnan, Shalit and Sontag, *Structured inference networks for nonlinear state space
        models*, 2017.

    Example:
        >>> posterior = BackwardPosterior(data_dim=88, latent_dim=3)
        >>> q = posterior(torch.zeros(5, 10, 88), torch.tensor([10, 3, 7, 1, 10]))
        >>> z = q(0, None).sample()
        >>> q(1, z).batch_shape, q(1, z).event_shape
        (torch.Size([5]), torch.Size([3]))
    """

    def __init__(
        self,
        data_dim: int,
        latent_dim: int,
        hidden_dim: int = 200,
        num_layers: int = 1,
        cell: type[nn.GRU] | type[nn.LSTM] | type[nn.RNN] = nn.GRU,
    ) -> None:
        super().__init__()
        check_counts(
            data_dim=data_dim, latent_dim=latent_dim, hidden_dim=hidden_dim, num_layers=num_layers
        )
        self.data_dim, self.latent_dim, self.hidden_dim = data_dim, latent_dim, hidden_dim
        self.num_layers, self.cell = num_layers, cell
        self.recurrent = cell(data_dim, hidden_dim, num_layers, batch_first=True)
        self.start = nn.Parameter(torch.zeros(latent_dim))
        self.state = nn.Linear(latent_dim, hidden_dim)
        self.loc = nn.Linear(hidden_dim, latent_dim)
        self.variance = nn.Linear(hidden_dim, latent_dim)

    def forward(self, x: Tensor, lengths: Tensor | None = None) -> Conditionals:
        return partial(self._combine, self.encode(x, lengths))

    def encode(self, x: Tensor, lengths: Tensor | None = None) -> Tensor:
        """The states :math:`h_1, \\dots, h_T`, ``(N, T, hidden_dim)``."""
        if x.dim() != 3 or x.shape[-1] != self.data_dim:
            raise ValueError(
                f"x must be sequences of shape (N, T, {self.data_dim}), but has {tuple(x.shape)}"
            )
        if x.dtype != self.start.dtype:
            raise ValueError(
                f"x must be {self.start.dtype}, as the posterior's parameters are, but is {x.dtype}"
            )
        if lengths is None:
            return self.recurrent(x.flip(1))[0].flip(1)
        steps = torch.arange(x.shape[1], device=x.device)
        back = lengths.to(x.device)[:, None].long() - 1 - steps
        present = back >= 0
        # a gather swaps what is there end for end, in no more than one pass and without a look at
        # the numbers; padding stays where it is, behind the end, and is read after all else
        back = torch.where(present, back, steps).clamp(max=x.shape[1] - 1)
        x = torch.where(present[..., None], x, 0.0)
        states, _ = self.recurrent(_along(x, back))
        return _along(states, back)

    def _combine(self, states: Tensor, t: int, z: Tensor | None) -> TorchDistributionMixin:
        before = self.start if z is None else z
        both = 0.5 * (self.state(before).tanh() + states[:, t])
        return NormalVector(dist.Normal(self.loc(both), softplus(self.variance(both)).sqrt()), 1)


def _along(sequences: Tensor, index: Tensor) -> Tensor:
    """The steps of each sequence in the order of an index, ``(N, T)``."""
    return sequences.gather(1, index[..., None].expand_as(sequences))
