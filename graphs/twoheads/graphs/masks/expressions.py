"""Attention masks as expressions over a query position ``i`` and a key position ``j``.

A mask is never stored as an ``N x N`` array. It is an expression such as ``causal & (window(511, 0) | sinks(4))``
that answers three questions about a block of query rows ``[start, stop)``:

* ``support``: which keys *may* be seen by some row of the block; a tile outside of it is **empty** (no call);
* ``covered``: which keys *are* seen by every row of the block; a tile inside of it is **full** (no mask);
* ``dense``: the exact answer for the few tiles in between (**partial**).

Both interval sets cost time proportional to the expression, not to the length, which is what makes sliding windows
and attention sinks cost ``O(N / M)`` (Theorem 5.1). Text and expression convert into each other: ``str(mask)`` and
:func:`parse_mask`.
"""

from __future__ import annotations

import ast
from abc import ABC, abstractmethod
from collections.abc import Hashable, Iterable
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
import numpy.typing as npt

from twoheads.graphs.errors import CompileError

__all__ = [
    "And",
    "Causal",
    "Chunk",
    "Full",
    "Interval",
    "Intervals",
    "Mask",
    "Or",
    "Sinks",
    "Window",
    "conjunction",
    "disjunction",
    "parse_mask",
]

Interval: TypeAlias = tuple[int, int]
"""A half-open range ``[start, stop)`` of positions."""

Intervals: TypeAlias = tuple[Interval, ...]
"""Disjoint, non-adjacent, ascending, non-empty intervals."""

UNBOUNDED = 1 << 62
"""A key position beyond every length: the end of an interval that the mask itself does not bound."""


class Mask(ABC):
    """Which keys ``j`` a query ``i`` may see. Subclasses are frozen dataclasses and therefore hashable."""

    __slots__ = ()

    @abstractmethod
    def dense(self, i: npt.NDArray[np.int64], j: npt.NDArray[np.int64]) -> npt.NDArray[np.bool_]:
        """Evaluates the mask for broadcastable positions ``i`` and ``j`` (both int64); True = visible."""

    @abstractmethod
    def support(self, rows: Interval) -> Intervals:
        """A superset of the keys that at least one row of the non-empty interval ``rows`` sees."""

    @abstractmethod
    def covered(self, rows: Interval) -> Intervals:
        """A subset of the keys that every row of the non-empty interval ``rows`` sees."""

    @abstractmethod
    def tile_key(self, row: int, key: int) -> Hashable:
        """Equal for two tiles of equal size, starting at ``(row, key)``, only if their dense masks are equal."""

    @abstractmethod
    def boundaries(self) -> frozenset[int]:
        """The positions and distances at which what is seen changes; what can happen, happens near one of them."""

    def __and__(self, other: Mask) -> Mask:
        return conjunction((self, other))

    def __or__(self, other: Mask) -> Mask:
        return disjunction((self, other))


@dataclass(frozen=True, slots=True)
class Full(Mask):
    """Every query sees every key (a bidirectional encoder)."""

    def dense(self, i: npt.NDArray[np.int64], j: npt.NDArray[np.int64]) -> npt.NDArray[np.bool_]:
        return np.ones(np.broadcast_shapes(i.shape, j.shape), np.bool_)

    def support(self, rows: Interval) -> Intervals:
        return ((0, UNBOUNDED),)

    def covered(self, rows: Interval) -> Intervals:
        return ((0, UNBOUNDED),)

    def tile_key(self, row: int, key: int) -> Hashable:
        return None

    def boundaries(self) -> frozenset[int]:
        return frozenset[int]()

    def __str__(self) -> str:
        return "full"


@dataclass(frozen=True, slots=True)
class Causal(Mask):
    """Query ``i`` sees keys ``j <= i``."""

    def dense(self, i: npt.NDArray[np.int64], j: npt.NDArray[np.int64]) -> npt.NDArray[np.bool_]:
        return j <= i

    def support(self, rows: Interval) -> Intervals:
        return ((0, rows[1]),)

    def covered(self, rows: Interval) -> Intervals:
        return ((0, rows[0] + 1),)

    def tile_key(self, row: int, key: int) -> Hashable:
        return row - key

    def boundaries(self) -> frozenset[int]:
        return frozenset({0})

    def __str__(self) -> str:
        return "causal"


@dataclass(frozen=True, slots=True)
class Window(Mask):
    """Query ``i`` sees keys ``i - left <= j <= i + right``.

    The sizes follow ONNX's ``Attention`` (opset 25): ``left_window_size`` and ``right_window_size`` count the
    neighbours on each side, so the query itself is always seen, and -1 leaves the side unbounded. A Hugging Face
    ``sliding_window`` of 512 (the query and 511 predecessors) is ``window(511, 0)``.
    """

    left: int
    right: int

    def __post_init__(self) -> None:
        if self.left < -1 or self.right < -1:
            raise CompileError("mask", f"{self} has a side below -1", "give 0 or more neighbours, or -1 for no bound")

    def dense(self, i: npt.NDArray[np.int64], j: npt.NDArray[np.int64]) -> npt.NDArray[np.bool_]:
        distance = j - i
        low = distance >= -self.left if self.left >= 0 else np.ones_like(distance, np.bool_)
        high = distance <= self.right if self.right >= 0 else np.ones_like(distance, np.bool_)
        return low & high

    def support(self, rows: Interval) -> Intervals:
        return self._between(rows[0], rows[1] - 1)

    def covered(self, rows: Interval) -> Intervals:
        return self._between(rows[1] - 1, rows[0])

    def _between(self, low_row: int, high_row: int) -> Intervals:
        low = max(0, low_row - self.left) if self.left >= 0 else 0
        high = high_row + self.right + 1 if self.right >= 0 else UNBOUNDED
        return ((low, high),) if low < high else ()

    def tile_key(self, row: int, key: int) -> Hashable:
        return row - key

    def boundaries(self) -> frozenset[int]:
        return frozenset(side for side in (self.left, self.right) if side >= 0)

    def __str__(self) -> str:
        return f"window({self.left}, {self.right})"


@dataclass(frozen=True, slots=True)
class Sinks(Mask):
    """Every query sees the first ``size`` keys: attention sinks under a window, the prefix of a prefix LM."""

    size: int

    def __post_init__(self) -> None:
        if self.size < 1:
            raise CompileError("mask", f"{self} keeps no key", "give 1 sink token or more, or leave the term out")

    def dense(self, i: npt.NDArray[np.int64], j: npt.NDArray[np.int64]) -> npt.NDArray[np.bool_]:
        return np.broadcast_to(j < self.size, np.broadcast_shapes(i.shape, j.shape))

    def support(self, rows: Interval) -> Intervals:
        return ((0, self.size),)

    def covered(self, rows: Interval) -> Intervals:
        return ((0, self.size),)

    def tile_key(self, row: int, key: int) -> Hashable:
        return max(0, self.size - key)

    def boundaries(self) -> frozenset[int]:
        return frozenset({self.size})

    def __str__(self) -> str:
        return f"sinks({self.size})"


@dataclass(frozen=True, slots=True)
class Chunk(Mask):
    """Query and key lie in the same chunk of ``size`` consecutive positions (chunked local attention)."""

    size: int

    def __post_init__(self) -> None:
        if self.size < 1:
            raise CompileError("mask", f"{self} is not a size", "give a chunk of 1 token or more")

    def dense(self, i: npt.NDArray[np.int64], j: npt.NDArray[np.int64]) -> npt.NDArray[np.bool_]:
        visible: npt.NDArray[np.bool_] = (i // self.size) == (j // self.size)
        return visible

    def support(self, rows: Interval) -> Intervals:
        first, last = rows[0] // self.size, (rows[1] - 1) // self.size
        return ((first * self.size, (last + 1) * self.size),)

    def covered(self, rows: Interval) -> Intervals:
        first, last = rows[0] // self.size, (rows[1] - 1) // self.size
        return ((first * self.size, (first + 1) * self.size),) if first == last else ()

    def tile_key(self, row: int, key: int) -> Hashable:
        return row // self.size - key // self.size, row % self.size, key % self.size

    def boundaries(self) -> frozenset[int]:
        return frozenset({self.size})

    def __str__(self) -> str:
        return f"chunk({self.size})"


@dataclass(frozen=True, slots=True)
class And(Mask):
    """Every term allows the pair. Build it with ``&``, which keeps it flat and drops ``full``."""

    terms: tuple[Mask, ...]

    def dense(self, i: npt.NDArray[np.int64], j: npt.NDArray[np.int64]) -> npt.NDArray[np.bool_]:
        visible: npt.NDArray[np.bool_] = np.logical_and.reduce([t.dense(i, j) for t in self.terms])
        return visible

    def support(self, rows: Interval) -> Intervals:
        return intersect(t.support(rows) for t in self.terms)

    def covered(self, rows: Interval) -> Intervals:
        return intersect(t.covered(rows) for t in self.terms)

    def tile_key(self, row: int, key: int) -> Hashable:
        return tuple(t.tile_key(row, key) for t in self.terms)

    def boundaries(self) -> frozenset[int]:
        return frozenset[int]().union(*(term.boundaries() for term in self.terms))

    def __str__(self) -> str:
        return " & ".join(f"({t})" if isinstance(t, Or) else str(t) for t in self.terms)


@dataclass(frozen=True, slots=True)
class Or(Mask):
    """At least one term allows the pair. Build it with ``|``, which keeps it flat and absorbs into ``full``."""

    terms: tuple[Mask, ...]

    def dense(self, i: npt.NDArray[np.int64], j: npt.NDArray[np.int64]) -> npt.NDArray[np.bool_]:
        visible: npt.NDArray[np.bool_] = np.logical_or.reduce([t.dense(i, j) for t in self.terms])
        return visible

    def support(self, rows: Interval) -> Intervals:
        return unite(t.support(rows) for t in self.terms)

    def covered(self, rows: Interval) -> Intervals:
        return unite(t.covered(rows) for t in self.terms)

    def tile_key(self, row: int, key: int) -> Hashable:
        return tuple(t.tile_key(row, key) for t in self.terms)

    def boundaries(self) -> frozenset[int]:
        return frozenset[int]().union(*(term.boundaries() for term in self.terms))

    def __str__(self) -> str:
        return " | ".join(str(t) for t in self.terms)


def conjunction(masks: Iterable[Mask]) -> Mask:
    """The flat conjunction of ``masks``, without ``full`` and without repeats; ``full`` for none."""
    terms: dict[Mask, None] = {}
    for mask in masks:
        for term in mask.terms if isinstance(mask, And) else (mask,):
            if not isinstance(term, Full):
                terms[term] = None
    return Full() if not terms else next(iter(terms)) if len(terms) == 1 else And(tuple(terms))


def disjunction(masks: Iterable[Mask]) -> Mask:
    """The flat disjunction of one or more ``masks``, without repeats; ``full`` if one of them is."""
    terms: dict[Mask, None] = {}
    for mask in masks:
        for term in mask.terms if isinstance(mask, Or) else (mask,):
            terms[term] = None
    if any(isinstance(term, Full) for term in terms):
        return Full()
    return next(iter(terms)) if len(terms) == 1 else Or(tuple(terms))


def unite(sets: Iterable[Intervals]) -> Intervals:
    """The union of interval sets, merged where they touch."""
    merged: list[Interval] = []
    for start, stop in sorted(interval for intervals in sets for interval in intervals):
        if merged and start <= merged[-1][1]:
            merged[-1] = (merged[-1][0], max(merged[-1][1], stop))
        else:
            merged.append((start, stop))
    return tuple(merged)


def intersect(sets: Iterable[Intervals]) -> Intervals:
    """The intersection of one or more interval sets."""
    result: Intervals | None = None
    for intervals in sets:
        if result is None:
            result = intervals
            continue
        pairs = ((max(a, c), min(b, d)) for a, b in result for c, d in intervals)
        result = tuple(sorted((start, stop) for start, stop in pairs if start < stop))
    return result if result is not None else ()


def parse_mask(text: str) -> Mask:
    """Reads what ``str(mask)`` prints, e.g. ``causal & (window(511, 0) | sinks(4))``.

    Raises:
        CompileError: The text is not a mask expression.
    """
    try:
        return _mask_from_ast(ast.parse(text.strip(), mode="eval").body)
    except (SyntaxError, TypeError, ValueError, KeyError, RecursionError, MemoryError) as error:
        raise CompileError(
            f"mask {text!r}",
            f"is not a mask expression ({error})",
            "combine full, causal, window(left, right), sinks(size) and chunk(size) with & and |",
        ) from None


_ATOMS: dict[str, type[Mask]] = {"full": Full, "causal": Causal, "window": Window, "sinks": Sinks, "chunk": Chunk}


def _mask_from_ast(node: ast.expr) -> Mask:
    match node:
        case ast.BinOp(left, ast.BitAnd(), right):
            return _mask_from_ast(left) & _mask_from_ast(right)
        case ast.BinOp(left, ast.BitOr(), right):
            return _mask_from_ast(left) | _mask_from_ast(right)
        case ast.Name(name):
            return _ATOMS[name]()
        case ast.Call(ast.Name(name), arguments, []):
            sizes = [ast.literal_eval(argument) for argument in arguments]
            if not all(type(size) is int for size in sizes):
                raise ValueError(f"{name} takes whole numbers")
            return _ATOMS[name](*sizes)
        case _:
            raise ValueError(f"unexpected {ast.unparse(node)!r}")
