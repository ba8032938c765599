"""Run many short requests in the blocks of one run, and give each its own result (Theorem 4.2)."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from twoheads.graphs.errors import InternalError
from twoheads.graphs.packing import Packing, longest_packable, pack, packed_variant
from twoheads.graphs.program import AttentionStage, Program, Value
from twoheads.runtime.engine_pool import EnginePool
from twoheads.runtime.executor import compute
from twoheads.runtime.pooling import pool
from twoheads.runtime.requests import Request
from twoheads.runtime.run_state import RunState

__all__ = ["compute_packed", "head_rows", "packed_groups"]

MOST_BLOCKS = 64
"""Blocks of one packed run: enough that a layer's weights are read once for many, few enough to stay small."""


def packed_groups(
    program: Program, engines: EnginePool, lengths: Sequence[int]
) -> Iterator[tuple[tuple[int, ...], Packing]]:
    """Which inputs to pack together: their indices, and where each goes; the others run one by one.

    Inputs are packed where the bundle holds packed engines, they are at most half a block long, and they then take
    fewer blocks than they are many.
    """
    longest = longest_packable(program)
    if not longest or not _has_engines(program, engines, longest):
        return
    most = min(longest, program.max_length.length) if program.max_length is not None else longest
    # Longest first, as first-fit wants it, so that the groups are packed as tightly as all of them would be.
    short = sorted((at for at, length in enumerate(lengths) if length <= most), key=lambda at: -lengths[at])
    packing = pack([lengths[at] for at in short], program.block_size)
    if packing.blocks == len(short):
        return
    for first in range(0, packing.blocks, MOST_BLOCKS):
        blocks = range(first, min(first + MOST_BLOCKS, packing.blocks))
        members = [at for at, slot in zip(short, packing.slots, strict=True) if slot.block in blocks]
        part = pack([lengths[at] for at in members], program.block_size)
        yield tuple(members), part


def _has_engines(program: Program, engines: EnginePool, longest: int) -> bool:
    stages = [stage for stage in program.body if isinstance(stage, AttentionStage)]
    return all(engines.holds(stage.engine, packed_variant(stage.mask, longest) or "") for stage in stages)


def head_rows(requests: Sequence[Request], output: str) -> int | None:
    """Rows of logits that all requests want together; ``None`` where the output is no logits."""
    if output == "last":
        return len(requests)
    if output != "logits":
        return None
    return sum(request.length if request.rows is None else len(request.rows) for request in requests)


def compute_packed(run: RunState, requests: Sequence[Request], output: str) -> list[npt.NDArray[Any]]:
    """Computes every request's own output, as a run of it alone would give it.

    Args:
        run: A fresh run with a packing of ``requests``.
        requests: In the packing's order.
        output: ``logits``, ``last``, ``hidden`` or ``embedding``.

    Raises:
        ScoresBeyondCodesError: Codes can't keep these requests apart; they must run one by one.
    """
    packing = run.packing
    if packing is None:
        raise InternalError("a packed run without a packing")
    starts = [slot.block * packing.block_size + slot.start for slot in packing.slots]
    inputs = {entry.value.name: _packed(entry.value, packing, requests, starts) for entry in run.program.inputs}
    wanted = [
        start + _wanted(request, "hidden" if output == "embedding" else output)
        for start, request in zip(starts, requests, strict=True)
    ]
    rows = compute(run, inputs, np.concatenate(wanted), None)
    if rows is None:
        raise InternalError("a run without a sink returned no rows")
    parts = np.split(rows, np.cumsum([len(part) for part in wanted])[:-1])
    if output != "embedding":
        return [part.copy() for part in parts]
    pooling = run.program.pooling
    if pooling is None:
        raise InternalError(f"{run.program.name} has no pooling")
    return [pool(part, pooling) for part in parts]


def _wanted(request: Request, output: str) -> npt.NDArray[np.int64]:
    if output == "last":
        return np.array([request.length - 1])
    return np.arange(request.length) if request.rows is None else request.rows


def _packed(value: Value, packing: Packing, requests: Sequence[Request], starts: Sequence[int]) -> npt.NDArray[Any]:
    """An input value of all blocks: each request's array at its place, zeros between them."""
    array = np.zeros(value.block_shape(packing.blocks * packing.block_size), value.dtype)
    along = np.moveaxis(array, value.token_axis, 0)
    for request, start in zip(requests, starts, strict=True):
        along[start : start + request.length] = np.moveaxis(request.arrays[value.name], value.token_axis, 0)
    return array
