"""Sizes as functions of the inputs' lengths, found by measuring them at a few lengths."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations

from twoheads.graphs.program.axes import make_axis, parse_axis
from twoheads.graphs.program.program import Dim

__all__ = ["SizeFormula", "dim_of", "fit_size", "lengths_for"]

LARGEST_DIVISOR = 32


@dataclass(frozen=True, slots=True)
class SizeFormula:
    """``(factor * sum of lengths + add) // div`` over the input axes in ``of``."""

    of: tuple[str, ...]
    factor: int
    add: int
    div: int

    def at(self, lengths: Mapping[str, int]) -> int:
        """The size at ``lengths``."""
        return (self.factor * sum(lengths[name] for name in self.of) + self.add) // self.div

    def __str__(self) -> str:
        if not self.of:
            return str(self.add)
        if self.factor == 1:
            return make_axis(self.of, self.add, self.div)
        total = "+".join(self.of)
        total = f"{self.factor}*{f'({total})' if len(self.of) > 1 else total}"
        total += f"{self.add:+d}" if self.add else ""
        return total if self.div == 1 else f"({total})//{self.div}"


def fit_size(sizes: Sequence[int], runs: Sequence[Mapping[str, int]]) -> SizeFormula | None:
    """The formula whose value in each run is that of ``sizes``; ``None`` if there is none."""
    if len(set(sizes)) == 1:
        return SizeFormula((), 1, sizes[0], 1)
    names = sorted(runs[0])
    for count in range(1, len(names) + 1):
        for of in combinations(names, count):
            sums = [sum(run[name] for name in of) for run in runs]
            if found := _linear(sizes, sums) or _divided(sizes, sums):
                return SizeFormula(of, *found)
    return None


def _linear(sizes: Sequence[int], sums: Sequence[int]) -> tuple[int, int, int] | None:
    factor, rest = divmod(sizes[1] - sizes[0], sums[1] - sums[0])
    add = sizes[0] - factor * sums[0]
    fits = not rest and all(size == factor * total + add for size, total in zip(sizes, sums, strict=True))
    return (factor, add, 1) if fits and factor else None


def _divided(sizes: Sequence[int], sums: Sequence[int]) -> tuple[int, int, int] | None:
    for div in range(2, LARGEST_DIVISOR + 1):
        least = max(div * size - total for size, total in zip(sizes, sums, strict=True))
        most = min(div * size - total + div - 1 for size, total in zip(sizes, sums, strict=True))
        if least <= most:
            # Several sums may fit a few measurements; halving rounds up or down, so 0 and div - 1 come first.
            return 1, next((add for add in (0, div - 1) if least <= add <= most), least), div
    return None


def dim_of(formula: SizeFormula | None) -> Dim:
    """The formula as a dimension: a number, an axis, or a text that no region may have."""
    if formula is None:
        return "?"
    return str(formula) if formula.of else formula.add


def lengths_for(axis: str | None, tokens: int) -> dict[str, int]:
    """Lengths of the input axes at which ``axis`` has ``tokens`` entries; empty for none and for a constant axis."""
    if axis is None:
        return {}
    parts = parse_axis(axis)
    names = tuple(dict.fromkeys(parts.of))
    total = tokens * parts.div - parts.add
    return {name: 0 if at else total // parts.of.count(name) for at, name in enumerate(names)}
