"""Matrix products by oneDNN, where the processor is one that MKL does not know well.

MKL runs AMD's processors with shorter vectors than they have; oneDNN, which torch comes with, asks
what they have. In single precision its products are about twice as fast there, but for small ones.
"""

from __future__ import annotations

import functools
import platform
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, fx

_LEAST = 2_500_000  # multiplications below which a call of MKL's is the shorter one
_LEAST_MADE = 20_000  # elements, where the sum runs over the rows of both factors

aten = torch.ops.aten
# the compiler takes oneDNN's own operation for constant weights alone
_library = torch.library.Library("pyrovae", "DEF")
_library.define(
    "linear(Tensor x, Tensor weight, Tensor? bias) -> Tensor", tags=(torch.Tag.flexible_layout,)
)


def _linear(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    made: Tensor = torch.ops.mkldnn._linear_pointwise(x, weight, bias, "none", [], "")
    return made


def _form_of_linear(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    return x.new_empty(x.shape[0], weight.shape[0])


_library.impl("linear", _linear, "CPU")
torch.library.register_fake("pyrovae::linear", _form_of_linear, lib=_library)


@functools.cache
def has_faster_products() -> bool:
    """Whether to leave MKL."""
    if not (torch.backends.mkl.is_available() and torch.backends.mkldnn.is_available()):
        return False
    known = Path("/proc/cpuinfo")
    about = known.read_text() if known.exists() else platform.processor()
    return "AuthenticAMD" in about


def by_onednn(module: fx.GraphModule) -> fx.GraphModule:
    """A graph that has its larger products made by oneDNN."""
    graph = fx.Graph()
    known: dict[fx.Node, fx.Node] = {}
    for node in module.graph.nodes:
        if node.op == "output":
            graph.node_copy(node, known.__getitem__)
        elif _is_large_product(node):
            factors: Any = node.args
            *bias, left, right = (known[factor] for factor in factors)
            known[node] = graph.call_function(
                torch.ops.pyrovae.linear.default,
                (left, _transposed(graph, right), bias[0] if bias else None),
            )
            known[node].meta = dict(node.meta)
        else:
            known[node] = graph.node_copy(node, known.__getitem__)
    graph.eliminate_dead_code()
    return fx.GraphModule(module, graph)


def _transposed(graph: fx.Graph, node: fx.Node) -> fx.Node:
    if node.target is aten.t.default:
        (inner,) = node.all_input_nodes
        return inner
    return graph.call_function(aten.t.default, (node,))


def _is_large_product(node: fx.Node) -> bool:
    if node.target not in (aten.mm.default, aten.addmm.default) or node.kwargs:
        return False
    factors: Any = node.args
    *bias, left, right = (factor.meta["val"] for factor in factors)
    if any(not _fits(value) for value in (*bias, left, right)):
        return False
    if bias and bias[0].shape != right.shape[1:]:
        return False
    (rows, inner), columns = left.shape, right.shape[1]
    made = rows * columns
    over_rows = left.stride(0) == 1 and rows > 1
    return bool(made * inner >= _LEAST and (made >= _LEAST_MADE or not over_rows))


def _fits(value: Tensor) -> bool:
    return value.device.type == "cpu" and value.dtype == torch.float32
