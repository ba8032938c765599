"""Reads one sequence operator of an FX graph."""

from __future__ import annotations

from typing import Any, cast

from torch import fx

from twoheads.compiler.frontend.torch.fx.fx_program import FxProgram
from twoheads.compiler.frontend.torch.rows.sequence_ops import SEQUENCE_OPERATORS
from twoheads.compiler.ir.source_graph import SequenceNode
from twoheads.graphs.program.sequence_operators import OPERATORS

__all__ = ["is_sequence", "sequence_from_fx"]


def is_sequence(node: fx.Node) -> bool:
    """Whether the node is a sequence operator."""
    return node.op == "call_function" and node.target in SEQUENCE_OPERATORS


def sequence_from_fx(program: FxProgram, node: fx.Node, layer: str) -> SequenceNode:
    """The sequence node; see :mod:`twoheads.compiler.frontend.torch.rows.sequence_ops` for the arguments."""
    operator = SEQUENCE_OPERATORS[cast("Any", node.target)]
    operands = cast("tuple[fx.Node, ...]", node.args)
    names = OPERATORS[operator].attributes_for(len(operands))
    value = node.meta["val"]
    return SequenceNode(
        name=node.name,
        operator=operator,
        inputs=tuple(program.source_name(operand) for operand in operands),
        type=program.axes.type(value),
        attributes=tuple((name, cast("int", node.kwargs[name])) for name in names),
        layer=layer,
    )
