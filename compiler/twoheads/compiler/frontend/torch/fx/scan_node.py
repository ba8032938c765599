"""Reads one scan operator of an FX graph: its operands, and its weights, which may be computed from learned ones."""

from __future__ import annotations

from typing import cast

import torch
from torch import Tensor, fx

from twoheads.compiler.frontend.torch.fx.fx_program import FxProgram
from twoheads.compiler.frontend.torch.operators.scan_ops import SCANS
from twoheads.compiler.ir.source_graph import ScanNode, place_of
from twoheads.graphs.errors import CompileError

__all__ = ["is_scan", "scan_from_fx"]


def is_scan(node: fx.Node) -> bool:
    """Whether the node is a scan operator."""
    return node.op == "call_function" and str(node.target) in SCANS


def scan_from_fx(program: FxProgram, node: fx.Node, layer: str) -> tuple[ScanNode, dict[str, tuple[str, Tensor]]]:
    """The scan node, and those of its weights that are computed from learned ones (Mamba's ``-exp(A_log)``).

    The latter by the nodes that compute them, each with its name.

    Raises:
        CompileError: A weight depends on the input, or values lie on several axes.
    """
    operator, count = SCANS[str(node.target)]
    operands = [operand for operand in cast("tuple[fx.Node | None, ...]", node.args) if operand is not None]
    made: dict[str, tuple[str, Tensor]] = {}
    return ScanNode(
        name=node.name,
        operator=operator,
        inputs=tuple(_value(program, operand, layer, operator) for operand in operands[:count]),
        weights=tuple(_weight(program, operand, layer, operator, made) for operand in operands[count:]),
        type=program.axes.type(node.meta["val"]),
        layer=layer,
    ), made


def _value(program: FxProgram, operand: fx.Node, layer: str, operator: str) -> str:
    name = program.source_name(operand)
    if name in program.weights:
        raise CompileError(place_of(layer, name), f"is a weight where {operator} reads tokens")
    return name


def _weight(
    program: FxProgram, operand: fx.Node, layer: str, operator: str, made: dict[str, tuple[str, Tensor]]
) -> str:
    """The weight's name; a number that is computed from weights becomes one of its own.

    It is named after the first of them, and after itself: heads take their parts of one weight.
    """
    name = program.source_name(operand)
    if name in program.weights:
        return name
    upstream = program.ancestors((operand.name,))
    sources = [program.source_name(node) for each, node in program.nodes.items() if each in upstream]
    leaves = [each for each in sources if each in program.weights]
    if {entry.value.name for entry in program.inputs} & set(sources) or not leaves:
        problem = f"is computed from the input, where {operator} reads a learned weight"
        raise CompileError(place_of(layer, name), problem, "use a model with learned constants there")
    own = f"{leaves[0]}.{name}"
    made[operand.name] = own, torch.from_numpy(program.evaluate((name,), {})[name]).contiguous()
    return own
