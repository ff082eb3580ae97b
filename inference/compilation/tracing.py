"""A function of tensors as a graph of operations, those of its gradient among them.

What the function stands on besides its inputs, parameters and buffers, is not copied: the graph
gets it as further inputs, so that it sees what an optimizer makes of them.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Hashable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from types import FrameType
from typing import Any

import torch
from pyro.infer import (
    trace_elbo,
    trace_mean_field_elbo,
    traceenum_elbo,
    tracegraph_elbo,
    util,
)
from torch import Tensor, fx
from torch.fx.experimental.proxy_tensor import make_fx
from torch.overrides import TorchFunctionMode


@dataclass(frozen=True)
class Traced:
    """A graph, and what it takes after the function's own inputs.

    Attributes:
        graph: takes ``(*inputs, *held)`` and returns a tuple of tensors.
        held: parameters, buffers and constants, by reference.
    """

    graph: fx.GraphModule
    held: list[Tensor]


def trace(function: Callable[..., Any], inputs: Sequence[Tensor]) -> Traced:
    """Run a function once and record what it does.

    Raises:
        Exception: whatever the function raises where it looks at a value, as ``Tensor.item`` does,
            or leaves torch.
    """
    # cuDNN's recurrent layers cannot be recorded; torch's own, of which they are made, can
    with _no_looking(), torch.backends.cudnn.flags(enabled=False):
        graph = make_fx(lambda *given: function(*given))(*inputs)  # it miscounts those of methods
    held = _lift(graph)
    graph.graph.eliminate_dead_code()
    graph.recompile()
    return Traced(graph, held)


def _lift(module: fx.GraphModule) -> list[Tensor]:
    """Make inputs of the tensors that a graph refers to."""
    graph = module.graph
    first = next(node for node in graph.nodes if node.op != "placeholder")
    held: list[Tensor] = []
    known: dict[int, fx.Node] = {}
    for node in [node for node in graph.nodes if node.op == "get_attr"]:
        tensor = getattr(module, str(node.target))
        if id(tensor) not in known:
            with graph.inserting_before(first):
                known[id(tensor)] = graph.placeholder(f"held_{len(held)}")
                known[id(tensor)].meta["val"] = tensor
            held.append(tensor)
        if node is first:
            first = node.next
        node.replace_all_uses_with(known[id(tensor)])
        graph.erase_node(node)
    return held


class _AllPositive(TorchFunctionMode):
    """Pyro's sum over classes leaves out those without a share, which it looks for."""

    def __torch_function__(
        self, func: Any, types: Any, args: tuple = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if func.__name__ == "__bool__" and self._asked_by(util.Dice.compute_expectation):
            return True
        return func(*args, **(kwargs or {}))

    def _asked_by(self, method: Any) -> bool:
        """Whether a method is the caller, behind the tracer's own frames."""
        frame: FrameType | None = sys._getframe(2)
        for _ in range(4):
            if frame is None or frame.f_code is method.__code__:
                break
            frame = frame.f_back
        return frame is not None and frame.f_code is method.__code__


@contextmanager
def _no_looking() -> Iterator[None]:
    """Let Pyro's objectives keep their loss a tensor where they would look at its value."""

    def keep(value: Any, *_: object, **__: object) -> Any:
        return value.detach() if isinstance(value, Tensor) else value

    def pass_on(value: Any, *_: object, **__: object) -> Any:
        return value

    def dot(share: Tensor, cost: Tensor) -> Tensor:
        # what a class without a share would cost may be infinite
        return (share * torch.where(share > 0, cost, 0.0)).sum()

    lookers = {"torch_item": keep, "warn_if_nan": pass_on, "_fulldot": dot}
    modules: tuple[Any, ...] = (
        trace_elbo,
        trace_mean_field_elbo,
        traceenum_elbo,
        tracegraph_elbo,
        util,
    )
    before = [
        (module, name, getattr(module, name))
        for module in modules
        for name in lookers
        if hasattr(module, name)
    ]
    try:
        for module, name, _ in before:
            setattr(module, name, lookers[name])
        with _AllPositive():
            yield
    finally:
        for module, name, looker in before:
            setattr(module, name, looker)


def form_of(inputs: Sequence[Tensor]) -> Hashable:
    """What a graph is made for: it takes inputs of this form."""
    return tuple((t.shape, t.dtype, t.stride()) for t in inputs)
