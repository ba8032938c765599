"""Scans to engines: the sizes of an operator, read off the shapes of what it is given."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TypeAlias

from twoheads.compiler.ir.source_graph import ScanNode, TensorType
from twoheads.graphs.program.engines.scan import ScanEngine, scan_chunk

__all__ = ["scan_engine"]

_Shapes: TypeAlias = Sequence[Sequence[int]]


def scan_engine(node: ScanNode, types: Mapping[str, TensorType], block_size: int) -> ScanEngine:
    """The engine of a scan, without a name."""
    tokens, weights = ([_numbers(types[name]) for name in names] for names in (node.inputs, node.weights))
    sizes = tuple(sorted(_SIZES[node.operator](tokens, weights).items()))
    return ScanEngine("", node.operator, sizes, block_size, scan_chunk(node.operator, block_size))


def _numbers(type_: TensorType) -> list[int]:
    """The shape, with 0 in the place of a token axis."""
    return [0 if isinstance(dim, str) else dim for dim in type_.shape]


def _conv(tokens: _Shapes, weights: _Shapes) -> dict[str, int]:
    return {"bias": len(weights) - 1, "channels": weights[0][0], "kernel": weights[0][1]}


def _heads(tokens: _Shapes, weights: _Shapes) -> dict[str, int]:
    query, _, value, *_ = tokens
    return {"groups": query[1], "heads": value[1], "key_dim": query[3], "value_dim": value[3]}


def _delta(tokens: _Shapes, weights: _Shapes) -> dict[str, int]:
    return {"by_channel": int(len(tokens[3]) == 4), **_heads(tokens, weights)}


_SIZES: Mapping[str, Callable[[_Shapes, _Shapes], dict[str, int]]] = {
    "causal_conv": _conv,
    "gated_delta_rule": _delta,
    "decayed_attention": _heads,
    "diagonal_scan": lambda tokens, _: {"width": tokens[0][2]},
    "max_scan": lambda tokens, _: {"width": tokens[0][2]},
    "selective_scan": lambda tokens, weights: {"states": weights[0][1], "width": weights[0][0]},
}
"""By the operator's name."""
