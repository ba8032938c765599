"""Mutations of GGUF files by their format: counts, entries with their types, tensors with their places."""

from __future__ import annotations

import struct
from dataclasses import dataclass
from random import Random
from typing import Any

from tools.fuzz.mutate.plain import mutated_bytes

__all__ = ["mutated_gguf"]

FORMATS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
STRING, ARRAY = 8, 9
COUNTS = (0, 1, 3, 2**31, 2**62, 2**64 - 1)
NUMBERS = (0, 1, 2, 3, 7, 64, 2**16, 2**31 - 1, 2**32 - 1)
TEXTS = ("", "x", "llama", "bert", "gpt2", "qwen3", "../outside/x", "a\0b", "é" * 9, "{{ 1 / 0 }}", "9" * 400)


@dataclass
class _File:
    """A file in parts: ``entries`` are lists of key, type and value; ``tensors`` of name, sizes, type and offset."""

    version: int
    entries: list[list[Any]]
    tensors: list[list[Any]]
    data: bytes


@dataclass
class _Counted:
    """A list that says how many it has, and has none."""

    kind: int
    count: int


class _Reader:
    def __init__(self, data: bytes) -> None:
        self.data, self.at = data, 4

    def take(self, layout: str) -> Any:
        (found,) = struct.unpack_from("<" + layout, self.data, self.at)
        self.at += struct.calcsize("<" + layout)
        return found

    def text(self) -> bytes:
        size = self.take("Q")
        self.at += size
        return self.data[self.at - size : self.at]

    def value(self, kind: int) -> Any:
        if kind == STRING:
            return self.text()
        if kind == ARRAY:
            inner, count = self.take("I"), self.take("Q")
            return [inner, [self.value(inner) for _ in range(count)]]
        return self.take(FORMATS[kind])

    def file(self) -> _File:
        version, tensors, entries = self.take("I"), self.take("Q"), self.take("Q")
        held: list[list[Any]] = []
        for _ in range(entries):
            key, kind = self.text(), self.take("I")
            held.append([key, kind, self.value(kind)])
        places = [
            [self.text(), [self.take("Q") for _ in range(self.take("I"))], self.take("I"), self.take("Q")]
            for _ in range(tensors)
        ]
        return _File(version, held, places, self.data[-(-self.at // 32) * 32 :])


def _text(text: bytes) -> bytes:
    return struct.pack("<Q", len(text)) + text


def _value(kind: int, value: Any) -> bytes:
    if kind == STRING:
        return _text(value)
    if isinstance(value, _Counted):
        return struct.pack("<IQ", value.kind, value.count)
    if kind == ARRAY:
        inner, items = value
        return struct.pack("<IQ", inner, len(items)) + b"".join(_value(inner, item) for item in items)
    return struct.pack("<" + FORMATS[kind], value)


def _written(file: _File, tensors: int | None, entries: int | None) -> bytes:
    counts = (len(file.tensors) if tensors is None else tensors, len(file.entries) if entries is None else entries)
    parts = [b"GGUF", struct.pack("<IQQ", file.version, *counts)]
    parts += [_text(key) + struct.pack("<I", kind) + _value(kind, value) for key, kind, value in file.entries]
    for name, sizes, kind, offset in file.tensors:
        parts.append(_text(name) + struct.pack(f"<I{len(sizes)}QIQ", len(sizes), *sizes, kind, offset))
    header = b"".join(parts)
    return header + bytes(-len(header) % 32) + file.data


def mutated_gguf(data: bytes, draw: Random) -> bytes:
    """``data`` with a count, an entry, a tensor or bytes changed."""
    if draw.random() < 0.2:
        return mutated_bytes(data, draw)
    file = _Reader(data).file()
    match draw.randrange(10):
        case 0:
            return _written(file, draw.choice((*COUNTS, None)), draw.choice((*COUNTS, None)))
        case 1:
            file.version = draw.choice((0, 1, 2, 4, 2**31))
        case 2 | 3 | 4 | 5:
            _change_entry(file, draw)
        case _:
            _change_tensor(file, draw)
    return _written(file, None, None)


def _change_entry(file: _File, draw: Random) -> None:
    at = draw.randrange(len(file.entries))
    entry = file.entries[at]
    key, kind, value = entry
    match draw.randrange(6):
        case 0:
            del file.entries[at]
        case 1:
            file.entries.insert(at, list(entry))
        case 2:
            entry[0] = draw.choice((b"", b"x", key[:-1], b"general.architecture", b"tokenizer.ggml.model", b"\xff\xfe"))
        case 3 if kind == ARRAY and draw.random() < 0.5:  # many more than there are
            entry[2] = _Counted(value[0], draw.choice(COUNTS))
        case 3:
            entry[1:] = draw.choice(
                ([STRING, b"x"], [4, 3], [6, float("nan")], [7, True], [ARRAY, [4, []]], [10, 2**63])
            )
        case _ if kind == STRING:
            entry[2] = draw.choice(TEXTS).encode()
        case _ if kind == ARRAY:
            items = value[1]
            entry[2] = [value[0], draw.choice((items[:1], items * 2, items[::-1], items[:-1]))]
        case _ if kind == 6:
            entry[2] = draw.choice((float("nan"), float("inf"), -1.0, 0.0, 1e30, value * 2))
        case _ if kind in (4, 5):
            entry[2] = draw.choice([number for number in NUMBERS if kind == 4 or number < 2**31])
        case _:
            pass


def _change_tensor(file: _File, draw: Random) -> None:
    at = draw.randrange(len(file.tensors))
    tensor = file.tensors[at]
    name, sizes, _, offset = tensor
    match draw.randrange(6):
        case 0:
            del file.tensors[at]
        case 1:
            file.tensors.insert(at, list(tensor))
        case 2:
            tensor[0] = draw.choice((b"", b"x", name[:-1], draw.choice(file.tensors)[0], b"\xff\xfe"))
        case 3:
            place = draw.randrange(len(sizes))
            tensor[1] = [*sizes[:place], draw.choice((0, 1, sizes[place] + 1, 2**40, 2**63)), *sizes[place + 1 :]]
            if draw.random() < 0.3:
                tensor[1] = draw.choice(([], [1] * 5, [1] * 1000, sizes[::-1]))
        case 4:
            tensor[2] = draw.choice((1, 2, 3, 8, 12, 14, 30, 99, 2**31))
        case _:
            tensor[3] = draw.choice((offset + 1, offset + 32, 2**40, 2**63, draw.choice(file.tensors)[3]))
