"""Capture: torch.export with a symbolic token axis, normalised and read into a :class:`SourceGraph`."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence, Set
from dataclasses import replace

import torch
from torch import Tensor, fx
from torch.export import ExportedProgram

from twoheads.compiler.frontend.torch.experts_node import experts_from_fx, is_experts
from twoheads.compiler.frontend.torch.export_source import export_source
from twoheads.compiler.frontend.torch.exported_parts import (
    argument_names,
    read_outputs,
    read_program,
    require_no_chance,
    require_weights,
    tokenwise_node,
)
from twoheads.compiler.frontend.torch.fx.attach_attention import attach_attention_fx
from twoheads.compiler.frontend.torch.fx.attention_node import attention_from_fx, is_attention
from twoheads.compiler.frontend.torch.fx.axes import AxisNames
from twoheads.compiler.frontend.torch.fx.causal_convs import scan_causal_convs
from twoheads.compiler.frontend.torch.fx.fx_program import FxProgram, is_scalar
from twoheads.compiler.frontend.torch.fx.lengths_from_sizes import lengths_from_sizes
from twoheads.compiler.frontend.torch.fx.normalize import normalize_fx
from twoheads.compiler.frontend.torch.fx.positions_from_constants import positions_from_constants
from twoheads.compiler.frontend.torch.fx.scan_node import is_scan, scan_from_fx
from twoheads.compiler.frontend.torch.fx.sequence_node import is_sequence, sequence_from_fx
from twoheads.compiler.frontend.torch.fx.unfold_rows import unfold_rows
from twoheads.compiler.frontend.torch.fx.view import FxView, layer_of
from twoheads.compiler.frontend.torch.hugging_face.grouped_experts import DENSE, ExpertsChoice, grouped_gates
from twoheads.compiler.frontend.torch.lift_constant_tokens import constant_token_counts, lift_constant_tokens
from twoheads.compiler.frontend.torch.load_source import LoadedSource
from twoheads.compiler.frontend.torch.rewrites.complex_pairs import pair_complex_numbers
from twoheads.compiler.frontend.torch.rewrites.filled_buffers import concatenate_filled_buffers
from twoheads.compiler.frontend.torch.rewrites.masked_writes import select_masked_writes
from twoheads.compiler.frontend.torch.rows.normalize_sequence import normalize_sequence
from twoheads.compiler.ir.op_view import RecognisedAttention
from twoheads.compiler.ir.source_graph import (
    AttentionNode,
    ExpertsNode,
    Node,
    SequenceNode,
    SourceGraph,
    needed_nodes,
)
from twoheads.compiler.ir.source_program import Captured
from twoheads.compiler.recognition.recognise import recognise_attention
from twoheads.graphs.errors import CompileError
from twoheads.graphs.program.program import TOKENS, Input, Limit

__all__ = ["capture"]

logger = logging.getLogger(__name__)

_HALF = (torch.bfloat16, torch.float16)
_CASTS = (torch.ops.aten.to.dtype, torch.ops.aten._to_copy.default)

_AXES = "mklpqrst"
"""Names of the token axes beside ``n``, that of the last hidden states."""


def capture(source: LoadedSource, experts: ExpertsChoice = DENSE) -> Captured:
    """Captures a loaded model.

    Mixtures of ``experts`` are computed densely unless it says otherwise.

    Raises:
        CompileError: The model can't be exported, or some of its attention is not captured (layers are named).
    """
    exported = export_source(source, experts)
    arguments = argument_names(exported, source)
    graph, axes = _with_token_axes(exported, source, arguments)
    _normalize(graph, axes)
    program = read_program(exported, graph, source, axes)
    if positions_from_constants(graph, program):
        program = read_program(exported, graph, source, axes)
    found = recognise_attention(FxView(source.identity.name, program))
    recognised, bias_weights = attach_attention_fx(graph, program, found)
    operands = {name for attention in recognised.values() for name in attention.inputs}
    renamed = normalize_sequence(graph, axes.constants, operands)
    recognised = {name: _renamed(attention, renamed) for name, attention in recognised.items()}
    program = read_program(exported, graph, source, axes)
    outputs = read_outputs(exported, graph)
    nodes, extra_weights, made = _source_nodes(program, outputs, recognised)
    program = program.with_weights(bias_weights | extra_weights, made)
    source_graph = SourceGraph(
        name=source.identity.name,
        inputs=program.inputs,
        weights={name: axes.type(tensor) for name, tensor in program.weights.items()},
        nodes=nodes,
        hidden=outputs["hidden"],
        logits=outputs.get("logits"),
        max_length=_longest(exported, axes, found),
        limits=_limits(source, program.inputs),
    )
    require_no_chance(source_graph)
    _require_all_attention(source, source_graph, {name for node in nodes for name in node.inputs})
    return Captured(
        source_graph,
        program,
        source.identity,
        source.tokenizer_json,
        source.pooling,
        source.trained_length,
        source.generation_json,
        grouped_gates(source.module, experts)[1] if source.hugging_face else {},
    )


def _normalize(graph: fx.Graph, axes: AxisNames) -> None:
    """Rewrites the graph, in place, into the operators that are read from here on."""
    concatenate_filled_buffers(graph)
    select_masked_writes(graph)
    pair_complex_numbers(graph)
    normalize_fx(graph, axes)
    _widen_weights(graph)
    scan_causal_convs(graph, axes)
    unfold_rows(graph, axes)
    lengths_from_sizes(graph, axes)


def _widen_weights(graph: fx.Graph) -> None:
    """A half-precision buffer that is cast before anything else (RecurrentGemma's factor) is read as float32."""
    for node in graph.nodes:
        value = node.meta.get("val")
        half = node.op == "placeholder" and isinstance(value, Tensor) and value.dtype in _HALF
        if half and all(user.target in _CASTS for user in node.users):
            node.meta["val"] = value.float()


def _renamed(attention: AttentionNode, names: Mapping[str, str]) -> AttentionNode:
    query, key, value = (names.get(name, name) for name in attention.inputs)
    return replace(attention, query=query, key=key, value=value)


def _with_token_axes(
    exported: ExportedProgram, source: LoadedSource, arguments: Mapping[str, str]
) -> tuple[fx.Graph, AxisNames]:
    """The graph and what its shape symbols count: ``n`` is the axis of the last hidden states.

    A constant number of tokens (a vision transformer's) becomes an axis of its own.
    """
    graph, name = exported.graph_module.graph, read_outputs(exported, exported.graph_module.graph)["hidden"]
    hidden = next(node for node in graph.nodes if node.name == name)
    symbols = dict.fromkeys(_symbols(hidden.meta["val"].shape))
    dims: dict[str, tuple[int, str]] = {}
    for node in graph.nodes:
        axis = source.inputs[arguments[node.name]].token_axis if node.name in arguments else None
        if axis is None:
            continue
        found = _symbols(node.meta["val"].shape[axis : axis + 1])
        if not found:
            raise CompileError(
                source.identity.name,
                f"its code fixes the number of tokens of {arguments[node.name]} to that of the example input",
                "remove constants and branches that depend on the length",
            )
        symbols |= dict.fromkeys(found)
        dims[node.name] = axis, found[0]
    names = dict(zip(symbols, (TOKENS, *_AXES), strict=False))
    counts = constant_token_counts(graph)
    if not counts:
        return graph, AxisNames(names)
    axes = {name: (axis, names[symbol]) for name, (axis, symbol) in dims.items()}
    lifted = lift_constant_tokens(graph, counts, axes, source.identity.name)
    return lifted.graph, AxisNames(lifted.symbols)


def _symbols(sizes: Sequence[int | torch.SymInt]) -> list[str]:
    return [str(symbol) for size in sizes if not isinstance(size, int) for symbol in size.node.expr.free_symbols]


def _longest(exported: ExportedProgram, axes: AxisNames, found: Sequence[RecognisedAttention]) -> int | None:
    """The largest ``n`` that the exported guards and tables of masks admit; ``None`` if that is every practical one."""
    ranges = exported.range_constraints.items()
    bounds = [int(r.upper) for s, r in ranges if axes.symbols.get(str(s)) == TOKENS and r.upper.is_Integer]
    bounds += [attention.max_length for attention in found if attention.max_length is not None]
    return min((bound for bound in bounds if bound < 1 << 40), default=None)


def _limits(source: LoadedSource, inputs: Sequence[Input]) -> tuple[Limit, ...]:
    """The end of what the graph stands for, along the tokens of the model's first argument."""
    if source.dense is None:
        return ()
    axes = {entry.value.name: entry.value.axis for entry in inputs}
    return (replace(source.dense, axis=axes.get(next(iter(source.inputs))) or TOKENS),)


def _source_nodes(
    program: FxProgram, outputs: Mapping[str, str], recognised: Mapping[str, AttentionNode]
) -> tuple[tuple[Node, ...], dict[str, Tensor], dict[str, str]]:
    """Every node that an output needs; what only makes masks and biases is folded into attention nodes.

    With them the weights of their own that nodes have, and those of scans by the nodes that compute them.
    """
    nodes: dict[str, Node] = {}
    extra_weights: dict[str, Tensor] = {}
    made: dict[str, str] = {}
    for name, node in program.nodes.items():
        if node.op != "call_function" or is_scalar(node):
            continue
        if name in recognised:
            nodes[name] = recognised[name]
        elif is_attention(node):
            nodes[name], biases = attention_from_fx(program, node, layer_of(node))
            extra_weights.update(biases)
        elif is_scan(node):
            nodes[name], computed = scan_from_fx(program, node, layer_of(node))
            made |= {place: weight for place, (weight, _) in computed.items()}
            extra_weights.update(computed.values())
        elif is_experts(node):
            nodes[name] = experts_from_fx(program, node, layer_of(node))
        elif is_sequence(node):
            nodes[name] = sequence_from_fx(program, node, layer_of(node))
        else:
            nodes[name] = tokenwise_node(program, node)
    return needed_nodes(nodes.values(), outputs.values()), extra_weights, made


def _require_all_attention(source: LoadedSource, graph: SourceGraph, used: Set[str]) -> None:
    """Refuses a model some of whose attention lies outside of the graph, or whose files lack a weight ``used`` in it.

    Raises:
        CompileError: Names layers or a weight.
    """
    require_weights(source, used)
    captured = [node.layer for node in graph.cuts if not isinstance(node, SequenceNode | ExpertsNode)]
    if len(captured) >= max(1, source.layers):
        return
    suspects = [
        name
        for name, module in source.module.named_modules()
        if "attention" in type(module).__name__.lower()
        and not any(layer.startswith(name) or name.startswith(layer) for layer in captured if layer)
    ]
    named = ", ".join(suspects[:8]) + (", ..." if len(suspects) > 8 else "")
    raise CompileError(
        source.identity.name,
        f"{len(captured)} of {max(1, source.layers)} attention layers were captured; "
        f"not captured: {named or 'no layer found'}",
        f"{source.identity.architecture} computes attention in its own way; use one that calls "
        "scaled_dot_product_attention, transformers' attention interface or twoheads.compiler.attention",
    )
