"""The engines of experts as ONNX: two products, the gate between them, and the sum over earlier experts.

Products with quantised weights compute in float32: kernels that round the other operand pack a constant weight, and
here weights are inputs.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import onnx

from twoheads.export.emit.graph_builder import DOMAIN, FLOAT32_LEVEL, OPSET, QUANTISED_PRODUCT, GraphBuilder
from twoheads.graphs.program.engines.experts import ExpertsEngine
from twoheads.graphs.program.engines.quantised import QUANTISATION_BLOCK

__all__ = ["experts_model"]


def experts_model(engine: ExpertsEngine, variant: str) -> onnx.ModelProto:
    """The ONNX model of one file of ``engine``, with the ports that ``engine.ports(variant)`` declares."""
    graph = GraphBuilder()
    inputs, outputs = engine.ports(variant)
    made = _product(graph, engine, "x", "up")
    out = _product(graph, engine, _gated(graph, engine, made), "down")
    graph.node("Add", "prev", graph.node("Mul", out, "share"), output="y")
    opsets = {"": OPSET} | ({DOMAIN: 1} if engine.up_bits or engine.down_bits else {})
    return graph.model(f"{engine.name}.{variant}", inputs, outputs, opsets)


def _product(graph: GraphBuilder, engine: ExpertsEngine, rows: str, weight: str) -> str:
    bias = (f"{weight}_bias",) if engine.biased else ()
    bits, inner, outer = (
        (engine.up_bits, engine.width, engine.made)
        if weight == "up"
        else (engine.down_bits, engine.inner, engine.width)
    )
    if not bits:
        return graph.node("Gemm", rows, weight, *bias, transB=0 if engine.transposed else 1)
    values, scales, *offsets = (p.name for p in engine.expert_ports if p.name.startswith(f"{weight}:"))
    made = graph.node(
        QUANTISED_PRODUCT, rows, values, scales, domain=DOMAIN, K=inner, N=outer, bits=bits,
        block_size=QUANTISATION_BLOCK, accuracy_level=FLOAT32_LEVEL,
    )  # fmt: skip
    if offsets:
        blocks = graph.reshape(rows, -1, inner // QUANTISATION_BLOCK, QUANTISATION_BLOCK)
        sums = graph.node("ReduceSum", blocks, graph.constant([-1]), keepdims=0)
        made = graph.node("Gemm", sums, offsets[0], made, transB=1)
    return graph.node("Add", made, *bias) if bias else made


def _gated(graph: GraphBuilder, engine: ExpertsEngine, made: str) -> str:
    """The row between the two products."""
    if engine.layout == "single":
        return _ACTIVATIONS[engine.gate](graph, made)
    gate, up = _halves(graph, engine, made)
    if engine.limit:
        high, low = graph.constant(engine.limit), graph.constant(-engine.limit)
        gate, up = graph.node("Min", gate, high), graph.node("Clip", up, low, high)
    if engine.gate == "swiglu":
        opened = graph.node("Sigmoid", graph.node("Mul", gate, graph.constant(engine.alpha)))
        return graph.node("Mul", graph.node("Add", up, graph.constant(1.0)), graph.node("Mul", gate, opened))
    return graph.node("Mul", _ACTIVATIONS[engine.gate](graph, gate), up)


def _halves(graph: GraphBuilder, engine: ExpertsEngine, made: str) -> tuple[str, str]:
    """Gate and up, of which the first product's rows are made."""
    step = 2 if engine.layout == "pairs" else 1
    starts = (0, 1) if step == 2 else (0, engine.inner)
    ends = (engine.made, engine.made) if step == 2 else (engine.inner, engine.made)
    one, other = (
        graph.node("Slice", made, *(graph.constant([number]) for number in (start, end, 1, step)))
        for start, end in zip(starts, ends, strict=True)
    )
    return one, other


def _relu_squared(graph: GraphBuilder, value: str) -> str:
    kept = graph.node("Relu", value)
    return graph.node("Mul", kept, kept)


_ACTIVATIONS: Mapping[str, Callable[[GraphBuilder, str], str]] = {
    "gelu": lambda graph, value: graph.node("Gelu", value),
    "gelu_tanh": lambda graph, value: graph.node("Gelu", value, approximate="tanh"),
    "relu": lambda graph, value: graph.node("Relu", value),
    "relu_squared": _relu_squared,
    "silu": lambda graph, value: graph.node("Mul", value, graph.node("Sigmoid", value)),
}
