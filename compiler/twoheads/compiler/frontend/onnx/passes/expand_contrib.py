"""Writes out ONNX Runtime's own operators by standard ones, so that engines run anywhere.

Optimisers fuse a residual sum with its norm, a bias with its activation, a transpose with its product. Each is undone
by its definition; what a runtime can fuse it will fuse again. Attention operators are written out elsewhere.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from math import pi, sqrt
from typing import Any

import numpy as np
from onnx import helper

from twoheads.compiler.frontend.onnx.model.graph import OnnxGraph, OnnxNode
from twoheads.compiler.frontend.onnx.model.read_file import Array
from twoheads.compiler.ir.source_graph import TensorType
from twoheads.graphs.errors import CompileError

__all__ = ["expand_contrib"]

AXES_ARE_OPERANDS = 18
"""The operator set since which ``ReduceMean`` takes its axes as an operand."""

ATTENTIONS = (
    "Attention",
    "MultiHeadAttention",
    "GroupQueryAttention",
    "RotaryEmbedding",
    "DecoderMaskedMultiHeadAttention",
)


def expand_contrib(graph: OnnxGraph, types: Mapping[str, TensorType]) -> OnnxGraph:
    """The graph in standard operators, attention aside; the same graph if it is already.

    Args:
        graph: What to rewrite.
        types: Of its values.

    Raises:
        CompileError: An operator of ONNX Runtime has no definition here.
    """
    nodes: list[OnnxNode] = []
    for node in graph.nodes:
        writer = _WRITERS.get(node.proto.op_type)
        own = node.proto.domain == "com.microsoft" or node.proto.op_type == "SimplifiedLayerNormalization"
        if own and writer is not None:
            call = _Call(node, types, graph.opsets[""])
            writer(call)
            nodes.extend(call.nodes)
        elif own and node.proto.op_type not in ATTENTIONS:
            raise CompileError(
                node.place,
                f"{node.proto.op_type} is an operator of ONNX Runtime that is not known",
                "export the model before it is optimised for one runtime",
            )
        else:
            nodes.append(node)
    same = len(nodes) == len(graph.nodes) and all(new is old for new, old in zip(nodes, graph.nodes, strict=True))
    return graph if same else replace(graph, nodes=tuple(nodes))


@dataclass(frozen=True, slots=True)
class _Call:
    """An operator that is being written out, and what it becomes."""

    node: OnnxNode
    types: Mapping[str, TensorType]
    opset: int
    nodes: list[OnnxNode] = field(default_factory=list[OnnxNode])

    @property
    def attributes(self) -> dict[str, Any]:
        return self.node.attributes

    def operand(self, at: int) -> str | None:
        """Name of an operand; ``None`` if it is left out."""
        names = self.node.proto.input
        return names[at] or None if at < len(names) else None

    def required(self, at: int) -> str:
        """Name of an operand that must be there."""
        name = self.operand(at)
        if name is None:
            raise CompileError(f'node "{self.node.outputs[0]}"', f"lacks its operand {at}", "export the model again")
        return name

    def result(self, at: int = 0) -> str | None:
        """Name of a result that is read; ``None`` otherwise."""
        names = self.node.proto.output
        return names[at] or None if at < len(names) else None

    def add(self, operator: str, *operands: str | float | Array, to: str | None = None, **attributes: Any) -> str:
        """Appends an operator; numbers and arrays among its operands become its own constants."""
        name = to or f"{self.node.outputs[0]}.{operator.lower()}_{len(self.nodes)}"
        names = [operand if isinstance(operand, str) else "constant" for operand in operands]
        constants = {
            at: np.asarray(operand, np.float32 if isinstance(operand, float) else None)
            for at, operand in enumerate(operands)
            if not isinstance(operand, str)
        }
        proto = helper.make_node(operator, names, [name], **attributes)
        self.nodes.append(OnnxNode(proto, self.node.layer, constants=constants))
        return name

    def cast(self, value: str, dtype: type[np.generic], to: str | None) -> None:
        """Appends a cast to ``dtype`` that is called ``to``."""
        kind = helper.np_dtype_to_tensor_dtype(np.dtype(dtype))
        self.nodes.append(
            OnnxNode(helper.make_node("Cast", [value], [to or f"{value}.cast"], to=kind), self.node.layer)
        )

    def sum_of(self, *operands: str | None, to: str | None = None) -> str:
        """The sum of those operands that are there, under a name of its own."""
        names = [name for name in operands if name is not None]
        total = names[0]
        for at, name in enumerate(names[1:], start=2):
            total = self.add("Add", total, name, to=to if at == len(names) else None)
        return total if len(names) > 1 or to is None else self.add("Identity", total, to=to)


def _mean(call: _Call, value: str) -> str:
    if call.opset >= AXES_ARE_OPERANDS:
        return call.add("ReduceMean", value, np.array([-1], np.int64), keepdims=1)
    return call.add("ReduceMean", value, axes=[-1], keepdims=1)


def _normalised(
    call: _Call, value: str, epsilon: float, to: str | None, *, centred: bool, scale: str, bias: str | None
) -> None:
    """A layer norm (``centred``) or an RMS norm over the last axis."""
    if centred:
        value = call.add("Sub", value, _mean(call, value))
    square = _mean(call, call.add("Mul", value, value))
    root = call.add("Sqrt", call.add("Add", square, float(epsilon)))
    unit = call.add("Div", value, root)
    if bias is None:
        call.add("Mul", unit, scale, to=to)
    else:
        call.add("Add", call.add("Mul", unit, scale), bias, to=to)


def _simplified_norm(call: _Call) -> None:
    if call.attributes.get("axis", -1) not in (-1, len(call.types[call.required(0)].shape) - 1):
        raise CompileError(f'node "{call.node.outputs[0]}"', "normalises over several axes", "normalise the last axis")
    epsilon = call.attributes.get("epsilon", 1e-5)
    _normalised(call, call.required(0), epsilon, call.result(), centred=False, scale=call.required(1), bias=None)


def _skip_norm(call: _Call) -> None:
    total = call.sum_of(call.required(0), call.required(1), call.operand(4), to=call.result(3))
    epsilon = call.attributes.get("epsilon", 1e-12)
    _normalised(call, total, epsilon, call.result(), centred=True, scale=call.required(2), bias=call.operand(3))


def _skip_simplified_norm(call: _Call) -> None:
    total = call.sum_of(call.required(0), call.required(1), call.operand(3), to=call.result(3))
    epsilon = call.attributes.get("epsilon", 1e-12)
    _normalised(call, total, epsilon, call.result(), centred=False, scale=call.required(2), bias=None)


def _embed_norm(call: _Call) -> None:
    """Word, position and segment embeddings, summed and normalised; the second result counts the mask."""
    ids, segments, positions = call.required(0), call.operand(1), call.operand(8)
    sizes = call.add("Shape", ids)
    length = call.add("Gather", sizes, np.array(1, np.int64))
    if positions is None:
        positions = call.add("Range", np.array(0, np.int64), length, np.array(1, np.int64))
    parts = [call.add("Gather", call.required(2), ids), call.add("Gather", call.required(3), positions)]
    if segments is not None:
        parts.append(call.add("Gather", call.required(4), segments))
    total = call.sum_of(*parts, to=call.result(2))
    epsilon = call.attributes.get("epsilon", 1e-12)
    _normalised(call, total, epsilon, call.result(), centred=True, scale=call.required(5), bias=call.required(6))
    if call.result(1):
        if call.operand(7) is None:  # without a mask the operator says 0
            length = call.add("Mul", length, np.array(0, np.int64))
        number = call.add("Unsqueeze", length, np.array([0], np.int64))
        call.cast(number, np.int32, call.result(1))


def _fused_product(call: _Call) -> None:
    given = call.attributes
    if given.get("transBatchA") or given.get("transBatchB"):
        raise CompileError(f'node "{call.node.outputs[0]}"', "transposes a batch", "export before optimising")
    operands = [
        _transposed(call, call.required(at)) if given.get(flag) else call.required(at)
        for at, flag in enumerate(("transA", "transB"))
    ]
    alpha = float(given.get("alpha", 1.0))
    if alpha == 1.0:
        call.add("MatMul", *operands, to=call.result())
    else:
        call.add("Mul", call.add("MatMul", *operands), alpha, to=call.result())


def _transposed(call: _Call, name: str) -> str:
    rank = len(call.types[name].shape)
    return call.add("Transpose", name, perm=[*range(rank - 2), rank - 1, rank - 2])


def _fused_gemm(call: _Call) -> None:
    given = call.attributes
    activation = given.pop("activation").decode()
    extras = {key.removeprefix("activation_"): given.pop(key) for key in list(given) if key.startswith("activation_")}
    operands = [name for at in range(3) if (name := call.operand(at)) is not None]
    product = call.add("Gemm", *operands, **given)
    call.add(activation, product, to=call.result(), **extras)


def _gelu(call: _Call) -> None:
    value = call.sum_of(call.required(0), call.operand(1))
    gate = call.add("Add", call.add("Erf", call.add("Mul", value, 1 / sqrt(2))), 1.0)
    call.add("Mul", call.add("Mul", value, 0.5), gate, to=call.result())


def _fast_gelu(call: _Call) -> None:
    value = call.sum_of(call.required(0), call.operand(1))
    cube = call.add("Mul", call.add("Mul", value, value), value)
    inner = call.add("Mul", call.add("Add", call.add("Mul", cube, 0.044715), value), sqrt(2 / pi))
    gate = call.add("Add", call.add("Tanh", inner), 1.0)
    call.add("Mul", call.add("Mul", value, 0.5), gate, to=call.result())


def _quick_gelu(call: _Call) -> None:
    value = call.required(0)
    gate = call.add("Sigmoid", call.add("Mul", value, float(call.attributes.get("alpha", 1.702))))
    call.add("Mul", value, gate, to=call.result())


_WRITERS: Mapping[str, Callable[[_Call], None]] = {
    "SimplifiedLayerNormalization": _simplified_norm,
    "SkipLayerNormalization": _skip_norm,
    "SkipSimplifiedLayerNormalization": _skip_simplified_norm,
    "EmbedLayerNormalization": _embed_norm,
    "FusedMatMul": _fused_product,
    "FusedGemm": _fused_gemm,
    "Gelu": _gelu,
    "BiasGelu": _gelu,
    "FastGelu": _fast_gelu,
    "QuickGelu": _quick_gelu,
}
