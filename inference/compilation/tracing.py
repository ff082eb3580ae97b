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

from .told import Unrepeatable

aten = torch.ops.aten


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

    While it runs, some of Pyro's functions are others, for all threads.

    Raises:
        Unrepeatable: the function looks at a value, as ``Tensor.item`` does, or leaves torch; or
            the size of a tensor is not that of the inputs alone.
        Exception: whatever the function or the tracer raises.
    """
    # cuDNN's recurrent layers cannot be recorded; torch's own, of which they are made, can
    with _no_looking(), torch.backends.cudnn.flags(enabled=False):
        graph = make_fx(lambda *given: function(*given))(*inputs)  # it miscounts those of methods
    _check_sizes(graph)
    held = _lift(graph)
    graph.graph.eliminate_dead_code()
    graph.recompile()
    return Traced(graph, held)


def _check_sizes(module: fx.GraphModule) -> None:
    """Refuse tensors whose size is another for other values: a graph has the sizes of one run.

    What is done to their elements, and to put them back where they were taken from, is not of their
    size.
    """
    changing: set[fx.Node] = set()
    sized: set[fx.Node] = set()
    for node in module.graph.nodes:
        tags = getattr(node.target, "tags", ())
        before = set(node.all_input_nodes)
        if sized & before:
            if torch.Tag.pointwise in tags:
                sized.add(node)
            elif node.target is not aten.new_zeros.default and (
                node.target not in _PUTTING or node.args[0] in sized
            ):
                raise Unrepeatable(
                    "the size of a tensor depends on values, as that of x[x > 0] does"
                )
        elif torch.Tag.dynamic_output_shape in tags and changing & _choosing(node):
            sized.add(node)
            if not node.users:  # but for its size, which is a number of Python's
                raise Unrepeatable("the size of a tensor that depends on values is looked at")
        if (
            node.op == "placeholder"
            or torch.Tag.nondeterministic_seeded in tags
            or (node.op == "get_attr" and getattr(module, str(node.target)).requires_grad)
            or changing & before
        ):
            changing.add(node)


def _choosing(node: fx.Node) -> set[fx.Node]:
    """What the size of an operation's result depends on."""
    if node.target is not aten.index.Tensor:
        return set(node.all_input_nodes)
    places: Any = node.args[1]  # those that number have a size of their own
    chosen = [place for place in places if place is not None]
    return {place for place in chosen if place.meta["val"].dtype in (torch.bool, torch.uint8)}


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


_SIMPLE = {type(None), torch.dtype, torch.device}
_PUTTING = {aten.index_put.default, aten.index_put_.default}
# by what values leave torch, for a condition, for Python or for NumPy
_LEAVING = frozenset(
    {"item", "tolist", "numpy", "equal", "is_nonzero", "allclose"}
    | {f"__{name}__" for name in ("array", "bool", "complex", "contains", "dlpack", "float")}
    | {"__index__", "__int__"}
)


class _NoLooking(TorchFunctionMode):
    """Refuses what takes values out of torch, of constants and parameters too.

    But for one place: Pyro's sum over classes leaves out those without a share, which it looks for.
    """

    def __torch_function__(
        self, func: Any, types: Any, args: tuple = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if func.__name__ in _LEAVING:
            if func.__name__ == "__bool__" and self._asked_by(util.Dice.compute_expectation):
                return True
            raise Unrepeatable(
                "the program looks at a value (a condition, .item(), or a function that needs one)"
            )
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
        with _NoLooking():
            yield
    finally:
        for module, name, looker in before:
            setattr(module, name, looker)


def form_of(inputs: Sequence[Tensor]) -> Hashable:
    """What a graph is made for: it takes inputs of this form."""
    return tuple((t.shape, t.dtype, t.stride()) for t in inputs)


def known_values(leaves: Sequence[Any]) -> Hashable:
    """The leaves that are no tensors, by number, and by type: 1, 1.0 and True are not the same.

    Raises:
        Unrepeatable: one of them cannot be told from others by its value.
    """
    others = [
        (i, type(leaf), leaf) for i, leaf in enumerate(leaves) if not isinstance(leaf, Tensor)
    ]
    for _, kind, leaf in others:
        by_value = kind in _SIMPLE or kind.__hash__ not in (None, object.__hash__)
        if not by_value:
            raise Unrepeatable(
                "a context is neither a tensor nor a value that can be told from others, but "
                f"{type(leaf).__name__}"
            )
    try:
        hash(tuple(others))
    except TypeError as error:
        raise Unrepeatable(f"a context has no hash: {error}") from error
    return tuple(others)
