"""One torch optimizer over all the parameters, its state kept by the parameters' names."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from .adam import Adam
from .parameters import Parameters


def _adam(tensors: list[Tensor], learning_rate: float, on_device: bool) -> Optimizer:
    # One fused kernel for all tensors: 200 µs a step against 900 for a network of ten (CPU).
    fused = all(t.is_floating_point() and t.device.type in ("cpu", "cuda") for t in tensors)
    if not on_device:
        return Adam(tensors, lr=learning_rate, fused=fused)
    device = tensors[0].device
    rate = torch.tensor(learning_rate, device=device)  # which a captured step reads anew each time
    return torch.optim.Adam(tensors, lr=rate, fused=fused, capturable=device.type == "cuda")


def _here(group: dict[str, Any]) -> dict[str, Any]:
    """What of a group belongs to this process, and not to the run."""
    return {name: group[name] for name in ("params", "capturable") if name in group}


class Optimization:
    """The optimizer and its learning-rate schedule.

    Attributes:
        optimizer: the torch optimizer.
        scheduler: the torch scheduler, or None.
        on_device: whether a step can be captured, and be told on the device not to be taken.
    """

    def __init__(
        self,
        parameters: Parameters,
        optimizer: Callable[[list[Tensor]], Optimizer] | None,
        schedule: Callable[[Optimizer], Any] | None,
        learning_rate: float,
        clip: float | None,
        captured: bool = False,
    ) -> None:
        self.parameters = parameters
        self.clip = clip
        tensors = list(parameters.trainable.values())
        self.on_device = captured and optimizer is None
        self.optimizer = (
            optimizer(tensors) if optimizer else _adam(tensors, learning_rate, self.on_device)
        )
        if not isinstance(self.optimizer, Optimizer):
            raise TypeError(
                "optimizer: must return a torch.optim.Optimizer, but returned a "
                f"{type(self.optimizer).__name__}"
            )
        if isinstance(self.optimizer, torch.optim.LBFGS):
            raise TypeError("optimizer: LBFGS evaluates the loss several times a step; not here")
        self._check_known()
        self.scheduler = schedule(self.optimizer) if schedule else None
        if self.scheduler is not None and not hasattr(self.scheduler, "state_dict"):
            raise TypeError(
                "schedule: must return a torch.optim.lr_scheduler, but returned a "
                f"{type(self.scheduler).__name__}"
            )
        self._pending: dict[str, dict[str, Any]] = {}

    @property
    def plateau(self) -> bool:
        """Whether the schedule watches the validation loss."""
        return isinstance(self.scheduler, torch.optim.lr_scheduler.ReduceLROnPlateau)

    @property
    def learning_rate(self) -> float:
        """The learning rate of the first group."""
        return float(self.optimizer.param_groups[0]["lr"])

    def _optimized(self) -> list[Tensor]:
        return [t for group in self.optimizer.param_groups for t in group["params"]]

    def _check_known(self) -> None:
        if any(id(t) not in self.parameters.ids for t in self._optimized()):
            raise ValueError("optimizer: holds a tensor that is no parameter of model or guide")

    def zero_grad(self) -> None:
        """Forget the gradients."""
        for tensor in self.parameters.trainable.values():
            tensor.grad = None

    def take_up(self, newcomers: Mapping[str, Tensor]) -> None:
        """Optimise parameters that the programs created late, in the first group.

        A group of their own would be what torch offers, but schedules count the groups when they
        are made and fail on one more. Tensors that Pyro's store no longer holds are let go.
        """
        current = self.parameters.ids
        for group in self.optimizer.param_groups:
            for tensor in [t for t in group["params"] if id(t) not in current]:
                self.optimizer.state.pop(tensor, None)
            group["params"][:] = [t for t in group["params"] if id(t) in current]
        self.optimizer.param_groups[0]["params"].extend(newcomers.values())
        ready = {name: self._pending.pop(name) for name in newcomers if name in self._pending}
        if ready:
            self._set_states(ready)

    def gradient_norm(self) -> Tensor:
        """The norm over all gradients, before clipping: a scalar."""
        tensors = self.parameters.trainable.values()
        gradients = [t.grad for t in tensors if t.grad is not None]
        if not gradients:
            raise ValueError(
                f"model, guide: none of their {len(tensors)} parameters has an effect on the loss"
            )
        if any(g.is_sparse for g in gradients):
            return torch.nn.utils.get_total_norm([g.coalesce().values() for g in gradients])
        return torch.linalg.vector_norm(torch.stack(torch._foreach_norm(gradients)))

    def step(self, norm: Tensor) -> None:
        """Clip and move the parameters."""
        if self.clip is not None:
            torch.nn.utils.clip_grads_with_norm_(self._optimized(), self.clip, norm)
        if isinstance(self.optimizer, Adam):
            self.optimizer.step_at_once()
        else:
            self.optimizer.step()

    def step_unless(self, wrong: Tensor) -> None:
        """Move the parameters, unless a number on the device is 1."""
        # what torch's gradient scaler tells its optimizers
        optimizer: Any = self.optimizer
        optimizer.grad_scale, optimizer.found_inf = None, wrong
        optimizer.step()

    def end_epoch(self, validation_loss: float) -> None:
        """Step the schedule; one that watches a plateau is told the validation loss."""
        if self.scheduler is not None:
            self.scheduler.step(validation_loss) if self.plateau else self.scheduler.step()

    def state(self) -> dict[str, Any]:
        """State of optimizer and schedule, for a checkpoint."""
        names = {id(t): name for name, t in self.parameters.trainable.items()}
        tensors = self._optimized()
        state = self.optimizer.state_dict()
        groups = [
            {k: float(v) if k == "lr" else v for k, v in g.items() if k != "params"}
            for g in state["param_groups"]
        ]
        return {
            "groups": groups,
            "state": {names[id(tensors[i])]: s for i, s in state["state"].items()} | self._pending,
            "schedule": None if self.scheduler is None else self.scheduler.state_dict(),
        }

    def load(self, state: Mapping[str, Any]) -> None:
        """Go on from what :meth:`state` returned."""
        groups = self.optimizer.state_dict()["param_groups"]
        pairs = zip(groups, state["groups"], strict=True)
        merged = [group | saved | _here(group) for group, saved in pairs]
        rates = [group["lr"] for group in self.optimizer.param_groups]
        self.optimizer.load_state_dict({"state": {}, "param_groups": merged})
        for group, rate in zip(self.optimizer.param_groups, rates, strict=True):
            if isinstance(rate, Tensor):
                group["lr"] = rate.fill_(group["lr"])
        known = self.parameters.trainable
        self._set_states({n: s for n, s in state["state"].items() if n in known})
        self._pending = {n: s for n, s in state["state"].items() if n not in known}
        if self.scheduler is not None:
            self.scheduler.load_state_dict(state["schedule"])

    def _set_states(self, states: Mapping[str, dict[str, Any]]) -> None:
        """Let torch put each parameter's state onto its device."""
        full = self.optimizer.state_dict()
        names = {id(t): name for name, t in self.parameters.trainable.items()}
        for i, tensor in enumerate(self._optimized()):
            if (name := names[id(tensor)]) in states:
                full["state"][i] = states[name]
        self.optimizer.load_state_dict(full)

    def _rate(self) -> dict[str, float]:
        return {k: float(v) for k, v in self.optimizer.defaults.items() if k == "lr"}

    def fingerprint(self) -> dict[str, Any]:
        """What tells this optimizer and schedule from others."""
        defaults = {
            k: v
            for k, v in (self.optimizer.defaults | self._rate()).items()
            if k != "capturable" and (isinstance(v, bool | int | float | str | tuple) or v is None)
        }
        listed = ", ".join(f"{k}={v}" for k, v in sorted(defaults.items()))
        return {
            "optimizer": f"{type(self.optimizer).__name__}({listed})",
            "schedule": None if self.scheduler is None else type(self.scheduler).__name__,
        }
