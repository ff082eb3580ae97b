r"""The deep Markov model: a chain of codes, each of which emits a datum.

.. math:: z_1 \sim p(z_1), \quad z_t \sim p(z_t \mid z_{t-1}), \quad x_t \sim p(x_t \mid z_t);
          \qquad z_t \sim q(z_t \mid z_{t-1}, x_{t:T}),

.. math:: \log w = \sum_{t=1}^{T} \bigl[\log p(z_t \mid z_{t-1}) + \log p(x_t \mid z_t)
          - \log q(z_t \mid z_{t-1}, x_{t:T})\bigr].

Of sequences of unequal length, padded to T, the sum ends at each one's own. With linear maps and
normal noise throughout it is the Kalman filter's model, whose evidence has a closed form.
"""

from __future__ import annotations

import pyro
import torch
from pyro import poutine
from pyro.poutine.util import is_validation_enabled
from torch import Tensor, nn

from .checks import check_counts
from .distributions.ragged import Ragged
from .generative import GenerativeModel


class DeepMarkovModel(GenerativeModel):
    """A deep Markov model from its four parts.

    ``model(x, lengths)`` and ``guide(x, lengths)`` are Pyro programs on sequences ``(N, T, D)``,
    with sites ``z_1`` to ``z_T``, one for each step, and ``x``, one for a whole sequence.
    ``lengths``, ``(N,)``, are integers from 1 to T; without them all sequences are T long. Steps
    beyond a length are masked: what stands there changes nothing.

    Args:
        prior: ``prior()`` returns the distribution of the first code.
        transition: ``transition(z)`` returns that of the next one
            (:mod:`~pyrovae.models.transitions`).
        likelihood: ``likelihood(z)`` returns a distribution over the datum of one step.
        posterior: ``posterior(x, lengths)`` returns conditionals q, where ``q(t, z)`` is the
            distribution of the code at step t, from 0, given the one before, None at the first
            (:class:`~pyrovae.models.posteriors.BackwardPosterior`).
        name: in Pyro's parameter store; see :class:`~pyrovae.models.generative.GenerativeModel`.

    References:
        Krishnan, Shalit and Sontag, *Structured inference networks for nonlinear state space
        models*, 2017.

    Example:
        >>> from pyrovae.models.likelihoods import Bernoulli
        >>> from pyrovae.models.nets import MLP
        >>> from pyrovae.models.posteriors import BackwardPosterior
        >>> from pyrovae.models.priors import StandardNormal
        >>> from pyrovae.models.transitions import GatedTransition
        >>> chorales = DeepMarkovModel(
        ...     StandardNormal(10), GatedTransition(10), Bernoulli(MLP(10, 88)),
        ...     BackwardPosterior(data_dim=88, latent_dim=10))
        >>> chorales.sample(4, num_steps=30).shape
        torch.Size([4, 30, 88])
        >>> x, lengths = torch.zeros(2, 30, 88), torch.tensor([30, 12])
        >>> chorales.reconstruct(x, lengths).shape, chorales.forecast(x, 5, lengths).shape
        (torch.Size([2, 30, 88]), torch.Size([2, 5, 88]))
    """

    def __init__(
        self,
        prior: nn.Module,
        transition: nn.Module,
        likelihood: nn.Module,
        posterior: nn.Module,
        name: str | None = None,
    ) -> None:
        super().__init__(name)
        self.prior, self.transition = prior, transition
        self.likelihood, self.posterior = likelihood, posterior

    # a context here is the lengths and nothing else
    def model(self, x: Tensor, lengths: Tensor | None = None) -> Tensor:
        """Draw the chain of codes, and x, observed."""
        present = _present(x, lengths)
        path: list[Tensor] = []
        with self._data(x):
            # no pyro.markov: all of the path is looked at once more, by the likelihood
            for t in range(x.shape[1]):
                code = self.transition(path[-1]) if path else self.prior()
                with _masked(present, t):
                    path.append(pyro.sample(f"z_{t + 1}", code))
            return self._observe(x, Ragged(self.likelihood(torch.stack(path, -2)), present))

    def guide(self, x: Tensor, lengths: Tensor | None = None) -> Tensor:
        """Draw the chain of codes from the posterior's approximation: ``(..., N, T, Z)``."""
        present = _present(x, lengths)
        q = self.posterior(x, lengths)
        path: list[Tensor] = []
        with self._data(x):
            for t in range(x.shape[1]):
                with _masked(present, t):
                    path.append(pyro.sample(f"z_{t + 1}", q(t, path[-1] if path else None)))
        return torch.stack(path, -2)

    @torch.no_grad()
    def sample(self, num_samples: int, num_steps: int) -> Tensor:
        """Draw sequences from the model: ``(num_samples, num_steps, D)``."""
        check_counts(num_samples=num_samples)
        check_counts(num_steps=num_steps)
        first = self.prior().sample(torch.Size((num_samples,)))
        return self.likelihood(self._continued(first, num_steps - 1)).sample()

    @torch.no_grad()
    def reconstruct(self, x: Tensor, lengths: Tensor | None = None) -> Tensor:
        """The likelihood's mean along a path drawn from q: the shape of ``x``, its padding 0."""
        present = _present(x, lengths)
        mean = self.likelihood(self._path(x, lengths)).mean
        if present is None:
            return mean
        return torch.where(present[(..., *[None] * (x.dim() - 2))], mean, 0.0)

    @torch.no_grad()
    def forecast(self, x: Tensor, num_steps: int, lengths: Tensor | None = None) -> Tensor:
        """Draw what follows each sequence: ``(N, num_steps, D)``.

        One draw of :math:`p(x_{L+1:L+S} \\mid x_{1:L})`, as far as q is the posterior: a path of
        codes from q, and its last one led on by the transition.
        """
        check_counts(num_steps=num_steps)
        _present(x, lengths)
        path = self._path(x, lengths)
        last = path[:, -1]
        if lengths is not None:
            last = path[torch.arange(len(x), device=x.device), lengths.to(x.device).long() - 1]
        return self.likelihood(self._continued(last, num_steps)[:, 1:]).sample()

    def _path(self, x: Tensor, lengths: Tensor | None) -> Tensor:
        """Codes drawn from q, ``(N, T, Z)``."""
        q = self.posterior(x, lengths)
        path: list[Tensor] = []
        for t in range(x.shape[1]):
            path.append(q(t, path[-1] if path else None).sample())
        return torch.stack(path, 1)

    def _continued(self, z: Tensor, num_steps: int) -> Tensor:
        """A code and the ``num_steps`` that follow it, ``(N, 1 + num_steps, Z)``."""
        path = [z]
        for _ in range(num_steps):
            path.append(self.transition(path[-1]).sample())
        return torch.stack(path, 1)


def _masked(present: Tensor | None, t: int) -> poutine.mask:
    """Count step t of the sequences that have it."""
    return poutine.mask(mask=present is None or present[:, t])


def _present(x: Tensor, lengths: Tensor | None) -> Tensor | None:
    """Which steps belong to their sequence, ``(N, T)``; None where all do.

    Raises:
        TypeError: lengths that are no tensor.
        ValueError: x that holds no sequences; lengths of another shape or dtype, or out of range.
    """
    if x.dim() < 3 or x.shape[1] < 1:
        raise ValueError(f"x must be sequences of shape (N, T, D), but has {tuple(x.shape)}")
    if lengths is None:
        return None
    if not isinstance(lengths, Tensor):
        raise TypeError(f"lengths must be a tensor, but is a {type(lengths).__name__}")
    if lengths.is_floating_point() or lengths.is_complex() or lengths.dtype == torch.bool:
        raise ValueError(f"lengths must be integers, but are {lengths.dtype}")
    if lengths.shape != x.shape[:1]:
        raise ValueError(
            f"lengths must be of shape ({len(x)},), one for each sequence of x, "
            f"but have {tuple(lengths.shape)}"
        )
    # a look at the numbers halts a GPU: as Pyro's own checks, only where validation is on
    if is_validation_enabled() and bool((wrong := (lengths < 1) | (lengths > x.shape[1])).any()):
        datum = int(wrong.nonzero()[0, 0])
        raise ValueError(
            f"lengths must be from 1 to T = {x.shape[1]}, "
            f"but datum {datum} has {int(lengths[datum])}"
        )
    return torch.arange(x.shape[1], device=x.device) < lengths.to(x.device)[:, None]
