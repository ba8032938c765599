"""Products of whole numbers: weights of int8 with a scale a result, times rows of 8 bits with a scale each.

Sums of whole numbers are exact. So a row's products have the same bits whatever the rows beside it, the number of rows,
and the kernel that takes them; a processor with AMX multiplies 256 rows several times as fast as in float32.

One scale for a row of 8 bits is little where one number is much larger than the rest, as in language models. So rows
and weights are rotated first, 64 numbers at a time, by a matrix of Hadamard's: no product changes by it, and a large
number becomes 64 of an eighth. SmolLM2-135M, 640 tokens of the founding documents, perplexity (hidden states off by):
17.95 in float32, 21.33 (19 %) without the rotation, 18.30 (7.8 %) with it, of which the weights alone are 18.22
(5.8 %). A scale for every 64 numbers costs less (17.85), and a product each.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
from onnx import helper, numpy_helper

from twoheads.export.emit.graph_builder import DOMAIN, WHOLE_PRODUCT
from twoheads.graphs.program.engines.port import Port
from twoheads.graphs.program.engines.quantised import QUANTISATION_BLOCK

__all__ = ["dequantise_whole", "in_float32", "quantise_whole", "whole_product"]

LARGEST = 127
"""Of a rounded number, on either side of 0."""

MIDDLE = 128
"""What stands for 0 in a row: its numbers are uint8. Kernels multiply these with int8; two int8 have a slow one."""

LEAST = 1e-30
"""Of a row's largest number: a row of zeros has a scale, too."""

ROTATED = 64
"""Numbers that are rotated together, where they divide a row; else 32, which divide every quantised weight's."""

NORM = 8.0
"""What rows are divided by as they are rotated: a power of two, so nothing is rounded."""

EDGE = 8
"""Of the small matrix of which the rotation is made when an engine opens: files hold 64 numbers instead of 4,096."""

Array = npt.NDArray[Any]


def _hadamard(size: int) -> npt.NDArray[np.float32]:
    """The matrix ``[size, size]`` of 1 and -1 whose rows are orthogonal; ``size`` is a power of two."""
    made = np.ones((1, 1), np.float32)
    while len(made) < size:
        made = np.block([[made, made], [made, -made]])
    return made


def _together(inner: int) -> int:
    """How many of ``inner`` numbers are rotated together."""
    return ROTATED if inner % ROTATED == 0 else QUANTISATION_BLOCK


def _rotated(rows: Array, divisor: float) -> npt.NDArray[np.float32]:
    size = _together(rows.shape[-1])
    blocks = rows.astype(np.float32, copy=False).reshape(-1, size) @ (_hadamard(size) / np.float32(divisor))
    return np.asarray(blocks, np.float32).reshape(rows.shape)


def quantise_whole(weight: Array) -> tuple[npt.NDArray[np.int8], npt.NDArray[np.float32]]:
    """Values int8 ``[outer, inner]`` and scales ``[outer]`` of the rotated finite float32 weight ``[outer, inner]``."""
    rotated = _rotated(weight, _together(weight.shape[-1]) / NORM)
    scales = np.abs(rotated).max(-1) / np.float32(LARGEST)
    # A row of zeros, or of numbers so small that their scale is 0, is all zeros.
    ratios = np.divide(rotated, scales[:, None], out=np.zeros_like(rotated), where=scales[:, None] != 0)
    return np.clip(np.rint(ratios), -LARGEST, LARGEST).astype(np.int8), scales


def dequantise_whole(values: Array, scales: Array) -> npt.NDArray[np.float32]:
    """The weight ``[outer, inner]`` that values ``[outer, inner]`` and scales ``[outer]`` stand for, rotated back."""
    return _rotated(values.astype(np.float32) * scales[:, None], NORM)


def whole_product(
    node: onnx.NodeProto, ports: tuple[Port, ...], shape: Sequence[int], made: set[str]
) -> Iterator[onnx.NodeProto]:
    """The product ``node`` with values ``[inner, outer]`` and scales ``[outer]`` in place of the weight.

    Args:
        node: The product with the weight itself.
        ports: Of values and scales.
        shape: Of the result.
        made: Names that operators in front of this have made; what these make is added.
    """
    values, scales = ports
    operand, result = node.input[0], node.output[0]
    biased = len(node.input) > 2 and node.input[2]
    rounded, largest = f"{operand}.whole.rounded", f"{operand}.whole.largest"
    yield from _constants(made)
    if rounded not in made:
        made.add(rounded)
        yield from _rounded(operand, [*shape[:-1], values.shape[0]], made)
    inputs = [rounded, values.name, "whole.step", scales.name, "whole.middle"]
    raw, whole = f"{result}.whole", f"{result}.unbiased" if biased else result
    yield helper.make_node(WHOLE_PRODUCT, inputs, [raw], name=raw, domain=DOMAIN)
    yield helper.make_node("Mul", [raw, largest], [whole], name=f"{result}.scaled")
    if biased:
        yield helper.make_node("Add", [whole, node.input[2]], [result], name=f"{result}.biased")


def _rounded(operand: str, shape: list[int], made: set[str]) -> Iterator[onnx.NodeProto]:
    """The rows of the operand of this shape, rotated, as uint8, and each row's largest number; all row by row."""
    size = _together(shape[-1])
    rotation = f"whole.rotation_{size}"
    if rotation not in made:
        made.add(rotation)
        yield from _rotation(rotation, size)
    at = f"{operand}.whole."
    yield _constant(f"{at}shape", np.array(shape, np.int64))
    steps: tuple[tuple[str, list[str], str, dict[str, Any]], ...] = (
        ("Reshape", [operand, f"{rotation}.blocks"], f"{at}blocks", {}),
        ("MatMul", [f"{at}blocks", rotation], f"{at}turned", {}),
        ("Reshape", [f"{at}turned", f"{at}shape"], f"{at}rotated", {}),
        ("Abs", [f"{at}rotated"], f"{at}magnitudes", {}),
        ("ReduceMax", [f"{at}magnitudes", "whole.last"], f"{at}row_max", {"keepdims": 1}),
        ("Max", [f"{at}row_max", "whole.least"], f"{at}largest", {}),
        ("Div", ["whole.most", f"{at}largest"], f"{at}factor", {}),
        ("Mul", [f"{at}rotated", f"{at}factor"], f"{at}scaled", {}),
        ("QuantizeLinear", [f"{at}scaled", "whole.one", "whole.middle"], f"{at}rounded", {}),
    )
    yield from (helper.make_node(kind, read, [to], name=to, **attributes) for kind, read, to, attributes in steps)


def _rotation(name: str, size: int) -> Iterator[onnx.NodeProto]:
    """The matrix ``[size, size]`` of :func:`_hadamard` over :data:`NORM`, made of two small ones as an engine opens."""
    across = size // EDGE
    outer, inner = _hadamard(across).reshape(across, 1, across, 1), _hadamard(EDGE).reshape(1, EDGE, 1, EDGE)
    yield _constant(f"{name}.outer", outer)
    yield _constant(f"{name}.inner", inner / np.float32(NORM))
    yield _constant(f"{name}.square", np.array([size, size], np.int64))
    yield _constant(f"{name}.blocks", np.array([-1, size], np.int64))
    yield helper.make_node("Mul", [f"{name}.outer", f"{name}.inner"], [f"{name}.both"], name=f"{name}.both")
    yield helper.make_node("Reshape", [f"{name}.both", f"{name}.square"], [name], name=name)


def _constants(made: set[str]) -> Iterator[onnx.NodeProto]:
    constants: dict[str, Array] = {
        "middle": np.array(MIDDLE, np.uint8),
        "one": np.array(1, np.float32),
        "step": np.array([1 / LARGEST], np.float32),
        "least": np.array([LEAST], np.float32),
        "most": np.array([LARGEST], np.float32),
        "last": np.array([-1], np.int64),
    }
    for word, array in constants.items():
        if (name := f"whole.{word}") not in made:
            made.add(name)
            yield _constant(name, array)


def _constant(name: str, array: Array) -> onnx.NodeProto:
    return helper.make_node("Constant", [], [name], name=name, value=numpy_helper.from_array(array))


def in_float32(nodes: Iterable[onnx.NodeProto]) -> Iterator[onnx.NodeProto]:
    """The operators of an engine with each product of whole numbers as one of float32, with the same weight.

    Rows are rotated, and rounded no more.
    """
    nodes = list(nodes)
    makers = {name: node for node in nodes for name in node.output}
    unscaled: set[str] = set()
    for node in nodes:
        if node.op_type == WHOLE_PRODUCT:
            scaled = makers[makers[node.input[0]].input[0]]
            weight = f"{node.output[0]}.weight"
            unscaled.add(node.output[0])
            yield helper.make_node("Cast", [node.input[1]], [f"{weight}.numbers"], to=onnx.TensorProto.FLOAT)
            yield helper.make_node("Mul", [f"{weight}.numbers", node.input[3]], [weight])
            yield helper.make_node("MatMul", [scaled.input[0], weight], list(node.output), name=node.name)
        elif not unscaled.isdisjoint(node.input):  # by the largest numbers of rows, by which nothing was divided
            yield helper.make_node("Identity", [node.input[0]], list(node.output), name=node.name)
        else:
            yield node
