"""The program's inputs in the file: what the host gives, and what follows from its length."""

from __future__ import annotations

from twoheads.export.one_file.emit.graph import Graph
from twoheads.export.one_file.emit.lengths import Lengths
from twoheads.export.one_file.emit.values import Values
from twoheads.graphs.errors import CompileError, InternalError
from twoheads.graphs.program.program import COUNTING, Input, Program

__all__ = ["add_inputs"]


def add_inputs(graph: Graph, program: Program, values: Values, lengths: Lengths) -> None:
    """Makes every input a value; those of source ``argument`` are inputs of the file by the same name.

    Raises:
        CompileError: An input has a source that is not known here.
    """
    for entry in program.inputs:
        name = entry.value.name
        if entry.source == "argument":
            values.set_whole(name, name)
        elif entry.source in COUNTING:
            values.set_blocks(name, _positions(graph, program, entry, lengths))
        elif entry.source == "zeros":
            zeros = graph.op("Expand", graph.constant(0, entry.value.dtype), values.shape(entry.value))
            values.set_whole(name, zeros)
        elif entry.source == "length" and entry.axis is not None:
            values.set_whole(name, graph.cast(graph.vector(lengths.rows(entry.axis)), entry.value.dtype))
        else:
            problem = f"comes from {entry.source!r}, which one file can't make"
            raise CompileError(f"input {name}", problem, "run the bundle by the runtime instead")


def _positions(graph: Graph, program: Program, entry: Input, lengths: Lengths) -> str:
    """0, 1, 2, ... in every row's place, the same in all other dimensions; 0 in the rows of padding."""
    value = entry.value
    if value.axis is None:
        raise InternalError(f"input {value.name} counts the tokens of no axis")
    shape = value.block_shape(program.block_size)
    column = [program.block_size if isinstance(dim, str) else 1 for dim in value.shape]
    positions = graph.reshape(lengths.positions(value.axis), -1, *column)
    wide = positions if tuple(column) == shape else graph.op("Expand", positions, graph.ints(1, *shape))
    return wide if value.dtype == "int64" else graph.cast(wide, value.dtype)
