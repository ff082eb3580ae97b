"""What is done with one batch: a step of all parameters, or an evaluation, or neither.

A step is taken whole or not at all. The loss and the norm of its gradient are looked at before the
optimizer moves anything, and when they are not finite, or the programs fail, everything that the
forward pass changed is put back and the cause is looked for.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from ..modules import Buffers
from ..rng import capture, forked, restore
from .diagnosis import Where, examine, explain
from .objective import Loss
from .optimization import Optimization
from .parallel import Together
from .tensors import TensorData
from .whole import Unfinished, WholeSteps

FAILURES = (ValueError, RuntimeError, ArithmeticError)


class Steps:
    """Steps of a loss by an optimizer.

    Args:
        loss: the objective of the program pair.
        optimization: optimizer and schedule.
        buffers: what a forward pass may change besides the parameters.
        together: finds loss and gradients with other processes; None where there are none.
    """

    def __init__(
        self,
        loss: Loss,
        optimization: Optimization,
        buffers: Buffers,
        together: Together | None = None,
    ) -> None:
        self.loss, self.optimization, self.buffers = loss, optimization, buffers
        self.worker: Loss | Together = loss if together is None else together
        self.whole = WholeSteps(loss, optimization, buffers)

    def train(
        self, args: tuple[Any, ...], n: int, weight: float, where: Where
    ) -> tuple[float, float]:
        """Move the parameters; return the loss times n and its gradient's norm.

        Of a step that is not looked at yet, both are 0, and stand in what :meth:`settle` returns.

        Raises:
            NonFiniteLoss: one of the two is not finite; nothing has moved.
        """
        loss, optimization = self.loss, self.optimization
        if self.whole.train(args, n, weight, where):
            return self.settle() if self.whole.due else (0.0, 0.0)
        settled = self.settle()  # what was not looked at has to be good before more is moved
        optimization.zero_grad()
        self.buffers.keep()
        before, known = capture(loss.device), loss.state()
        try:
            value = self.worker.gradients(args, n, weight)
            if loss.newcomers:
                optimization.take_up(loss.newcomers)
                loss.newcomers = {}
            norm = optimization.gradient_norm() if loss.norm is None else loss.norm
        except FAILURES as error:
            self._undo(before, known)
            with forked(loss.device):
                cause = find_cause(error, loss, "x", args, where)
            self._undo(before, known)
            if weight != 1 and "common poutine.scale" in str(error):
                raise ValueError(
                    "warm_up: must be 0 where data depend on a latent that the model enumerates: "
                    "summed out, its prior is a part of the likelihood and has no weight of its own"
                ) from error
            if cause is error:
                raise
            raise cause from error
        both: list[float] = torch.stack((value, norm.to(value))).tolist()
        if not all(map(math.isfinite, both)):
            wrong = [
                name
                for name, tensor in loss.parameters.trainable.items()
                if tensor.grad is not None and not tensor.grad.isfinite().all()
            ]
            self._undo(before, known)
            with forked(loss.device):
                _, findings = examine(loss.model, loss.guide, args, "x")
            self._undo(before, known)
            what = f"the loss is {both[0]:g}, its gradient's norm {both[1]:g}"
            raise where.non_finite(what, findings, wrong)
        optimization.step(norm)
        return settled[0] + both[0] * n, settled[1] + both[1]

    def settle(self) -> tuple[float, float]:
        """What the steps that were not looked at add to the losses and to the norms.

        Raises:
            NonFiniteLoss: one of them was not finite; neither it nor those after it moved anything.
        """
        try:
            return self.whole.settle()
        except Unfinished as stop:
            with forked(self.loss.device):
                _, findings = examine(self.loss.model, self.loss.guide, stop.args, "x")
            what = "the loss or its gradient is not finite"
            raise stop.where.non_finite(what, findings) from None

    def _undo(self, before: dict[str, Tensor], known: dict[str, Any]) -> None:
        """Back to before the step: its random numbers, and what the forward pass moved."""
        self.loss.load_state(known)
        self.optimization.zero_grad()
        self.buffers.put_back()
        restore(before, self.loss.device)

    def evaluate(self, args: tuple[Any, ...], n: int, where: Where) -> float:
        """The loss on validation data, nats per datum."""
        try:
            return self.worker.evaluate(args, n)
        except FAILURES as error:
            cause = find_cause(error, self.loss, "validation", args, where)
            if cause is error:
                raise
            raise cause from error


def find_cause(
    error: Exception, loss: Loss, name: str, args: tuple[Any, ...], where: Where
) -> Exception:
    """A failure of the programs on data called ``name`` in terms of its cause, else itself."""
    found = explain(error, loss.model, loss.guide, args, name, where)
    return found if found is not error else loss.parameters.dtype_error(error, name, args) or error


def note_context(error: Exception, data: object) -> None:
    """Add to a failure of the programs which context they were given whole."""
    if isinstance(data, TensorData):
        for i, shape in data.whole():
            error.add_note(
                f"context[{i}], of shape {shape}, was not cut into batches: its leading dimension "
                f"is not the number of data, {data.num_data}"
            )
