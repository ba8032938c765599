"""Small ONNX files that hold attention as one operator, made with ``onnx.helper``."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import onnx
from onnx import helper, numpy_helper

from tools.zoo.exported_files import VOCABULARY

__all__ = ["HAND_MADE", "hand_made"]


def hand_made(operator: str, opset: int, **attributes: Any) -> onnx.ModelProto:
    """An embedding, a projection, one attention operator and a projection, as a person would write them.

    Args:
        operator: ``Attention``, ``Attention by head``, ``MultiHeadAttention`` or ``GroupQueryAttention``; the last has
            a past, as generating models do.
        opset: Of the standard operators.
        attributes: Of the attention.
    """
    return _HandMade(opset).model(operator, attributes)


class _HandMade:
    """Builds :func:`hand_made` models: 64 wide, 4 query heads, 2 key heads (4 for multi-head attention)."""

    def __init__(self, opset: int) -> None:
        self.opset = opset
        self.nodes: list[onnx.NodeProto] = []
        self.weights: list[onnx.TensorProto] = []
        self.generator = np.random.default_rng(0)

    def weight(self, name: str, *shape: int) -> str:
        array = self.generator.standard_normal(shape).astype(np.float32)
        self.weights.append(numpy_helper.from_array(array / np.float32(shape[0] ** 0.5), name))
        return name

    def constant(self, name: str, array: Any) -> str:
        self.weights.append(numpy_helper.from_array(np.asarray(array), name))
        return name

    def node(self, operator: str, *inputs: str, to: str, domain: str = "", **attributes: Any) -> str:
        outputs = [to, f"{to}_key", f"{to}_value"] if operator == "GroupQueryAttention" else [to]
        self.nodes.append(helper.make_node(operator, inputs, outputs, name=to, domain=domain, **attributes))
        return to

    def model(self, operator: str, attributes: dict[str, Any]) -> onnx.ModelProto:
        self.node("Gather", self.weight("table", VOCABULARY, 64), "input_ids", to="embedded")
        widths = {"query": 64, "key": 32, "value": 32} | (
            {"key": 64, "value": 64} if operator == "MultiHeadAttention" else {}
        )
        for name, width in widths.items():
            self.node("MatMul", "embedded", self.weight(f"{name}.weight", 64, width), to=name)
        inputs = [helper.make_tensor_value_info("input_ids", onnx.TensorProto.INT64, ["batch", "tokens"])]
        attended = getattr(self, f"_{operator.split()[0].lower()}")(operator, attributes, inputs)
        self.node("MatMul", attended, self.weight("out.weight", 64, 64), to="projected")
        self.node("Add", "embedded", "projected", to="hidden")
        result = helper.make_tensor_value_info("hidden", onnx.TensorProto.FLOAT, ["batch", "tokens", 64])
        graph = helper.make_graph(self.nodes, "hand made", inputs, [result], self.weights)
        opsets = [helper.make_opsetid("", self.opset), helper.make_opsetid("com.microsoft", 1)]
        return helper.make_model(graph, opset_imports=opsets, ir_version=10)

    def _attention(self, operator: str, attributes: dict[str, Any], inputs: list[onnx.ValueInfoProto]) -> str:
        names = ["query", "key", "value"]
        if operator == "Attention":
            return self.node("Attention", *names, to="attended", q_num_heads=4, kv_num_heads=2, **attributes)
        for name, heads in zip(names, (4, 2, 2), strict=True):
            shape = self.constant(f"{name}.shape", np.array([0, 0, heads, 16], np.int64))
            self.node("Reshape", name, shape, to=f"{name}_split")
            self.node("Transpose", f"{name}_split", to=f"{name}_heads", perm=[0, 2, 1, 3])
        self.node("Attention", *(f"{name}_heads" for name in names), to="mixed", **attributes)
        self.node("Transpose", "mixed", to="rows", perm=[0, 2, 1, 3])
        return self.node("Reshape", "rows", self.constant("width", np.array([0, 0, 64], np.int64)), to="attended")

    def _multiheadattention(self, operator: str, attributes: dict[str, Any], inputs: list[onnx.ValueInfoProto]) -> str:
        bias = self.weight("projection.bias", 192)
        names = ("query", "key", "value", bias)
        return self.node(operator, *names, to="attended", domain="com.microsoft", num_heads=4, **attributes)

    def _groupqueryattention(self, operator: str, attributes: dict[str, Any], inputs: list[onnx.ValueInfoProto]) -> str:
        inputs.append(helper.make_tensor_value_info("attention_mask", onnx.TensorProto.INT64, ["batch", "total"]))
        past = ["past_key", "past_value"]
        inputs += [helper.make_tensor_value_info(n, onnx.TensorProto.FLOAT, ["batch", 2, "past", 16]) for n in past]
        axis = self.constant("axis", np.array([1], np.int64))
        self.node("ReduceSum", "attention_mask", axis, to="real", keepdims=0)
        self.node("Sub", "real", axis, to="last")
        self.node("Shape", "attention_mask", to="mask_shape")
        self.node("Gather", "mask_shape", self.constant("second", np.array(1, np.int64)), to="length")
        counts = [self._int32(name) for name in ("last", "length")]
        angles = np.outer(np.arange(128), 0.3 ** np.arange(8)).astype(np.float32)
        caches = [self.constant(name, function(angles)) for name, function in (("cos", np.cos), ("sin", np.sin))]
        return self.node(
            operator, "query", "key", "value", *past, *counts, *caches, to="attended", domain="com.microsoft",
            num_heads=4, kv_num_heads=2, do_rotary=1, **attributes,
        )  # fmt: skip

    def _int32(self, name: str) -> str:
        self.nodes.append(helper.make_node("Cast", [name], [f"{name}_32"], to=onnx.TensorProto.INT32))
        return f"{name}_32"


HAND_MADE: Mapping[str, tuple[str, int, dict[str, Any]]] = {
    "standard 23": ("Attention", 23, {"is_causal": 1}),
    "standard 24, softcap": ("Attention by head", 24, {"softcap": 2.0, "scale": 0.4}),
    "standard 25, window": ("Attention", 25, {"is_causal": 1, "left_window_size": 4}),
    "multi-head": ("MultiHeadAttention", 17, {"unidirectional": 1}),
    "grouped, window": ("GroupQueryAttention", 17, {"local_window_size": 5, "softcap": 3.0}),
    "grouped": ("GroupQueryAttention", 21, {"rotary_interleaved": 1}),
}
"""Operator, operator set and attributes of :func:`hand_made` files."""
