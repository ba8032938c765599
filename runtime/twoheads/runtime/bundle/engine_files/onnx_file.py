"""What stands in an ONNX file: its operators, constants and ports, read from the bytes without the onnx package."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import lru_cache
from math import prod
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt

from twoheads.runtime.bundle.engine_files.protobuf import ProtobufError, fields, signed, varints

__all__ = ["DTYPES", "OnnxFile", "OnnxNode", "OnnxTensor", "OnnxValue", "read_onnx"]

T = TypeVar("T")

NOTHING = memoryview(b"")

SMALL = 512
"""Bytes of an operator or a constant that is kept: engines of other sizes have nearly all of them, byte for byte."""

DTYPES = {
    1: "float32",
    2: "uint8",
    3: "int8",
    4: "uint16",
    5: "int16",
    6: "int32",
    7: "int64",
    9: "bool",
    10: "float16",
    11: "float64",
    12: "uint32",
    13: "uint64",
}
"""NumPy's names of the types that tensors in engines have, by ONNX's numbers."""


@dataclass(frozen=True, slots=True)
class OnnxTensor:
    """A constant: its values in the file, or where they lie in another.

    Attributes:
        name: Of the value.
        dtype: NumPy's name; empty for a type that no engine has.
        shape: Dimensions.
        raw: Its numbers, little endian, where they are stored so.
        packed: Bytes of its numbers in another form.
        external: Keys and values of where it lies, ``None`` where it is in this file.
    """

    name: str
    dtype: str
    shape: tuple[int, ...]
    raw: memoryview
    packed: memoryview
    external: dict[str, str] | None

    @property
    def elements(self) -> int:
        """How many numbers it has."""
        return prod(self.shape)

    @property
    def nbytes(self) -> int:
        """Bytes of its numbers in memory."""
        return self.elements * np.dtype(self.dtype).itemsize

    def numbers(self) -> npt.NDArray[Any] | None:
        """Its numbers, flat; ``None`` where they are not in this file."""
        if self.external is not None or not self.dtype:
            return None
        if self.dtype == "int64" and not self.raw:
            return np.array([signed(number) for number in varints(self.packed)], np.int64)
        data = self.raw or self.packed
        itemsize = np.dtype(self.dtype).itemsize
        return np.frombuffer(data, self.dtype) if len(data) % itemsize == 0 else None


@dataclass(frozen=True, slots=True)
class OnnxNode:
    """An operator.

    Attributes:
        operator, domain: What it is.
        inputs, outputs: Names of values.
        graphs: Whether an attribute holds a graph.
        sparse: Whether an attribute holds a sparse tensor.
        tensors: Its attributes that are tensors, by name.
        ints: Its attributes of whole numbers, by name.
        floats: Its attributes of one number, by name.
    """

    operator: str
    domain: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    graphs: bool
    sparse: bool
    tensors: dict[str, OnnxTensor]
    ints: dict[str, tuple[int, ...]]
    floats: dict[str, float]


@dataclass(frozen=True, slots=True)
class OnnxValue:
    """An input or output: name, NumPy's name of the type (empty for none that engines have), and shape.

    Dimensions that are no numbers are -1.
    """

    name: str
    dtype: str
    shape: tuple[int, ...]


@dataclass(slots=True)
class OnnxFile:
    """What matters of a file.

    Attributes:
        functions: Whether it declares functions.
        sparse: Whether it has sparse constants.
        nodes, constants, inputs, outputs: Of its graph.
        metadata: Texts by name.
    """

    functions: bool = False
    sparse: bool = False
    nodes: list[OnnxNode] = field(default_factory=list[OnnxNode])
    constants: dict[str, OnnxTensor] = field(default_factory=dict[str, OnnxTensor])
    inputs: list[OnnxValue] = field(default_factory=list[OnnxValue])
    outputs: list[OnnxValue] = field(default_factory=list[OnnxValue])
    metadata: dict[str, str] = field(default_factory=dict[str, str])


def read_onnx(data: bytes) -> OnnxFile:
    """Reads the bytes of a file; what they mean is not checked.

    Raises:
        ProtobufError: They are no ONNX file, or one that readers could understand in two ways.
    """
    found = OnnxFile()
    graphs = 0
    for number, value in fields(memoryview(data)):
        if number == 7:
            graphs += 1
            _read_graph(_message(value), found)
        elif number == 14:
            entry = dict(fields(_message(value)))
            found.metadata[_text(entry.get(1, NOTHING))] = _text(entry.get(2, NOTHING))
        found.functions |= number == 25
    if graphs != 1:
        raise ProtobufError(f"{graphs} graphs")
    return found


def _read_graph(message: memoryview, found: OnnxFile) -> None:
    for number, value in fields(message):
        if number == 1:
            node = _message(value)
            found.nodes.append(_kept_node(bytes(node)) if len(node) <= SMALL else _node(node))
        elif number == 5:
            constant = _message(value)
            tensor = _kept_tensor(bytes(constant)) if len(constant) <= SMALL else _tensor(constant)
            if tensor.name in found.constants:
                raise ProtobufError(f"two constants {tensor.name!r}")
            found.constants[tensor.name] = tensor
        elif number in (11, 12):
            (found.inputs if number == 11 else found.outputs).append(_value(_message(value)))
        found.sparse |= number == 15


@lru_cache(maxsize=4096)
def _kept_node(message: bytes) -> OnnxNode:
    return _node(memoryview(message))


@lru_cache(maxsize=4096)
def _kept_tensor(message: bytes) -> OnnxTensor:
    return _tensor(memoryview(message))


def _node(message: memoryview) -> OnnxNode:
    texts: dict[int, list[str]] = {1: [], 2: [], 4: [], 7: []}
    graphs = sparse = False
    tensors: dict[str, OnnxTensor] = {}
    ints: dict[str, tuple[int, ...]] = {}
    floats: dict[str, float] = {}
    for number, value in fields(message):
        if number in texts:
            texts[number].append(_text(value))
        elif number == 5:
            attribute = list(fields(_message(value)))
            numbers = {part for part, _ in attribute}
            graphs |= bool(numbers & {6, 11})
            sparse |= bool(numbers & {22, 23})
            name = _text(_single(attribute, 1, NOTHING))
            if 5 in numbers:
                tensors[name] = _tensor(_message(_single(attribute, 5, NOTHING)))
            if numbers & {3, 8}:
                ints[name] = tuple(_ints(attribute, 3, 8))
            if 2 in numbers:
                floats[name] = _float(_single(attribute, 2, b""))
    operator, domain = ((texts[number] or [""])[-1] for number in (4, 7))
    return OnnxNode(operator, domain, tuple(texts[1]), tuple(texts[2]), graphs, sparse, tensors, ints, floats)


def _tensor(message: memoryview) -> OnnxTensor:
    found = list(fields(message))
    packed = [value for number, value in found if number in (4, 5, 7, 10, 11)]
    if len(packed) > 1 or any(isinstance(value, int) for value in packed):
        packed = [memoryview(b"".join(_as_bytes(value) for value in packed))]
    external = dict(_entry(_message(value)) for number, value in found if number == 13)
    outside = bool(external) or _number(found, 14) != 0
    return OnnxTensor(
        _text(_single(found, 8, NOTHING)),
        DTYPES.get(_number(found, 2), ""),
        tuple(_ints(found, 1, 1)),
        _message(_single(found, 9, NOTHING)),
        _message(packed[0]) if packed else NOTHING,
        external if outside else None,
    )


def _value(message: memoryview) -> OnnxValue:
    found = list(fields(message))
    kind = list(fields(_message(_single(found, 2, NOTHING))))
    tensor = list(fields(_message(_single(kind, 1, NOTHING))))
    shape_fields = fields(_message(_single(tensor, 2, NOTHING)))
    dims = (list(fields(_message(value))) for number, value in shape_fields if number == 1)
    shape = tuple(next(_ints(dim, 1, 1), -1) for dim in dims)
    return OnnxValue(_text(_single(found, 1, NOTHING)), DTYPES.get(_number(tensor, 1), ""), shape)


def _entry(message: memoryview) -> tuple[str, str]:
    found = list(fields(message))
    return _text(_single(found, 1, NOTHING)), _text(_single(found, 2, NOTHING))


def _single(found: list[tuple[int, Any]], number: int, default: T) -> T:
    """The one field of that number; messages that come twice would be merged, which no writer of ours does."""
    values: list[Any] = [value for part, value in found if part == number]
    if len(values) > 1:
        raise ProtobufError(f"a field {number} that comes twice")
    return values[0] if values else default


def _number(found: list[tuple[int, Any]], number: int) -> int:
    value: Any = _single(found, number, 0)
    if not isinstance(value, int):
        raise ProtobufError("a message where a number is expected")
    return value


def _ints(found: list[tuple[int, Any]], single: int, repeated: int) -> Iterator[int]:
    """Signed whole numbers, one by one or packed."""
    for number, value in found:
        if number in (single, repeated):
            yield from map(signed, [value] if isinstance(value, int) else varints(value))


def _float(value: Any) -> float:
    data = _as_bytes(value)
    if len(data) != np.dtype(np.float32).itemsize:
        raise ProtobufError("a number of another size than 4 bytes")
    return float(np.frombuffer(data, "<f4")[0])


def _as_bytes(value: int | memoryview) -> bytes:
    if isinstance(value, memoryview):
        return bytes(value)
    parts: list[int] = []
    while value > 127:
        parts.append(value & 127 | 128)
        value >>= 7
    return bytes([*parts, value])


def _message(value: int | memoryview) -> memoryview:
    if isinstance(value, int):
        raise ProtobufError("a number where a message is expected")
    return value


def _text(value: int | memoryview) -> str:
    try:
        return str(_message(value), "utf-8")
    except UnicodeDecodeError as error:
        raise ProtobufError(f"a name that is not UTF-8: {error.reason}") from None
