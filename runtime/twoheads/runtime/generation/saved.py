"""A context in a file: its tokens with their keys, values and states, to go on later or in another process.

The file carries the hash of its contents, the identity of the bundle, and that of what computed: with other kernels the
bits behind it would be those of no run.
"""

from __future__ import annotations

import json
from hashlib import sha256
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from twoheads.graphs.errors import InputError
from twoheads.graphs.serialization.read_json import parse_json
from twoheads.runtime.generation.context import Context
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
    header = json.dumps({"bundle": identity[0], "engines": identity[1], "tokens": len(tokens), **facts}).encode()
    try:
        with replacing(path) as file:
            file.write(MAGIC + bytes(DIGEST))
            digest = sha256()
            for data in (len(header).to_bytes(8, "little"), header, tokens.tobytes()):
                digest.update(data)
                file.write(data)
            for array in context.written(blocks):
                data = np.ascontiguousarray(array).tobytes()
                digest.update(data)
                file.write(data)
            file.seek(len(MAGIC))
            file.write(digest.digest())
    except OSError as error:
        raise InputError(str(path), f"can't be written: {error.strerror}", "name a file in a folder") from error


def read_context(context: Context, path: Path, identity: tuple[str, str]) -> Context:
    """Makes an empty context the one that was written to ``path``.

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
            tokens = np.frombuffer(file.read(8 * count), "<i8").tolist()
            steady, reached, blocks = int(header["steady"]), int(header["reached"]), _blocks(context, count)
            earlier = int(header["earlier"]) if context.engines.steps.states else 0
            if len(tokens) != count or not 0 <= steady <= count or reached < blocks:
                raise InputError(str(path), DAMAGED, AGAIN)
            context.kept.prepare(blocks)
            for array in context.written(blocks):
                array[...] = np.frombuffer(file.read(array.nbytes), array.dtype).reshape(array.shape)
    except OSError as error:
        raise InputError(
            str(path), f"can't be read: {error.strerror}", "name a file that a context was saved to"
        ) from error
    except (ValueError, KeyError, TypeError) as error:  # right by its hash, and yet of another form
        raise InputError(str(path), DAMAGED, AGAIN) from error
    if not context.restore(tokens, steady, reached, earlier):
        raise InputError(str(path), DAMAGED, AGAIN)
    return context


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
