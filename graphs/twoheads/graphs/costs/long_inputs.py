"""Counts for inputs that are too long to be counted row by row: from four shorter inputs of the same remainder.

What a mask shows of one block of queries depends, from some block on, only on where the block lies in a period: that of
blocks, key tiles and chunks. So a count over all blocks is, for lengths that differ by whole periods, a polynomial of
the number of periods, of degree 2 at most (a causal row grows by as much in every period). Four lengths show three
differences; the third must vanish, or the mask is of no such kind and the length is refused.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from math import lcm

from twoheads.graphs.errors import InputError, InternalError
from twoheads.graphs.masks.documents import Documents
from twoheads.graphs.masks.expressions import And, Chunk, Mask, Or, Sinks, Window
from twoheads.graphs.masks.terms import INFINITE

__all__ = ["extrapolated", "too_long"]


def extrapolated(
    count: Callable[[int], tuple[int, ...]], mask: Mask, length: int, *, period: int = 1, most: int
) -> tuple[int, ...]:
    """``count(length)``, counted at lengths of at most ``most`` tokens.

    Args:
        count: Numbers that are sums over the rows of an input under ``mask``, by its length.
        mask: What rows see.
        length: Tokens.
        period: Tokens after which rows are cut alike, without the mask's own periods.
        most: The longest input that ``count`` may be asked for.

    Raises:
        InputError: The length is beyond ``most``, and the mask has no period short enough.
    """
    if length <= most:
        return count(length)
    whole = lcm(period, *(part.size for part in _parts(mask) if isinstance(part, Chunk)))
    start = -(-2 * _reach(mask) // whole) + 2
    rest = length % whole
    lengths = [rest + (start + at) * whole for at in range(4)]
    if lengths[-1] > most or any(isinstance(part, Documents) for part in _parts(mask)):
        raise too_long(length, f"the mask {mask} has no period short enough")
    times = length // whole - start
    return tuple(_continued(column, times) for column in zip(*map(count, lengths), strict=True))


def too_long(length: int, why: str) -> InputError:
    """The refusal of a length that can neither be counted nor be computed."""
    return InputError("length", f"{length} tokens can't be planned: {why}", "plan a shorter input")


def _continued(values: tuple[int, ...], times: int) -> int:
    """The polynomial through ``values`` at 0 to 3, at ``times`` (Newton's formula)."""
    first, second, third, fourth = values
    rise, bend = second - first, third - 2 * second + first
    if fourth - 3 * third + 3 * second - first:
        raise InternalError(f"counts {values} at equal distances are no polynomial of degree 2")
    return first + times * rise + times * (times - 1) // 2 * bend


def _parts(mask: Mask) -> Iterator[Mask]:
    yield mask
    if isinstance(mask, And | Or):
        for term in mask.terms:
            yield from _parts(term)


def _reach(mask: Mask) -> int:
    """The largest distance or place that the mask speaks of."""
    sizes = [0]
    for part in _parts(mask):
        if isinstance(part, Window):
            sizes += [part.left, part.right]
        elif isinstance(part, Sinks | Chunk):
            sizes.append(part.size)
    return max(size for size in sizes if size < INFINITE)
