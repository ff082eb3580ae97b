r"""A posterior whose normal draws are bent by a flow."""

from __future__ import annotations

import pyro.distributions as dist
import torch
from pyro.distributions.torch_distribution import TorchDistributionMixin
from torch import Tensor, nn

from ..flows import Flow


class FlowPosterior(nn.Module):
    r"""A diagonal normal, N(μ(x), σ(x)²), pushed through a flow that may see features h(x).

    Autoregressive and spline flows take Z passes where the density of other codes than its own
    draws is wanted: in annealing, and in a VampPrior.

    Args:
        net: maps ``(x, *context)`` to ``(..., 2 Z + H)``: mean, log scale, and the H features that
            the flow is told.
        flow: of :mod:`pyrovae.models.flows`, with ``latent_dim`` Z and ``context_dim`` H, which may
            be 0.

    Raises:
        TypeError: no flow.
        ValueError: the network's output has another size.

    References:
        Rezende and Mohamed, *Variational inference with normalizing flows*, 2015. Kingma, Salimans,
        Jozefowicz, Chen, Sutskever and Welling, *Improved variational inference with inverse
        autoregressive flow*, 2016.

    Example:
        >>> from pyrovae.models.flows import AutoregressiveFlow
        >>> flow = AutoregressiveFlow(latent_dim=4, context_dim=3)
        >>> posterior = FlowPosterior(nn.Linear(784, 2 * 4 + 3), flow)
        >>> posterior(torch.zeros(5, 784)).rsample().shape
        torch.Size([5, 4])
    """

    def __init__(self, net: nn.Module, flow: Flow) -> None:
        super().__init__()
        if not isinstance(flow, Flow):
            raise TypeError(f"flow must be a Flow, but is {type(flow).__name__}")
        self.net, self.flow = net, flow

    def forward(self, x: Tensor, *context: Tensor) -> TorchDistributionMixin:
        output = self.net(x, *context)
        latent_dim, context_dim = self.flow.latent_dim, self.flow.context_dim
        if output.shape[-1] != 2 * latent_dim + context_dim:
            raise ValueError(
                f"net must return 2 Z + H = {2 * latent_dim + context_dim} features (mean, log "
                f"scale, and what the flow is told), but returns {output.shape[-1]}"
            )
        loc, log_scale, told = output.split([latent_dim, latent_dim, context_dim], -1)
        base = dist.Normal(loc, log_scale.exp()).to_event(1)
        if not context_dim:
            return dist.TransformedDistribution(base, self.flow())
        return _ToldFlow(base, self.flow(told))


class _ToldFlow(dist.TransformedDistribution):
    """One whose maps differ along its batch; they do not broadcast codes against it."""

    def log_prob(self, value: Tensor) -> Tensor:
        # a draw of its own has the whole shape, and stays the tensor that the maps remember
        shape = torch.broadcast_shapes(value.shape, self.batch_shape + self.event_shape)
        return super().log_prob(value if value.shape == shape else value.expand(shape))
