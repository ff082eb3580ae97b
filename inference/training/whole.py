"""Whole steps on a GPU, launched as one: loss, gradients, their norm, and the optimizer.

Nothing waits for the device: what a step would look at, whether its loss and its gradient are
finite, it notes there. A step that finds they are not moves no parameter, nor does any after it;
and every so many steps the notes are read.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ..compilation import CAPTURING
from ..modules import Buffers
from .diagnosis import Where
from .objective import Loss
from .optimization import Optimization

_OFTEN = 64  # steps between two looks


class WholeSteps:
    """Steps that are not looked at one by one.

    Args:
        loss: the objective of the program pair, compiled.
        optimization: its optimizer has to take a step on the device alone.
        buffers: what a forward pass changes besides the parameters. Nothing could undo it, so that
            pairs with buffers take their steps one by one.
    """

    def __init__(self, loss: Loss, optimization: Optimization, buffers: Buffers) -> None:
        self.loss, self.optimization = loss, optimization
        self.taken: list[tuple[tuple[Any, ...], Where]] = []
        self.possible = (
            loss.compiled is not None
            and loss.device.type in CAPTURING
            and optimization.on_device
            and optimization.clip is None
            and not buffers.places
        )
        if not self.possible:
            return
        assert loss.compiled is not None
        zero = torch.zeros((), dtype=torch.float64, device=loss.device)
        self.sums, self.good = torch.stack((zero, zero)), zero.clone()
        self.size = torch.ones((), dtype=torch.float64, device=loss.device)
        self.wrong = torch.zeros((), dtype=torch.float32, device=loss.device)
        loss.compiled.then, loss.by_whole_steps = self._finish, True

    def _finish(self, value: Tensor, gradients: list[Tensor | None]) -> None:
        """What follows the gradients, as the device will do it each time."""
        for tensor, gradient in zip(self.loss.tensors(), gradients, strict=True):
            tensor.grad = gradient
        norm = self.optimization.gradient_norm()
        both = torch.stack((value.double(), norm.double()))
        self.wrong.copy_(torch.maximum(self.wrong, (~both.isfinite().all()).float()))
        self.optimization.step_unless(self.wrong)
        weights = torch.stack((self.size, torch.ones_like(self.size)))
        self.sums.add_(torch.where(self.wrong > 0, 0.0, both * weights))
        self.good.add_(1 - self.wrong)

    def train(self, args: tuple[Any, ...], n: int, weight: float, where: Where) -> bool:
        """Take a step, where there is a graph for it."""
        if not self.possible:
            return False
        self.size.fill_(n)
        if self.loss.compiled_gradients(args, self.loss.size(args, n), weight) is None:
            return False
        self.taken.append((args, where))
        return True

    @property
    def due(self) -> bool:
        """Whether it is time to look."""
        return len(self.taken) >= _OFTEN

    def settle(self) -> tuple[float, float]:
        """The losses of the steps since the last look, times their data, and their norms, summed.

        Raises:
            Unfinished: one of them was not finite.
        """
        if not self.taken:
            return 0.0, 0.0
        taken, self.taken = self.taken, []
        loss, norm, good, wrong = torch.cat(
            (self.sums, torch.stack((self.good, self.wrong.double())))
        ).tolist()
        self.sums.zero_()
        self.good.zero_()
        if wrong:
            self.wrong.zero_()
            raise Unfinished(*taken[int(good)])
        return loss, norm


class Unfinished(Exception):
    """A step whose loss or gradient was not finite: its batch."""

    def __init__(self, args: tuple[Any, ...], where: Where) -> None:
        super().__init__("a step was not finite")
        self.args, self.where = args, where
