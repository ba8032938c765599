"""Finds position numbers that a model derives from constants, such as ``cumsum(ones(n)) - 1``.

What depends on no input but varies from token to token is a function of position, and a block must read positions from
its input. If the function is ``start + step * position``, it becomes exactly that; anything else is refused later, when
regions are checked. A cumulative sum of ones is that of an attention mask without padding, so it reads ``counts``.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor, fx

from twoheads.compiler.frontend.torch.fx.fx_program import FxProgram, is_scalar
from twoheads.compiler.frontend.torch.fx.normalize import affine_positions
from twoheads.compiler.ir.size_formula import lengths_for
from twoheads.compiler.ir.source_program import example_inputs, input_lengths
from twoheads.graphs.program.axes import axis_inputs, parse_axis

__all__ = ["positions_from_constants"]

LENGTHS = (16, 23)
"""Lengths at which a function of position is read off and confirmed."""


def _spread_constants(program: FxProgram) -> frozenset[str]:
    """Names of tensor nodes that have a token axis but depend on no input and no positions."""
    inputs = {entry.value.name for entry in program.inputs}
    dependent: set[str] = set()
    spread: set[str] = set()
    for name, node in program.nodes.items():
        if is_scalar(node):
            continue
        if program.placeholders.get(name, "") in inputs or any(up.name in dependent for up in node.all_input_nodes):
            dependent.add(name)
        elif isinstance(node.meta.get("val"), Tensor) and any(map(program.axes.is_axis, node.meta["val"].shape)):
            spread.add(name)
    return frozenset(spread)


def positions_from_constants(graph: fx.Graph, program: FxProgram) -> bool:
    """Rewrites ``graph``, the one behind ``program``, in place; returns whether anything changed."""
    spread = _spread_constants(program)
    found = dict(_affine(program, [name for name in spread if _is_index(program, program.nodes[name])]))
    # Only the last of a chain: what leads up to it falls away.
    ends = {
        name
        for name in found
        if any(user.name not in found and not is_scalar(user) for user in program.nodes[name].users)
    }
    for name in ends:
        _rewrite(graph, program, program.nodes[name], *found[name])
    if ends:
        graph.eliminate_dead_code(lambda node: node.op in ("placeholder", "output"))
    return bool(ends)


def _is_index(program: FxProgram, node: fx.Node) -> bool:
    value = cast("Tensor", node.meta["val"])
    flat = value.ndim == 1 or (value.ndim == 2 and value.shape[0] == 1)
    return value.dtype == torch.int64 and flat and program.axes.is_axis(value.shape[-1])


def _affine(program: FxProgram, names: list[str]) -> Iterator[tuple[str, tuple[int, int]]]:
    """``(start, step)`` of every named node whose value is ``start + step * position`` with a step other than 0."""
    if not names:
        return
    runs: list[Mapping[str, Any]] = [
        program.evaluate(names, example_inputs(program.inputs, _trial_lengths(program, names, length), 0))
        for length in LENGTHS
    ]
    for name in names:
        values = [np.ravel(run[name]) for run in runs]
        start, step = int(values[0][0]), int(values[0][1] - values[0][0])
        expected = [start + step * np.arange(len(value)) for value in values]
        if step and all(np.array_equal(value, wanted) for value, wanted in zip(values, expected, strict=True)):
            yield name, (start, step)


def _trial_lengths(program: FxProgram, names: list[str], rows: int) -> dict[str, int]:
    """Lengths of all inputs; samples of a waveform are as many as make ``rows`` of what is evaluated."""
    lengths = input_lengths(program.inputs, rows, step=2)
    for name in names:
        axis = program.axes.type(cast("Tensor", program.nodes[name].meta["val"])).axis
        if axis is not None and axis_inputs(axis) and parse_axis(axis).div > 1:
            lengths |= lengths_for(axis, rows)
    return lengths


def _rewrite(graph: fx.Graph, program: FxProgram, node: fx.Node, start: int, step: int) -> None:
    source = "counts" if _adds_up(node) else "positions"
    result = affine_positions(graph, node, start, step, program.axes, source)
    if cast("Tensor", node.meta["val"]).ndim == 2:
        with graph.inserting_before(node):
            result = graph.call_function(torch.ops.aten.unsqueeze.default, (result, 0))
        result.meta = dict(node.meta)
    node.replace_all_uses_with(result)
    graph.erase_node(node)


def _adds_up(node: fx.Node) -> bool:
    """Whether ``node`` comes from a cumulative sum."""
    stack, seen = [node], set[fx.Node]()
    while stack:
        current = stack.pop()
        if current.target is torch.ops.aten.cumsum.default:
            return True
        if current not in seen:
            seen.add(current)
            stack.extend(current.all_input_nodes)
    return False
