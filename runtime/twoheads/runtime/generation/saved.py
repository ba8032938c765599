"""A context in a file: its tokens with their keys, values and states, to go on later or in another process.

Behind an encoder there are the keys and values of cross attention as well: the encoder does not run again.

The file carries the hash of its contents, the identity of the bundle, and that of what computed: with other kernels the
bits behind it would be those of no run.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Callable
from hashlib import sha256
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import numpy.typing as npt

from twoheads.graphs.errors import InputError
from twoheads.graphs.serialization.read_json import parse_json
from twoheads.graphs.variants.steps import Steps
from twoheads.runtime.generation.context import Context
from twoheads.runtime.generation.kept.kept_source import KeptSource
from twoheads.runtime.generation.kept.rounded_reads import RoundedReads
from twoheads.runtime.memory.new_file import replacing

__all__ = ["read_context", "write_context"]

MAGIC = b"twoheads context 1\n"
DIGEST = 32
CHUNK = 1 << 20
LONGEST_HEADER = 1 << 16
DAMAGED = "is damaged: it is not what was written"
AGAIN = "append the tokens again"


def write_context(context: Context, path: Path, identity: tuple[str, str]) -> None:
    """Writes a context, completely or not at all.

    Args:
        context: Which.
        path: The file, which is replaced; a device, a pipe or a link to one is refused.
        identity: Of its bundle, and of what computes.

    Raises:
        InputError: The context is closed, or the file can't be written.
    """
    facts, blocks = context.facts(), _blocks(context, len(context))
    tokens = np.array(facts.pop("tokens"), "<i8")
    told = {"bundle": identity[0], "engines": identity[1], "tokens": len(tokens), **facts}
    if context.engines.steps.source:
        told["source"] = context.source.tokens
    if context.kept.pages is not None:
        told["pages"] = context.kept.pages
    header = json.dumps(told).encode()
    try:
        with replacing(path) as file:
            file.write(MAGIC + bytes(DIGEST))
            digest = sha256()
            for data in (len(header).to_bytes(8, "little"), header, tokens.tobytes()):
                digest.update(data)
                file.write(data)
            for array in (*context.source.arrays(), *context.written(blocks)):
                data = np.ascontiguousarray(array).tobytes()
                digest.update(data)
                file.write(data)
            file.seek(len(MAGIC))
            file.write(digest.digest())
    except OSError as error:
        raise InputError(str(path), f"can't be written: {error.strerror}", "name a file in a folder") from error


def read_context(
    steps: Steps, begin: Callable[[KeptSource, str | None], Context], path: Path, identity: tuple[str, str]
) -> Context:
    """The context that was written to ``path``.

    Args:
        steps: What is continued.
        begin: Makes an empty context, behind what was read of an encoder, of a kind of pages that is named.
        path: The file.
        identity: Of the bundle, and of what computes.

    Raises:
        InputError: The file can't be read, is none of these, is damaged, or was written with another bundle, backend or
            processor.
    """
    try:
        with path.open("rb") as file:
            _check(path, file)
            header = _header(path, file)
            _compare(path, header, identity)
            count = int(header["tokens"])
            tokens = _array(file, (count,), np.dtype("<i8")).tolist()
            source = _source(steps, file, int(header["source"]) if steps.source else 0)
            pages = header.get("pages")
            if pages not in (None, RoundedReads.pages):
                raise InputError(str(path), DAMAGED, AGAIN)
            context = begin(source, pages)
            steady, reached, blocks = int(header["steady"]), int(header["reached"]), _blocks(context, count)
            earlier = int(header["earlier"]) if steps.states else 0
            if not 0 <= steady <= count or reached < blocks:
                raise InputError(str(path), DAMAGED, AGAIN)
            context.kept.prepare(blocks)
            for array in context.written(blocks):
                array[...] = _array(file, array.shape, array.dtype)
    except OSError as error:
        raise InputError(
            str(path), f"can't be read: {error.strerror}", "name a file that a context was saved to"
        ) from error
    except (ValueError, KeyError, TypeError) as error:  # right by its hash, and yet of another form
        raise InputError(str(path), DAMAGED, AGAIN) from error
    if not context.restore(tokens, steady, reached, earlier):
        raise InputError(str(path), DAMAGED, AGAIN)
    return context


def _source(steps: Steps, file: BinaryIO, rows: int) -> KeptSource:
    """What was read of an encoder of so many rows.

    Raises:
        ValueError: The file does not hold it.
    """
    if steps.source and rows < 1:
        raise ValueError(f"{rows} rows of an encoder")
    return KeptSource(
        steps, {value.name: _array(file, value.block_shape(rows), np.dtype(value.dtype)) for value in steps.source}
    )


def _array(file: BinaryIO, shape: tuple[int, ...], dtype: np.dtype[Any]) -> npt.NDArray[Any]:
    """The next array of the file.

    Raises:
        ValueError: The file is shorter. So no header makes it ask for more memory than the file has bytes.
    """
    size = math.prod(shape) * dtype.itemsize
    if not 0 <= size <= os.fstat(file.fileno()).st_size - file.tell():
        raise ValueError(f"the file ends before an array {list(shape)} of {dtype}")
    return np.frombuffer(file.read(size), dtype).reshape(shape)


def _blocks(context: Context, tokens: int) -> int:
    return tokens // context.engines.steps.program.block_size


def _check(path: Path, file: BinaryIO) -> None:
    """The file is one of ours, and carries the hash of what is in it; leaves it behind the hash."""
    if file.read(len(MAGIC)) != MAGIC:
        raise InputError(str(path), "is no saved context", "name a file that a context was saved to")
    told, digest, start = file.read(DIGEST), sha256(), file.tell()
    while data := file.read(CHUNK):
        digest.update(data)
    if digest.digest() != told:
        raise InputError(str(path), DAMAGED, AGAIN)
    file.seek(start)


def _header(path: Path, file: BinaryIO) -> dict[str, Any]:
    size = int.from_bytes(file.read(8), "little")
    if size > LONGEST_HEADER:
        raise InputError(str(path), DAMAGED, AGAIN)
    header = parse_json(file.read(size), str(path), fix=AGAIN)
    if not isinstance(header, dict):
        raise InputError(str(path), DAMAGED, AGAIN)
    return header


def _compare(path: Path, header: dict[str, Any], identity: tuple[str, str]) -> None:
    if header["bundle"] != identity[0]:
        raise InputError(str(path), "is a context of another bundle", f"load it with that one, or {AGAIN}")
    if header["engines"] != identity[1]:
        problem = "was saved on another backend, version of it, or processor: the bits would be those of no run"
        raise InputError(str(path), problem, AGAIN)
