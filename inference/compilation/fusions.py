r"""Sums that take fewer operations than their terms: softplus over many components.

.. math:: \sum_d \log(1 + e^{l_d}) = \sum_d \max(l_d, 0)
          + \sum_b \log \prod_{d \in b} \bigl(1 + e^{-|l_d|}\bigr).

Each factor lies in (1, 2], so that a product of many is far from overflow; and it is an exponential
for each component, but a logarithm only for each block b. A factor is rounded by half a unit in its
last place at most, so that in single precision the sum of D terms is off by less than D / 2^24 nats
on top of a sum's own rounding: by less than 5e-5 for 784 components.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import fx

_LONGEST = 32  # factors of a product
_STRAIGHT = 15  # torch takes softplus for the identity from some logit on; here it is from none

aten = torch.ops.aten


def fuse(module: fx.GraphModule) -> fx.GraphModule:
    """The same graph with such sums found another way; where there are none, the graph itself."""
    graph = module.graph
    sums = [
        node
        for node in graph.find_nodes(op="call_function", target=aten.sum.dim_IntList)
        if _is_sum_of_softplus(node)
    ]
    if not sums:
        return module
    known: dict[fx.Node, fx.Node] = {}
    copied = fx.Graph()
    for node in graph.nodes:
        if node in sums:
            (term,) = node.all_input_nodes
            (logits,) = term.all_input_nodes
            known[node] = _in_blocks(copied, known[logits], term.meta["val"].shape[-1])
        elif node.op == "output":
            copied.node_copy(node, known.__getitem__)
        else:
            known[node] = copied.node_copy(node, known.__getitem__)
    copied.eliminate_dead_code()
    return fx.GraphModule(module, copied)


def _is_sum_of_softplus(node: fx.Node) -> bool:
    """Whether a node sums softplus, used nowhere else, over the last dimension."""
    arguments: Any = node.args
    term, dims, *more = arguments
    if node.kwargs or any(more) or not isinstance(term, fx.Node) or len(term.users) > 1:
        return False
    if term.target is not aten.softplus.default:
        return False
    settings: list[Any] = [*term.args[1:], *(1, 20)[len(term.args) - 1 :]]
    beta, straight = settings
    value = term.meta["val"]
    return bool(
        value.dtype in (torch.float32, torch.float64)
        and beta == 1
        and straight >= _STRAIGHT
        and list(dims) in ([-1], [value.dim() - 1])
        and _block(value.shape[-1]) > 1
    )


def _block(size: int) -> int:
    """How many components share a logarithm."""
    return max(n for n in range(1, _LONGEST + 1) if size % n == 0) if size else 0


def _in_blocks(graph: fx.Graph, logits: fx.Node, size: int) -> fx.Node:
    def call(target: Callable[..., Any], *args: Any) -> fx.Node:
        return graph.call_function(target, args)

    block = _block(size)
    shape = list(logits.meta["val"].shape[:-1])
    share = call(aten.exp.default, call(aten.neg.default, call(aten.abs.default, logits)))
    factors = call(aten.add.Tensor, share, 1.0)
    blocks = call(aten.reshape.default, factors, [*shape, block, size // block])
    products = call(aten.prod.dim_int, blocks, -2)
    logarithms = call(aten.sum.dim_IntList, call(aten.log.default, products), [-1])
    largest = call(aten.sum.dim_IntList, call(aten.clamp_min.default, logits, 0.0), [-1])
    return call(aten.add.Tensor, largest, logarithms)
