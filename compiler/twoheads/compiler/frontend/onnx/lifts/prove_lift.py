"""Proves that a file of one number of tokens, lifted, is the same model for fewer.

The file itself says what it makes of a shorter input: it is run at its own length with the mask of the tokens behind
the input's end, or as it is where tokens see none that follow them. Where neither can be, nothing could be compared.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np

from twoheads.compiler.frontend.onnx.lifts.lift_length import lift_length, trial_length
from twoheads.compiler.frontend.onnx.model.graph import OnnxGraph
from twoheads.compiler.frontend.onnx.model.read_file import Array
from twoheads.compiler.ir.source_program import example_inputs
from twoheads.graphs.errors import CompileError
from twoheads.graphs.program.program import Input

__all__ = ["any_length"]

TOLERANCE = 1e-4
"""Relative to the largest magnitude."""


def any_length(
    graph: OnnxGraph,
    arguments: Sequence[Input],
    masks: Mapping[str, Callable[[Array], Array]],
    length: int,
    outputs: Sequence[str],
) -> OnnxGraph:
    """The graph of ``length`` tokens for any number of them.

    Args:
        graph: Its operators.
        arguments: Its inputs, with an axis in the place of the number.
        masks: By name of a mask, its array that leaves out all but some tokens, bool ``[length]``.
        length: Its number of tokens.
        outputs: What it is for.

    Raises:
        CompileError: It can't be lifted, or what was lifted is not the file at a shorter length.
    """
    source = next(entry.value for entry in arguments if entry.value.axis is not None)
    axis = source.token_axis
    assert axis is not None
    feeds = example_inputs(arguments, {str(source.axis): length}, 1)
    _require_attention(graph, feeds, length, outputs)
    lifted = lift_length(graph, source.name, axis, feeds, outputs)
    whole = graph.run(outputs, feeds, {})
    _require_same(whole, lifted.run(outputs, feeds, {}), length, length)
    for tokens in (trial_length(length), length // 2 + 1):
        real = {name: only(np.arange(length) < tokens) for name, only in masks.items()}
        own = graph.run(outputs, {**feeds, **real}, {})
        short = {
            name: array[tuple(slice(0, tokens if dim == length and at else dim) for at, dim in enumerate(array.shape))]
            for name, array in feeds.items()
        }
        _require_same(own, lifted.run(outputs, short, {}), tokens, length)
    return lifted


def _require_attention(graph: OnnxGraph, feeds: Mapping[str, Array], length: int, outputs: Sequence[str]) -> None:
    """Refuses a file for what it is before its number of tokens is looked for in its operators."""
    whole = [node for node in graph.nodes if "Attention" in node.proto.op_type]
    softmaxes = [node.proto.output[0] for node in graph.nodes if node.proto.op_type == "Softmax"]
    shapes = [array.shape for array in graph.run(softmaxes, feeds, {}).values()]
    if not whole and all(shape.count(length) < 2 for shape in shapes):
        raise CompileError(
            "model",
            f"no attention was found in it: none of its {len(shapes)} softmaxes is over pairs of its {length} tokens",
            "compile a transformer; or a model of one input size as one engine of it, --lowering whole",
        )


def _require_same(whole: Mapping[str, Array], short: Mapping[str, Array], tokens: int, length: int) -> None:
    for name, found in short.items():
        own = whole[name][tuple(slice(0, size) for size in found.shape)]
        largest = float(np.abs(own).max(initial=0.0))
        if own.shape != found.shape or not float(np.abs(own - found).max(initial=0.0)) <= TOLERANCE * largest:
            raise CompileError(
                f"output {name}",
                f"is not the file's own at {tokens} of its fixed {length} tokens: the file has no mask by which the "
                "others could be left out, or holds its number of tokens in a way that was not understood",
                "export it with a dynamic token axis, or compile the torch model",
            )
