"""All weights of a bundle in one file, streamed: hashed while written, equal tensors stored once."""

from __future__ import annotations

import hashlib
import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias, cast

from twoheads.graphs.bundle_format import ALIGNMENT, FileEntry, WeightEntry
from twoheads.graphs.errors import CompileError, InternalError

if TYPE_CHECKING:
    import torch
    from typing_extensions import Buffer

__all__ = ["NamedWeight", "WeightsFile", "total_bytes", "write_weights"]

CHUNK = 16 << 20
"""Bytes that are hashed and written at a time."""

WeightsFile: TypeAlias = tuple[dict[str, WeightEntry], FileEntry]
"""Where every weight lies, and the size and hash of the file."""

NamedWeight: TypeAlias = "tuple[str, torch.Tensor, str]"
"""A weight's name, its tensor, and the dtype in which it is stored."""

_Memory: TypeAlias = tuple[int, int, tuple[int, ...], tuple[int, ...], str, str]


def write_weights(path: Path, weights: Iterable[NamedWeight], *, progress: Callable[[int], None]) -> WeightsFile:
    """Writes tensors one after the other; tensors that are the same memory, seen alike, are written once.

    Args:
        path: The file to create.
        weights: What to write, in the order of the file. At most one tensor is copied at a time: one that is not
            contiguous, or that is stored in another floating-point type than it has.
        progress: Called with the bytes written so far.

    Raises:
        CompileError: The machine is big-endian.
        OSError: The disk refuses.
    """
    if sys.byteorder != "little":
        raise CompileError(str(path), "this machine is big-endian, and bundles are little-endian", "compile elsewhere")
    entries: dict[str, WeightEntry] = {}
    places: dict[_Memory, int] = {}
    digest = hashlib.sha256()
    size = 0
    with path.open("xb") as file:
        for name, tensor, dtype in weights:
            if name in entries:
                raise InternalError(f"weight {name} is written twice")
            memory = _memory(tensor, dtype)
            if memory not in places:
                chunks = _chunks(_converted(name, tensor, dtype), padding=-size % ALIGNMENT)
                places[memory] = size + len(chunks[0])
                for chunk in chunks:
                    digest.update(chunk)
                    file.write(chunk)
                    size += len(chunk)
                    progress(size)
            entries[name] = WeightEntry(places[memory], dtype, tuple(tensor.shape))
    return entries, FileEntry(size, digest.hexdigest())


def total_bytes(weights: Iterable[NamedWeight]) -> int:
    """Bytes that :func:`write_weights` will write at most, padding included."""
    sizes = {_memory(tensor, dtype): tensor.numel() * _torch_dtype(dtype).itemsize for _, tensor, dtype in weights}
    return sum(size + ALIGNMENT for size in sizes.values())


def _converted(name: str, tensor: torch.Tensor, dtype: str) -> torch.Tensor:
    wanted = _torch_dtype(dtype)
    if tensor.dtype == wanted:
        return tensor
    if not (tensor.dtype.is_floating_point and wanted.is_floating_point):
        raise InternalError(f"weight {name} is {tensor.dtype}, its port {dtype}")
    return tensor.to(wanted)


def _chunks(tensor: torch.Tensor, *, padding: int) -> list[memoryview]:
    """The alignment's zeros, then the tensor's bytes in pieces that share its memory where it is contiguous."""
    import torch

    plain = tensor.detach().contiguous().reshape(-1).view(torch.uint8)
    view = memoryview(cast("Buffer", plain.numpy()))
    return [memoryview(bytes(padding)), *(view[at : at + CHUNK] for at in range(0, len(view), CHUNK))]


def _memory(tensor: torch.Tensor, dtype: str) -> _Memory:
    start = tensor.untyped_storage().data_ptr()
    return start, int(tensor.storage_offset()), tuple(tensor.shape), tensor.stride(), str(tensor.dtype), dtype


def _torch_dtype(name: str) -> torch.dtype:
    import torch

    dtype = getattr(torch, name, None)
    if not isinstance(dtype, torch.dtype):
        raise InternalError(f"weights of dtype {name} can't be stored")
    return dtype
