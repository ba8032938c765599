"""The wire format of protocol buffers, as far as ONNX files need it: fields by number, nothing copied.

ONNX files are read without the onnx package, which the runtime does not have, to be checked before a backend sees them.
See https://protobuf.dev/programming-guides/encoding for the format.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TypeAlias

__all__ = ["Field", "ProtobufError", "fields", "signed", "varints"]

Field: TypeAlias = "tuple[int, int | memoryview]"
"""A field's number, and its number (unsigned) or its bytes; 4 and 8 byte numbers are bytes."""

VARINT, EIGHT_BYTES, BYTES, FOUR_BYTES = 0, 1, 2, 5
LONGEST_VARINT = 10


class ProtobufError(ValueError):
    """The bytes are no message."""


def fields(message: memoryview) -> Iterator[Field]:
    """The fields of a message in the order of the file.

    Raises:
        ProtobufError: The bytes are no message: cut short, a length beyond the end, or a kind that ONNX has not.
    """
    at, end = 0, len(message)
    while at < end:
        key = message[at]  # nearly all numbers are of one byte: read here, as a call for each takes most of the time
        at += 1
        if key > 127:
            key, at = _varint(message, at - 1)
        kind = key & 7
        if kind == VARINT:
            number, at = _varint(message, at)
            yield key >> 3, number
            continue
        if kind == BYTES:
            size = message[at] if at < end else 128
            at += 1
            if size > 127:
                size, at = _varint(message, at - 1)
        elif kind in (FOUR_BYTES, EIGHT_BYTES):
            size = 4 if kind == FOUR_BYTES else 8
        else:
            raise ProtobufError(f"a field of kind {kind}")
        if size > end - at:
            raise ProtobufError(f"a field of {size} bytes where {end - at} are left")
        yield key >> 3, message[at : at + size]
        at += size


def varints(packed: memoryview) -> Iterator[int]:
    """The numbers, unsigned, of a packed field.

    Raises:
        ProtobufError: It is cut short.
    """
    at = 0
    while at < len(packed):
        number, at = _varint(packed, at)
        yield number


def signed(number: int) -> int:
    """A varint of 64 bits as the signed number that it stands for."""
    return number - (1 << 64) if number >> 63 else number


def _varint(message: memoryview, at: int) -> tuple[int, int]:
    """The number that begins at ``at``, and where it ends."""
    try:
        byte = message[at]
        if byte < 128:
            return byte, at + 1
        number = byte & 127
        for step in range(1, LONGEST_VARINT):
            byte = message[at + step]
            number |= (byte & 127) << (7 * step)
            if byte < 128:
                return number & ((1 << 64) - 1), at + step + 1
    except IndexError:
        raise ProtobufError("a number that is cut short") from None
    raise ProtobufError("a number of more than 64 bits")
