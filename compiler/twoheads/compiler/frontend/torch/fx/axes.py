"""Sizes in a captured torch graph as dimensions: numbers, token axes, or texts that no region may have."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import combinations
from typing import Any, cast

import torch
from torch import Tensor
from torch.utils._sympy.functions import FloorDiv

from twoheads.compiler.ir.source_graph import TensorType
from twoheads.graphs.program.axes import make_axis, parse_axis
from twoheads.graphs.program.program import Dim

__all__ = ["AxisNames"]

PROBES = range(64, 64 + 2 * 32)
"""Lengths at which two sizes are compared: every remainder of every divisor up to ``LARGEST_DIVISOR``."""

LARGEST_DIVISOR = 32


@dataclass(frozen=True, slots=True)
class AxisNames:
    """What the shape symbols of an exported program mean.

    Attributes:
        symbols: The input axis of each symbol, e.g. ``{"s43": "n"}``, or its only value, ``{"s41": "197"}``.
    """

    symbols: Mapping[str, str]

    @property
    def constants(self) -> dict[str, int]:
        """The symbols that have one value only."""
        return {symbol: int(axis) for symbol, axis in self.symbols.items() if axis.isdigit()}

    def shape(self, value: Tensor) -> tuple[Dim, ...]:
        """The shape with token axes by name; sizes computed from lengths otherwise keep their expression."""
        return tuple(self.dim(size) for size in value.shape)

    def type(self, value: Tensor) -> TensorType:
        """NumPy's name of the dtype, and the shape."""
        return TensorType(str(value.dtype).removeprefix("torch."), self.shape(value))

    def dim(self, size: int | torch.SymInt) -> Dim:
        """A size as a number, an axis such as ``n`` or ``(n+1)//2``, or an expression's text."""
        if isinstance(size, int):
            return size
        expression = size.node.expr
        if expression.is_Integer:
            return int(expression)
        names = sorted({self.symbols[str(s)] for s in expression.free_symbols if str(s) in self.symbols})
        found = None if any(str(s) not in self.symbols for s in expression.free_symbols) else self._axis(size, names)
        return found or str(expression.subs({s: self.symbols.get(str(s), str(s)) for s in expression.free_symbols}))

    def is_axis(self, size: int | torch.SymInt) -> bool:
        """Whether a size is that of a token axis."""
        dim = self.dim(size)
        return isinstance(dim, str) and _parses(dim)

    def evaluate(self, size: Any, lengths: Mapping[str, int]) -> Any:
        """A size, factor or condition at the given lengths of the input axes; anything else as it is."""
        if not isinstance(size, torch.SymInt | torch.SymFloat | torch.SymBool):
            return size
        expression = size.node.expr
        if hasattr(expression, "subs"):
            values = {**lengths} | {str(constant): constant for constant in self.constants.values()}
            expression = expression.subs({s: values[self.symbols[str(s)]] for s in expression.free_symbols})
        kind = float if isinstance(size, torch.SymFloat) else bool if isinstance(size, torch.SymBool) else int
        return kind(expression)

    def _axis(self, size: torch.SymInt, names: list[str]) -> str | None:
        """The axis ``(sum + add) // div`` that equals ``size`` at every probe."""
        expression = size.node.expr
        by_symbol = {str(symbol): symbol for symbol in expression.free_symbols}
        if len(by_symbol) == 1 and str(expression) in self.symbols:
            return names[0]
        names = [name for name in names if not name.isdigit()]
        if not names:
            return str(self.evaluate(size, {}))
        if (strided := _strided(expression)) is not None and len(names) == 1:
            return make_axis((names[0],), *strided)
        probes = [{name: probe + 101 * at for at, name in enumerate(names)} for probe in PROBES]
        values = [self.evaluate(size, probe) for probe in probes]
        for count in range(len(names), 0, -1):
            for of in combinations(names, count):
                sums = [sum(probe[name] for name in of) for probe in probes]
                for div in range(1, LARGEST_DIVISOR + 1):
                    least = max(div * value - total for value, total in zip(values, sums, strict=True))
                    most = min(div * value - total + div - 1 for value, total in zip(values, sums, strict=True))
                    if least <= most:
                        return make_axis(of, least, div)
        return None


def _strided(expression: Any) -> tuple[int, int] | None:
    """``(add, div)`` of nested strides, ``((n + a) // b + c) // d``, which are ``(n + a + b c) // (b d)``."""
    if expression.is_Symbol:
        return 0, 1
    if isinstance(expression, FloorDiv):
        base, divisor = cast("tuple[Any, Any]", expression.args)
        inner = _strided(base) if divisor.is_Integer else None
        return None if inner is None else (inner[0], inner[1] * int(divisor))
    if expression.is_Add and len(expression.args) == 2 and expression.args[0].is_Integer:
        inner = _strided(expression.args[1])
        return None if inner is None else (inner[0] + int(expression.args[0]) * inner[1], inner[1])
    return None


def _parses(axis: str) -> bool:
    try:
        parse_axis(axis)
    except ValueError:
        return False
    return True
