"""Arrays in ``.npy`` and ``.npz`` files of anybody: what a file says of itself is checked before memory is taken.

A file holds numbers in row or column order, as ``numpy.save``, ``savez`` and ``savez_compressed`` write them. Headers
of arrays that the file is too short for, archives that are cut, damaged, encrypted or packed in another way, and
archives that unfold to a multiple of what such numbers ever do, are refused by name.
"""

from __future__ import annotations

import io
import os
import zipfile
import zlib
from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import IO, Any, TypeAlias, cast

import numpy as np
import numpy.typing as npt

from twoheads.graphs.errors import InputError

__all__ = ["read_npy", "read_npz"]

LONGEST_HEADER = 10_000
"""Bytes that describe an array."""

MOST_ARRAYS = 1000

UNFOLDED = 1 << 26
"""Bytes that an archive may always unfold to."""

LARGEST_RATIO = 100
"""Beyond these, how many times its own size: columns of equal numbers compress so well, whole inputs do not."""

PIECE = 1 << 22
"""Bytes that are unfolded at a time."""

FIX_NPY = "save the array with numpy.save"
FIX_NPZ = "save the arrays with numpy.savez, each under the name of an input (see inspect)"

Array: TypeAlias = npt.NDArray[Any]


@dataclass(frozen=True, slots=True)
class _Header:
    shape: tuple[int, ...]
    columns_first: bool
    dtype: np.dtype[Any]

    @property
    def nbytes(self) -> int:
        return prod(self.shape) * self.dtype.itemsize

    def array(self, data: bytearray | Array) -> Array:
        flat = np.frombuffer(data, self.dtype)
        return flat.reshape(self.shape[::-1]).T if self.columns_first else flat.reshape(self.shape)


def read_npy(path: str | os.PathLike[str], fix: str = FIX_NPY) -> Array:
    """The array of a ``.npy`` file; ``fix`` is what an error says to do.

    Raises:
        InputError: It is no such file, holds no numbers, or another amount of them than it says.
    """
    with _opened(Path(path), fix) as file:
        if file.read(2) == b"PK":
            raise InputError(str(path), "is an archive of several arrays", fix)
        file.seek(0)
        header = _header(file, str(path), fix)
        there = os.fstat(file.fileno()).st_size - file.tell()
        if there != header.nbytes:
            problem = f"holds {there} bytes of numbers, and says {header.nbytes}: {_described(header)}"
            raise InputError(str(path), problem, fix)
        return header.array(_read_exactly(file, header.nbytes, str(path), fix))


def read_npz(path: str | os.PathLike[str]) -> dict[str, Array]:
    """The arrays of a ``.npz`` file by name.

    Raises:
        InputError: It is no such file, damaged, or unfolds to too much; names the array.
    """
    with _opened(Path(path), FIX_NPZ) as file:
        start = file.read(6)
        if start == b"\x93NUMPY":
            raise InputError(str(path), "is a single array", FIX_NPZ)
        try:
            with zipfile.ZipFile(file) as archive:
                return {
                    member.filename.removesuffix(".npy"): _member(archive, member, path)
                    for member in _members(archive, path)
                }
        except (zipfile.BadZipFile, zlib.error, NotImplementedError, RuntimeError, EOFError, ValueError) as error:
            raise InputError(str(path), f"is no archive of arrays, or a damaged one: {error}", FIX_NPZ) from None


def _members(archive: zipfile.ZipFile, path: str | os.PathLike[str]) -> list[zipfile.ZipInfo]:
    """The archive's arrays, checked as far as its table of contents tells."""
    members = archive.infolist()
    names = [member.filename for member in members]
    if len(members) > MOST_ARRAYS or len(set(names)) < len(names):
        raise InputError(str(path), f"holds {len(members)} arrays, or two of one name", FIX_NPZ)
    for member in members:
        where = f"{path}, {member.filename!r}"
        if not member.filename.endswith(".npy"):
            raise InputError(where, "is no array", FIX_NPZ)
        if member.flag_bits & 1:
            raise InputError(where, "is encrypted", FIX_NPZ)
        if member.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
            raise InputError(where, f"is compressed by method {member.compress_type}, which arrays are not", FIX_NPZ)
    size = sum(member.file_size for member in members)
    if size > max(UNFOLDED, LARGEST_RATIO * os.stat(path).st_size):
        problem = f"unfolds to {size} bytes, more than {LARGEST_RATIO} times its own size"
        raise InputError(str(path), problem, "save the arrays with numpy.savez, which does not compress them")
    return members


def _member(archive: zipfile.ZipFile, member: zipfile.ZipInfo, path: str | os.PathLike[str]) -> Array:
    where = f"{path}, array {member.filename.removesuffix('.npy')!r}"
    with archive.open(member) as stream:
        header = _header(stream, where, FIX_NPZ)
        there = member.file_size - stream.tell()
        if there != header.nbytes:
            problem = f"holds {there} bytes of numbers, and says {header.nbytes}: {_described(header)}"
            raise InputError(where, problem, FIX_NPZ)
        data = _read_exactly(stream, header.nbytes, where, FIX_NPZ)
        stream.read(1)  # at its end the archive compares the checksum
        return header.array(data)


def _described(header: _Header) -> str:
    return f"{header.dtype} of shape {list(header.shape)}"[:200]


@contextmanager
def _opened(path: Path, fix: str) -> Generator[io.BufferedReader]:
    try:
        if path.exists() and not path.is_file():
            raise InputError(str(path), "is no regular file", fix)
        with path.open("rb") as file:
            yield file
    except (OSError, MemoryError) as error:
        reason = "there is no memory for it" if isinstance(error, MemoryError) else error.strerror or str(error)
        raise InputError(str(path), f"can't be read: {reason}", fix) from None


def _header(stream: IO[bytes], where: str, fix: str) -> _Header:
    """What the array says of itself, without believing it."""
    try:
        version = np.lib.format.read_magic(cast("Any", stream))
        read: Any = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}[version]
        shape, columns_first, dtype = read(stream, max_header_size=LONGEST_HEADER)
        header = _Header(tuple(int(size) for size in shape), bool(columns_first), dtype)
    except Exception:  # noqa: BLE001 - the header is text that NumPy parses; what it raises is of half a dozen types
        raise InputError(where, "is not a .npy file of numbers: its header can't be read", fix) from None
    if dtype.kind not in "iufb" or dtype.hasobject:
        raise InputError(where, f"is not a .npy file of numbers: it holds {dtype!s:.60}", fix)
    if any(size < 0 for size in header.shape) or len(header.shape) > 32:
        raise InputError(where, f"says it has shape {list(header.shape)!s:.100}", fix)
    return header


def _read_exactly(stream: IO[bytes], nbytes: int, where: str, fix: str) -> bytearray:
    """``nbytes`` bytes; memory is taken as they come."""
    data = bytearray()
    while len(data) < nbytes:
        piece = stream.read(min(PIECE, nbytes - len(data)))
        if not piece:
            raise InputError(where, f"ends after {len(data)} of {nbytes} bytes of numbers", fix)
        data += piece
    return data
