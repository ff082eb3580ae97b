"""What a graph need not do again: it is taken out, and done once for many runs.

Of a graph some of whose inputs stay as they are from run to run, the operations that stand on
nothing else are moved in front (loop-invariant code motion). So an encoder runs once for all the
samples of its data, and a prior's pseudo-inputs are encoded once.
"""

from __future__ import annotations

import copy
import operator
from collections.abc import Iterator, Sequence

import torch
from torch import fx

from .tracing import Traced


def hoisted(traced: Traced, num_moving: int) -> tuple[Traced, fx.GraphModule]:
    """Two graphs that do together what one does.

    Args:
        traced: a graph whose first ``num_moving`` inputs, and random numbers, change with each run.
        num_moving: how many.

    Returns:
        A graph of the other inputs, whose results stay as they are, and one of
        ``(*moving, *results)``.

    Raises:
        ValueError: a run writes to what should stay as it is.
    """
    nodes = list(traced.graph.graph.nodes)
    placeholders = [node for node in nodes if node.op == "placeholder"]
    inputs, fixed = placeholders[:num_moving], placeholders[num_moving:]
    moving = _moving(nodes, inputs)
    if not moving.isdisjoint(fixed):
        raise ValueError("the program writes to its data, its parameters or its buffers")
    carried = _carried(nodes, moving)
    before = _part(traced.graph, fixed, carried, moving)
    after = _part(traced.graph, [*inputs, *carried], None, set())
    return Traced(before, traced.held), after


def _moving(nodes: Sequence[fx.Node], inputs: Sequence[fx.Node]) -> set[fx.Node]:
    """The nodes that each run has to do."""
    moving = set(inputs)
    for node in nodes:  # what is written to is made anew each time
        for written in _written(node):
            moving.update((node, *_sources(written)))
    for node in nodes:
        random = torch.Tag.nondeterministic_seeded in getattr(node.target, "tags", ())
        if random or any(other in moving for other in node.all_input_nodes):
            moving.add(node)
    return moving


def _written(node: fx.Node) -> Iterator[fx.Node]:
    """The arguments that an operation writes to."""
    schema = getattr(node.target, "_schema", None)
    for number, argument in enumerate(schema.arguments if schema else ()):
        if argument.alias_info is not None and argument.alias_info.is_write:
            given = node.args[number] if number < len(node.args) else node.kwargs[argument.name]
            if isinstance(given, fx.Node):
                yield given


def _is_view(node: fx.Node) -> bool:
    """Whether an operation makes nothing, but another look at its argument."""
    if node.target is operator.getitem:
        return _is_view(node.all_input_nodes[0])
    schema = getattr(node.target, "_schema", None)
    return schema is not None and any(
        argument.alias_info is not None and not argument.alias_info.is_write
        for argument in schema.arguments
    )


def _sources(node: fx.Node) -> Iterator[fx.Node]:
    """A node, and those that it is a view of."""
    yield node
    while _is_view(node):
        node = node.all_input_nodes[0]
        yield node


def _carried(nodes: Sequence[fx.Node], moving: set[fx.Node]) -> list[fx.Node]:
    """What those that move, and the output, take from the others.

    Not so views and constants: to look again is cheaper, and a constant may become a part of code.
    """
    found: dict[fx.Node, None] = {}
    seen: set[fx.Node] = set()
    waiting = [node for node in nodes if node in moving or node.op == "output"]
    while waiting:
        for other in waiting.pop().all_input_nodes:
            if other in moving or other in seen:
                continue
            seen.add(other)
            if other.op == "call_function" and (_is_view(other) or _is_constant(other)):
                waiting.append(other)
            else:
                found[other] = None
    return list(found)


def _is_constant(node: fx.Node) -> bool:
    """Whether an operation stands on no tensor's values."""
    likes = ("zeros_like", "ones_like", "full_like", "empty_like", "new_zeros", "new_ones")
    return not node.all_input_nodes or str(node.target).split(".")[1] in likes


def _part(
    whole: fx.GraphModule,
    inputs: Sequence[fx.Node],
    results: Sequence[fx.Node] | None,
    without: set[fx.Node],
) -> fx.GraphModule:
    """A graph from some of another's nodes to others; by default to its output."""
    graph = fx.Graph()
    known: dict[fx.Node, fx.Node] = {}
    for number, node in enumerate(inputs):
        known[node] = graph.placeholder(f"given_{number}")
        known[node].meta = copy.copy(node.meta)
    for node in whole.graph.nodes:
        if node.op != "call_function" or node in known or node in without:
            continue
        if known.keys() >= set(node.all_input_nodes):
            known[node] = graph.node_copy(node, known.__getitem__)
    if results is None:
        (output,) = whole.graph.find_nodes(op="output")
        graph.node_copy(output, known.__getitem__)
    else:
        graph.output(tuple(known[node] for node in results))
    graph.eliminate_dead_code()
    return fx.GraphModule(whole, graph)
