"""Finds how long an input the model itself can take: where learned position tables end."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from twoheads.compiler.ir.size_formula import lengths_for
from twoheads.compiler.ir.source_graph import SequenceNode, SourceGraph, TokenwiseNode
from twoheads.compiler.ir.source_program import LookUp, SourceProgram, example_inputs
from twoheads.graphs.program.axes import axis_inputs, parse_axis
from twoheads.graphs.program.program import COUNTING, TOKENS, Limit

__all__ = ["find_position_limits"]

TOKEN_NUMBERS = (0, 1, 2)
"""Where positions are counted, inputs of each of these tokens alone are tried: at most one of them is the padding."""


def find_position_limits(graph: SourceGraph, program: SourceProgram) -> tuple[Limit, ...]:
    """For each input axis that has a limit, the longest input whose positions all fall into the model's tables."""
    found = [*_table_limits(graph, program), *graph.limits]
    known = {limit.axis for limit in found}
    if graph.max_length is not None and all(limit.length > graph.max_length for limit in found if limit.axis == TOKENS):
        found.append(Limit(graph.max_length, "a table in its graph"))
        known.add(TOKENS)
    # Of equal limits the last: a buffer of row numbers comes before the learned table that it indexes.
    return tuple(
        min((limit for limit in reversed(found) if limit.axis == axis), key=lambda limit: limit.length)
        for axis in sorted(known)
    )


def _table_limits(graph: SourceGraph, program: SourceProgram) -> list[Limit]:
    positional = {entry.value.name for entry in graph.inputs if entry.source in COUNTING}
    counting: set[str] = set()  # running sums over tokens: positions of those that are no padding
    constant = set(graph.weights)
    types = graph.types()
    limits: list[Limit] = []
    for node in graph.nodes:
        if not isinstance(node, TokenwiseNode | SequenceNode):
            continue
        if node.inputs and all(name in constant for name in node.inputs):
            constant.add(node.name)
            continue
        look_up = program.look_up(node.name) if isinstance(node, TokenwiseNode) else None
        if look_up is not None and look_up.table in constant and look_up.index in positional | counting:
            axis = types[look_up.index].axis
            if axis is not None and len(axis_inputs(axis)) == 1:
                limits.extend(_limits(graph, program, look_up, axis, limits))
        if all(name in constant or name in positional for name in node.inputs):
            positional.add(node.name)
        elif node.type is not None and node.type.dtype in ("int32", "int64"):
            starts = isinstance(node, SequenceNode) and node.operator == "cumsum"
            counting |= {node.name} if starts or not counting.isdisjoint(node.inputs) else set()
    return limits


def _limits(graph: SourceGraph, program: SourceProgram, look_up: LookUp, axis: str, known: list[Limit]) -> list[Limit]:
    """The length at which the look-up leaves its table, if it does; an index may also be clamped or wrap around."""
    types = graph.types()
    rows = types[look_up.table].shape[look_up.axis]
    (source,) = axis_inputs(axis)
    ends = [limit.length for limit in known if limit.axis == source]
    if isinstance(rows, str):
        return []
    # Far enough to see an index that grows by one in four positions; not beyond where an earlier table ends.
    longest = min([*ends, lengths_for(axis, 4 * rows + 64)[source]])
    values = np.stack([_index(graph, program, look_up.index, longest, token) for token in TOKEN_NUMBERS])
    outside = np.flatnonzero(((values >= rows) | (values < 0)).any(0))
    reason = f"its table {look_up.table} of {rows} rows"
    if outside.size:  # the longest input whose axis ends before that
        parts = parse_axis(axis)
        return [Limit((int(outside[0]) + 1) * parts.div - 1 - parts.add, reason, source)]
    if ends and int(values[:, -1].max()) == rows - 1:  # both tables end here
        return [Limit(longest, reason, source)]
    return []


def _index(graph: SourceGraph, program: SourceProgram, name: str, length: int, token: int) -> npt.NDArray[Any]:
    """The values of an index of rows, where all inputs have ``length`` tokens and all of them are ``token``."""
    lengths = {name: length for entry in graph.inputs if entry.value.axis for name in axis_inputs(entry.value.axis)}
    inputs = example_inputs(graph.inputs, lengths, 0)
    for entry in graph.inputs:
        if entry.source == "argument" and inputs[entry.value.name].dtype.kind in "iu":
            inputs[entry.value.name] = np.full_like(inputs[entry.value.name], token)
    return np.ravel(program.evaluate((name,), inputs)[name])
