"""Mutations of bytes and of JSON, drawn from a seeded generator."""

from __future__ import annotations

import json
from collections.abc import Iterator
from random import Random
from typing import Any, cast

__all__ = ["ODD", "mutated_bytes", "mutated_json", "mutated_tree", "mutated_values"]

ODD: tuple[Any, ...] = (
    None, True, False, 0, -1, 1, 2**31, 2**62, -(2**63), 10**30, 1e308, float("inf"), float("nan"), "", "x", "../x",
    "../outside/weights.bin", "/etc/passwd", "a\0b", "\ud800", [], {}, [[]], [None], {"x": 1}, "9" * 400, [1] * 1000,
)  # fmt: skip
"""What a field is replaced by; beside every mutant there is a folder ``outside``, which nothing may touch."""


def mutated_bytes(data: bytes, draw: Random) -> bytes:
    """``data`` with a byte flipped, a part cut, doubled, zeroed or filled with noise."""
    changed = bytearray(data)
    for _ in range(draw.choice((1, 1, 1, 3, 10))):
        if not changed:
            break
        # Headers are where a file says what it is: half of the places are near its beginning.
        at = draw.randrange(min(len(changed), 400) if draw.random() < 0.5 else len(changed))
        size = draw.choice((1, 1, 4, 8, 64))
        match draw.randrange(5):
            case 0:
                changed[at] ^= 1 << draw.randrange(8)
            case 1:
                changed[at : at + size] = draw.randbytes(size)
            case 2:
                changed[at : at + size] = bytes(len(changed[at : at + size]))
            case 3:
                del changed[at : at + draw.choice((1, 8, len(changed)))]
            case _:
                changed[at:at] = changed[at : at + size]
    return bytes(changed)


def mutated_json(data: bytes, draw: Random) -> bytes:
    """The same JSON with an entry replaced, removed, renamed, doubled or moved; sometimes its bytes mutated instead."""
    if draw.random() < 0.1:
        return mutated_bytes(data, draw)
    if draw.random() < 0.02:
        return b'{"a":' * draw.choice((200, 100_000)) + data
    tree = json.loads(data)
    mutated_tree(tree, draw)
    return json.dumps(tree).encode("utf-8", "surrogatepass")


def mutated_values(data: bytes, draw: Random) -> bytes:
    """JSON that says something else; its bytes stay JSON."""
    tree = json.loads(data)
    mutated_tree(tree, draw)
    return json.dumps(tree).encode("utf-8", "surrogatepass")


def mutated_tree(tree: Any, draw: Random) -> None:
    """Changes a place or two of what a JSON file holds."""
    for _ in range(draw.choice((1, 1, 1, 2))):
        places = list(_places(tree))
        if not places:
            break
        _change(draw.choice(places), draw.choice(places), draw)


def _change(place: tuple[Any, Any], other: tuple[Any, Any], draw: Random) -> None:
    holder, key = place
    match draw.randrange(6):
        case 0 | 1:
            holder[key] = draw.choice(ODD)
        case 2:
            del holder[key]
        case 3:
            holder[key] = json.loads(json.dumps(other[0][other[1]]))
        case 4:
            if isinstance(holder, dict):
                holder[draw.choice(("x", "", f"{key}s", str(other[1])))] = holder[key]
            else:
                holder.insert(key, holder[key])
        case _:
            holder[key] = _near(holder[key], draw)


def _near(found: Any, draw: Random) -> Any:
    """A number or a text that differs a little."""
    if isinstance(found, int | float) and not isinstance(found, bool):
        return draw.choice((-found, found + 1, found - 1, found * 2, found * 10**9))
    if isinstance(found, str) and found:
        at = draw.randrange(len(found))
        return found[:at] + draw.choice(("", "\0", "/", ".", "0", "é")) + found[at + 1 :]
    return found


def _places(tree: Any) -> Iterator[tuple[Any, Any]]:
    """Every list or object with each of its keys."""
    waiting = [tree]
    while waiting:
        holder = waiting.pop()
        keys = list(cast("dict[str, Any]", holder)) if isinstance(holder, dict) else range(len(holder))
        for key in keys:
            yield holder, key
            if isinstance(holder[key], dict | list):
                waiting.append(holder[key])
