"""Writes out every attention that an ONNX file holds as one operator: the standard's and those of ONNX Runtime.

Operands and attributes are read by each operator's specification (ONNX ``Attention`` 23 to 25; the contrib operators
``Attention``, ``MultiHeadAttention``, ``GroupQueryAttention`` and ``RotaryEmbedding``). Past keys and values must be
empty: a block program has the whole input before it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from twoheads.compiler.frontend.onnx.model.graph import OnnxGraph, OnnxNode
from twoheads.compiler.frontend.onnx.passes.spell_attention import AttentionCall, Spelling
from twoheads.compiler.frontend.onnx.passes.spell_rotary import Rotary, rotate
from twoheads.compiler.ir.source_graph import TensorType
from twoheads.graphs.errors import CompileError

__all__ = ["expand_attention"]

NO_PAST = "export without past keys and values (use_cache=False)"
FLOAT_MODEL = "export the model before it is optimised for one runtime"


def expand_attention(graph: OnnxGraph, types: Mapping[str, TensorType]) -> OnnxGraph:
    """The graph with every attention operator written out; the same graph if there is none.

    Args:
        graph: After folding, so that empty pasts are weights.
        types: Of every value.

    Raises:
        CompileError: An operator uses what has no equivalent, e.g. a past that is not empty.
    """
    nodes: list[OnnxNode] = []
    weights = dict(graph.weights)
    for node in graph.nodes:
        key = (node.proto.domain, node.proto.op_type)
        if key in _READERS:
            call = Call(node, types, Spelling(node.outputs[0], node.layer))
            _READERS[key](call)
            nodes.extend(call.spelling.nodes)
            weights |= call.spelling.weights
        elif "Attention" in key[1]:
            raise CompileError(node.place, f"{key[1]} is an attention that is not read", FLOAT_MODEL)
        else:
            nodes.append(node)
    return graph if len(weights) == len(graph.weights) else replace(graph, nodes=tuple(nodes), weights=weights)


@dataclass(frozen=True, slots=True)
class Call:
    """An operator that is being read."""

    node: OnnxNode
    types: Mapping[str, TensorType]
    spelling: Spelling

    @property
    def attributes(self) -> Mapping[str, Any]:
        return self.node.attributes

    def operand(self, at: int) -> str | None:
        """Name of an operand, ``None`` if it is left out."""
        names = self.node.proto.input
        return names[at] if at < len(names) and names[at] else None

    def required(self, at: int) -> str:
        """Name of an operand that must be there."""
        name = self.operand(at)
        if name is None:
            raise self.refused(f"lacks its operand {at}", "export the model again")
        return name

    def shape(self, name: str) -> tuple[int | str, ...]:
        """Shape of a value."""
        return self.types[name].shape

    def size(self, name: str, axis: int) -> int:
        """A size that is a number."""
        size = self.shape(name)[axis]
        if not isinstance(size, int):
            raise self.refused(f"has the shape {self.types[name]} at {name!r}", "export with fixed widths")
        return size

    def refused(self, problem: str, remedy: str = FLOAT_MODEL) -> CompileError:
        """The error that names this operator."""
        return CompileError(self.node.place, f"{self.node.proto.op_type} {problem}", remedy)

    def refuse(self, *places: int, remedy: str = FLOAT_MODEL) -> None:
        """Refuses operands that nothing is made of."""
        for at in places:
            if self.operand(at) is not None:
                raise self.refused(f"has the operand {self.operand(at)!r} in place {at}: not supported", remedy)

    def refuse_past(self, *places: int) -> None:
        """Refuses past keys and values that hold something."""
        for at in places:
            name = self.operand(at)
            if name is not None and 0 not in self.shape(name):
                raise self.refused(f"has a past, {name!r}", NO_PAST)

    def scale(self, depth: int) -> float:
        """The factor of the scores."""
        return float(self.attributes.get("scale", 0.0)) or depth**-0.5

    def present(self, names: Mapping[int, str]) -> None:
        """Keys and values that the operator hands out beside its result."""
        outputs = self.node.proto.output
        for at, name in enumerate(outputs):
            if at and name and at not in names:
                raise self.refused(f"hands out its scores as {name!r}", "leave attention probabilities out")
            if at and name:
                self.spelling.add("Identity", names[at], result=name)

    def biases(self, *places: int) -> tuple[str, ...]:
        """Operands that are added to the scores."""
        return tuple(name for at in places if (name := self.operand(at)) is not None)


def _standard(call: Call) -> None:
    """``Attention`` of the standard's operator sets 23 to 25."""
    call.refuse(6, remedy=NO_PAST)
    call.refuse_past(4, 5)
    query, key, value = (call.required(at) for at in range(3))
    merged = len(call.shape(query)) == 3
    heads = (call.attributes.get("q_num_heads", 0), call.attributes.get("kv_num_heads", 0))
    if merged:
        depth, v_depth = call.size(query, 2) // heads[0], call.size(value, 2) // heads[1]
        query = call.spelling.by_head(query, heads[0], depth)
        key, value = call.spelling.by_head(key, heads[1], depth), call.spelling.by_head(value, heads[1], v_depth)
    else:
        heads = (call.size(query, 1), call.size(key, 1))
        depth, v_depth = call.size(query, 3), call.size(value, 3)
    mask = call.operand(3)
    boolean = mask is not None and call.types[mask].dtype == "bool"
    found = AttentionCall(
        query, key, value, heads, v_depth,
        scale=call.scale(depth),
        softcap=call.attributes.get("softcap", 0.0),
        causal=bool(call.attributes.get("is_causal", 0)),
        left=call.attributes.get("left_window_size", -1),
        right=call.attributes.get("right_window_size", -1),
        masks=(mask,) if mask is not None and boolean else (),
        biases=(mask,) if mask is not None and not boolean else (),
        merged=merged,
    )  # fmt: skip
    call.spelling.attention(found, call.node.proto.output[0])
    call.present({1: key, 2: value})


def _multi_head(call: Call) -> None:
    """``MultiHeadAttention`` of ONNX Runtime, which runs packed operands on GPUs only."""
    call.refuse(8, 9, remedy=NO_PAST)
    call.refuse_past(6, 7)
    spelling, heads = call.spelling, int(call.attributes["num_heads"])
    names = [call.required(at) for at in range(3)]
    rows = [len(call.shape(name)) == 3 for name in names]
    depths = [call.size(name, -1) // (heads if merged else 1) for name, merged in zip(names, rows, strict=True)]
    bias = call.operand(3)
    if bias is not None:
        parts = [f"{spelling.prefix}.bias_{at}" for at in range(3)]
        spelling.split("Split", bias, spelling.integers(*(heads * d for d in depths)), results=parts, axis=0)
        # Keys and values that come by head are an encoder's, which had its bias already.
        names = [spelling.add("Add", n, b) if r else n for n, b, r in zip(names, parts, rows, strict=True)]
    query, key, value = (
        spelling.by_head(name, heads, depth) if merged else name
        for name, depth, merged in zip(names, depths, rows, strict=True)
    )
    found = AttentionCall(
        query, key, value, (heads, heads), depths[2],
        scale=call.scale(depths[0]),
        causal=bool(call.attributes.get("unidirectional", 0)),
        masks=_padding_mask(call, 4, key),
        biases=call.biases(5),
    )  # fmt: skip
    spelling.attention(found, call.node.proto.output[0])
    call.present({1: key, 2: value})


def _padding_mask(call: Call, at: int, key: str) -> tuple[str, ...]:
    """A mask of padding in any of the layouts: ``[1]`` tokens, or 1 where ``[1, m]`` or ``[1, n, m]`` holds a token."""
    name = call.operand(at)
    if name is None:
        return ()
    spelling, shape = call.spelling, call.shape(name)
    if shape == (1,):
        length = spelling.add("Cast", name, to=7)
        return (spelling.add("Less", spelling.count(key, 2), length),)
    if len(shape) not in (2, 3) or shape[0] != 1:
        raise call.refused(f"has a padding mask of shape {call.types[name]}")
    mask = spelling.add("Cast", name, to=9)
    return (spelling.add("Unsqueeze", mask, spelling.integers(*((1, 2) if len(shape) == 2 else (1,)))),)


def _fused_projection(call: Call) -> None:
    """``Attention`` of ONNX Runtime, which projects its input first."""
    call.refuse(6, remedy=NO_PAST)
    call.refuse_past(4)
    if call.attributes.get("do_rotary", 0):
        raise call.refused("rotates its queries and keys by built-in angles")
    spelling, heads = call.spelling, int(call.attributes["num_heads"])
    projected = spelling.add("MatMul", call.required(0), call.required(1))
    bias = call.operand(2)
    if bias is not None:
        projected = spelling.add("Add", projected, bias)
    third = call.size(call.required(1), 1) // 3
    widths = [int(width) for width in call.attributes.get("qkv_hidden_sizes", ())] or [third] * 3
    parts = [f"{spelling.prefix}.part_{at}" for at in range(3)]
    spelling.split("Split", projected, spelling.integers(*widths), results=parts, axis=2)
    query, key, value = (
        spelling.by_head(part, heads, width // heads) for part, width in zip(parts, widths, strict=True)
    )
    found = AttentionCall(
        query, key, value, (heads, heads), widths[2] // heads,
        scale=call.scale(widths[0] // heads),
        causal=bool(call.attributes.get("unidirectional", 0)),
        masks=_padding_mask(call, 3, key),
        biases=call.biases(5),
    )  # fmt: skip
    spelling.attention(found, call.node.proto.output[0])
    call.present({})


def _grouped(call: Call) -> None:
    """``GroupQueryAttention`` of ONNX Runtime."""
    call.refuse(12, 13, 14, 15, 16)
    call.refuse_past(3, 4)
    if call.attributes.get("sliding_window_cache", 0):
        raise call.refused("keeps a window of past keys and values", NO_PAST)
    spelling, heads = call.spelling, (int(call.attributes["num_heads"]), int(call.attributes["kv_num_heads"]))
    query, key, value = (call.required(0), call.operand(1), call.operand(2))
    depth = call.size(query, 2) // (heads[0] if key else heads[0] + 2 * heads[1])
    if key is None or value is None:
        parts = [f"{spelling.prefix}.part_{at}" for at in range(3)]
        widths = spelling.integers(heads[0] * depth, heads[1] * depth, heads[1] * depth)
        query, key, value = spelling.split("Split", query, widths, results=parts, axis=2)
    query, key, value = (
        spelling.by_head(name, count, depth)
        for name, count in zip((query, key, value), (heads[0], heads[1], heads[1]), strict=True)
    )
    if call.attributes.get("do_rotary", 0):
        query, key = _rotated(call, query, heads[0], depth), _rotated(call, key, heads[1], depth)
    window = int(call.attributes.get("local_window_size", -1))
    found = AttentionCall(
        query, key, value, heads, depth,
        scale=call.scale(depth),
        softcap=call.attributes.get("softcap", 0.0),
        causal=bool(call.attributes.get("causal", 1)),
        left=window - 1 if window > 0 else -1,
        biases=call.biases(10),
        sinks=_sinks(call, heads[0]),
    )  # fmt: skip
    spelling.attention(found, call.node.proto.output[0])
    call.present({1: key, 2: value})


def _sinks(call: Call, heads: int) -> str | None:
    """Learned sinks; a smooth softmax has sinks of 0."""
    if call.operand(11) is None and call.attributes.get("smooth_softmax", 0) == 1:
        return call.spelling.constant(np.zeros(heads, np.float32))
    return call.operand(11)


def _rotated(call: Call, name: str, heads: int, depth: int) -> str:
    """Rotary embedding by positions 0, 1, ...: where the operator starts without a past."""
    positions = call.spelling.count(name, 2)
    cos, sin = (call.spelling.add("Gather", call.required(at), positions, axis=0) for at in (7, 8))
    rotary = Rotary(cos, sin, 2 * call.size(call.required(7), 1), bool(call.attributes.get("rotary_interleaved", 0)))
    return rotate(call.spelling, name, rotary, heads, depth)


def _rotary(call: Call) -> None:
    """``RotaryEmbedding`` of ONNX Runtime."""
    spelling, value, given = call.spelling, call.required(0), call.attributes
    half = call.size(call.required(2), 1)
    by_head = len(call.shape(value)) == 4
    # With rows of all heads, the caches are as wide as a head unless only a part of it is rotated.
    depth = call.size(value, 3) if by_head else 2 * half
    if not by_head and given.get("rotary_embedding_dim", 0):
        depth = call.size(value, 2) // int(given["num_heads"])
    heads = call.size(value, 1) if by_head else call.size(value, 2) // depth
    if call.shape(call.required(1)) == (1,):
        rows = value if by_head else spelling.by_head(value, heads, depth)
        positions = spelling.add("Add", spelling.count(rows, 2), call.required(1))
    else:
        positions = spelling.add("Squeeze", call.required(1), spelling.integers(0))
    cos, sin = (spelling.add("Gather", call.required(at), positions, axis=0) for at in (2, 3))
    if by_head:
        turned = rotate(spelling, value, Rotary(cos, sin, 2 * half, bool(given.get("interleaved", 0))), heads, depth)
        spelling.add("Identity", turned, result=call.node.proto.output[0])
        return
    rows = spelling.by_head(value, heads, depth)
    turned = rotate(spelling, rows, Rotary(cos, sin, 2 * half, bool(given.get("interleaved", 0))), heads, depth)
    back = spelling.add("Transpose", turned, perm=[0, 2, 1, 3])
    spelling.add("Reshape", back, spelling.integers(1, -1, heads * depth), result=call.node.proto.output[0])


_READERS: Mapping[tuple[str, str], Callable[[Call], None]] = {
    ("", "Attention"): _standard,
    ("com.microsoft", "Attention"): _fused_projection,
    ("com.microsoft", "MultiHeadAttention"): _multi_head,
    ("com.microsoft", "GroupQueryAttention"): _grouped,
    ("com.microsoft", "RotaryEmbedding"): _rotary,
}
