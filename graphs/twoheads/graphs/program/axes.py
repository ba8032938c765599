"""Axes: how many rows a value has, as a formula over the lengths of the inputs.

An axis is a string, ``SUM`` or ``SUM//DIV``: the names of input axes in alphabetical order, joined by ``+``, then a
whole number if it is not 0. ``n``, ``m+n``, ``n-2``, ``(n+1)//2``; a constant number of rows is a string of digits
(``197``). Equal formulas have equal texts, so axes are compared as strings.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import lru_cache, reduce
from math import gcd

from twoheads.graphs.errors import InputError, InternalError

__all__ = ["Axis", "add_axes", "axis_inputs", "axis_length", "make_axis", "parse_axis", "shift_axis"]

_TERM = re.compile(r"([a-z][a-z0-9]*)|([0-9]+)")
_SUM = re.compile(rf"(?:{_TERM.pattern})(?:\+(?:{_TERM.pattern})|-[0-9]+)*")
_DIVIDED = re.compile(r"(?:\((.+)\)|([^()]+))//([0-9]+)")


@dataclass(frozen=True, slots=True)
class Axis:
    """``(sum of the lengths named in of, with repetitions, + add) // div``."""

    of: tuple[str, ...]
    add: int
    div: int

    def __str__(self) -> str:
        text = "+".join(self.of)
        if self.add or not self.of:
            text += f"{self.add:+d}" if self.of else str(self.add)
        if self.div == 1:
            return text
        return f"({text})//{self.div}" if len(self.of) + bool(self.add) > 1 else f"{text}//{self.div}"


def make_axis(of: Iterable[str], add: int = 0, div: int = 1) -> str:
    """The text of ``(sum(of) + add) // div``, in its one canonical form.

    Args:
        of: Names of input axes, with repetitions.
        add: Added to their lengths.
        div: Positive; the quotient is rounded down.

    Raises:
        InternalError: ``div`` is not positive, or a name is none.
    """
    counts = Counter(of)
    if div < 1 or any(not re.fullmatch(r"[a-z][a-z0-9]*", name) for name in counts):
        raise InternalError(f"no axis: ({'+'.join(counts)} + {add}) // {div}")
    if not counts:
        return str(add // div)
    # floor((g*x + a) / (g*k)) = floor((x + floor(a / g)) / k) for whole x
    common = reduce(gcd, counts.values(), div)
    names = tuple(name for name in sorted(counts) for _ in range(counts[name] // common))
    return str(Axis(names, add // common, div // common))


@lru_cache(maxsize=1024)
def parse_axis(axis: str) -> Axis:
    """The parts of an axis.

    Raises:
        ValueError: The text is no axis, or not in its canonical form.
    """
    divided = _DIVIDED.fullmatch(axis)
    text, div = (divided[1] or divided[2], int(divided[3])) if divided else (axis, 1)
    if not _SUM.fullmatch(text) or div < 1:
        raise ValueError(f"{axis!r} is no axis")
    signed = re.findall(r"([+-]?)([a-z][a-z0-9]*|[0-9]+)", text)
    names = tuple(word for _, word in signed if not word.isdigit())
    add = sum(int(sign + word) for sign, word in signed if word.isdigit())
    if make_axis(names, add, div) != axis:
        raise ValueError(f"axis {axis!r} is written {make_axis(names, add, div)!r}")
    return Axis(tuple(sorted(names)), add, div)


def axis_inputs(axis: str) -> tuple[str, ...]:
    """The names of the input axes that ``axis`` depends on, each once."""
    return tuple(dict.fromkeys(parse_axis(axis).of))


def axis_length(axis: str, lengths: Mapping[str, int]) -> int:
    """Rows along ``axis`` where the input axes have ``lengths``.

    Raises:
        InputError: There would be none: the input is too short for the model.
        InternalError: A length is missing.
    """
    parts = parse_axis(axis)
    if missing := [name for name in parts.of if name not in lengths]:
        raise InternalError(f"axis {axis}: no length of {missing[0]}")
    length = (sum(lengths[name] for name in parts.of) + parts.add) // parts.div
    if length < 1:
        given = ", ".join(f"{name} = {lengths[name]}" for name in axis_inputs(axis))
        raise InputError("length", f"the model makes {axis} rows of the input, none for {given}", "give a longer input")
    return length


def shift_axis(axis: str, add: int, div: int = 1) -> str:
    """The axis ``(axis + add) // div``, e.g. what a convolution of stride ``div`` makes of ``axis``."""
    parts = parse_axis(axis)
    return make_axis(parts.of, parts.add + add * parts.div, parts.div * div)


def add_axes(axes: Iterable[str]) -> str:
    """The axis of a concatenation.

    Raises:
        ValueError: The sum is no axis: two of the parts are rounded down on their own.
    """
    parts = [parse_axis(axis) for axis in axes]
    divided = [part for part in parts if part.div > 1]
    if len(divided) > 1 or (divided and any(part.of for part in parts if part.div == 1)):
        raise ValueError(f"the sum of {', '.join(map(str, parts))} is no axis")
    div = divided[0].div if divided else 1
    add = sum(part.add if part.div == div else part.add * div for part in parts)
    return make_axis((name for part in parts for name in part.of), add, div)
