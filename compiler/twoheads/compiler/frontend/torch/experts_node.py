"""Reads one mixture of experts of an FX graph."""

from __future__ import annotations

from typing import Any, cast

from torch import fx

from twoheads.compiler.frontend.torch.fx.fx_program import FxProgram
from twoheads.compiler.frontend.torch.operators.experts_op import EXPERTS
from twoheads.compiler.ir.source_graph import ExpertsNode, place_of
from twoheads.graphs.errors import CompileError

__all__ = ["experts_from_fx", "is_experts"]


def is_experts(node: fx.Node) -> bool:
    """Whether the node is a mixture of experts."""
    return node.op == "call_function" and str(node.target) == EXPERTS


def experts_from_fx(program: FxProgram, node: fx.Node, layer: str) -> ExpertsNode:
    """The mixture.

    Raises:
        CompileError: A weight of the experts is computed, or a value is a weight.
    """
    operands = cast("tuple[Any, ...]", node.args)
    names = [None if operand is None else program.source_name(operand) for operand in operands[:7]]
    for at, name in enumerate(names):
        if name is not None and (name in program.weights) != (at >= 3):
            problem = "is computed where experts have learned weights" if at >= 3 else "is a weight, not of tokens"
            raise CompileError(place_of(layer, name), problem, "compile with --experts dense")
    gate, layout, limit, alpha, transposed = operands[7:]
    return ExpertsNode(
        name=node.name,
        hidden=str(names[0]),
        index=str(names[1]),
        share=str(names[2]),
        weights=tuple(name for name in names[3:] if name is not None),
        gate=gate,
        layout=layout,
        limit=limit,
        alpha=alpha,
        transposed=transposed,
        type=program.axes.type(node.meta["val"]),
        layer=layer,
    )
