"""Sequence stages: rows of whole values moved or counted, by operators of the format."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np

from twoheads.export.one_file.emit.graph import Graph
from twoheads.export.one_file.emit.lengths import Lengths
from twoheads.export.one_file.emit.values import Values
from twoheads.graphs.errors import CompileError
from twoheads.graphs.program.program import SequenceStage, Value
from twoheads.graphs.program.sequence_operators import DTYPES

__all__ = ["add_sequence"]

_OPERATORS = {
    "add": "Add",
    "sub": "Sub",
    "mul": "Mul",
    "equal": "Equal",
    "greater": "Greater",
    "less": "Less",
    "logical_and": "And",
    "logical_or": "Or",
}


def add_sequence(graph: Graph, stage: SequenceStage, values: Values, lengths: Lengths) -> None:
    """Appends a sequence stage to the file's own graph.

    Raises:
        CompileError: It computes what has no form in one file.
    """
    inputs = tuple((values.declared(name), values.whole(name)) for name in stage.inputs)
    made, dtype = _Maker(graph, stage, inputs, values, lengths).make()
    shape = values.shape(stage.output)
    if stage.operator == "expand":
        made = graph.op("Expand", made, shape)
    made = made if dtype == stage.output.dtype else graph.cast(made, stage.output.dtype)
    values.set_whole(stage.output.name, graph.op("Reshape", made, shape))


@dataclass(frozen=True, slots=True)
class _Maker:
    """One stage on its way into a graph."""

    graph: Graph
    stage: SequenceStage
    inputs: tuple[tuple[Value, str], ...]
    values: Values
    lengths: Lengths

    @property
    def attributes(self) -> Mapping[str, int]:
        return dict(self.stage.attributes)

    @property
    def axis(self) -> int:
        return self.attributes["axis"]

    def make(self) -> tuple[str, str]:
        """The result, to be reshaped, and its dtype."""
        value, name = self.inputs[0]
        makers: dict[str, Callable[[], tuple[str, str]]] = {
            "take": self._take,
            "take_at": self._take_at,
            "concat": self._concat,
            "sum": self._sum,
            "mean": self._sum,
            "max": lambda: self._extreme("ReduceMax"),
            "min": lambda: self._extreme("ReduceMin"),
            "cumsum": self._cumsum,
            "argmax": self._argmax,
            "logical_not": lambda: (self.graph.op("Not", name), "bool"),
            "where": self._where,
            "not_equal": lambda: (self.graph.op("Not", self._binary("Equal")[0]), "bool"),
            "cast": lambda: (self.graph.cast(name, DTYPES[self.attributes["to"]]), DTYPES[self.attributes["to"]]),
            "reshape": lambda: (name, value.dtype),
            "expand": lambda: (name, value.dtype),
        }
        if self.stage.operator in makers:
            return makers[self.stage.operator]()
        if self.stage.operator in _OPERATORS:
            return self._binary(_OPERATORS[self.stage.operator])
        raise self._refused("is an operator of a newer program")

    def _refused(self, problem: str) -> CompileError:
        return CompileError(
            f"stage {self.stage.name} ({self.stage.operator})", problem, "run the bundle by the runtime instead"
        )

    def _rows(self, value: Value, axis: int) -> str:
        """How many rows a value has along a dimension, without dimensions."""
        dim = value.shape[axis]
        return self.lengths.rows(dim) if isinstance(dim, str) else self.graph.int64(dim)

    def _take(self) -> tuple[str, str]:
        graph, (value, name), attributes = self.graph, self.inputs[0], self.attributes
        output = self.stage.output
        rows, size = self._rows(value, self.axis), graph.int64(1)
        if len(output.shape) == len(value.shape):
            size = self._rows(output, self.axis)
        start: str = graph.int64(attributes["start"])
        if attributes["from_end"]:
            start = graph.op("Add", start, rows)
        steps = graph.op("Range", graph.int64(0), size, graph.int64(1))
        at = graph.op("Add", start, graph.op("Mul", steps, graph.int64(attributes["step"])))
        last = graph.op("Sub", rows, graph.int64(1))
        inside = graph.op("Equal", at, clipped := graph.op("Min", graph.op("Max", at, graph.int64(0)), last))
        taken = graph.op("Gather", name, clipped, axis=self.axis)
        column = graph.reshape(inside, -1, *[1] * (len(value.shape) - self.axis - 1))
        return graph.op("Where", column, taken, graph.constant(0, value.dtype)), value.dtype

    def _take_at(self) -> tuple[str, str]:
        (value, name), (_, index) = self.inputs
        at = self.graph.reshape(self.graph.cast(index, "int64"), 1)
        return self.graph.op("Gather", name, at, axis=self.axis), value.dtype

    def _concat(self) -> tuple[str, str]:
        return self.graph.op("Concat", *self._promoted(self.inputs), axis=self.axis), self._common(self.inputs)

    def _sum(self) -> tuple[str, str]:
        """Sums of floats are computed in float64, others in the output's dtype."""
        graph, (value, name) = self.graph, self.inputs[0]
        floats = np.dtype(value.dtype).kind == "f"
        wide = "float64" if floats else self.stage.output.dtype
        mean = self.stage.operator == "mean"
        if mean and np.dtype(wide).kind != "f":
            raise self._refused("is a mean of whole numbers in whole numbers, which one file can't compute")
        total = graph.op("ReduceSum", graph.cast(name, wide), graph.ints(self.axis))
        if mean:
            total = graph.op("Div", total, graph.cast(self._rows(value, self.axis), wide))
        return total, wide

    def _numeric(self, value: Value, name: str) -> tuple[str, str]:
        """A value whose truth values have become numbers."""
        return (self.graph.cast(name, "int32"), "int32") if value.dtype == "bool" else (name, value.dtype)

    def _extreme(self, operator: str) -> tuple[str, str]:
        name, dtype = self._numeric(*self.inputs[0])
        return self.graph.op(operator, name, self.graph.ints(self.axis)), dtype

    def _cumsum(self) -> tuple[str, str]:
        graph, dtype = self.graph, self.stage.output.dtype
        return graph.op("CumSum", graph.cast(self.inputs[0][1], dtype), graph.int64(self.axis)), dtype

    def _argmax(self) -> tuple[str, str]:
        name, _ = self._numeric(*self.inputs[0])
        return self.graph.op("ArgMax", name, axis=self.axis, keepdims=1), "int64"

    def _where(self) -> tuple[str, str]:
        chosen = self.inputs[1:]
        return self.graph.op("Where", self.inputs[0][1], *self._promoted(chosen)), self._common(chosen)

    def _binary(self, operator: str) -> tuple[str, str]:
        graph = self.graph
        if len(self.inputs) == 1:
            value, name = self.inputs[0]
            left, dtype = self._numeric(value, name)
            names = [left, graph.constant(self.attributes["value"], dtype)]
        else:
            dtype, names = self._common(self.inputs), self._promoted(self.inputs)
            if dtype == "bool" and operator not in ("And", "Or"):
                dtype, names = "int32", [graph.cast(name, "int32") for name in names]
        compares = operator in ("Equal", "Greater", "Less", "And", "Or")
        return graph.op(operator, *names), "bool" if compares else dtype

    def _common(self, inputs: tuple[tuple[Value, str], ...]) -> str:
        return str(np.result_type(*(np.dtype(value.dtype) for value, _ in inputs)))

    def _promoted(self, inputs: tuple[tuple[Value, str], ...]) -> list[str]:
        """All inputs in their common dtype."""
        common = self._common(inputs)
        return [name if value.dtype == common else self.graph.cast(name, common) for value, name in inputs]
