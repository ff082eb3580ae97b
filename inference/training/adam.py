"""Adam for many small steps: torch's own, without what it looks up anew for each.

A step of a small network takes a fused kernel some 90 µs, and what surrounds it as many: parameters
are sorted by device and precision, and each one's own count of steps is raised. Here the lists are
kept, and all counts are raised at once.
"""

from __future__ import annotations

import operator
from typing import Any

import torch
from torch import Tensor
from torch.optim.optimizer import _global_optimizer_post_hooks, _global_optimizer_pre_hooks

_OTHER_SETTINGS = ["amsgrad", "maximize", "capturable", "differentiable", "decoupled_weight_decay"]


class Adam(torch.optim.Adam):
    """``torch.optim.Adam(fused=True)`` on a CPU: the same numbers, and the same state.

    References:
        Kingma and Ba, *Adam: a method for stochastic optimization*, 2015.

    Example:
        >>> weight = torch.nn.Parameter(torch.ones(2))
        >>> optimizer = Adam([weight], lr=0.1, fused=True)
        >>> for _ in range(2):
        ...     weight.grad = torch.ones(2)
        ...     optimizer.step_at_once()
        >>> weight
        Parameter containing:
        tensor([0.8000, 0.8000], requires_grad=True)
    """

    _kept: _Kept | None = None

    @torch.no_grad()
    def step_at_once(self) -> None:
        """As ``step()``, without its hooks."""
        kept = self._kept
        if kept is None or not kept.holds(self):
            self.step()
            self._kept = _Kept(self) if _is_plain(self) else None
            return
        (group,) = self.param_groups
        kept.counts.add_(1)
        gradients: list[Any] = [tensor.grad for tensor in kept.tensors]
        torch._fused_adam_(
            kept.tensors,
            gradients,
            kept.means,
            kept.squares,
            [],
            kept.steps,
            lr=group["lr"],
            beta1=group["betas"][0],
            beta2=group["betas"][1],
            weight_decay=group["weight_decay"],
            eps=group["eps"],
            amsgrad=False,
            maximize=False,
        )


def _is_plain(optimizer: Adam) -> bool:
    """Whether a step is one call of the kernel, and nothing else is asked for."""
    if _asks_for_more(optimizer):
        return False
    tensors: list[Tensor] = optimizer.param_groups[0]["params"]
    kinds = {(tensor.device.type, tensor.dtype) for tensor in tensors}
    moved = any(tensor.grad is not None for tensor in tensors)
    return len(kinds) == 1 and "cpu" in kinds.pop() and moved


def _asks_for_more(optimizer: Adam) -> bool:
    """Whether there are groups, settings or hooks that the kernel alone does not serve."""
    groups = optimizer.param_groups
    return (
        len(groups) != 1
        or not groups[0]["fused"]
        or any(groups[0].get(name) for name in _OTHER_SETTINGS)
        or bool(optimizer._optimizer_step_pre_hooks or optimizer._optimizer_step_post_hooks)
        or bool(_global_optimizer_pre_hooks or _global_optimizer_post_hooks)
    )


class _Kept:
    """The lists that a step takes: tensors with a gradient, and their state.

    Attributes:
        all: the parameters.
        tensors: those that move.
        others: what had no gradient.
        counts: of steps, of which each tensor's own is a view.
    """

    def __init__(self, optimizer: Adam) -> None:
        tensors: list[Tensor] = optimizer.param_groups[0]["params"]
        self.all = list(tensors)
        self.tensors = [tensor for tensor in tensors if tensor.grad is not None]
        self.others = [tensor for tensor in tensors if tensor.grad is None]
        self.states: list[dict[str, Tensor]] = [optimizer.state[one] for one in self.tensors]
        self.means = [state["exp_avg"] for state in self.states]
        self.squares = [state["exp_avg_sq"] for state in self.states]
        self.counts = torch.stack([state["step"] for state in self.states])
        self.steps = list(self.counts.unbind())
        for state, step in zip(self.states, self.steps, strict=True):
            state["step"] = step

    def holds(self, optimizer: Adam) -> bool:
        """Whether parameters and states are those that are kept, and the same have a gradient."""
        return (
            not _asks_for_more(optimizer)
            and all(map(operator.is_, optimizer.param_groups[0]["params"], self.all))
            and len(optimizer.param_groups[0]["params"]) == len(self.all)
            and all(
                tensor.grad is not None and optimizer.state.get(tensor) is state
                for tensor, state in zip(self.tensors, self.states, strict=True)
            )
            and all(tensor.grad is None for tensor in self.others)
        )
