"""What runs a graph: compiled code on a CPU, a captured graph on a GPU.

Both draw the random numbers that an eager run would. Capturing leaves out what it costs to launch
each operation, which is most of what a small step takes on a GPU.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch._guards import TracingContext, tracing
from torch._subclasses import FakeTensorMode
from torch.fx.experimental.symbolic_shapes import ShapeEnv

from .fusions import fuse
from .products import by_onednn, has_faster_products
from .told import explained, tell
from .tracing import Traced

CAPTURING = {"cuda"}  # devices that launch a captured graph as one
FROM_CPP = {"cpu"}  # devices whose kernels are called from C++, which takes less time than Python

Replay = Callable[[Sequence[Tensor]], Sequence[Tensor]]  # from the function's inputs


def as_traced(traced: Traced, inputs: Sequence[Tensor]) -> Replay:
    """The graph's operations one by one, without what Python had to do with them."""

    def run(given: Sequence[Tensor]) -> Sequence[Tensor]:
        with torch.no_grad():
            found: Sequence[Tensor] = traced.graph(*given, *traced.held)
        return found

    return run


def compiled(traced: Traced, inputs: Sequence[Tensor]) -> Replay:
    """Code that does what a graph says, on inputs of the form of these.

    Raises:
        Exception: the compiler's own; there may be none on this machine.
    """
    import torch._inductor.config as inductor  # takes most of a second, which others need not wait

    everything: list[Any] = [*inputs, *traced.held]
    held = traced.held
    # its own generator would draw other numbers; inputs of another form have a graph of their own
    settings = {
        "fallback_random": True,
        "size_asserts": False,
        "alignment_asserts": False,
        "cpp_wrapper": {value.device.type for value in everything} <= FROM_CPP,
        "cpp.vec_isa_ok": True,  # a second for trial builds; if one fails, so does ours
    }
    context = TracingContext(FakeTensorMode(shape_env=ShapeEnv()))  # else nothing is kept on disk
    with torch.no_grad(), inductor.patch(settings), tracing(context):
        graph = by_onednn(traced.graph) if has_faster_products() else traced.graph
        code = torch._inductor.compile(fuse(graph), everything)

        def run(given: Sequence[Tensor]) -> Sequence[Tensor]:
            with torch.no_grad():
                found: Sequence[Tensor] = code(*given, *held)
            return found

        run(inputs)  # code is made when it first runs
    return run


BACKENDS = (compiled, as_traced)


def lower(traced: Traced, inputs: Sequence[Tensor], check: Callable[[Replay], None]) -> Replay:
    """The first backend's code that passes a check; a compiler may reorder random numbers.

    Raises:
        Exception: what the last one fails with, or what ``check`` raises of it.
    """
    *others, last = BACKENDS
    failures = []
    for backend in others:
        try:
            replay = backend(traced, inputs)
            check(replay)
        except Exception as error:  # a compiler may raise anything, or there is none
            failures.append(explained(error))
        else:
            return replay
    replay = last(traced, inputs)
    check(replay)
    for failure in failures:
        tell(failure, "operations are replayed one by one, for there is no code that does the same")
    return replay


class Captured:
    """Operations on a GPU, captured once and launched as one.

    Args:
        run: what to capture; it may not look at a value.
        inputs: of the form of those to come.
        then: what to do with what ``run`` returns, captured with it, but not tried beforehand.

    Raises:
        RuntimeError: something in it cannot be captured.
    """

    def __init__(
        self,
        run: Replay,
        inputs: Sequence[Tensor],
        then: Callable[[Sequence[Tensor]], None] | None = None,
    ) -> None:
        self.inputs = [value.clone() for value in inputs]
        device = self.inputs[0].device
        with torch.cuda.device(device):
            aside = torch.cuda.Stream()
            aside.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(aside):
                for _ in range(2):  # workspaces are allotted outside of the capture
                    run(self.inputs)
            torch.cuda.current_stream().wait_stream(aside)
            self.graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(self.graph):
                self.outputs = run(self.inputs)
                if then is not None:
                    then(self.outputs)

    def __call__(self, given: Sequence[Tensor]) -> Sequence[Tensor]:
        torch._foreach_copy_(self.inputs, list(given))
        self.graph.replay()
        return self.outputs
