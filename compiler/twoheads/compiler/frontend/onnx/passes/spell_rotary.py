"""Spells a rotary embedding in elementary ONNX operators."""

from __future__ import annotations

from dataclasses import dataclass

from twoheads.compiler.frontend.onnx.passes.spell_attention import Spelling

__all__ = ["Rotary", "rotate"]


@dataclass(frozen=True, slots=True)
class Rotary:
    """A rotation of the first ``width`` columns: ``cos`` and ``sin`` are ``[n, width / 2]``.

    Rotated together are columns ``i`` and ``i + width / 2``, or with ``interleaved`` columns ``2i`` and ``2i + 1``.
    """

    cos: str
    sin: str
    width: int
    interleaved: bool


def rotate(spelling: Spelling, name: str, rotary: Rotary, heads: int, depth: int) -> str:
    """Rotates ``[1, heads, n, depth]``; columns after the rotary's width stay."""
    half = rotary.width // 2
    if rotary.interleaved:
        turned = _interleaved(spelling, name, rotary, heads)
    else:
        first, second = (_columns(spelling, name, at * half, (at + 1) * half, 3) for at in range(2))
        turned = spelling.add("Concat", *_turn(spelling, first, second, rotary.cos, rotary.sin), axis=3)
    if rotary.width == depth:
        return turned
    return spelling.add("Concat", turned, _columns(spelling, name, rotary.width, depth, 3), axis=3)


def _interleaved(spelling: Spelling, name: str, rotary: Rotary, heads: int) -> str:
    columns = _columns(spelling, name, 0, rotary.width, 3)
    pairs = spelling.add("Reshape", columns, spelling.integers(1, heads, -1, rotary.width // 2, 2))
    first, second = (_columns(spelling, pairs, at, at + 1, 4) for at in range(2))
    cos, sin = (spelling.add("Unsqueeze", part, spelling.integers(2)) for part in (rotary.cos, rotary.sin))
    both = spelling.add("Concat", *_turn(spelling, first, second, cos, sin), axis=4)
    return spelling.add("Reshape", both, spelling.integers(1, heads, -1, rotary.width))


def _turn(spelling: Spelling, first: str, second: str, cos: str, sin: str) -> tuple[str, str]:
    return (
        spelling.add("Sub", spelling.add("Mul", first, cos), spelling.add("Mul", second, sin)),
        spelling.add("Add", spelling.add("Mul", first, sin), spelling.add("Mul", second, cos)),
    )


def _columns(spelling: Spelling, name: str, start: int, stop: int, axis: int) -> str:
    return spelling.add("Slice", name, spelling.integers(start), spelling.integers(stop), spelling.integers(axis))
