"""Arrays out of an ONNX file's tensors: what a tensor says of itself is checked before memory is taken for it."""

from __future__ import annotations

from math import prod
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt
import onnx
from onnx import TensorProto, helper, numpy_helper
from onnx.external_data_helper import uses_external_data

from twoheads.graphs.errors import CompileError

__all__ = ["Array", "array_of", "constant_of", "dtype_name", "external_file"]

Array: TypeAlias = npt.NDArray[Any]

EXPORT_AGAIN = "export or download the file again"

COMPLETE = "put the model's complete files there"

PACKED = {"INT4": 4, "UINT4": 4, "FLOAT4E2M1": 4, "INT2": 2, "UINT2": 2}
"""Bits of an entry, where several share a byte."""


def dtype_name(element: int, where: str) -> str:
    """The NumPy name of an ONNX element type.

    Raises:
        CompileError: There is no such type, or its entries are no numbers.
    """
    return str(_dtype(element, where))


def array_of(tensor: TensorProto, path: Path) -> Array:
    """The tensor's numbers, in the file or in the mapped file beside it.

    Raises:
        CompileError: They are not there, or are not as many as the tensor says.
    """
    where = _where(tensor, path)
    nbytes = _nbytes(tensor, where)
    if uses_external_data(tensor):
        return _external(tensor, path, nbytes)
    if tensor.HasField("raw_data") and len(tensor.raw_data) != nbytes:
        raise CompileError(where, f"holds {len(tensor.raw_data)} bytes, {nbytes} are needed", EXPORT_AGAIN)
    try:
        return numpy_helper.to_array(tensor)
    except Exception as error:  # of many types, for numbers that are not what the tensor says
        raise CompileError(where, f"is damaged: {error!s:.200}", EXPORT_AGAIN) from error


def constant_of(node: onnx.NodeProto, path: Path) -> Array:
    """The numbers of a ``Constant``.

    Raises:
        CompileError: It has none, or is of another kind.
    """
    where = f'{path}, constant "{node.name or "".join(node.output[:1])}"'
    attribute = node.attribute[0] if len(node.attribute) == 1 and len(node.output) == 1 else onnx.AttributeProto()
    if attribute.name == "value" and attribute.type == onnx.AttributeProto.TENSOR:
        return array_of(attribute.t, path)
    kinds = {"value_int": np.int64, "value_ints": np.int64, "value_float": np.float32, "value_floats": np.float32}
    if attribute.name not in kinds:
        problem = f"is of the kind {attribute.name!r}" if attribute.name else "does not hold one value"
        raise CompileError(where, problem, "use tensors only")
    return np.array(helper.get_attribute_value(attribute), kinds[attribute.name])


def external_file(tensor: TensorProto, path: Path) -> tuple[Path, int]:
    """Where external data lies: the file, and the offset in bytes; all of it is there.

    Raises:
        CompileError: The file is missing, too short, outside of the model's folder, or the place is no place.
    """
    where = _where(tensor, path)
    entries = {entry.key: entry.value for entry in tensor.external_data}
    location = entries.get("location", "")
    file = path.parent / location
    try:
        inside = "\0" not in location and file.resolve().is_relative_to(path.parent.resolve())
        size = file.stat().st_size if inside and file.is_file() else -1
    except (OSError, RuntimeError) as error:  # a link to itself
        raise CompileError(
            where, f"keeps its numbers in {location!r}, which can't be read: {error}", COMPLETE
        ) from None
    if not inside:
        problem = f"keeps weights outside of its folder: {location!r}"
        raise CompileError(str(path), problem, "keep them beside it")
    nbytes = _nbytes(tensor, where)
    offset, length = (_number(entries.get(key, ""), key, where) for key in ("offset", "length"))
    if length not in (None, nbytes):
        raise CompileError(where, f"has {length} bytes in {location}, {nbytes} are needed", EXPORT_AGAIN)
    offset = offset or 0
    if size < offset + nbytes:
        problem = "is missing" if size < 0 else f"has {size} bytes, {offset + nbytes} are needed"
        raise CompileError(where, f"keeps its numbers in {location}, which {problem}", COMPLETE)
    return file, offset


def _where(tensor: TensorProto, path: Path) -> str:
    return f"{path}, weight {tensor.name!r:.100}"


def _number(text: str, key: str, where: str) -> int | None:
    """A place in a file, ``None`` where none is told."""
    if not text:
        return None
    if not (text.isascii() and text.isdigit() and len(text) < 19):
        raise CompileError(where, f"has the {key} {text!r:.60} in its file, which is no place", EXPORT_AGAIN)
    return int(text)


def _dtype(element: int, where: str) -> np.dtype[Any]:
    try:
        dtype = np.dtype(helper.tensor_dtype_to_np_dtype(element))
    except (KeyError, ValueError, TypeError):
        raise CompileError(where, f"is of the element type {element}, which ONNX does not have", EXPORT_AGAIN) from None
    if dtype.hasobject:
        raise CompileError(where, "holds texts", "export the part of the model that works on numbers")
    return dtype


def _nbytes(tensor: TensorProto, where: str) -> int:
    """Bytes of the numbers as files hold them."""
    dtype = _dtype(tensor.data_type, where)
    if any(size < 0 for size in tensor.dims):
        raise CompileError(where, f"has the shape {list(tensor.dims)}", EXPORT_AGAIN)
    bits = PACKED.get(TensorProto.DataType.Name(tensor.data_type), dtype.itemsize * 8)
    entries: int = prod(tensor.dims)
    return -(-entries * bits // 8)


def _external(tensor: TensorProto, path: Path, nbytes: int) -> Array:
    """The tensor in its mapped file; copied only where it is packed."""
    file, offset = external_file(tensor, path)
    dtype, shape = _dtype(tensor.data_type, str(path)), tuple(tensor.dims)
    if not nbytes:
        return np.empty(shape, dtype)
    mapped = np.asarray(np.memmap(file, np.uint8, "r", offset, (nbytes,)))
    if prod(shape) * dtype.itemsize == nbytes:
        return mapped.view(dtype).reshape(shape)
    copy = TensorProto(name=tensor.name, data_type=tensor.data_type, dims=tensor.dims)
    copy.raw_data = bytes(mapped)
    return numpy_helper.to_array(copy)
