r"""A flow as prior: codes that an invertible map takes to a standard normal."""

from __future__ import annotations

import pyro.distributions as dist
import torch
from pyro.distributions.torch_distribution import TorchDistributionMixin
from torch import Tensor, nn

from ..flows import Flow


class FlowPrior(nn.Module):
    r"""The density :math:`N(g(z); 0, I) \, |\det g'(z)|`, with a flow g that is quick in z.

    An autoregressive or spline flow takes Z passes to draw, a coupling flow one.

    Args:
        flow: of the package :mod:`pyrovae.models.flows`, without context.

    Raises:
        TypeError: no flow. ValueError: one that needs a context.

    References:
        Rezende and Mohamed, *Variational inference with normalizing flows*, 2015. Chen, Kingma,
        Salimans, Duan, Dhariwal, Schulman, Sutskever and Abbeel, *Variational lossy autoencoder*,
        2017.

    Example:
        >>> from pyrovae.models.flows import CouplingFlow
        >>> prior = FlowPrior(CouplingFlow(latent_dim=4))
        >>> prior().log_prob(torch.zeros(5, 4)).shape
        torch.Size([5])
    """

    loc: Tensor

    def __init__(self, flow: Flow) -> None:
        super().__init__()
        if not isinstance(flow, Flow):
            raise TypeError(f"flow must be a Flow, but is {type(flow).__name__}")
        if flow.context_dim:
            raise ValueError(f"flow must have context_dim = 0, but has {flow.context_dim}")
        self.flow = flow
        self.register_buffer("loc", torch.zeros(flow.latent_dim), persistent=False)

    def forward(self) -> TorchDistributionMixin:
        base = dist.Normal(self.loc, torch.ones_like(self.loc)).to_event(1)
        return dist.TransformedDistribution(base, [one.inv for one in reversed(self.flow())])
