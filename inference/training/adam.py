"""Adam for many small steps: torch's own, without what it looks up anew for each.

A step of a small network takes a fused kernel some 90 µs, and what surrounds it as many: parameters
are sorted by device and precision, and each one's own count of steps is raised. Here the lists are
kept, and all counts are raised at once.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


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

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._kept: _Kept | None = None

    @torch.no_grad()
    def step_at_once(self) -> None:
        """As ``step()``, without its hooks."""
        kept = self._kept
        if kept is None or not kept.holds(self):
            self.step()
            self._kept = _Kept(self) if _is_plain(self.param_groups) else None
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


def _is_plain(groups: list[dict[str, Any]]) -> bool:
    if len(groups) != 1 or groups[0]["amsgrad"] or groups[0]["maximize"]:
        return False
    tensors: list[Tensor] = groups[0]["params"]
    kinds = {(tensor.device.type, tensor.dtype) for tensor in tensors}
    return bool(groups[0]["fused"]) and len(kinds) == 1 and ("cpu" in kinds.pop())


class _Kept:
    """The lists that a step takes: tensors with a gradient, and their state.

    Attributes:
        tensors: what moves.
        others: what had no gradient.
        counts: of steps, of which each tensor's own is a view.
    """

    def __init__(self, optimizer: Adam) -> None:
        tensors: list[Tensor] = optimizer.param_groups[0]["params"]
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
        """Whether nothing was put in the place of what is kept, and the same have a gradient."""
        number = len(self.tensors) + len(self.others)
        return (
            len(optimizer.param_groups) == 1
            and len(optimizer.param_groups[0]["params"]) == number
            and all(
                tensor.grad is not None and optimizer.state.get(tensor) is state
                for tensor, state in zip(self.tensors, self.states, strict=True)
            )
            and all(tensor.grad is None for tensor in self.others)
        )
