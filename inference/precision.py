"""Layers of networks in bfloat16: twice as fast where the processor has it, and less exact.

Eight bits of a number are kept. Only what goes into and comes out of a layer is rounded: sums in
it, and everything between the layers, densities above all, stay in single precision.
"""

from __future__ import annotations

from typing import Any

import torch
from pyro.poutine.messenger import Messenger
from torch import Tensor
from torch.nn import functional
from torch.overrides import TorchFunctionMode

_LAYERS = {
    functional.linear,
    functional.conv1d,
    functional.conv2d,
    functional.conv3d,
    functional.conv_transpose1d,
    functional.conv_transpose2d,
    functional.conv_transpose3d,
}


class _Layers(TorchFunctionMode):
    def __init__(self, handler: InBfloat16) -> None:
        super().__init__()
        self.handler = handler

    def __torch_function__(
        self, func: Any, types: Any, args: tuple = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if func not in _LAYERS:
            return func(*args, **kwargs)
        self.handler.num_layers += 1
        named = {name: _rounded(value) for name, value in kwargs.items()}
        return func(*map(_rounded, args), **named).float()


def _rounded(value: Any) -> Any:
    if not isinstance(value, Tensor):
        return value
    if value.dtype != torch.float32:
        raise TypeError(
            f"bfloat16: takes networks in torch.float32, but a layer is given {value.dtype}"
        )
    return value.bfloat16()


class InBfloat16(Messenger):
    """A handler: the linear and convolutional layers of a program run in bfloat16.

    Attributes:
        num_layers: how often a layer was run.

    Raises:
        TypeError: a layer is not in single precision.

    Example:
        >>> net, x = torch.nn.Linear(3, 2), torch.randn(5, 3)
        >>> rounded, exact = InBfloat16()(net.forward)(x), net(x)
        >>> rounded.dtype, torch.equal(rounded, exact), torch.allclose(rounded, exact, 0.02, 0.02)
        (torch.float32, False, True)
    """

    def __init__(self) -> None:
        super().__init__()
        self.num_layers = 0

    def __enter__(self) -> InBfloat16:
        self._mode = _Layers(self)
        self._mode.__enter__()
        super().__enter__()
        return self

    def __exit__(self, *error: Any) -> None:
        super().__exit__(*error)
        self._mode.__exit__(*error)
