r"""Flows: stacks of invertible maps, each quick in one direction, with networks inside.

A flow pushes a simple draw :math:`\epsilon` to a code, :math:`z = f(\epsilon)`, whose density is

.. math:: \log q(z) = \log q_0(\epsilon) - \log |\det f'(\epsilon)|.

All maps here are Pyro's transforms. They are quick, one pass of the network, in the direction
:math:`f`: what a posterior draws with. A prior evaluates densities of codes that come from
elsewhere, and runs a flow the other way round (:class:`~pyrovae.models.priors.FlowPrior`).
Transforms remember their last value; so they are made anew at each call, and what is kept, copied
and saved is the networks alone.
"""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from pyro.distributions import transforms
from pyro.nn import AutoRegressiveNN, ConditionalAutoRegressiveNN, ConditionalDenseNN, DenseNN
from torch import Tensor, nn
from torch.distributions import constraints

from .checks import check_counts

_LARGEST = 5.0  # log scale of an affine map, which is bent so as to stay below
_CALM = 0.1  # of the initial weights of the last layers: flows begin near the identity
_SLOPE_ONE = math.log(math.expm1(1 - 1e-3))  # what Pyro's splines make a slope of 1 of

_Net = Callable[[Tensor], Any]  # from an input to the tensors that a map needs


def _last(net: Any) -> nn.Linear:
    """The output layer of one of Pyro's networks."""
    last = net.layers[-1]
    assert isinstance(last, nn.Linear)
    return last


class Flow(nn.Module):
    """A stack of maps of vectors of length Z, between which the order of entries is reversed.

    Called with a context ``(..., context_dim)``, or with none where ``context_dim`` is 0, it
    returns the transforms, first to last. Codes may have more leading dimensions than their
    context, but no fewer.

    Args:
        latent_dim: Z, at least 2.
        num_layers: maps in the stack.
        hidden: sizes of the hidden layers of each network, at least one; in an autoregressive
            network none is below Z.
        context_dim: features that each network is told besides.

    Raises:
        ValueError: a size that is too small; a context where there should be none, or none where
            there should be one.
    """

    def __init__(
        self,
        latent_dim: int,
        num_layers: int = 4,
        hidden: Sequence[int] = (100,),
        context_dim: int = 0,
    ) -> None:
        super().__init__()
        check_counts(num_layers=num_layers, **{f"hidden[{i}]": h for i, h in enumerate(hidden)})
        if latent_dim < 2:
            raise ValueError(f"latent_dim must be at least 2 for a flow, but is {latent_dim}")
        if not hidden:
            raise ValueError(f"hidden must hold at least one size, but is {hidden}")
        if context_dim < 0:
            raise ValueError(f"context_dim must be at least 0, but is {context_dim}")
        self.latent_dim, self.num_layers = latent_dim, num_layers
        self.hidden, self.context_dim = tuple(hidden), context_dim
        self.nets = nn.ModuleList(self._net() for _ in range(num_layers))
        with torch.no_grad():
            for net in self.nets:
                last = _last(net)
                last.weight.mul_(_CALM)
                last.bias.mul_(_CALM)
        self.register_buffer("order", torch.arange(latent_dim).flip(0), persistent=False)

    order: Tensor
    nets: nn.ModuleList

    def forward(self, context: Tensor | None = None) -> list[Any]:
        if (0 if context is None else context.shape[-1]) != self.context_dim:
            found = "none" if context is None else f"one of shape {tuple(context.shape)}"
            raise ValueError(
                f"context must have context_dim = {self.context_dim} features, but there is {found}"
            )
        stack: list[Any] = []
        for number, net in enumerate(self.nets):
            if number:
                stack.append(transforms.Permute(self.order))
            stack.append(self._transform(net if context is None else partial(net, context=context)))
        return stack

    @abstractmethod
    def _net(self) -> nn.Module:
        """The network of one map."""

    @abstractmethod
    def _transform(self, net: _Net) -> Any:
        """The map around a network."""

    def _autoregressive(self, param_dims: Sequence[int]) -> nn.Module:
        if min(self.hidden) < self.latent_dim:
            raise ValueError(
                f"hidden must be at least latent_dim = {self.latent_dim} in an autoregressive "
                f"network, but is {self.hidden}"
            )
        order = torch.arange(self.latent_dim)
        if self.context_dim:
            return ConditionalAutoRegressiveNN(
                self.latent_dim, self.context_dim, list(self.hidden), list(param_dims), order
            )
        return AutoRegressiveNN(self.latent_dim, list(self.hidden), list(param_dims), order)


class AutoregressiveFlow(Flow):
    r"""Affine autoregressive maps, :math:`z_j = \mu_j(\epsilon_{<j}) + \sigma_j(\epsilon_{<j})
    \epsilon_j`.

    In a posterior it is the inverse autoregressive flow (IAF), in a prior the masked autoregressive
    flow (MAF). Against its quick direction it takes Z passes.

    Args:
        latent_dim: see :class:`Flow`, for this and the further sizes.

    References:
        Kingma, Salimans, Jozefowicz, Chen, Sutskever and Welling, *Improved variational inference
        with inverse autoregressive flow*, 2016. Papamakarios, Pavlakou and Murray, *Masked
        autoregressive flow for density estimation*, 2017.

    Example:
        >>> len(AutoregressiveFlow(latent_dim=3, num_layers=2)())  # with a reversal between
        3
    """

    def _net(self) -> nn.Module:
        return self._autoregressive((1, 1))

    def _transform(self, net: _Net) -> Any:
        return _AffineAutoregressive(net)


class _AffineAutoregressive(transforms.Transform):
    """One map; Pyro's own inverts in single precision only."""

    domain = codomain = constraints.real_vector
    bijective = True

    def __init__(self, net: _Net) -> None:
        super().__init__(cache_size=1)
        self.net = net

    def _shift(self, x: Tensor) -> tuple[Tensor, Tensor]:
        loc, raw = self.net(x)
        return loc, _LARGEST * (raw / _LARGEST).tanh()

    def _call(self, x: Tensor) -> Tensor:
        loc, self._log_scale = self._shift(x)
        return loc + self._log_scale.exp() * x

    def _inverse(self, y: Tensor) -> Tensor:
        x = torch.zeros_like(y)
        for _ in range(y.shape[-1]):  # one more entry is right after each pass
            loc, self._log_scale = self._shift(x)
            x = (y - loc) * (-self._log_scale).exp()
        return x

    def log_abs_det_jacobian(self, x: Tensor, y: Tensor) -> Tensor:
        known = self._cached_x_y
        if x is not known[0] or y is not known[1]:
            self(x)
        return self._log_scale.sum(-1)


class CouplingFlow(Flow):
    """Affine coupling maps: half of a code sets shift and scale of the other half.

    Quick in both directions.

    Args:
        latent_dim: see :class:`Flow`, for this and the further sizes.

    References:
        Dinh, Sohl-Dickstein and Bengio, *Density estimation using Real NVP*, 2017.

    Example:
        >>> len(CouplingFlow(latent_dim=3, num_layers=2)())
        3
    """

    def _net(self) -> nn.Module:
        first = self.latent_dim // 2
        sizes, outputs = list(self.hidden), [self.latent_dim - first] * 2
        if self.context_dim:
            return ConditionalDenseNN(first, self.context_dim, sizes, outputs)
        return DenseNN(first, sizes, outputs)

    def _transform(self, net: _Net) -> Any:
        first = self.latent_dim // 2
        return transforms.AffineCoupling(first, net)


class SplineFlow(Flow):
    """Autoregressive maps that are monotone splines, the identity outside a box.

    Args:
        latent_dim: see :class:`Flow`, for this and the further sizes.
        num_bins: pieces of each spline.
        bound: half the side of the box.

    Raises:
        ValueError: a bound that is not positive.

    References:
        Durkan, Bekasov, Murray and Papamakarios, *Neural spline flows*, 2019. Dolatabadi, Erfani
        and Leckie, *Invertible generative modeling using linear rational splines*, 2020.

    Example:
        >>> len(SplineFlow(latent_dim=3, num_layers=1)())
        1
    """

    def __init__(
        self,
        latent_dim: int,
        num_layers: int = 4,
        hidden: Sequence[int] = (100,),
        context_dim: int = 0,
        num_bins: int = 8,
        bound: float = 5.0,
    ) -> None:
        check_counts(num_bins=num_bins)
        if not bound > 0:
            raise ValueError(f"bound must be positive, but is {bound}")
        self.num_bins, self.bound = num_bins, bound
        super().__init__(latent_dim, num_layers, hidden, context_dim)
        with torch.no_grad():
            for net in self.nets:
                slopes = _last(net).bias.view(-1, latent_dim)[2 * num_bins : 3 * num_bins - 1]
                slopes.add_(_SLOPE_ONE)

    def _net(self) -> nn.Module:
        bins = self.num_bins
        return self._autoregressive((bins, bins, bins - 1, bins))

    def _transform(self, net: _Net) -> Any:
        options = {"count_bins": self.num_bins, "bound": self.bound, "order": "linear"}
        return transforms.SplineAutoregressive(self.latent_dim, net, **options)
