"""All weights of a bundle in one file, streamed: hashed while written, equal tensors stored once."""

from __future__ import annotations

import hashlib
import sys
from collections.abc import Callable, Collection, Hashable, Iterable, Iterator
from math import prod
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, TypeAlias, cast

import numpy as np
import numpy.typing as npt

from twoheads.compiler.ir.weights import Deferred, in_memory, parts_in_memory
from twoheads.graphs.errors import CompileError, InternalError
from twoheads.graphs.serialization.bundle_format import ALIGNMENT, FileEntry, WeightEntry
from twoheads.runtime.bundle.weights import part_name

if TYPE_CHECKING:
    from torch import Tensor
    from typing_extensions import Buffer

__all__ = ["NamedWeight", "WeightsFile", "total_bytes", "write_weights"]

CHUNK = 16 << 20
"""Bytes that are hashed and written at a time."""

WeightsFile: TypeAlias = tuple[dict[str, WeightEntry], FileEntry]
"""Where every weight lies, and the size and hash of the file."""

NamedWeight: TypeAlias = "tuple[str, Tensor | npt.NDArray[Any] | Deferred, str]"
"""A weight's name, its tensor or array, there or read when it is its turn, and the dtype in which it is stored."""

_Memory: TypeAlias = tuple[Hashable, ...]


def write_weights(
    path: Path,
    weights: Iterable[NamedWeight],
    *,
    progress: Callable[[int], None],
    hashes: dict[str, str] | None = None,
    parted: Collection[str] = (),
) -> WeightsFile:
    """Writes tensors one after the other; tensors that are the same memory, seen alike, are written once.

    Args:
        path: The file to create.
        weights: What to write, in the order of the file. At most one tensor is in memory on our account: one that is
            read now, that is not contiguous, or that is stored in another floating-point type than it has.
        progress: Called with the bytes written so far.
        hashes: Takes the hex sha256 of each weight, by name.
        parted: Weights of many experts: of these each entry along the first dimension is read and written alone where
            that is possible, and has a hash of its own, so that a run can read it alone.

    Raises:
        CompileError: The machine is big-endian.
        OSError: The disk refuses.
    """
    if sys.byteorder != "little":
        raise CompileError(str(path), "this machine is big-endian, and bundles are little-endian", "compile elsewhere")
    entries: dict[str, WeightEntry] = {}
    places: dict[_Memory, tuple[int, list[str]]] = {}
    split: set[_Memory] = set()
    with path.open("xb") as opened:
        file = _Hashed(opened)
        for name, tensor, dtype in weights:
            if name in entries:
                raise InternalError(f"weight {name} is written twice")
            memory = _memory(tensor, dtype)
            if memory not in places:
                whole = parts_in_memory(tensor) if name in parted else map(in_memory, (tensor,))
                places[memory] = file.append((_array(name, part, dtype) for part in whole), progress)
                split |= {memory} if name in parted else set()
            place, digests = places[memory]
            entries[name] = WeightEntry(place, dtype, tuple(tensor.shape))
            names = [part_name(name, number) for number in range(len(digests))] if memory in split else [name]
            if hashes is not None:
                hashes |= zip(names, digests, strict=True)
    return entries, FileEntry(file.size, file.digest.hexdigest())


class _Hashed:
    """A file that is hashed while it is written."""

    def __init__(self, file: BinaryIO) -> None:
        self._file, self.size, self.digest = file, 0, hashlib.sha256()

    def append(self, arrays: Iterable[npt.NDArray[Any]], progress: Callable[[int], None]) -> tuple[int, list[str]]:
        """Writes arrays one behind the other; where the first begins, and the hash of each.

        Nothing of them is held afterwards: the next one is to have the memory.
        """
        self._write(memoryview(bytes(-self.size % ALIGNMENT)))
        start, digests = self.size, list[str]()
        for array in arrays:
            own = hashlib.sha256()
            for chunk in _chunks(array):
                self._write(chunk)
                own.update(chunk)
                progress(self.size)
            digests.append(own.hexdigest())
        return start, digests

    def _write(self, chunk: memoryview) -> None:
        self.digest.update(chunk)
        self._file.write(chunk)
        self.size += len(chunk)


def total_bytes(weights: Iterable[NamedWeight]) -> int:
    """Bytes that :func:`write_weights` will write at most, padding included."""
    sizes = {_memory(tensor, dtype): prod(tensor.shape) * _dtype(dtype).itemsize for _, tensor, dtype in weights}
    return sum(size + ALIGNMENT for size in sizes.values())


def _array(name: str, tensor: Tensor | npt.NDArray[Any], dtype: str) -> npt.NDArray[Any]:
    """The weight in the dtype in which it is stored; its own memory where it has that dtype already."""
    wanted = _dtype(dtype)
    if isinstance(tensor, np.ndarray):
        found, floats = str(tensor.dtype), tensor.dtype.name.startswith(("float", "bfloat"))
    else:
        found, floats = str(tensor.dtype).removeprefix("torch."), tensor.dtype.is_floating_point
    if found != dtype and not (floats and wanted.kind == "f"):
        raise InternalError(f"weight {name} is {found}, its port {dtype}")
    if isinstance(tensor, np.ndarray):
        return tensor.astype(wanted, copy=False)
    # NumPy has no bfloat16: torch converts.
    plain = tensor.detach()
    return (plain if found == dtype else plain.to(getattr(_torch(), dtype))).contiguous().numpy()


def _chunks(array: npt.NDArray[Any]) -> Iterator[memoryview]:
    """The array's bytes in pieces that share its memory where it is contiguous."""
    view = memoryview(cast("Buffer", np.ascontiguousarray(array).reshape(-1).view(np.uint8)))
    for at in range(0, len(view), CHUNK):
        yield view[at : at + CHUNK]


def _memory(tensor: Tensor | npt.NDArray[Any] | Deferred, dtype: str) -> _Memory:
    if isinstance(tensor, Deferred):
        return tensor.key, tuple(tensor.shape), str(tensor.dtype), dtype
    if isinstance(tensor, np.ndarray):
        start = tensor.__array_interface__["data"][0]
        return start, 0, tuple(tensor.shape), tensor.strides, str(tensor.dtype), dtype
    start = tensor.untyped_storage().data_ptr()
    return start, int(tensor.storage_offset()), tuple(tensor.shape), tensor.stride(), str(tensor.dtype), dtype


def _dtype(name: str) -> np.dtype[Any]:
    try:
        return np.dtype(name)
    except TypeError as error:
        raise InternalError(f"weights of dtype {name} can't be stored") from error


def _torch() -> Any:
    import torch

    return torch
