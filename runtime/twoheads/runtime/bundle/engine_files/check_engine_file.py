"""Whether a bundle's engine files are what its program says, before a backend opens one.

An engine computes whatever its file says, so a file from a stranger could run for ever or fill the memory. What our
emitters never write is refused: control flow, functions, operators of others, random numbers, data in other files than
the weights', constants that are larger than any array of the engine. What is left does a bounded number of operations.
Numbers that program and engine both say, such as the scale of scores, must agree: short inputs are computed by one
file and long ones by others, and one bundle would give two answers.
"""

from __future__ import annotations

from collections.abc import Iterable
from math import prod
from pathlib import Path

import numpy as np

from twoheads.graphs.program.program import Port
from twoheads.graphs.program.wiring import WIRING
from twoheads.graphs.serialization.bundle_format import WEIGHTS, WeightEntry
from twoheads.runtime.bundle.engine_files.declared import DeclaredEngine
from twoheads.runtime.bundle.engine_files.made_constants import made_elements
from twoheads.runtime.bundle.engine_files.onnx_file import OnnxFile, OnnxNode, OnnxTensor, OnnxValue, read_onnx
from twoheads.runtime.bundle.engine_files.protobuf import ProtobufError

__all__ = ["engine_problem"]

STANDARD, CONTRIB = ("", "ai.onnx"), "com.microsoft"
OURS = frozenset(
    {
        "GroupQueryAttention",
        "MatMulIntegerToFloat",
        "MatMulNBits",
        "RotaryEmbedding",
        "SkipSimplifiedLayerNormalization",
    }
)
"""The operators of ONNX Runtime's own set that our emitters write."""

CONTROL_FLOW = frozenset({"If", "Loop", "Scan", "SequenceMap"})
RANDOM = frozenset(
    {"Bernoulli", "Multinomial", "RandomNormal", "RandomNormalLike", "RandomUniform", "RandomUniformLike"}
)
LARGEST = 1 << 24
"""Numbers that an operator may make of constants, whatever the engine's arrays are: a mask of 4,096 tokens' square."""

WIDENED = 16
"""Or so many for each of the engine's largest input or output."""


def engine_problem(data: bytes, declared: DeclaredEngine | None = None) -> str | None:
    """What is wrong with the bytes of an engine's file, if anything.

    Args:
        data: The bytes.
        declared: What the program says of it; ``None`` for a file that no program declares.
    """
    try:
        found = read_onnx(data)
    except ProtobufError as error:
        return f"is no ONNX file: it has {error}"
    return _foreign(found) or (None if declared is None else _disagreement(found, declared))


def _foreign(found: OnnxFile) -> str | None:
    """What a file has that no emitter of ours writes, if anything."""
    if found.functions:
        return "declares functions, which no engine does"
    if found.sparse:
        return "has sparse constants, which no engine has"
    constants = dict(found.constants)
    arrays = [abs(prod(value.shape)) for value in (*found.inputs, *found.outputs)]
    limit = max([LARGEST, *(WIDENED * size for size in arrays)])
    for tensor in constants.values():
        if problem := _tensor_problem(tensor):
            return problem
    for node in found.nodes:
        if problem := _node_problem(node, constants, limit):
            return problem
    return None


def _node_problem(node: OnnxNode, constants: dict[str, OnnxTensor], limit: int) -> str | None:
    what = f"the operator {node.operator} of {(node.outputs or ('nothing',))[0]!r}"
    if node.domain not in STANDARD and (node.domain, node.operator in OURS) != (CONTRIB, True):
        return f"{what} is of the set {node.domain!r}, which no engine uses"
    if node.operator in CONTROL_FLOW or node.graphs:
        return f"{what} is control flow, which no engine has"
    if node.operator in RANDOM:
        return f"{what} draws random numbers, which no engine does"
    if node.sparse:
        return f"{what} has a sparse constant, which no engine has"
    for tensor in node.tensors.values():
        if tensor.external is not None:
            return f"{what} has a constant in another file"
        if problem := _tensor_problem(tensor):
            return problem
    if node.operator == "Constant":
        constants.update((name, tensor) for name, tensor in zip(node.outputs, _constant(node), strict=False))
    made = made_elements(node, constants)
    if made is None:
        return f"{what} makes an array whose size it computes, which no engine does"
    if made > limit:
        return f"{what} makes {made} numbers of constants, engines make {limit} at most"
    return None


def _constant(node: OnnxNode) -> Iterable[OnnxTensor]:
    """The tensor of a ``Constant``, whatever its form, where it matters for sizes."""
    for name in ("value_ints", "value_int"):
        if name in node.ints:
            numbers = np.array(node.ints[name], np.int64)
            yield OnnxTensor("", "int64", numbers.shape, memoryview(numbers.tobytes()), memoryview(b""), None)
    yield from node.tensors.values()


def _tensor_problem(tensor: OnnxTensor) -> str | None:
    """A tensor holds as many numbers as it says, here or among the weights."""
    what = f"the constant {tensor.name!r}"
    if not tensor.dtype:
        return f"{what} has a type that no engine has"
    if any(dim < 0 for dim in tensor.shape):
        return f"{what} has the shape {list(tensor.shape)}"
    if tensor.external is not None:
        place = tensor.external.get("location")
        return None if place == Path(WEIGHTS).name else f"{what} lies in {place!r}, which is not the weights' file"
    if len(tensor.raw) != tensor.nbytes and not (not tensor.raw and len(tensor.packed) >= tensor.elements):
        return f"{what} has {len(tensor.raw) + len(tensor.packed)} bytes for {tensor.elements} numbers"
    return None


def _disagreement(found: OnnxFile, declared: DeclaredEngine) -> str | None:
    """Where the file says something else than the program, if anywhere."""
    if declared.wiring is not None and found.metadata.get(WIRING) != declared.wiring:
        return "joins its stages as another program does: other values, masks, sinks or biases"
    outside = {name: tensor for name, tensor in found.constants.items() if tensor.external is not None}
    given = [value for value in found.inputs if value.name not in found.constants]
    for side, values, ports in (("inputs", given, declared.inputs), ("outputs", found.outputs, declared.outputs)):
        if _ports(values) != [(port.name, port.dtype, tuple(port.shape)) for port in ports]:
            return f"has the ports {_ports(values)} as {side}, the program expects {_texts(ports)}"
    for name, entry in declared.weights.items():
        if name not in outside:
            return f"has no weight {name!r}, which the program binds"
        if problem := _reference_problem(outside[name], entry):
            return problem
    if foreign := sorted(outside.keys() - declared.weights.keys()):
        return f"refers to a weight {foreign[0]!r} that the program does not bind"
    return _factor_problem(found, declared)


def _reference_problem(tensor: OnnxTensor, entry: WeightEntry) -> str | None:
    """The file refers to the bytes that the program binds."""
    expected = {"location": Path(WEIGHTS).name, "offset": str(entry.offset), "length": str(tensor.nbytes)}
    if (tensor.dtype, tensor.shape) != (entry.dtype, entry.shape) or tensor.external != expected:
        held, bound = (f"{each.dtype}{list(each.shape)}" for each in (tensor, entry))
        return f"has the weight {tensor.name!r} as {held} at {tensor.external}, the manifest as {bound} at {expected}"
    return None


def _factor_problem(found: OnnxFile, declared: DeclaredEngine) -> str | None:
    """Scores are multiplied with the numbers that the program has."""
    if not declared.factors and not declared.alone:
        return None
    multiplied = {name for node in found.nodes if node.operator == "Mul" for name in node.inputs}
    scalars = (tensor for name, tensor in found.constants.items() if name in multiplied and not tensor.shape)
    numbers = {(tensor.dtype, float(value)) for tensor in scalars for value in _floats(tensor)}
    scales = (node.floats.get("scale", 1.0) for node in found.nodes if node.operator == "GroupQueryAttention")
    numbers |= {("float32", scale) for scale in scales if scale != 1.0}
    dtypes = {dtype for dtype, _ in numbers} or {"float32"}
    expected = {(dtype, float(np.dtype(dtype).type(factor))) for factor in declared.factors for dtype in dtypes}
    wrong = sorted(expected - numbers) or sorted(numbers - expected if declared.alone else ())
    if not wrong:
        return None
    held = ", ".join(f"{value:g}" for _, value in sorted(numbers)) or "nothing"
    return f"multiplies with {held}, and the program's scale and softcap are {sorted(declared.factors)}"


def _floats(tensor: OnnxTensor) -> Iterable[float]:
    found = tensor.numbers()
    return () if found is None or found.dtype.kind != "f" else found.tolist()


def _ports(values: Iterable[OnnxValue]) -> list[tuple[str, str, tuple[int, ...]]]:
    return [(value.name, value.dtype, value.shape) for value in values]


def _texts(ports: Iterable[Port]) -> list[tuple[str, str, tuple[int, ...]]]:
    return [(port.name, port.dtype, tuple(port.shape)) for port in ports]
