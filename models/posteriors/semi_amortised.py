r"""A posterior that an encoder begins and a few steps on the datum itself improve."""

from __future__ import annotations

import pyro.distributions as dist
import torch
from pyro.distributions.torch_distribution import TorchDistributionMixin
from torch import Tensor, nn

from ..checks import check_counts
from ..distributions import NormalVector


class SemiAmortised(nn.Module):
    r"""Gradient steps on the ELBO of each datum, from where the encoder begins.

    With S fixed draws :math:`\epsilon_s` the bound of a datum is a function of its mean and scale,

    .. math:: L(\mu, \sigma) = \frac1S \sum_s \log p(x, \mu + \sigma \epsilon_s)
              + \sum_j \log \sigma_j,

    along whose natural gradient they are moved, by a share :math:`\rho`: :math:`\log \sigma` by
    :math:`\tfrac12 \operatorname{arsinh}(\rho \, \partial_{\log \sigma} L)`, then :math:`\mu` by
    :math:`\rho \sigma^2 \partial_\mu L`. Small steps are left as they are by the arsinh; without
    it, scales a few times too wide are followed by codes far off. In training the encoder, and the
    model, are taught through the steps; elsewhere these are taken and forgotten. The noise belongs
    to the object, so that the posterior is a function of x.

    Args:
        posterior: a :class:`DiagonalNormal`, or another that gives normals.
        prior: the model's, by reference.
        likelihood: the model's, by reference.
        num_steps: of the refinement.
        step_size: ρ, in (0, 1]; 1 is Newton's where the posterior is normal and its entries
            independent.
        num_draws: S; in antithetic pairs, so it is even, and scaled to mean squares of 1.
        seed: of the draws.

    Raises:
        TypeError: the posterior gives something else than normals.

    References:
        Kim, Wiseman, Miller, Sontag and Rush, *Semi-amortized variational autoencoders*, 2018.

    Example:
        >>> from pyrovae.models import VAE
        >>> from pyrovae.models.nets import MLP
        >>> from pyrovae.models.priors import StandardNormal
        >>> from pyrovae.models.posteriors import DiagonalNormal
        >>> from pyrovae.models.likelihoods import Bernoulli
        >>> prior, likelihood = StandardNormal(2), Bernoulli(MLP(2, 16))
        >>> posterior = SemiAmortised(DiagonalNormal(MLP(16, 4)), prior, likelihood)
        >>> vae = VAE(prior, posterior, likelihood)
        >>> vae.posterior(torch.zeros(5, 16)).batch_shape
        torch.Size([5])
    """

    def __init__(
        self,
        posterior: nn.Module,
        prior: nn.Module,
        likelihood: nn.Module,
        num_steps: int = 5,
        step_size: float = 0.3,
        num_draws: int = 4,
        seed: int = 0,
    ) -> None:
        super().__init__()
        check_counts(num_steps=num_steps, num_draws=num_draws)
        if num_draws % 2:
            raise ValueError(f"num_draws must be even, but is {num_draws}")
        if not 0 < step_size <= 1:
            raise ValueError(f"step_size must be in (0, 1], but is {step_size}")
        self.posterior, self.prior, self.likelihood = posterior, prior, likelihood
        self.num_steps, self.step_size = num_steps, step_size
        self.num_draws, self.seed = num_draws, seed

    def forward(self, x: Tensor, *context: Tensor) -> TorchDistributionMixin:
        if torch.is_inference_mode_enabled():  # whose tensors have no gradients to go along
            with torch.inference_mode(False), torch.no_grad():
                return self(*(part.clone() for part in (x, *context)))
        start = self.posterior(x, *context)
        base = getattr(start, "base_dist", None)
        if not isinstance(base, dist.Normal):
            raise TypeError(
                "posterior must give independent normals, as DiagonalNormal does, but gives a "
                f"{type(start).__name__}"
            )
        taught = self.training and torch.is_grad_enabled()
        loc, log_scale = base.loc, base.scale.log()
        noise = self._noise(loc)
        with torch.set_grad_enabled(taught):
            prior = self.prior()  # once: what a prior draws in training is the same for all steps
        with torch.enable_grad():
            if not taught:
                loc, log_scale = loc.detach(), log_scale.detach()
            for _ in range(self.num_steps):
                # views, as the bound's slope along a scale is not to count the means made of it;
                # a frozen encoder begins without gradients, in training too
                at = [
                    one.view_as(one) if one.requires_grad else one.detach().requires_grad_()
                    for one in (loc, log_scale)
                ]
                bound = self._bound(prior, x, context, at[0], at[1], noise)
                up, wider = torch.autograd.grad(bound, at, create_graph=taught)
                log_scale = at[1] + 0.5 * (self.step_size * wider).asinh()
                loc = at[0] + self.step_size * (2 * log_scale).exp() * up
                if not taught:
                    loc, log_scale = loc.detach(), log_scale.detach()
        return NormalVector(dist.Normal(loc, log_scale.exp()), 1)

    def _bound(
        self,
        prior: TorchDistributionMixin,
        x: Tensor,
        context: tuple,
        loc: Tensor,
        log_scale: Tensor,
        noise: Tensor,
    ) -> Tensor:
        z = loc + log_scale.exp() * noise
        joint = prior.log_prob(z) + self.likelihood(z, *context).log_prob(x)
        return joint.mean(0).sum() + log_scale.sum()

    def _noise(self, like: Tensor) -> Tensor:
        """S draws for every entry, the same for all data: ``(S, 1, ..., Z)``.

        Their means are 0 and their mean squares 1, so that a normal posterior whose entries are
        independent is where the steps come to rest.
        """
        generator = torch.Generator().manual_seed(self.seed)
        half = torch.randn(self.num_draws // 2, like.shape[-1], generator=generator).to(like)
        half = half / half.square().mean(0).sqrt()
        noise = torch.cat([half, -half])
        return noise.reshape(len(noise), *[1] * (like.dim() - 1), like.shape[-1])
