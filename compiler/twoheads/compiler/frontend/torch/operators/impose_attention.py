"""Runs an original model under other masks than its own: what an approximate bundle is verified against.

Within :func:`impose` every attention of a forward pass, whatever its form, adds further terms to its scores. They are
computed for bands of query rows from positions alone, so nothing is shared with the masks and tiles of a bundle.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Generator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, TypeAlias

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from twoheads.graphs.errors import InternalError
from twoheads.graphs.masks.policy import Policy
from twoheads.graphs.masks.sampling import draw_keys, sampled_row
from twoheads.graphs.program.program import AttentionStage

__all__ = ["Band", "Imposition", "average_band", "impose", "imposed_band", "window_band", "with_band"]

Band: TypeAlias = Callable[[int, int, int], Tensor]
"""``band(start, stop, length)``: float32 ``[stop - start, length]`` to add to the scores of those query rows."""

_current: ContextVar[Imposition | None] = ContextVar("imposition", default=None)


class Imposition:
    """The terms for each attention of one forward pass, in the order in which they are computed.

    Args:
        bands: One for every attention.
    """

    def __init__(self, bands: tuple[Band, ...]) -> None:
        self._bands = bands
        self._calls = 0

    def next_band(self) -> Band:
        """The terms of the attention that is about to be computed."""
        self._calls += 1
        if self._calls > len(self._bands):
            raise InternalError(f"the original computes more than {len(self._bands)} attentions")
        return self._bands[self._calls - 1]

    def finish(self) -> None:
        """Checks that every attention was met: none escaped."""
        if self._calls != len(self._bands):
            raise InternalError(f"{self._calls} attentions of the original were met, not {len(self._bands)}")


def window_band(policy: Policy) -> Band:
    """0 where ``policy`` lets a query see a key, ``-inf`` elsewhere."""
    window, sinks = policy.window, policy.sinks
    if window is None:
        raise InternalError(f"policy {policy} has no window")

    def band(start: int, stop: int, length: int) -> Tensor:
        i, j = torch.arange(start, stop)[:, None], torch.arange(length)[None, :]
        hidden = ((i - j).abs() >= window) & (j >= sinks)
        return torch.zeros(hidden.shape).masked_fill(hidden, float("-inf"))

    return band


def average_band(stage: AttentionStage, block_size: int, key_tile: int) -> Band:
    """``log(remaining / drawn)`` for drawn keys, ``-inf`` for the others that were not drawn, 0 for exact ones.

    The draws are the stage's own, for they are what is asked for; what they do to a softmax is told here in full.
    """
    average = stage.average

    def band(start: int, stop: int, length: int) -> Tensor:
        terms = torch.zeros((stop - start, length))
        if average is None:
            return terms
        for block in range(start // block_size, (stop - 1) // block_size + 1):
            rows = slice(max(start, block * block_size) - start, min(stop, (block + 1) * block_size) - start)
            row = sampled_row(stage.mask, average, block, block_size=block_size, key_tile=key_tile, length=length)
            for first, last in row.remaining:
                terms[rows, first:last] = float("-inf")
            if row.remaining:
                drawn = draw_keys(average, stage.name, block, row.remaining, key_tile)
                terms[rows, torch.from_numpy(drawn.ravel())] = math.log(row.remaining_keys / drawn.size)
        return terms

    return band


@contextmanager
def impose(imposition: Imposition | None) -> Generator[None]:
    """Within it the attentions of one forward pass obey ``imposition``; ``None`` leaves them alone."""
    if imposition is None:
        yield
        return
    token = _current.set(imposition)
    try:
        with _PlainCalls():
            yield
    finally:
        _current.reset(token)
    imposition.finish()


def imposed_band() -> Band | None:
    """The terms for the attention that the caller is about to compute, or ``None`` where there are none."""
    imposition = _current.get()
    return None if imposition is None else imposition.next_band()


@contextmanager
def with_band() -> Generator[Band | None]:
    """As :func:`imposed_band`; within it torch's own attention, which the caller computes with, is left alone."""
    band = imposed_band()
    token = _current.set(None)
    try:
        yield band
    finally:
        _current.reset(token)


class _PlainCalls(TorchFunctionMode):
    """Adds the terms to calls of torch's own attention function, by modules that use it directly."""

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        named = dict(kwargs or {})
        if func is not torch.nn.functional.scaled_dot_product_attention or _current.get() is None:
            return func(*args, **named)
        named |= dict(
            zip(("query", "key", "value", "attn_mask", "dropout_p", "is_causal", "scale"), args, strict=False)
        )
        length = int(named["query"].shape[2])
        with with_band() as band:
            if band is not None:
                additive = band(0, length, length)
                if named.pop("is_causal", False):
                    additive = additive + torch.full((length, length), float("-inf")).triu(1)
                mask = named.get("attn_mask")
                if mask is not None and mask.dtype == torch.bool:
                    mask = torch.zeros(mask.shape).masked_fill(~mask, float("-inf"))
                named["attn_mask"] = additive if mask is None else mask + additive
            return func(**named)
