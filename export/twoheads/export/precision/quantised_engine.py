"""Which weights of an engine can be quantised, and the engine that reads them so."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
from onnx import TensorProto, helper, numpy_helper

from twoheads.export.precision.quantised_arrays import quantised_shapes
from twoheads.graphs.program.engines.port import Port
from twoheads.graphs.serialization.bundle_format import QUANTISATION_BLOCK

__all__ = [
    "DOMAIN",
    "FLOAT32_LEVEL",
    "QUANTISED_PRODUCT",
    "Use",
    "quantised_engine",
    "quantised_ports",
    "weight_uses",
]

DOMAIN = "com.microsoft"
QUANTISED_PRODUCT = "MatMulNBits"

FLOAT32_LEVEL = 1
INT8_LEVEL = 4
ACCURACY_LEVELS = {8: INT8_LEVEL, 4: FLOAT32_LEVEL}
"""In what ONNX Runtime 1.32 multiplies weights of so many bits: float32 (1), or with the other operand rounded to int8
in blocks of 32 (4). 8 bits have a kernel of their own for the latter only; the former needs a float32 copy of the
weight in every call. 4 bits are multiplied in float32, as zeros that are no whole numbers leave no choice. Blocks of
128 and 256 rows, one thread of an AVX2 processor, as shares of the float32 product's speed: 8 bits 0.6 to 0.7 (in
float32 0.4 to 0.6), 4 bits 0.75 to 0.85. ``MatMulInteger`` with one scale for each token reaches 1.2 to 1.5 there, and
costs SmolLM2-135M 3.3 of its perplexity of 19.9, where blocks of 32 cost nothing."""

BRANCHES = (onnx.AttributeProto.GRAPH, onnx.AttributeProto.GRAPHS)
VIEWS = frozenset({"Cast", "Identity", "Reshape", "Squeeze", "Unsqueeze"})


@dataclass(frozen=True, slots=True)
class Use:
    """How an engine reads a weight.

    Attributes:
        table: Whether rows are looked up by token numbers; else it is the second operand of a product.
        transposed: Whether the product sums over the weight's first dimension.
    """

    table: bool
    transposed: bool


def weight_uses(
    model: onnx.ModelProto, ports: Iterable[Port], tokens: Collection[str], *, in_blocks: bool = True
) -> dict[str, tuple[Use, ...]]:
    """How the weights of products and of token tables are read, by port; norms, biases, tables by position are absent.

    Args:
        model: An engine whose weights are graph inputs.
        ports: Its weights.
        tokens: Its inputs that are token numbers.
        in_blocks: Only matrices that can be quantised, whose inner dimension is whole blocks; else of any rank from 2.
    """
    most = 2 if in_blocks else 8
    candidates = {port.name: port for port in ports if port.dtype == "float32" and 2 <= len(port.shape) <= most}
    sources = {node.output[0]: node.input[0] for node in model.graph.node if node.op_type in VIEWS}
    found: dict[str, list[Use]] = {}
    for node in model.graph.node:
        if any(attribute.type in BRANCHES for attribute in node.attribute):
            return {}  # a branch may read anything
        for place, name in enumerate(node.input):
            if name not in candidates:
                continue
            use = _use(node, place, sources, tokens)
            inner = 1 if use is None or not use.transposed else 0
            if use is None or (in_blocks and candidates[name].shape[inner] % QUANTISATION_BLOCK):
                candidates.pop(name)
            else:
                found.setdefault(name, []).append(use)
    return {name: tuple(uses) for name, uses in found.items() if name in candidates}


def _use(node: onnx.NodeProto, place: int, sources: Mapping[str, str], tokens: Collection[str]) -> Use | None:
    """How ``node`` reads its operand ``place``; ``None`` if in another way."""
    attributes = {attribute.name: helper.get_attribute_value(attribute) for attribute in node.attribute}
    if node.op_type == "MatMul" and place == 1:
        return Use(table=False, transposed=True)
    plain = attributes.get("alpha", 1.0) == attributes.get("beta", 1.0) == 1.0 and not attributes.get("transA", 0)
    if node.op_type == "Gemm" and place == 1 and plain:
        return Use(table=False, transposed=not attributes.get("transB", 0))
    if node.op_type == "Gather" and place == 0 and attributes.get("axis", 0) == 0:
        index = node.input[1]
        while index in sources:
            index = sources[index]
        return Use(table=True, transposed=False) if index in tokens else None
    return None


def quantised_ports(port: Port, bits: int, *, transposed: bool) -> tuple[Port, ...]:
    """The ports of values, scales and zeros that take the place of ``port``."""
    outer, inner = reversed(port.shape) if transposed else port.shape
    named = zip((f"int{bits}", "scales", "zeros"), quantised_shapes(outer, inner, bits), strict=False)
    return tuple(Port(f"{port.name}:{part}", "uint8" if not at else "float32", s) for at, (part, s) in enumerate(named))


def quantised_engine(
    model: onnx.ModelProto, weights: Mapping[str, tuple[Port, ...]], bits: Mapping[str, int]
) -> onnx.ModelProto:
    """The engine with the named weights read as values, scales and zeros.

    Args:
        model: Whose weights are graph inputs. Left as it is.
        weights: By port, what takes its place.
        bits: Of each.
    """
    types = {value.name: value for value in onnx.shape_inference.infer_shapes(model).graph.value_info}
    outputs = {value.name: value for value in model.graph.output}
    types |= outputs
    made = onnx.ModelProto()
    made.CopyFrom(model)
    graph = made.graph
    del graph.node[:], graph.input[:]
    for value in model.graph.input:
        graph.input.extend(map(_declared, weights[value.name]) if value.name in weights else [value])
    for node in model.graph.node:
        name = next((name for name in node.input if name in weights), None)
        if name is None:
            graph.node.append(node)
        elif node.op_type == "Gather":
            graph.node.extend(_look_up(node, weights[name], bits[name], _dims(types[node.output[0]])))
        else:
            graph.node.extend(_product(node, weights[name], bits[name]))
            # Shape inference does not know the operator.
            graph.value_info.extend([types[node.output[0]]] if node.output[0] not in outputs else [])
    if not any(entry.domain == DOMAIN for entry in made.opset_import):
        made.opset_import.append(helper.make_opsetid(DOMAIN, 1))
    return made


def _declared(port: Port) -> onnx.ValueInfoProto:
    return helper.make_tensor_value_info(port.name, helper.np_dtype_to_tensor_dtype(np.dtype(port.dtype)), port.shape)


def _dims(value: onnx.ValueInfoProto) -> list[int]:
    return [dim.dim_value for dim in value.type.tensor_type.shape.dim]


def _product(node: onnx.NodeProto, ports: tuple[Port, ...], bits: int) -> Iterator[onnx.NodeProto]:
    scales = ports[1]
    biased = len(node.input) > 2 and node.input[2]
    result = f"{node.output[0]}.product" if biased else node.output[0]
    yield helper.make_node(
        QUANTISED_PRODUCT,
        [node.input[0], *(port.name for port in ports)],
        [result],
        name=f"{node.output[0]}.quantised",
        domain=DOMAIN,
        K=scales.shape[1] * QUANTISATION_BLOCK,
        N=scales.shape[0],
        bits=bits,
        block_size=QUANTISATION_BLOCK,
        accuracy_level=ACCURACY_LEVELS[bits],
    )
    if biased:
        yield helper.make_node("Add", [result, node.input[2]], [node.output[0]], name=f"{node.output[0]}.biased")


def _look_up(node: onnx.NodeProto, ports: tuple[Port, ...], bits: int, shape: list[int]) -> Iterator[onnx.NodeProto]:
    """Rows of a table of 8 bits in float32: the tokens' rows alone are computed."""
    values, scales = ports
    index, result = node.input[1], node.output[0]
    constants: dict[str, npt.NDArray[Any]] = {
        "middle": np.array(1 << (bits - 1), np.float32),
        "last": np.array([-1], np.int64),
        "shape": np.array(shape, np.int64),
    }
    for name, array in constants.items():
        tensor = numpy_helper.from_array(array)
        yield helper.make_node("Constant", [], [f"{result}.{name}"], name=f"{result}.{name}", value=tensor)
    steps: tuple[tuple[str, list[str], str, dict[str, Any]], ...] = (
        ("Gather", [values.name, index], "rows", {"axis": 0}),
        ("Cast", ["rows"], "numbers", {"to": TensorProto.FLOAT}),
        ("Sub", ["numbers", "middle"], "centred", {}),
        ("Gather", [scales.name, index], "row_scales", {"axis": 0}),
        ("Unsqueeze", ["row_scales", "last"], "columns", {}),
        ("Mul", ["centred", "columns"], "blocks", {}),
    )
    outer = {values.name, scales.name, index}
    for operator, operands, made, attributes in steps:
        names = [name if name in outer else f"{result}.{name}" for name in operands]
        yield helper.make_node(operator, names, [f"{result}.{made}"], name=f"{result}.{made}", **attributes)
    yield helper.make_node("Reshape", [f"{result}.blocks", f"{result}.shape"], [result], name=f"{result}.table")
