"""Capture of an ONNX file: its operators, read into a :class:`SourceGraph` without knowing who wrote it."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
from onnx import helper

from twoheads.compiler.frontend.generation_facts import folder_facts
from twoheads.compiler.frontend.onnx.attach_attention import attach_attention
from twoheads.compiler.frontend.onnx.bind_inputs import Bound, bind_inputs, fixed_tokens
from twoheads.compiler.frontend.onnx.choose_outputs import choose_outputs, model_outputs
from twoheads.compiler.frontend.onnx.lifts.prove_lift import any_length
from twoheads.compiler.frontend.onnx.model.graph import OnnxGraph, OnnxNode
from twoheads.compiler.frontend.onnx.model.read_file import OnnxFile, read_onnx
from twoheads.compiler.frontend.onnx.onnx_program import OnnxProgram
from twoheads.compiler.frontend.onnx.passes.dequantise import dequantise
from twoheads.compiler.frontend.onnx.passes.dynamic_scales import QUANTISED, spell_dynamic_scales
from twoheads.compiler.frontend.onnx.passes.expand_attention import expand_attention
from twoheads.compiler.frontend.onnx.passes.expand_contrib import expand_contrib
from twoheads.compiler.frontend.onnx.passes.fold import fold_onnx, graph_of
from twoheads.compiler.frontend.onnx.passes.measure import measure_onnx
from twoheads.compiler.frontend.onnx.passes.resolve_lengths import resolve_lengths
from twoheads.compiler.frontend.onnx.passes.split_heads import split_heads
from twoheads.compiler.frontend.onnx.sequence_node import sequence_from_onnx
from twoheads.compiler.frontend.onnx.source_nodes import VIEWS, source_nodes
from twoheads.compiler.frontend.onnx.spell_convolutions import spell_convolutions
from twoheads.compiler.frontend.onnx.view import OnnxView
from twoheads.compiler.ir.source_graph import SourceGraph, TensorType, needed_nodes
from twoheads.compiler.ir.source_program import Captured, example_inputs
from twoheads.compiler.recognition.recognise import recognise_attention
from twoheads.graphs.errors import CompileError
from twoheads.graphs.program.program import Input

__all__ = ["capture_onnx", "lifted_graph", "onnx_program", "spelled_out"]

logger = logging.getLogger(__name__)

RESOLVED_DIFFERENCE = 1e-5
"""Relative; what resolving may change: nothing but the order of additions inside ONNX Runtime."""


def capture_onnx(path: str | Path, outputs: Sequence[str] = (), masks: Mapping[str, str] | None = None) -> Captured:
    """Captures the model of a file.

    Args:
        path: The file.
        outputs: The file's names of its last hidden states and, optionally, of its logits; chosen by default.
        masks: What its masks of queries and keys hold, by input.

    Raises:
        CompileError: The file or something in it can't be compiled; the node and its layer are named.
    """
    file = read_onnx(path)
    program = onnx_program(file, masks=masks)
    names = model_outputs(file, outputs)
    found = recognise_attention(OnnxView(file.identity.name, program, tuple(names)))
    if not found:
        raise _without_attention(path, program)
    limits = [attention.max_length for attention in found if attention.max_length is not None]
    program, attentions = attach_attention(program, found)
    program = _with_named_weights(program)
    nodes = source_nodes(program, attentions)
    chosen = choose_outputs(names, program, nodes, outputs)
    graph = SourceGraph(
        name=file.identity.name,
        inputs=program.inputs,
        weights={name: program.types[name] for name in program.weights},
        nodes=needed_nodes(nodes, [chosen.hidden, *([chosen.logits] if chosen.logits else [])]),
        hidden=chosen.hidden,
        logits=chosen.logits,
        max_length=min(limits, default=None),
    )
    return Captured(
        graph,
        program,
        file.identity,
        _tokenizer_beside(file.path),
        generation_json=_facts_beside(file.path),
        left_out=chosen.left_out,
    )


def _facts_beside(path: Path) -> bytes | None:
    """What the file's folder, or the one above a folder ``onnx``, says about generating."""
    folders = (path.parent, path.parent.parent) if path.parent.name == "onnx" else (path.parent,)
    return next((facts for folder in folders if (facts := folder_facts(folder)) is not None), None)


def _tokenizer_beside(path: Path) -> bytes | None:
    """The ``tokenizer.json`` in the file's folder, or in the one above a folder ``onnx``, where exporters put it."""
    folders = [path.parent, *([path.parent.parent] if path.parent.name == "onnx" else [])]
    found = next((folder / "tokenizer.json" for folder in folders if (folder / "tokenizer.json").is_file()), None)
    return None if found is None else found.read_bytes()


def _without_attention(path: str | Path, program: OnnxProgram) -> CompileError:
    softmax = any("Softmax" in node.proto.op_type for node in program.graph.nodes)
    if softmax and all(entry.value.axis is None for entry in program.inputs):
        return fixed_tokens(str(path), program.inputs)
    kind = "" if softmax else ": it computes no softmax, as a convolutional or fully connected network"
    fix = "compile a transformer; or a model of one input size as one engine of it, --lowering whole"
    return CompileError(str(path), f"no attention was found in it{kind}", fix)


def onnx_program(file: OnnxFile, outputs: Sequence[str] = (), masks: Mapping[str, str] | None = None) -> OnnxProgram:
    """The file's computation of ``outputs`` (by default: all that are no caches), its length arithmetic resolved."""
    bound = bind_inputs(file, masks)
    wanted = list(model_outputs(file, outputs))
    where = str(file.path)
    graph = lifted_graph(bound, graph_of(bound.file.opsets, bound.file.nodes, bound.file.weights, wanted), wanted)
    graph = spelled_out(graph, bound.arguments, wanted, where)
    # Tables are found where ONNX Runtime's fused look-ups are spelled out.
    arguments = tuple(replace(entry, limit=_limit(graph, entry.value.name)) for entry in bound.arguments)
    measured = measure_onnx(graph, arguments, wanted, where)
    by_head = split_heads(graph, measured.types, arguments, wanted)
    if by_head is not graph:
        graph, measured = by_head, measure_onnx(by_head, arguments, wanted, where)
    resolved = resolve_lengths(graph, measured, wanted)
    inputs = (*arguments, *resolved.inputs)
    types = dict(measure_onnx(resolved.graph, inputs, wanted, where).types)
    types |= {entry.value.name: TensorType(entry.value.dtype, entry.value.shape) for entry in inputs}
    types |= {name: TensorType(_dtype(array.dtype), array.shape) for name, array in resolved.graph.weights.items()}
    _check_resolved(graph, resolved.graph, inputs, wanted, measured.runs)
    return OnnxProgram(resolved.graph, inputs, types)


def lifted_graph(bound: Bound, graph: OnnxGraph, outputs: Sequence[str]) -> OnnxGraph:
    """The graph folded, and for any number of tokens where the file has a fixed one."""
    if bound.fixed is None:
        return fold_onnx(graph, outputs)
    masks = {name: filled.only for name, filled in bound.masks.items()}
    return fold_onnx(any_length(graph, bound.arguments, masks, bound.fixed, outputs), outputs)


def spelled_out(graph: OnnxGraph, arguments: Sequence[Input], outputs: Sequence[str], where: str) -> OnnxGraph:
    """The graph in standard operators; the same graph if it is already."""
    special = {"Attention", "Conv", "SimplifiedLayerNormalization", *QUANTISED}
    if all(not node.proto.domain and node.proto.op_type not in special for node in graph.nodes):
        return graph
    graph = dequantise(graph)
    types = measure_onnx(graph, arguments, outputs, where).types
    graph = expand_attention(spell_dynamic_scales(graph, types), types)
    graph = fold_onnx(expand_contrib(graph, types), outputs)
    if all(node.proto.op_type != "Conv" for node in graph.nodes):
        return graph
    return fold_onnx(spell_convolutions(graph, measure_onnx(graph, arguments, outputs, where).types), outputs)


def _dtype(dtype: np.dtype[np.generic]) -> str:
    return "float32" if dtype.name in ("float16", "bfloat16") else dtype.name


def _check_resolved(
    before: OnnxGraph,
    after: OnnxGraph,
    inputs: Sequence[Input],
    wanted: Sequence[str],
    runs: Sequence[Mapping[str, int]],
) -> None:
    """Both graphs give the same at a length that was measured and at one that was not."""
    other = {name: length + 8 for name, length in runs[0].items()}
    for lengths in (runs[1], other):
        feeds = example_inputs(inputs, lengths, 7)
        expected, got = before.run(wanted, feeds, lengths), after.run(wanted, feeds, lengths)
        for name in wanted:
            magnitude = float(np.abs(expected[name]).max(initial=0.0))
            same = expected[name].shape == got[name].shape
            if not same or not np.allclose(expected[name], got[name], rtol=0, atol=RESOLVED_DIFFERENCE * magnitude):
                raise CompileError(
                    f"output {name}",
                    "depends on the length in a way that was not understood",
                    "export with dynamic shapes and without branches on the length",
                )


def _limit(graph: OnnxGraph, name: str) -> int | None:
    """Rows of the smallest table that is indexed by the input itself or by a view of it."""
    views, limits = {name}, list[int]()
    for node in graph.nodes:
        operator, inputs = node.proto.op_type, node.proto.input
        if operator in (*VIEWS, "Cast") and inputs[0] in views:
            views.update(node.outputs)
        elif operator == "Gather" and inputs[1] in views and inputs[0] in graph.weights:
            limits.append(graph.weights[inputs[0]].shape[node.attributes.get("axis", 0)])
    return min(limits, default=None)


def _with_named_weights(program: OnnxProgram) -> OnnxProgram:
    """A weight that rows are moved of (a CLS token) becomes a value: an identity that a region computes."""
    nodes: list[OnnxNode] = []
    types = dict(program.types)
    for node in program.graph.nodes:
        found = sequence_from_onnx(node, types)
        plain = [name for name in found.inputs if name in program.weights] if found else []
        if not plain:
            nodes.append(node)
            continue
        values = {name: f"{node.outputs[0]}.{name}" for name in plain}
        for name, value in values.items():
            nodes.append(OnnxNode(helper.make_node("Identity", [name], [value]), node.layer))
            types[value] = types[name]
        nodes.append(node.renamed(values, {}))
    return replace(program, graph=replace(program.graph, nodes=tuple(nodes)), types=types)
