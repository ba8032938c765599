"""Mixtures of experts to engines: the sizes of an expert, read off the shapes of what it is given."""

from __future__ import annotations

from collections.abc import Mapping

from twoheads.compiler.ir.source_graph import ExpertsNode, TensorType
from twoheads.graphs.program.engines.experts import ExpertsEngine

__all__ = ["experts_engine"]


def experts_engine(node: ExpertsNode, types: Mapping[str, TensorType], block_size: int) -> ExpertsEngine:
    """The engine of a mixture, without a name."""
    biased = len(node.weights) == 4
    width, chosen = (int(types[name].shape[-1]) for name in (node.hidden, node.index))
    down = types[node.weights[2 if biased else 1]].shape
    return ExpertsEngine(
        name="",
        experts=int(down[0]),
        chosen=chosen,
        width=width,
        inner=int(down[1 if node.transposed else 2]),
        gate=node.gate,
        layout=node.layout,
        limit=node.limit,
        alpha=node.alpha,
        transposed=int(node.transposed),
        biased=int(biased),
        block_size=block_size,
        dtype=node.type.dtype,
    )
