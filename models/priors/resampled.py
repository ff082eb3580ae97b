r"""A learned accept-or-redraw rule as prior (LARS), with a normaliser whose error is known."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from pyro.distributions.torch_distribution import TorchDistributionMixin
from torch import Tensor, nn
from torch.nn.functional import logsigmoid

from ..checks import check_counts
from ..distributions.resampled import Resampled, log_mean

_APART = 0x6C617273


class Normaliser(NamedTuple):
    """log Z of a :class:`ResampledPrior`, and its standard error; scalars, in nats."""

    log_value: Tensor
    stderr: Tensor


class ResampledPrior(nn.Module):
    r"""Draws of another prior π, of which a network accepts some.

    .. math:: p(z) = \pi(z) \Bigl[ a(z) \, \frac{1 - (1 - Z)^{T-1}}{Z} + (1 - Z)^{T-1} \Bigr],
              \quad Z = \mathbb{E}_\pi a.

    Z is an average over draws of π. In training they are fresh at each step, so that the network
    cannot fit them. All that is scored, in evaluation mode or without gradients, takes Z from
    ``num_draws`` others, that depend on ``seed`` alone and that no step of training has seen: the
    density is then a fixed function, and :meth:`normaliser` tells the error of log Z. To log p(x)
    it adds the same amount for all data, at most that of log Z.

    Args:
        prior: π, a prior module.
        net: maps codes ``(..., Z)`` to logits of a, ``(..., 1)``.
        num_proposals: T, after which a draw is taken as it is.
        num_draws: for Z where something is scored.
        num_training_draws: for Z at each step of training.
        seed: of the former.

    References:
        Bauer and Mnih, *Resampled priors for variational autoencoders*, 2019.

    Example:
        >>> from pyrovae.models.nets import MLP
        >>> from pyrovae.models.priors import StandardNormal
        >>> prior = ResampledPrior(StandardNormal(4), MLP(4, 1, hidden=(20,)))
        >>> prior().log_prob(torch.zeros(5, 4)).shape
        torch.Size([5])
        >>> bool(prior.normaliser().stderr < 0.01)
        True
    """

    def __init__(
        self,
        prior: nn.Module,
        net: nn.Module,
        num_proposals: int = 100,
        num_draws: int = 2**14,
        num_training_draws: int = 2**10,
        seed: int = 0,
    ) -> None:
        super().__init__()
        check_counts(num_training_draws=num_training_draws)
        # of one draw there is no standard error
        for name, count in (("num_proposals", num_proposals), ("num_draws", num_draws)):
            if count < 2:
                raise ValueError(f"{name} must be at least 2, but is {count}")
        self.prior, self.net, self.num_proposals = prior, net, num_proposals
        self.num_draws, self.num_training_draws, self.seed = num_draws, num_training_draws, seed
        self._known: tuple[object, Normaliser, list[Tensor]] | None = None

    def forward(self) -> TorchDistributionMixin:
        proposal = self.prior()
        if self.training and torch.is_grad_enabled():
            log_value = self._fresh_log_value(proposal)
        else:
            log_value = self.normaliser().log_value
        return Resampled(proposal, self._logit, log_value, self.num_proposals)

    def _fresh_log_value(self, proposal: TorchDistributionMixin) -> Tensor:
        shape = torch.Size((self.num_training_draws,))
        if proposal.has_rsample:
            return log_mean(logsigmoid(self._logit(proposal.rsample(shape))))[0]
        # draws that do not move with π leave their density to carry its part of the gradient
        z = proposal.sample(shape)
        log_density = proposal.log_prob(z)
        change = log_density - log_density.detach()
        return log_mean(logsigmoid(self._logit(z)) + change)[0]

    def _logit(self, z: Tensor) -> Tensor:
        logit = self.net(z)
        if logit.shape != (*z.shape[:-1], 1):
            raise ValueError(
                f"net must return one logit for each code, but returns shape {tuple(logit.shape)} "
                f"for codes of shape {tuple(z.shape)}"
            )
        return logit.squeeze(-1)

    @torch.no_grad()
    def normaliser(self) -> Normaliser:
        """log Z from the draws that are held out of training, and its standard error."""
        # computed once for the parameters as they are
        state = [*self.parameters(), *self.buffers()]
        now = (self.num_draws, self.seed, [_identity(one) for one in state], _sums(state))
        if self._known is None or self._known[0] != now:
            device = next((one.device for one in state), torch.device("cpu"))
            with _seeded(device, self.seed):
                z = self.prior().sample(torch.Size((self.num_draws,)))
            value = Normaliser(*log_mean(logsigmoid(self._logit(z))))
            # what is held here cannot be freed, and another tensor take its place unnoticed
            self._known = (now, value, [one.detach() for one in state])
        return self._known[1]

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_known": None}


def _identity(tensor: Tensor) -> tuple[object, ...]:
    """What changes with the numbers that a tensor holds."""
    # of an inference tensor nobody knows: a new object is like no other
    version = object() if tensor.is_inference() else tensor._version
    return tensor.data_ptr(), version, tensor.dtype, tensor.device


def _sums(tensors: list[Tensor]) -> list[float]:
    """Sums of numbers and of squares: fused optimizers and ``.data`` leave a tensor's version."""
    if not tensors:
        return []
    sums = [f(one.detach().double()) for one in tensors for f in (torch.sum, torch.linalg.norm)]
    found: list[float] = torch.stack(sums).tolist()
    return found


@contextmanager
def _seeded(device: torch.device, seed: int) -> Iterator[None]:
    """The device's generator, and no other, starts from a seed; then it goes on as before.

    Of the same number it makes other draws than where a user seeds it, for training.
    """
    is_cuda = device.type == "cuda"
    generator = torch.cuda.default_generators[device.index] if is_cuda else torch.default_generator
    before = generator.get_state()
    generator.manual_seed(seed ^ _APART)
    try:
        yield
    finally:
        generator.set_state(before)
