"""Checks that every region really is token-wise: no token's result may depend on another token.

The check is an experiment on the region itself, with its real weights: half of the tokens are replaced by other tokens
of a real run, and every intermediate value of the other half must stay as it was. Whatever mixes positions, by
whichever operator (a pooling, a convolution, a cumulative sum, a flip), is found and named.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, fx

from twoheads.compiler.fx_program import FxProgram, block_expression, is_scalar
from twoheads.compiler.partition import Region
from twoheads.compiler.positions_from_constants import spread_constants
from twoheads.compiler.source_graph import SourceGraph, TensorType, TokenwiseNode
from twoheads.graphs.errors import CompileError
from twoheads.graphs.program import TOKENS

__all__ = ["check_tokenwise"]

LENGTH = 16
"""Tokens of the trial run."""

TOLERANCE = 1e-4
"""Relative to the value's largest magnitude: rounding may differ where a kernel groups rows differently."""


def check_tokenwise(graph: SourceGraph, program: FxProgram, regions: Sequence[Region]) -> None:
    """Runs the model on a few random tokens and checks every region of ``regions``.

    Raises:
        CompileError: Names the node that mixes positions.
    """
    types = graph.types()
    generator = torch.Generator().manual_seed(1)
    outputs = [graph.hidden, *([graph.logits] if graph.logits else [])]
    runs = [program.evaluate(outputs, program.example_inputs(LENGTH, generator)) for _ in range(2)]
    by_source = [{program.placeholders.get(name, name): value for name, value in run.items()} for run in runs]
    _check_constants(graph, program, {node.name for region in regions for node in region.nodes})
    for region in regions:
        _check_region(region, program, types, by_source[0], by_source[1])


def _check_constants(graph: SourceGraph, program: FxProgram, members: set[str]) -> None:
    """What depends on no input must be the same for every token and every length: a block does not know where it is."""
    names = [name for name in spread_constants(program) if name in members]
    generator = torch.Generator().manual_seed(3)
    short, longer = (
        program.evaluate(names, program.example_inputs(length, generator)) for length in (LENGTH, LENGTH + 7)
    )
    for node in graph.nodes:
        if not isinstance(node, TokenwiseNode) or node.name not in names or node.type is None:
            continue
        axis = node.type.shape.index(TOKENS)
        first = longer[node.name].narrow(axis, 0, 1)
        if not all(_same(first.expand_as(run[node.name]), run[node.name]) for run in (short, longer)):
            raise CompileError(
                f'{node.layer or "model"} (node "{node.name}")',
                f"makes numbers that depend on position or length from constants: {node.op}",
                "compute them from torch.arange(length), which blocks receive as their positions",
            )


def _check_region(
    region: Region,
    program: FxProgram,
    types: Mapping[str, TensorType],
    run: Mapping[str, Any],
    other: Mapping[str, Any],
) -> None:
    kept = torch.arange(LENGTH) % 2 == 0
    # Order is shuffled as well, so that an operator that only looks at its neighbours can't see equal ones.
    shuffled = torch.randperm(LENGTH, generator=torch.Generator().manual_seed(2))
    mixed: dict[str, Any] = {}
    for name in region.inputs:
        axis = types[name].shape.index(TOKENS)
        changed = other[name].index_select(axis, shuffled)
        mixed[name] = torch.where(_along(kept, axis, run[name].ndim), run[name], changed)
    mixed |= {name: program.weights[name] for name in region.weights}
    by_name = {node.name: node for node in region.nodes}
    for node in region.nodes:
        fx_node = program.nodes[node.name]
        mixed[node.name] = _call(program, fx_node, mixed)
        if node.type is None or TOKENS not in node.type.shape:
            continue
        axis = node.type.shape.index(TOKENS)
        rows = torch.nonzero(kept).flatten()
        expected, got = (value.index_select(axis, rows) for value in (run[node.name], mixed[node.name]))
        if not _same(expected, got):
            culprit = by_name.get(node.inputs[0], node) if node.op.startswith("getitem") else node
            raise CompileError(
                f'{culprit.layer or "model"} (node "{culprit.name}")',
                f"mixes tokens: {culprit.op.split('(')[0]} makes one token's value depend on others",
                "only attention may mix tokens; move it out of the compiled part",
            )


@torch.no_grad()
def _call(program: FxProgram, node: fx.Node, values: Mapping[str, Any]) -> Any:
    def look_up(operand: fx.Node) -> Any:
        if is_scalar(operand):
            return block_expression(operand.meta["val"], LENGTH)
        return values[program.placeholders.get(operand.name, operand.name)]

    args, kwargs = fx.map_arg((node.args, node.kwargs), look_up)
    return node.target(*args, **kwargs)  # type: ignore[operator]  # every node of a region is a call


def _along(mask: Tensor, axis: int, rank: int) -> Tensor:
    return mask.reshape([-1 if at == axis else 1 for at in range(rank)])


def _same(expected: Tensor, got: Tensor) -> bool:
    if not expected.dtype.is_floating_point:
        return torch.equal(expected, got)
    magnitude = float(expected.abs().max()) if expected.numel() else 0.0
    return torch.allclose(expected, got, rtol=0.0, atol=TOLERANCE * max(magnitude, 1e-30), equal_nan=True)
