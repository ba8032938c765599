"""Which weights of an engine can be quantised, and the engine that reads them so."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from math import prod
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
from onnx import TensorProto, helper, numpy_helper

from twoheads.export.emit.graph_builder import DOMAIN, FLOAT32_LEVEL, QUANTISED_PRODUCT
from twoheads.export.precision.whole_products import whole_product
from twoheads.graphs.program.engines.port import Port
from twoheads.graphs.program.engines.quantised import QUANTISATION_BLOCK, WHOLE_VALUES
from twoheads.graphs.serialization.bundle_format import FULL_PRECISION, Manifest

__all__ = [
    "DOMAIN",
    "FLOAT32_LEVEL",
    "PRODUCT_LEVELS",
    "QUANTISED_PRODUCT",
    "Use",
    "quantised_engine",
    "rounds_operands",
    "weight_uses",
]

INT8_LEVEL = 4
PRODUCT_LEVELS = {FULL_PRECISION: FLOAT32_LEVEL, "int8": INT8_LEVEL}
"""In what ONNX Runtime 1.32 multiplies 4-bit weights: float32, or with the other operand rounded to int8 in blocks of
32. 8 bits have a kernel of their own for the latter only; the former needs a float32 copy of the weight in every call.
Blocks of 128 and 256 rows, one thread of an AVX2 processor, as shares of the float32 product's speed: 8 bits 0.6 to 0.7
(in float32 0.4 to 0.6), 4 bits in float32 0.75 to 0.85. Weights of 8 bits with products of ``int8`` are multiplied
otherwise (``whole_products.py``)."""

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


def quantised_engine(
    model: onnx.ModelProto,
    weights: Mapping[str, tuple[Port, ...]],
    bits: Mapping[str, int],
    level: int = FLOAT32_LEVEL,
) -> onnx.ModelProto:
    """The engine with the named weights read as values, scales and offsets.

    Args:
        model: Whose weights are graph inputs. Left as it is.
        weights: By port, what takes its place.
        bits: Of each.
        level: In what products of 4 bits are computed, one of :data:`PRODUCT_LEVELS`.
    """
    types = {value.name: value for value in onnx.shape_inference.infer_shapes(model).graph.value_info}
    outputs = {value.name: value for value in model.graph.output}
    types |= outputs
    made = onnx.ModelProto()
    made.CopyFrom(model)
    graph = made.graph
    summed: set[str] = set()
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
            used = level if bits[name] == 4 else INT8_LEVEL
            shape = _dims(types[node.output[0]])
            graph.node.extend(_product(node, weights[name], bits[name], used, shape, summed))
            # Shape inference does not know the operator.
            graph.value_info.extend([types[node.output[0]]] if node.output[0] not in outputs else [])
    if not any(entry.domain == DOMAIN for entry in made.opset_import):
        made.opset_import.append(helper.make_opsetid(DOMAIN, 1))
    return made


def _declared(port: Port) -> onnx.ValueInfoProto:
    return helper.make_tensor_value_info(port.name, helper.np_dtype_to_tensor_dtype(np.dtype(port.dtype)), port.shape)


def _dims(value: onnx.ValueInfoProto) -> list[int]:
    return [dim.dim_value for dim in value.type.tensor_type.shape.dim]


def _product(
    node: onnx.NodeProto, ports: tuple[Port, ...], bits: int, level: int, shape: list[int], summed: set[str]
) -> Iterator[onnx.NodeProto]:
    """The product ``[*shape]`` with values and scales, and what the offsets of 4 bits add to it.

    Args:
        node: The product with the weight itself.
        ports: Of values and scales, as many as there are pieces, and with 4 bits of offsets.
        bits: Of the values.
        level: In what the product is computed.
        shape: Of the result.
        summed: What there is already of operands, by name: sums by blocks, pieces, whole numbers. This one's is added.
    """
    if ports[0].dtype == WHOLE_VALUES:
        yield from whole_product(node, ports, shape, summed)
        return
    pieces = len(ports) // 2
    pairs, offsets = tuple(zip(ports[:pieces], ports[pieces : 2 * pieces], strict=True)), ports[2 * pieces :]
    operand, result = node.input[0], node.output[0]
    biased = len(node.input) > 2 and node.input[2]
    raw = f"{result}.product" if offsets or biased else result
    if pieces > 1:
        yield from _in_pieces(operand, pairs, raw, summed)
    else:
        yield _multiply(operand, pairs[0], raw, bits, level)
    if offsets:
        if operand not in summed:
            summed.add(operand)
            yield from _block_sums(operand, prod(shape[:-1]), offsets[0].shape[1])
        whole = f"{result}.whole" if biased else result
        yield from _with_offsets(raw, _sums_of(operand), offsets[0].name, shape, whole)
        raw = whole
    if biased:
        yield helper.make_node("Add", [raw, node.input[2]], [result], name=f"{result}.biased")


def _multiply(operand: str, ports: tuple[Port, Port], result: str, bits: int, level: int) -> onnx.NodeProto:
    """The product of rows, and values and scales."""
    values, scales = ports
    outer, blocks = scales.shape
    return helper.make_node(
        QUANTISED_PRODUCT, [operand, values.name, scales.name], [result], name=f"{result}.quantised", domain=DOMAIN,
        K=blocks * QUANTISATION_BLOCK, N=outer, bits=bits, block_size=QUANTISATION_BLOCK, accuracy_level=level,
    )  # fmt: skip


def _in_pieces(
    operand: str, pairs: Sequence[tuple[Port, Port]], result: str, cut: set[str]
) -> Iterator[onnx.NodeProto]:
    """A product of long rows as a sum of products of their pieces, which are cut once for all products of the rows.

    A weight lies in its pieces: a session that cuts it while it opens copies it several times.
    """
    parts: list[str] = []
    start = 0
    for pair in pairs:
        stop = start + pair[1].shape[1] * QUANTISATION_BLOCK
        piece = f"{operand}.from_{start}"
        if piece not in cut:
            cut.add(piece)
            yield from _slice(operand, piece, start, stop, -1)
        parts.append(f"{result}.part_{start}")
        yield _multiply(piece, pair, parts[-1], 4, FLOAT32_LEVEL)
        start = stop
    # One after the other, and behind all products: so ONNX Runtime adds each part as soon as it is there, and two are
    # in memory at a time.
    total = parts[0]
    for number, part in enumerate(parts[1:], 1):
        summed = result if number == len(parts) - 1 else f"{result}.sum_{number}"
        yield helper.make_node("Add", [total, part], [summed], name=f"{summed}.pieces")
        total = summed


def _slice(value: str, result: str, start: int, stop: int, dimension: int) -> Iterator[onnx.NodeProto]:
    bounds = {f"{result}.start": start, f"{result}.stop": stop, f"{result}.dimension": dimension}
    yield from (_constant(name, [number]) for name, number in bounds.items())
    yield helper.make_node("Slice", [value, *bounds], [result], name=result)


def _sums_of(operand: str) -> str:
    return f"{operand}.block_sums"


def _constant(name: str, numbers: list[int]) -> onnx.NodeProto:
    tensor = numpy_helper.from_array(np.array(numbers, np.int64))
    return helper.make_node("Constant", [], [name], name=name, value=tensor)


def _block_sums(operand: str, rows: int, blocks: int) -> Iterator[onnx.NodeProto]:
    """The sums ``[rows, blocks]`` of an operand's numbers that share a scale."""
    sums = _sums_of(operand)
    yield _constant(f"{sums}.shape", [rows, blocks, QUANTISATION_BLOCK])
    yield _constant(f"{sums}.axis", [-1])
    yield helper.make_node("Reshape", [operand, f"{sums}.shape"], [f"{sums}.blocks"], name=f"{sums}.blocks")
    inputs = [f"{sums}.blocks", f"{sums}.axis"]
    yield helper.make_node("ReduceSum", inputs, [sums], name=sums, keepdims=0)


def _with_offsets(raw: str, sums: str, offsets: str, shape: list[int], result: str) -> Iterator[onnx.NodeProto]:
    """``raw`` and the product of an operand's sums by blocks with the offsets ``[outer, blocks]``."""
    if len(shape) == 2:
        yield helper.make_node("Gemm", [sums, offsets, raw], [result], name=f"{result}.offset", transB=1)
        return
    added, to = f"{result}.added", f"{result}.shape"
    yield helper.make_node("Gemm", [sums, offsets], [added], name=added, transB=1)
    yield _constant(to, shape)
    yield helper.make_node("Reshape", [added, to], [f"{added}.shaped"], name=f"{added}.shaped")
    yield helper.make_node("Add", [raw, f"{added}.shaped"], [result], name=f"{result}.offset")


def rounds_operands(manifest: Manifest) -> bool:
    """Whether some products round the operand that is no weight."""
    return manifest.products != FULL_PRECISION or any(entry.bits == 8 for entry in manifest.quantised.values())


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
