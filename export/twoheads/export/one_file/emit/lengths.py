"""How long the input is, and all that follows from it: rows and blocks of every axis, positions, and guards.

A guard is a number that must not be negative. The format has no assertion, so each guard is the size of an array of
zeros, whose sum is added to the length that everything else reads: a host that is given too many tokens, or one outside
of the vocabulary, stops at a node whose name says what is wrong.
"""

from __future__ import annotations

import re
from collections.abc import Callable

import numpy as np
from onnx import numpy_helper

from twoheads.export.one_file.emit.graph import Graph
from twoheads.graphs.program.axes import parse_axis
from twoheads.graphs.program.program import Input, Limit, Program

__all__ = ["Lengths"]


class Lengths:
    """Numbers and arrays of the file's own graph that depend on the lengths of its inputs.

    Args:
        graph: The file's own graph.
        program: Whose inputs of source ``argument`` are the file's inputs, by name.
        before: How many tokens stand before the input's first one, a number of ``graph``; none if not given.
    """

    def __init__(self, graph: Graph, program: Program, before: str | None = None) -> None:
        self._graph = graph
        self._program = program
        self._before = before
        self._inputs: dict[str, str] = {}
        self._known: dict[tuple[str, str], str] = {}
        arguments = [entry for entry in program.inputs if entry.source == "argument"]
        for entry in sorted(arguments, key=lambda entry: len(entry.value.axis or "")):  # input axes before formulas
            self._read(entry)
        for limit in program.limits:
            self._limit(limit)

    def rows(self, axis: str) -> str:
        """Rows along ``axis``, an int64 without dimensions."""
        return self._once("rows", axis, self._make_rows)

    def blocks(self, axis: str) -> str:
        """Blocks along ``axis``, the last of which may be partly padding."""
        return self._once("blocks", axis, lambda name: self.parts(name, self._program.block_size))

    def parts(self, axis: str, size: int) -> str:
        """How many parts of ``size`` rows it takes to hold ``axis``."""
        graph = self._graph
        return graph.op("Div", graph.op("Add", self.rows(axis), graph.int64(size - 1)), graph.int64(size))

    def positions(self, axis: str) -> str:
        """0, 1, 2, ... or what follows the tokens before, and 0 for padding, int64 ``[blocks, M]``."""
        return self._once("positions", axis, self._make_positions)

    def real(self, axis: str) -> str:
        """Whether a row is no padding, ``[blocks, M]``."""
        return self._once("real", axis, self._make_real)

    def _once(self, kind: str, axis: str, make: Callable[[str], str]) -> str:
        key = (kind, axis)
        if key not in self._known:
            self._known[key] = make(axis)
        return self._known[key]

    def _read(self, entry: Input) -> None:
        """The length of the axis that an argument is on, and guards on its numbers."""
        graph, value = self._graph, entry.value
        if value.axis is not None:
            at = value.token_axis
            rows = graph.reshape(graph.op("Shape", value.name, start=at, end=at + 1))
            parts = parse_axis(value.axis)
            if str(parts) in parts.of and value.axis not in self._inputs:
                self._inputs[value.axis] = rows
                self.guard(value.axis, graph.op("Sub", rows, graph.int64(1)), f"input {value.name} is empty")
            else:
                expected = self._sum(value.axis)
                off = graph.op("Neg", graph.op("Abs", graph.op("Sub", rows, expected)))
                axis = parts.of[0] if parts.of else next(iter(self._inputs))
                self.guard(axis, off, f"input {value.name} does not have {value.axis} rows")
        if entry.limit is not None and self._inputs:
            axis = value.axis if value.axis in self._inputs else next(iter(self._inputs))
            # With a 0, which every table has, so that an empty input is told as what it is.
            wide = graph.op("Concat", graph.reshape(graph.cast(value.name, "int64"), -1), graph.ints(0), axis=0)
            lowest, highest = (graph.op(f"Reduce{which}", wide, keepdims=0) for which in ("Min", "Max"))
            above = graph.op("Sub", graph.int64(entry.limit - 1), highest)
            self.guard(axis, lowest, f"input {value.name} holds a number below 0")
            self.guard(axis, above, f"input {value.name} holds a number above {entry.limit - 1}")

    def _limit(self, limit: Limit) -> None:
        if limit.axis in self._inputs:
            graph = self._graph
            left = graph.op("Sub", graph.int64(limit.length), self._inputs[limit.axis])
            left = left if self._before is None else graph.op("Sub", left, self._before)
            self.guard(limit.axis, left, f"the model takes {limit.length} tokens at most: {limit.reason}")

    def guard(self, axis: str, number: str, told: str) -> None:
        """Adds 0 to the length of ``axis``, or fails where ``number`` is negative."""
        graph = self._graph
        zero = numpy_helper.from_array(np.zeros(1, np.int32))
        name = re.sub(r"[^A-Za-z0-9_.,: -]", "_", told)
        zeros = graph.op("ConstantOfShape", graph.vector(number), name=name, value=zero)
        total = graph.op("ReduceSum", zeros, keepdims=0)
        self._inputs[axis] = graph.op("Add", self._inputs[axis], graph.cast(total, "int64"))

    def _make_rows(self, axis: str) -> str:
        """The formula of ``axis``; one that comes out below 1 is guarded where the input axis is read."""
        if axis in self._inputs:
            return self._inputs[axis]
        graph = self._graph
        rows = self._sum(axis)
        if not parse_axis(axis).of:
            return rows
        zero = numpy_helper.from_array(np.zeros(1, np.int32))
        left = graph.vector(graph.op("Sub", rows, graph.int64(1)))
        zeros = graph.op("ConstantOfShape", left, name=f"the input is too short: {axis} rows", value=zero)
        return graph.op("Add", rows, graph.cast(graph.op("ReduceSum", zeros, keepdims=0), "int64"))

    def _sum(self, axis: str) -> str:
        graph, parts = self._graph, parse_axis(axis)
        total = graph.int64(parts.add)
        for name in parts.of:
            total = graph.op("Add", total, self._inputs[name])
        return total if parts.div == 1 else graph.op("Div", total, graph.int64(parts.div))

    def _counted(self, axis: str) -> str:
        """0, 1, 2, ... for every row of every block, ``[blocks * M]``."""
        graph = self._graph
        stop = graph.op("Mul", self.blocks(axis), graph.int64(self._program.block_size))
        return graph.op("Range", graph.int64(0), stop, graph.int64(1))

    def _make_positions(self, axis: str) -> str:
        graph = self._graph
        counted = graph.reshape(self._counted(axis), -1, self._program.block_size)
        counted = counted if self._before is None else graph.op("Add", counted, self._before)
        return graph.op("Where", self.real(axis), counted, graph.int64(0))

    def _make_real(self, axis: str) -> str:
        graph = self._graph
        return graph.reshape(graph.op("Less", self._counted(axis), self.rows(axis)), -1, self._program.block_size)
