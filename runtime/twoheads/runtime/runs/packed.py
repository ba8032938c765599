"""Run many requests in the blocks of one run, and give each its own result."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from twoheads.graphs.errors import InternalError
from twoheads.graphs.program.program import TOKENS, AttentionStage, Program, Value
from twoheads.graphs.schedule.packed import packed_schedule
from twoheads.graphs.schedule.schedule import Schedule
from twoheads.graphs.variants.packing import Packing, longest_packable, pack, packed_variant, takes_documents
from twoheads.runtime.execution.engine_pool import EnginePool
from twoheads.runtime.execution.run_state import RunState
from twoheads.runtime.inputs.requests import Request
from twoheads.runtime.runs.host_executor import compute
from twoheads.runtime.stages.pooling import pool

__all__ = ["compute_packed", "head_rows", "packed_groups", "row_bytes", "schedule_group"]

MOST_BLOCKS = 64
"""Blocks of one packed run: enough that a layer's weights are read once for many, few enough to stay small."""

MOST_ROW_BYTES = 256_000_000
"""Bytes of the output's rows that one packed run computes."""


def packed_groups(
    program: Program,
    engines: EnginePool,
    lengths: Sequence[int],
    *,
    row_bytes: int = 0,
    fits: Callable[[Packing], bool] = lambda _: True,
) -> Iterator[tuple[tuple[int, ...], Packing]]:
    """Which inputs to run together: their indices, and where each goes; the others run one by one.

    Where all are at most half a block long and the bundle holds packed engines, codes keep them apart; otherwise the
    masks of the run do, where it has such.

    Args:
        program: What runs.
        engines: What the bundle holds.
        lengths: Tokens of each input.
        row_bytes: Bytes of the output for a token; 0 where they do not count.
        fits: Whether there is memory for a run; a group that does not fit is halved.
    """
    limits = {limit.axis: limit.length for limit in program.limits}
    able = [at for at, length in enumerate(lengths) if length <= limits.get(TOKENS, length)]
    longest = longest_packable(program)
    coded = longest > 0 and _has_engines(program, engines, longest)
    short = [at for at in able if lengths[at] <= longest] if coded else []
    if takes_documents(program) and len(short) < len(able):
        most = MOST_BLOCKS * program.block_size
        if row_bytes:
            most = min(most, MOST_ROW_BYTES // row_bytes)
        groups = _by_tokens(able, lengths, most)
        coded = False
    else:
        groups = _by_blocks(short, lengths, program.block_size)
    waiting = deque(groups)
    while waiting:
        members = waiting.popleft()
        packing = pack([lengths[at] for at in members], program.block_size, coded=coded)
        if len(members) > 1 and fits(packing):
            yield members, packing
        elif len(members) > 1:
            middle = len(members) // 2
            waiting.extendleft((members[middle:], members[:middle]))


def _by_tokens(members: Sequence[int], lengths: Sequence[int], most: int) -> Iterator[tuple[int, ...]]:
    """Neighbours together, at most ``most`` tokens or a single input."""
    group: list[int] = []
    tokens = 0
    for at in members:
        if group and tokens + lengths[at] > most:
            yield tuple(group)
            group, tokens = [], 0
        group.append(at)
        tokens += lengths[at]
    if group:
        yield tuple(group)


def _by_blocks(members: Sequence[int], lengths: Sequence[int], block_size: int) -> Iterator[tuple[int, ...]]:
    """Groups of as many blocks as a run has, if inputs share blocks at all."""
    # Longest first, as first-fit wants it, so that the groups are packed as tightly as all of them would be.
    short = sorted(members, key=lambda at: -lengths[at])
    packing = pack([lengths[at] for at in short], block_size)
    if packing.blocks == len(short):
        return
    for first in range(0, packing.blocks, MOST_BLOCKS):
        blocks = range(first, min(first + MOST_BLOCKS, packing.blocks))
        yield tuple(at for at, slot in zip(short, packing.slots, strict=True) if slot.block in blocks)


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


def row_bytes(program: Program, output: str) -> int:
    """Bytes that the output has for every token; 0 where it has few rows for an input."""
    per_token = {"hidden": program.hidden, "logits": None if program.pooled_logits else program.logits}
    name = per_token.get(output)
    return 0 if name is None else program.value(name).nbytes(1)


def schedule_group(
    program: Program, packing: Packing, output: str, *, rows: int | None = None, workers: int
) -> Schedule:
    """The schedule of a packed run that computes what ``output`` is made of; ``rows`` as :func:`head_rows` says."""
    computed = {"last": "logits", "embedding": "hidden"}.get(output, output)
    return packed_schedule(program, packing, output=computed, rows=rows, workers=workers)


def compute_packed(run: RunState, requests: Sequence[Request], output: str) -> list[npt.NDArray[Any]]:
    """Computes every request's own output, as a run of it alone would give it, to rounding.

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
    starts = [packing.first_row(slot) for slot in packing.slots]
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
