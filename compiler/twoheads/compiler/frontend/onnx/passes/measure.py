"""Runs a whole ONNX graph at a few lengths, to see which of its numbers depend on the length, and how.

Comparing shapes of several runs finds token axes whichever way a file computes its sizes, and without trusting shape
inference or the names of dimensions. Two runs would find a formula; the others confirm it.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from math import prod

from twoheads.compiler.frontend.onnx.model.graph import OnnxGraph
from twoheads.compiler.frontend.onnx.model.read_file import Array
from twoheads.compiler.ir.size_formula import dim_of, fit_size
from twoheads.compiler.ir.source_graph import TensorType
from twoheads.compiler.ir.source_program import example_inputs, input_lengths
from twoheads.graphs.errors import CompileError
from twoheads.graphs.program.program import Input

__all__ = ["Measured", "content_values", "measure_onnx"]

FIX_SIZES = (
    "Fix their number, e.g. by python -m onnxruntime.tools.make_dynamic_shape_fixed --dim_param NAME --dim_value N, "
    "and compile it as one engine of this size, --lowering whole"
)

LENGTHS = ((13, 17), (18, 11), (29, 23), (22, 14))
"""Lengths of the first axis and of a second: no two differ alike, and short enough for any table of positions."""

LARGEST_ROW = 1 << 23
"""Numbers that a token of an input may have: an array of them for the longest example takes 2 GB."""


@dataclass(frozen=True, slots=True)
class Measured:
    """What the runs show.

    Attributes:
        runs: Lengths of the input axes in each.
        types: Of every value.
        free: Values that depend on lengths and weights alone, in each run.
    """

    runs: tuple[Mapping[str, int], ...]
    types: Mapping[str, TensorType]
    free: Mapping[str, tuple[Array, ...]]


def measure_onnx(graph: OnnxGraph, inputs: Sequence[Input], outputs: Iterable[str], where: str) -> Measured:
    """Measures ``graph``.

    Raises:
        CompileError: It does not run at some length: the exporter wrote the length of its example into it. Or an input
            is too large for an experiment.
    """
    for entry in inputs:
        _check_size(entry)
    axes = input_lengths(inputs, 0)
    runs = tuple(dict(zip(axes, lengths, strict=False)) for lengths in LENGTHS)
    arguments = [entry.value.name for entry in inputs if entry.source == "argument"]
    free = {output for node in graph.nodes for output in node.outputs} - content_values(graph, arguments)
    shapes: dict[str, list[tuple[int, ...]]] = {}
    dtypes: dict[str, str] = {}
    values: dict[str, list[Array]] = {}
    for seed, lengths in enumerate(runs):
        feeds = example_inputs(inputs, lengths, seed)
        for name, array in _run(graph, feeds, tuple(outputs), lengths, where).items():
            shapes.setdefault(name, []).append(array.shape)
            dtypes[name] = str(array.dtype)
            if name in free:
                values.setdefault(name, []).append(array)
    types = {name: TensorType(dtypes[name], _shape(seen, runs)) for name, seen in shapes.items()}
    return Measured(runs, types, {name: tuple(arrays) for name, arrays in values.items()})


def _check_size(entry: Input) -> None:
    """Refuses an input of which an example would not fit."""
    count = prod(entry.value.block_shape(1))
    if count > LARGEST_ROW:
        raise CompileError(
            f'input "{entry.value.name}"',
            f"has {count} numbers a token, at most {LARGEST_ROW} are computed with",
            "export the model with the sizes that it is used with",
        )


def content_values(graph: OnnxGraph, arguments: Iterable[str]) -> set[str]:
    """Names of the values whose numbers depend on what the arguments say, not only on how long they are."""
    content = set(arguments)
    for node in graph.nodes:
        if node.proto.op_type not in ("Shape", "Size") and not content.isdisjoint(node.inputs):
            content.update(node.outputs)
    return content


def _shape(seen: Sequence[tuple[int, ...]], runs: Sequence[Mapping[str, int]]) -> tuple[int | str, ...]:
    if len({len(shape) for shape in seen}) > 1:
        return ("?",)
    return tuple(dim_of(fit_size(sizes, runs)) for sizes in zip(*seen, strict=True))


def _run(
    graph: OnnxGraph, feeds: Mapping[str, Array], outputs: Sequence[str], lengths: Mapping[str, int], where: str
) -> dict[str, Array]:
    try:
        return graph.run(outputs, feeds, lengths, every=True)
    except CompileError as error:
        sizes = " and ".join(f"{length} tokens" for length in lengths.values()) or "its own size"
        problem = f"does not run at {sizes} with batch 1: {error.problem}"
        raise CompileError(where, problem, _remedy(error, fixed=not lengths)) from error


def _remedy(error: CompileError, *, fixed: bool) -> str:
    if any(words in error.problem for words in ("not a registered", "No Op registered", "NOT_IMPLEMENTED")):
        return "export it without this operator, or install an ONNX Runtime that has it"
    if "onnx opset versions" in error.problem:
        return "export it for an operator set that the installed ONNX Runtime knows"
    if "INVALID_GRAPH" in error.problem:
        return "the file itself is invalid: export it again, for another operator set"
    if fixed:
        return "the file itself does not run: export it again"
    if "running Conv node" in error.problem:
        return f"convolutions read more at once than so few samples. {FIX_SIZES}"
    return "export it with a dynamic token axis and dynamic batch"
