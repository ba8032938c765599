"""Makes a file for a fixed batch one for a single input, and proves it by the file itself.

The file is run at its own batch, and then operator by operator at a batch of one. Where a dimension of an operand
differs between the two, it is the batch, whatever other sizes are equal to it. What an operator holds of it (an entry
of a shape, an array that is added, the numbers of the rows) is cut to one. Then the file runs on as many different
inputs as it takes: each row of its results must be what the lifted file makes of that input alone.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from math import prod
from typing import Any

import numpy as np
from onnx import helper

from twoheads.compiler.frontend.onnx.lifts.lift_length import BROADCASTING
from twoheads.compiler.frontend.onnx.lifts.token_arrays import changed, counts
from twoheads.compiler.frontend.onnx.model.graph import OnnxGraph, OnnxNode, run_model
from twoheads.compiler.frontend.onnx.model.read_file import Array
from twoheads.compiler.frontend.onnx.passes.fold import fold_onnx
from twoheads.graphs.errors import CompileError

__all__ = ["lift_batch"]

TOLERANCE = 1e-4
"""Relative to the largest magnitude: an optimised run adds up in another order."""

SHAPES: Mapping[str, int] = {"Reshape": 1, "Expand": 1, "ConstantOfShape": 0}
"""By operator, the operand that is the shape of its result."""

REMEDY = "export with batch 1 or a dynamic batch"


def lift_batch(graph: OnnxGraph, feeds: Mapping[str, Array], batch: int, outputs: Sequence[str]) -> OnnxGraph:
    """The graph for one input.

    Args:
        graph: For ``batch`` of them.
        feeds: Its inputs, in whose rows different inputs are; those that have no batch have another first dimension.
        batch: How many it takes.
        outputs: What it is for.

    Raises:
        CompileError: An operator holds the batch in a way that is not understood, or a row is not the input's alone.
    """
    graph = fold_onnx(graph, outputs)
    whole = graph.run(outputs, feeds, {}, every=True)
    lift = _Lift(graph, batch, {name: array.shape for name, array in whole.items()}, _row(feeds, batch, 0))
    for node in graph.nodes:
        lift.add(node)
    lifted = fold_onnx(replace(graph, nodes=tuple(lift.nodes), weights=lift.weights), outputs)
    for at in range(batch):
        found = lifted.run(outputs, _row(feeds, batch, at), {})
        for name in outputs:
            _require_row(name, whole[name], found[name], at, batch)
    return lifted


def _row(feeds: Mapping[str, Array], batch: int, at: int) -> dict[str, Array]:
    return {name: array[at : at + 1] if _is_batched(array, batch) else array for name, array in feeds.items()}


def _is_batched(array: Array, batch: int) -> bool:
    return array.ndim > 1 and array.shape[0] == batch


def _require_row(name: str, whole: Array, found: Array, at: int, batch: int) -> None:
    own = whole[at : at + 1] if whole.ndim and whole.shape[0] == batch else whole[:0]
    largest = float(np.abs(own).max(initial=0.0))
    if own.shape != found.shape or not float(np.abs(own - found).max(initial=0.0)) <= TOLERANCE * largest:
        raise CompileError(
            f"output {name}",
            f"of a file with a fixed batch of {batch} is not, in row {at}, what that row's input alone makes",
            REMEDY,
        )


@dataclass(slots=True)
class _Lift:
    """The graph so far, and its values at a batch of one.

    Attributes:
        graph: As it was.
        batch: Its batch.
        before: Shapes of all values at that batch.
        values: Values at a batch of one.
    """

    graph: OnnxGraph
    batch: int
    before: Mapping[str, tuple[int, ...]]
    values: dict[str, Array]
    nodes: list[OnnxNode] = field(default_factory=list[OnnxNode])
    weights: dict[str, Array] = field(default_factory=dict[str, Any])

    def __post_init__(self) -> None:
        self.weights |= self.graph.weights

    def add(self, node: OnnxNode) -> None:
        """Appends the operator, for one input."""
        operator = node.proto.op_type
        made = [node]
        if operator in SHAPES:
            made = list(self._with_shape(node, node.proto.input[SHAPES[operator]]))
        elif operator in BROADCASTING or operator == "Concat":
            made = [self._with_cut_arrays(node)]
        elif operator == "Gather":
            made = [self._with_one_row(node)]
        for each in made:
            self._run(each, node)
        self.nodes += made

    def _batches(self, name: str) -> set[int]:
        """The dimensions of a value that are the batch."""
        if name not in self.values or name not in self.before:
            return set()
        return changed(self.before[name], self.values[name].shape)

    def _shape(self, name: str) -> tuple[int, ...]:
        return self.weights[name].shape if name in self.weights else self.before[name]

    def _with_shape(self, node: OnnxNode, shape: str) -> Iterator[OnnxNode]:
        """Entries of the result's shape that hold the batch, divided by it where the file says them itself."""
        out = self.before[node.outputs[0]]
        numbers = (self.weights[shape] if shape in self.weights else self.values[shape]).reshape(-1).tolist()
        wrong = [at for at in self._holding(node, out) if numbers[at] not in (out[at] // self.batch, -1, 0)]
        if not wrong:
            yield node
            return
        if any(numbers[at] % self.batch for at in wrong):
            raise self._refused(node, f"makes {list(out)}")
        name = f"{node.outputs[0]}.one"
        self.weights[f"{name}.of"] = np.array(
            [self.batch if at in wrong else 1 for at in range(len(numbers))], np.int64
        )
        yield OnnxNode(helper.make_node("Div", [shape, f"{name}.of"], [name]), node.layer)
        yield node.renamed({shape: name}, {})

    def _holding(self, node: OnnxNode, out: Sequence[int]) -> list[int]:
        """The dimensions of a result that hold the batch."""
        first = [0] if len(out) > 1 and out[0] == self.batch else []
        if node.proto.op_type == "ConstantOfShape":
            return first
        name = node.proto.input[0]
        shape = self._shape(name)
        if node.proto.op_type == "Expand":
            ahead = len(out) - len(shape)
            spread = ahead > 0 or shape[0] == 1
            return sorted({at + ahead for at in self._batches(name)} | set(first if spread else []))
        found: list[int] = []
        for axis in self._batches(name):
            inner = prod(shape[axis + 1 :])
            holding = [
                at
                for at, size in enumerate(out)
                if size > 1 and prod(out[at + 1 :]) <= inner and prod(out[at:]) >= inner * shape[axis]
            ]
            if len(holding) != 1:
                raise self._refused(node, f"makes {list(out)} of {list(shape)}")
            found += holding
        return found

    def _with_cut_arrays(self, node: OnnxNode) -> OnnxNode:
        """An array of the file with a row for every input has one: the proof says whether another would do as well."""
        out = self.before[node.outputs[0]]
        lined = {name: len(out) - len(self._shape(name)) for name in node.inputs}
        batches = {lined[name] + at for name in node.inputs for at in self._batches(name)}
        if node.proto.op_type == "Concat":
            batches -= {int(node.attributes["axis"]) % len(out)}
        names: dict[str, str] = {}
        for name in node.inputs:
            axes = [
                at for at, size in enumerate(self._shape(name)) if size == self.batch and at + lined[name] in batches
            ]
            if name in self.weights and axes:
                names[name] = f"{name}.one"
                cut = tuple(slice(0, 1 if at in axes else None) for at in range(self.weights[name].ndim))
                self.weights[names[name]] = np.ascontiguousarray(self.weights[name][cut])
        return node.renamed(names, {})

    def _with_one_row(self, node: OnnxNode) -> OnnxNode:
        """All rows of the batch in order are its one row."""
        name, rows = node.proto.input[0], self.weights.get(node.proto.input[1])
        axis = int(node.attributes.get("axis", 0)) % max(len(self._shape(name)), 1)
        if rows is None or axis not in self._batches(name) or rows.shape != (self.batch,) or not counts(rows, 0):
            return node
        self.weights[f"{node.outputs[0]}.row"] = np.array([0], np.int64)
        return node.renamed({node.proto.input[1]: f"{node.outputs[0]}.row"}, {})

    def _refused(self, node: OnnxNode, problem: str) -> CompileError:
        problem = f"{node.proto.op_type} {problem}, so the file's fixed batch of {self.batch} can't be one input"
        return CompileError(node.place, problem, REMEDY)

    def _run(self, node: OnnxNode, original: OnnxNode) -> None:
        """Computes the operator's results at a batch of one."""
        given = {name: self.values[name] for name in node.inputs if name in self.values}
        known = replace(self.graph, weights=self.weights)
        weights = {name: known.weight(name) for name in node.inputs if name in self.weights}
        model, feeds = self.graph.model([node], given, weights, node.outputs, {})
        try:
            self.values |= run_model(model, feeds, node.outputs)
        except CompileError as error:
            raise self._refused(original, "does not run at another batch") from error
