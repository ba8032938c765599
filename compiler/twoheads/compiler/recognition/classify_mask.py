"""Recognises what a dense mask or bias means by evaluating it at several lengths.

A model may compute its own ``[n, n]`` mask. If that is a function of positions alone, it is one of few families; the
family is read off at one length and must reproduce the array exactly at every other length. Nothing is assumed that was
not seen: lengths reach beyond every constant in the mask's own computation.
"""

from __future__ import annotations

from collections.abc import Callable, Set
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from twoheads.graphs.errors import CompileError
from twoheads.graphs.masks.expressions import Causal, Chunk, Full, Mask, Window, conjunction

__all__ = ["HIDDEN", "BiasPattern", "Evaluate", "checked_lengths", "classify"]

Dense: TypeAlias = npt.NDArray[Any]
Evaluate: TypeAlias = Callable[[int], Dense]

HIDDEN = -1e4
"""An additive entry at or below this value hides its key: models write -inf, the dtype's minimum or about -1e4."""

HALF_LARGEST = 65504
"""The largest number of half precision: what files in that precision hide keys with, never a window."""

LONGEST = 16384
"""Longest length a mask is evaluated at, in tokens (2^28 entries)."""


@dataclass(frozen=True, slots=True)
class BiasPattern:
    """A bias by head and distance: ``table [heads, 2 * reach + 1]`` constant beyond its ends, ``slope [heads]``."""

    table: npt.NDArray[np.float32] | None
    slope: npt.NDArray[np.float32] | None

    @property
    def absent(self) -> bool:
        """Whether nothing is added."""
        return self.table is None and self.slope is None

    def plus(self, other: BiasPattern, where: str) -> BiasPattern:
        """The sum of two biases, of which one must be absent.

        Raises:
            CompileError: Both are present.
        """
        if other.absent:
            return self
        if not self.absent:
            raise CompileError(where, "adds two biases to its scores", "add them up in the model")
        return other


def classify(
    evaluate: Evaluate, constants: Set[int], where: str, *, longest: int | None = None
) -> tuple[Mask | None, BiasPattern]:
    """Recognises the array that ``evaluate(length)`` returns.

    Args:
        evaluate: Gives the array at a length: ``[1, heads or 1, length, length]``, bool (True = visible) or additive.
        constants: Whole numbers that the array's computation mentions.
        where: The layer, for messages.
        longest: Longest input the model takes at all (its mask is cut from a table), if known.

    Returns:
        The mask (``None`` if it hides nothing) and the bias.

    Raises:
        CompileError: It is no known family, or its constants are too large to evaluate.
    """
    constants = constants - {HALF_LARGEST}
    lengths = [min(length, longest or length) for length in checked_lengths(constants)]
    if lengths[-1] > LONGEST:
        raise CompileError(
            where,
            f"its mask mentions {max(constants)}, beyond what can be checked",
            "say the mask with twoheads.compiler.attention",
        )
    masks: list[Mask] = []
    biases: list[BiasPattern] = []
    for length in sorted(set(lengths), reverse=True):
        visible, additive = _split(evaluate(length), where)
        mask = masks[0] if masks else _read_mask(visible, constants)
        i = np.arange(length)
        if mask is None or not np.array_equal(mask.dense(i[:, None], i[None, :]), visible):
            raise CompileError(
                where,
                f"its mask at {length} tokens is none of full, causal, window, chunk or their conjunctions",
                "say the mask with twoheads.compiler.attention",
            )
        masks.append(mask)
        bias = biases[0] if biases else _read_bias(additive, visible, where)
        _require_bias(bias, additive, visible, where)
        biases.append(bias)
    return (None if isinstance(masks[0], Full) else masks[0]), biases[0]


def checked_lengths(constants: Set[int]) -> tuple[int, int, int]:
    """The lengths at which an array with these constants is looked at, the longest last: beyond all that they say."""
    reach = max((c for c in constants - {HALF_LARGEST} if c > 1), default=0)
    return 41, 2 * min(reach, 64) + 73, 2 * reach + 75


def _split(dense: Dense, where: str) -> tuple[npt.NDArray[np.bool_], npt.NDArray[np.float32]]:
    """Visible pairs ``[n, n]`` and the additive part ``[heads, n, n]`` (0 where hidden)."""
    if dense.dtype == np.bool_:
        visible, additive = dense[0], np.zeros((1, *dense.shape[2:]), np.float32)
    else:
        visible = dense[0] > HIDDEN
        additive = np.where(visible, dense[0], 0).astype(np.float32)
    if not np.array_equal(visible, np.broadcast_to(visible[:1], visible.shape)):
        raise CompileError(where, "its heads have different masks", "use one mask for all heads of a layer")
    return visible[0], additive


def _read_mask(visible: npt.NDArray[np.bool_], constants: Set[int]) -> Mask | None:
    """The simplest expression that fits, or ``None``."""
    length = visible.shape[0]
    i = np.arange(length)[:, None]
    j = i.T
    middle = visible[length // 2]
    seen = np.flatnonzero(middle)
    if seen.size == 0:
        return None
    left, right = length // 2 - int(seen[0]), int(seen[-1]) - length // 2
    window = Window(left if seen[0] > 0 else -1, right if seen[-1] < length - 1 else -1)
    bases: tuple[Mask, ...] = (Full(), Causal(), window, Causal() & Window(window.left, -1))
    chunks = tuple(Chunk(c) for c in sorted(constants) if 1 < c < length)
    candidates = [*bases, *(conjunction((base, chunk)) for chunk in chunks for base in bases[:2])]
    return next((mask for mask in candidates if np.array_equal(mask.dense(i, j), visible)), None)


def _read_bias(additive: npt.NDArray[np.float32], visible: npt.NDArray[np.bool_], where: str) -> BiasPattern:
    """Reads the bias off its longest diagonal profile: by distance, linear (ALiBi) or constant beyond a reach (T5)."""
    if not additive.any():
        return BiasPattern(None, None)
    length = additive.shape[1]
    # The bias at distance d = j - i for d = -(n-1) .. n-1: the last row holds d <= 0, the first row d >= 0.
    profile = np.concatenate([additive[:, -1, :-1], additive[:, 0, :]], axis=1)
    shown = np.concatenate([visible[-1, :-1], visible[0, :]])
    distance = np.arange(-(length - 1), length)
    slope = (profile[:, shown] @ distance[shown]) / max(1, int((distance[shown] ** 2).sum()))
    if np.allclose(
        profile[:, shown], slope[:, None] * distance[shown], rtol=1e-6, atol=1e-6 * float(np.abs(profile).max())
    ):
        return BiasPattern(None, _exact_slope(profile, distance, shown))
    table = np.where(shown, profile, 0.0).astype(np.float32)
    # On each side of the diagonal, the farthest distance at which the bias still differs from its value far away.
    sides = ((distance < 0, 0), (distance > 0, -1))
    varying = [np.flatnonzero((table != table[:, [end]]).any(0) & side) for side, end in sides]
    limit = max((int(np.abs(distance[at]).max()) for at in varying if at.size), default=0) + 1
    if limit >= length - 1 - 8:
        raise CompileError(
            where,
            "its bias neither grows linearly with distance nor settles",
            "a bias must be linear or constant beyond a reach",
        )
    middle = length - 1
    return BiasPattern(table[:, middle - limit : middle + limit + 1].copy(), None)


def _exact_slope(profile: Dense, distance: Dense, shown: Dense) -> npt.NDArray[np.float32]:
    """The slope as the model has it: its value at distance 1 (or -1), not a fit."""
    at = int(np.flatnonzero(shown & (np.abs(distance) == 1))[0])
    slope: npt.NDArray[np.float32] = (profile[:, at] * distance[at]).astype(np.float32)
    return slope


def _require_bias(
    bias: BiasPattern, additive: npt.NDArray[np.float32], visible: npt.NDArray[np.bool_], where: str
) -> None:
    length = visible.shape[0]
    distance = np.arange(length)[None, :] - np.arange(length)[:, None]
    expected = np.zeros_like(additive)
    if bias.slope is not None:
        expected = bias.slope[:, None, None] * distance.astype(np.float32)
    elif bias.table is not None:
        reach = bias.table.shape[1] // 2
        expected = bias.table[:, np.clip(distance, -reach, reach) + reach]
    magnitude = float(np.abs(additive).max())
    if not np.allclose(np.where(visible, expected, 0), additive, rtol=1e-6, atol=1e-6 * magnitude):
        raise CompileError(
            where,
            f"its bias at {length} tokens is no function of head and distance alone",
            "a bias must depend on positions only, linear or constant beyond a reach",
        )
