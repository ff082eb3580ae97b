r"""Loss and gradients of a batch whose data are shared out among processes.

.. math:: \nabla \frac{1}{N} \sum_n \mathcal{L}(x_n)
          = \sum_r \frac{N_r}{N} \, \nabla \frac{1}{N_r} \sum_{n \in r} \mathcal{L}(x_n)

holds where the objective is a sum over data. Not all are: a moving average, batch norm, or free
bits of a batch's mean look across. So the first batch of each size is done both ways, whole and in
parts, and so are the 2nd, 4th, 8th, ...; parts that do not add up are refused.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor

from ...modules import Buffers
from ...rng import capture, restore
from ..objective import Loss
from ..tensors import TensorData
from .draws import Draw, OwnRows, Recording, Unsplittable
from .processes import Processes

TOLERANCE = 1e-3  # of the gradient's norm; the order of sums in float32 makes 1e-6
HINT = "the processes work from the same data, parameters and seed, each by the same code"


class Together:
    """The loss, as several processes find it.

    Args:
        processes: that take part.
        loss: of this process.
        data: whose batches they are.
        validation: the same of what is evaluated.
        buffers: what a forward pass may change besides the parameters.
        asked: a number other than 0 once this process was asked to stop.

    Attributes:
        stop: what the processes were asked, at the last batch, which all of them know.
    """

    def __init__(
        self,
        processes: Processes,
        loss: Loss,
        data: TensorData,
        validation: TensorData | None,
        buffers: Buffers,
        asked: Callable[[], int],
    ) -> None:
        free = None if loss.ours is None else loss.ours.kl.free_bits
        if free is not None and free.over == "batch":
            raise ValueError(
                "group: a batch must be the sum of its parts, but free bits are held against the "
                'mean KL of a batch; take FreeBits(..., over="datum"), or train in one process'
            )
        self.processes, self.loss, self.buffers = processes, loss, buffers
        self.data = {"gradients": data, "evaluate": validation or data}
        self.asked = asked
        self.stop = 0
        self._draws: dict[tuple[str, int], list[Draw]] = {}
        self._done: dict[tuple[str, int], int] = {}

    def gradients(self, args: tuple[Any, ...], n: int, weight: float) -> Tensor:
        """As :meth:`Loss.gradients`, of a batch whose parts the processes have."""

        def compute(part: tuple[Any, ...], size: int) -> Tensor:
            return self.loss.gradients(part, size, weight)

        return self._shared("gradients", compute, args, n)

    def evaluate(self, args: tuple[Any, ...], n: int) -> float:
        """As :meth:`Loss.evaluate`."""

        def compute(part: tuple[Any, ...], size: int) -> Tensor:
            self._clear()
            value = self.loss.evaluate(part, size)
            return torch.tensor(value, dtype=torch.float64, device=self.loss.device)

        return float(self._shared("evaluate", compute, args, n))

    def _shared(
        self,
        kind: str,
        compute: Callable[[tuple[Any, ...], int], Tensor],
        args: tuple[Any, ...],
        n: int,
    ) -> Tensor:
        if n < self.processes.count:  # too few to share: everyone does them all
            value = compute(args, n)
            self._agree([], value.clone())
            return value
        rows = self.processes.rows(n)
        size = rows.stop - rows.start
        part = self.data[kind].part(args, rows, n)
        self.loss.size(part, size)  # found by a run, once, whose draws are not to be counted
        count = self._done[kind, n] = self._done.get((kind, n), 0) + 1
        due = count & (count - 1) == 0
        whole = self._whole(kind, compute, args, n) if due else None
        mode = OwnRows(self._draws[kind, n], n, rows)
        fault: Exception | None = None
        try:
            value = self._watched(mode, compute, part, size)
            gradients = self._gradients()
            if whole is not None:
                self._check_complete(mode, whole)
        except Exception as error:  # raised below; before that, the others may wait for this one
            fault = error
        if whole is not None:
            self._raise_together(fault)
        elif fault:
            raise fault
        for gradient in gradients.values():
            gradient.mul_(size / n)
        value = value * (size / n)
        self._agree(list(gradients.values()), value)
        if whole is not None:
            self._compare(whole, value, gradients)
        return value

    def _watched(
        self, mode: Any, compute: Callable[[tuple[Any, ...], int], Tensor], *batch: Any
    ) -> Tensor:
        self.loss.watch = mode
        try:
            return compute(*batch)
        finally:
            self.loss.watch = nullcontext()

    def _raise_together(self, fault: Exception | None) -> None:
        found = self.processes.from_all(
            None if fault is None else f"{type(fault).__name__}: {fault}"
        )
        if fault is not None:
            raise fault
        if told := [text for text in found if text is not None]:
            raise RuntimeError(f"group: another process failed: {told[0]}")

    def _agree(self, gradients: list[Tensor], value: Tensor) -> None:
        """Add up what the processes found, and whether one of them was asked to stop."""
        asked = torch.zeros(self.processes.count, dtype=torch.float64, device=self.loss.device)
        asked[self.processes.rank] = float(self.asked())
        self.processes.add([*gradients, value, asked])
        self.stop = int(asked.max())

    def _clear(self) -> None:
        for tensor in self.loss.parameters.trainable.values():
            tensor.grad = None

    def _gradients(self) -> dict[str, Tensor]:
        found = {
            name: tensor.grad
            for name, tensor in self.loss.parameters.trainable.items()
            if tensor.grad is not None
        }
        if sparse := [name for name, gradient in found.items() if gradient.is_sparse]:
            raise ValueError(f"group: gradients must be dense, but that of {sparse[0]} is sparse")
        return found

    def _whole(
        self,
        kind: str,
        compute: Callable[[tuple[Any, ...], int], Tensor],
        args: tuple[Any, ...],
        n: int,
    ) -> _Whole:
        """The batch as one process does it; draws are noted, and all is as it was before."""
        self.loss.size(args, n)
        before, state = capture(self.loss.device), self.loss.state()
        self.buffers.keep()
        self._clear()
        recording = Recording()
        value = self._watched(recording, compute, args, n)
        gradients = {name: g.clone() for name, g in self._gradients().items()}
        after, learned = capture(self.loss.device), self.loss.state()
        moved = self.buffers.changed()
        self.buffers.put_back()
        self.loss.load_state(state)
        self._clear()
        restore(before, self.loss.device)
        if moved:
            raise ValueError(
                f"group: {moved[0]} is moved by every forward pass (a running mean, say), and "
                "would be by each process in its own way; train such a model in one process"
            )
        self._draws[kind, n] = recording.draws
        return _Whole(value, gradients, after, learned)

    def _check_complete(self, mode: OwnRows, whole: _Whole) -> None:
        """Look whether a part used up as many random numbers as the whole."""
        after = capture(self.loss.device)
        same = all(torch.equal(after[name], whole.after[name]) for name in after)
        if mode.done < len(mode.draws) or not same:
            raise Unsplittable(
                "group: how many random numbers the programs draw depends on the data (by "
                "rejection sampling, say), so that no process can skip those of others"
            )

    def _compare(self, whole: _Whole, value: Tensor, gradients: dict[str, Tensor]) -> None:
        """Look whether the parts of the first batch add up to what the whole has."""
        state = self.loss.state()
        fault = None
        if gradients.keys() != whole.gradients.keys():
            odd = sorted(gradients.keys() ^ whole.gradients.keys())
            fault = f"{odd[0]} has a gradient in one of them only"
        elif not _close([value.double()], [whole.value.double()]):
            fault = f"the loss is {float(value):g} in parts, {float(whole.value):g} whole"
        elif not _close(list(gradients.values()), list(whole.gradients.values())):
            fault = "the gradients differ"
        elif not _alike(state, whole.learned):
            fault = "what the objective has learned (a moving average, say) differs"
        if fault:
            raise ValueError(
                "group: a batch must be the sum of its parts, but it is not under this objective: "
                f"{fault}. Data are looked at across the batch; train in one process"
            )


class _Whole:
    """What one process found for a whole batch."""

    def __init__(
        self,
        value: Tensor,
        gradients: dict[str, Tensor],
        after: dict[str, Tensor],
        learned: dict[str, Any],
    ) -> None:
        self.value, self.gradients = value, gradients
        self.after, self.learned = after, learned


def _close(found: list[Tensor], expected: list[Tensor]) -> bool:
    """Whether tensors agree but for rounding; what is not finite is left to whoever looks at it."""
    if not expected:
        return True
    away = sum(float((a - b).double().square().sum()) for a, b in zip(found, expected, strict=True))
    size = sum(float(b.double().square().sum()) for b in expected)
    return not away > TOLERANCE**2 * size


def _alike(one: Any, other: Any) -> bool:
    if isinstance(one, Tensor) and isinstance(other, Tensor):
        return one.shape == other.shape and _close([one], [other])
    if isinstance(one, dict) and isinstance(other, dict):
        return one.keys() == other.keys() and all(_alike(one[key], other[key]) for key in one)
    if isinstance(one, list | tuple) and isinstance(other, list | tuple):
        return len(one) == len(other) and all(map(_alike, one, other))
    return bool(one == other)
