"""Captures an ONNX file of one input size as it is: one region, whose results are spread as rows; nothing is tiled.

As the torch door's ``capture_whole``: convolutional networks, windows on a grid and vision transformers alike are one
engine of a fixed shape, exact and verified like every other bundle.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from onnx import helper

from twoheads.compiler.frontend.onnx.capture import spelled_out
from twoheads.compiler.frontend.onnx.choose_outputs import LOGITS, model_outputs
from twoheads.compiler.frontend.onnx.model.graph import OnnxGraph, OnnxNode
from twoheads.compiler.frontend.onnx.model.read_file import OnnxFile, read_onnx
from twoheads.compiler.frontend.onnx.one_size import one_size
from twoheads.compiler.frontend.onnx.onnx_program import OnnxProgram
from twoheads.compiler.frontend.onnx.passes.fold import fold_onnx, graph_of
from twoheads.compiler.frontend.onnx.passes.measure import measure_onnx
from twoheads.compiler.frontend.onnx.passes.resolve_lengths import resolve_lengths
from twoheads.compiler.frontend.onnx.source_nodes import source_nodes
from twoheads.compiler.ir.source_graph import SequenceNode, SourceGraph, TensorType, needed_nodes
from twoheads.compiler.ir.source_program import Captured
from twoheads.graphs.errors import CompileError
from twoheads.graphs.program.program import Input

__all__ = ["WholeFile", "capture_whole_onnx", "read_whole"]

ROWS = 1
"""The dimension of the rows in a whole model's results."""

SPREAD = "rows.spread"


@dataclass(frozen=True, slots=True)
class WholeFile:
    """A file of one input size, whose last hidden states are rows.

    Attributes:
        file: As it was read.
        inputs: What a run supplies, without a token axis.
        graph: Its operators, and those that make rows of its result.
        hidden: ``[1, rows, width]``.
        logits: ``[1, classes]``, or ``None``.
        left_out: The file's names of its other results.
    """

    file: OnnxFile
    inputs: tuple[Input, ...]
    graph: OnnxGraph
    hidden: str
    logits: str | None
    left_out: tuple[str, ...]

    @property
    def outputs(self) -> list[str]:
        """Names of the results."""
        return [self.hidden, *([self.logits] if self.logits else [])]


def read_whole(path: str | Path, results: Sequence[str] = ()) -> WholeFile:
    """Reads a file of one input size.

    Args:
        path: The file.
        results: Its names of the last hidden states and, optionally, of the logits. By default the first output that is
            not called logits, and the one that is; a single output is the hidden states, whatever it is called.

    Raises:
        CompileError: It has several sizes, or results of no rows.
    """
    file, inputs = one_size(read_onnx(path, whole=True))
    names = model_outputs(file, results)
    called = [safe for safe, own in names.items() if LOGITS.search(own)]
    hidden = next((safe for safe in names if safe not in called), next(iter(names)))
    logits = next((safe for safe in called if safe != hidden), None)
    if len(results) == 2:
        hidden, logits = names
    graph = graph_of(file.opsets, file.nodes, file.weights, list(names))
    types = measure_onnx(fold_onnx(graph, list(names)), inputs, list(names), str(path)).types
    if logits is not None and len(types[logits].shape) != 2:
        raise CompileError(
            f"output {names[logits]}",
            f"has the shape {list(types[logits].shape)}: whole models have one row of logits, [1, classes]",
            "name the outputs that count: --result HIDDEN",
        )
    _check_result(types[hidden], names[hidden])
    rows, made = _rows(hidden, types[hidden], names[hidden])
    left_out = tuple(own for safe, own in file.outputs.items() if safe not in (hidden, logits))
    return WholeFile(file, inputs, replace(graph, nodes=(*graph.nodes, *made)), rows, logits, left_out)


def _check_result(type_: TensorType, own: str) -> None:
    if 0 in type_.shape:
        raise CompileError(f"output {own}", "holds no numbers", "name another output: --result NAME")


def _rows(name: str, type_: TensorType, own: str) -> tuple[str, list[OnnxNode]]:
    """The value as ``[1, rows, width]``: a map has a row of channels for every place, one vector is one row."""
    rank = len(type_.shape)
    if rank == 3 and type_.shape[0] != 1 == type_.shape[1]:  # the batch is behind the rows
        return f"{name}.rows", [OnnxNode(helper.make_node("Transpose", [name], [f"{name}.rows"], perm=[1, 0, 2]))]
    if rank < 2 or type_.shape[0] != 1:
        raise CompileError(f"output {own}", f"has the shape {list(type_.shape)}, not [1, ...]", "name another output")
    if rank == 3:
        return name, []
    shape = [1, 1, -1] if rank == 2 else [1, int(type_.shape[1]), -1]
    sizes = helper.make_tensor(f"{name}.sizes", 7, [3], shape)
    made = [
        helper.make_node("Constant", [], [f"{name}.sizes"], value=sizes),
        helper.make_node("Reshape", [name, f"{name}.sizes"], [f"{name}.rows" if rank == 2 else f"{name}.places"]),
    ]
    if rank > 3:
        made.append(helper.make_node("Transpose", [f"{name}.places"], [f"{name}.rows"], perm=[0, 2, 1]))
    return f"{name}.rows", [OnnxNode(node) for node in made]


def capture_whole_onnx(path: str | Path, results: Sequence[str] = ()) -> Captured:
    """Captures a file to be whole; arguments as for :func:`read_whole`.

    Raises:
        CompileError: As there, or an operator can't be compiled.
    """
    whole = read_whole(path, results)
    wanted, where = whole.outputs, str(path)
    graph = spelled_out(fold_onnx(whole.graph, wanted), whole.inputs, wanted, where)
    resolved = resolve_lengths(graph, measure_onnx(graph, whole.inputs, wanted, where), wanted)
    made = {name for node in resolved.graph.nodes for name in node.outputs}
    for name in wanted:
        if name not in made:
            raise CompileError(
                f"output {name.removesuffix('.rows')}",
                "is the same whatever the inputs hold",
                "name another: --result NAME",
            )
    types = dict(measure_onnx(resolved.graph, whole.inputs, wanted, where).types)
    types |= {entry.value.name: TensorType(entry.value.dtype, entry.value.shape) for entry in whole.inputs}
    weights = resolved.graph.weights
    types |= {name: TensorType(resolved.graph.weight(name).dtype.name, weights[name].shape) for name in weights}
    rows = types[whole.hidden]
    types[SPREAD] = TensorType(rows.dtype, (1, str(rows.shape[ROWS]), rows.shape[2]))
    spread = OnnxNode(helper.make_node("Identity", [whole.hidden], [SPREAD]))
    program = OnnxProgram(replace(resolved.graph, nodes=(*resolved.graph.nodes, spread)), whole.inputs, types)
    concat = SequenceNode(SPREAD, "concat", (whole.hidden,), types[SPREAD], (("axis", ROWS),), "")
    nodes = [concat if node.name == SPREAD else node for node in source_nodes(program, {})]
    captured = SourceGraph(
        name=whole.file.identity.name,
        inputs=whole.inputs,
        weights={name: types[name] for name in weights},
        nodes=needed_nodes(nodes, [SPREAD, *([whole.logits] if whole.logits else [])]),
        hidden=SPREAD,
        logits=whole.logits,
    )
    return Captured(captured, program, whole.file.identity, left_out=whole.left_out)
