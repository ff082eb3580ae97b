r"""The VQ-VAE as a VAE whose codes are discrete.

.. math:: k \sim p(k), \quad x \sim p(x \mid e_k); \qquad k = \arg\min_j \|z_e(x) - e_j\|.

Its guide is sure of its code, so that the ELBO of a datum is log p(x, k): a bound of

.. math:: \log p(x) = \log \sum_k p(k) \, p(x \mid e_k),

which is a sum over :math:`M^G` grids: exact where these are few, and estimated elsewhere by
importance sampling from the softened guide.
"""

from __future__ import annotations

import math

import torch
from pyro.distributions.torch_distribution import TorchDistributionMixin
from torch import Tensor, nn

from ..distributions.embedded import Embedded, embed
from ..vae import VAE
from .quantiser import VectorQuantiser

_MOST_GRIDS = 2**20
_ENTRIES = 2**22  # of x that are compared at a time, for all grids of a part


class VQVAE(VAE):
    """A VAE with a :class:`VectorQuantiser` for a posterior and a prior over numbers.

    The decoder gets vectors, ``(..., D, *grid)``. Train it with
    :class:`pyrovae.inference.Penalised`, which adds the codebook's and the encoder's terms to the
    ELBO. A learned prior learns along with the rest, or afterwards, from codes that stay
    (:meth:`only_prior`).

    Args:
        prior: ``prior()`` returns a distribution over numbers, of event shape ``grid``.
        posterior: a quantiser, which holds encoder and codebook.
        likelihood: ``likelihood(vectors, *context)`` returns a distribution over data.
        name: see :class:`~pyrovae.models.generative.GenerativeModel`.

    Raises:
        TypeError: the posterior is no quantiser.
        ValueError: the prior gives no numbers, or those of another grid or number of codes.

    References:
        van den Oord, Vinyals and Kavukcuoglu, *Neural discrete representation learning*, 2017.

    Example:
        >>> from pyrovae.models.likelihoods import Bernoulli
        >>> from pyrovae.models.nets import MLP
        >>> from pyrovae.models.priors import UniformCodes
        >>> from pyrovae.models.quantised import Codebook
        >>> encoder = nn.Sequential(MLP(64, 8 * 4), nn.Unflatten(-1, (8, 2, 2)))
        >>> quantiser = VectorQuantiser(encoder, Codebook(num_codes=16, code_dim=8), grid=(2, 2))
        >>> decoder = nn.Sequential(nn.Flatten(-3), MLP(8 * 4, 64))
        >>> vq = VQVAE(UniformCodes((2, 2), num_codes=16), quantiser, Bernoulli(decoder))
        >>> vq.codes(torch.rand(5, 64)).shape
        torch.Size([5, 2, 2])
        >>> vq.log_evidence(torch.ones(5, 64)).shape  # a sum over 16 ** 4 grids
        torch.Size([5])
    """

    posterior: VectorQuantiser

    def __init__(
        self,
        prior: nn.Module,
        posterior: VectorQuantiser,
        likelihood: nn.Module,
        name: str | None = None,
    ) -> None:
        if not isinstance(posterior, VectorQuantiser):
            raise TypeError(
                f"posterior must be a VectorQuantiser, but is a {type(posterior).__name__}"
            )
        given = prior()
        if not _may_be_discrete(given):
            raise ValueError(
                f"prior must give numbers of codes, but gives a {type(given).__name__}"
            )
        event = tuple(given.event_shape)
        if event != posterior.grid:
            raise ValueError(
                f"prior must give numbers on the posterior's grid {posterior.grid}, but gives "
                f"{event}"
            )
        num_codes = posterior.codebook.num_codes
        if getattr(prior, "num_codes", num_codes) != num_codes:
            raise ValueError(
                f"prior must give numbers of the codebook's {num_codes} codes, but gives those of "
                f"{prior.num_codes}"
            )
        super().__init__(prior, posterior, likelihood, name)

    def _prior(self, *context: Tensor) -> TorchDistributionMixin:
        return Embedded(self.prior(), self.posterior.codebook.vectors)

    def softened(self, temperature: float) -> VQVAE:
        """The same model, by reference, with a guide that is not sure: to estimate log p(x) with.

        Raises:
            ValueError: a temperature that is not positive.
        """
        if not temperature > 0:
            raise ValueError(f"temperature must be positive, but is {temperature}")
        other = VQVAE(self.prior, self.posterior.at(temperature), self.likelihood)
        other.training = self.training
        return other

    def only_prior(self) -> None:
        """From now on, training moves the prior alone: encoder, codebook and decoder stay."""
        self.requires_grad_(False)
        self.prior.requires_grad_(True)
        self.posterior.codebook.frozen = True
        self.train(self.training)

    def train(self, mode: bool = True) -> VQVAE:
        """Set the mode; after :meth:`only_prior`, all but the prior stay in evaluation."""
        super().train(mode)
        parts = (self.posterior, self.likelihood)
        trained = any(p.requires_grad for part in parts for p in part.parameters())
        if self.posterior.codebook.frozen and not trained:
            for part in parts:  # in training, batch norm would move and dropout change the codes
                part.train(False)
        return self

    @torch.no_grad()
    def codes(self, x: Tensor, *context: Tensor) -> Tensor:
        """The numbers of the nearest codes, ``(N, *grid)``."""
        return self.posterior.at(0.0)(x, *context).numbers.base_dist.logits.argmax(-1)

    def decode(self, numbers: Tensor, *context: Tensor) -> TorchDistributionMixin:
        """The likelihood at grids of numbers, ``(..., *grid)``."""
        grid_dim = len(self.posterior.grid)
        vectors = embed(numbers, self.posterior.codebook.vectors, grid_dim)
        return self.likelihood(vectors, *context)

    @torch.no_grad()
    def log_evidence(self, x: Tensor) -> Tensor:
        """The exact log p(x), ``(N,)`` in nats, float64: a sum over all grids of codes.

        Raises:
            ValueError: there are more than 2^20 of them, or the likelihood's data have another
                shape than those of ``x``.
        """
        grid, num_codes = self.posterior.grid, self.posterior.codebook.num_codes
        places = math.prod(grid)
        if num_codes**places > _MOST_GRIDS:
            raise ValueError(
                f"the sum must be over at most {_MOST_GRIDS} grids, but {num_codes} codes on a "
                f"grid {grid} make {num_codes}^{places}: estimate with softened(...)"
            )
        before = [(module, module.training) for module in self.modules()]
        self.eval()  # batch norm would make a grid's density depend on the others
        try:
            return self._sum_over_grids(x, num_codes, grid)
        finally:
            for module, flag in before:
                module.training = flag

    def _sum_over_grids(self, x: Tensor, num_codes: int, grid: tuple[int, ...]) -> Tensor:
        places = math.prod(grid)
        all_grids = torch.arange(num_codes**places, device=x.device)
        radix = num_codes ** torch.arange(places, device=x.device)
        size = max(_ENTRIES // max(x.numel(), 1), 1)
        prior = self.prior()
        total = torch.full((len(x),), -torch.inf, dtype=torch.float64, device=x.device)
        for some in all_grids.split(size):
            numbers = (some[:, None] // radix % num_codes).unflatten(-1, grid)
            likelihood = self.decode(numbers)  # once for each grid, whatever the data
            if likelihood.event_shape != x.shape[1:]:  # it would broadcast, and be wrong
                raise ValueError(
                    f"x must hold data of shape {tuple(likelihood.event_shape)}, as the likelihood "
                    f"does, but holds {tuple(x.shape[1:])}"
                )
            joint = likelihood.log_prob(x[:, None]) + prior.log_prob(numbers)
            total = torch.logaddexp(total, joint.double().logsumexp(-1))
        return total


def _may_be_discrete(given: TorchDistributionMixin) -> bool:
    try:
        return bool(given.support.is_discrete)
    except NotImplementedError:  # it does not say
        return True
