"""The inputs of one run: a single one, or several that share its blocks, and which those are."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from twoheads.graphs.errors import InputError
from twoheads.graphs.program.program import TOKENS, Program, Value
from twoheads.graphs.schedule.packed import packed_schedule
from twoheads.graphs.schedule.schedule import Schedule
from twoheads.graphs.variants.packing import Packing, longest_packable, pack, packed_variant, takes_documents
from twoheads.runtime.inputs.arrays import complete_arrays
from twoheads.runtime.inputs.requests import Request
from twoheads.runtime.runs.outputs import SHARED, Rows, request_rows
from twoheads.runtime.runs.run_context import RunContext

__all__ = ["MOST_ROW_BYTES", "Group", "row_bytes", "shared_groups"]

MOST_BLOCKS = 64
"""Blocks of one shared run: enough that a layer's weights are read once for many, few enough to stay small."""

MOST_ROW_BYTES = 256_000_000
"""Bytes of the output's rows that one shared run computes."""


@dataclass(frozen=True, slots=True)
class Group:
    """The inputs of one run.

    Attributes:
        requests: What is run.
        output: What each of them gets.
        packing: Where each lies, in the same order; ``None`` for a single input with a run of its own.
    """

    requests: tuple[Request, ...]
    output: str
    packing: Packing | None = None

    def request_rows(self, program: Program) -> list[Rows] | None:
        """For each request, the rows of the run's hidden states that make its output; ``None`` for all of one."""
        hidden = program.value(program.hidden)
        own = [request_rows(hidden, request, self.output) for request in self.requests]
        if self.packing is None:
            return None if own[0] is None else [own[0]]
        return [
            start + (np.arange(request.length) if rows is None else rows)
            for start, request, rows in zip(self._starts(self.packing), self.requests, own, strict=True)
        ]

    def schedule(self, context: RunContext, count: int | None, *, by_blocks: bool) -> Schedule:
        """The schedule of the run, with ``count`` rows of the head (``None`` for all); ``by_blocks``: nothing fused."""
        if self.packing is None:
            return context.schedule(self.requests[0].lengths, self.output, count, by_blocks=by_blocks)
        computed = SHARED.get(self.output, self.output)
        return packed_schedule(
            context.program,
            self.packing,
            output=computed,
            rows=count,
            workers=context.threads,
            process=context.process_bytes,
        )

    def inputs(self, program: Program) -> dict[str, npt.NDArray[Any]]:
        """An array for every input value of the program that runs."""
        if self.packing is None:
            return complete_arrays(program, self.requests[0].lengths, self.requests[0].arrays)
        starts = self._starts(self.packing)
        rows = self.packing.blocks * self.packing.block_size
        return {entry.value.name: self._packed(entry.value, rows, starts) for entry in program.inputs}

    def _starts(self, packing: Packing) -> list[int]:
        return [packing.first_row(slot) for slot in packing.slots]

    def _packed(self, value: Value, rows: int, starts: Sequence[int]) -> npt.NDArray[Any]:
        """An input value of all blocks: each request's array at its place, zeros between them."""
        array = np.zeros(value.block_shape(rows), value.dtype)
        before = (slice(None),) * value.token_axis
        for request, start in zip(self.requests, starts, strict=True):
            array[(*before, slice(start, start + request.length))] = request.arrays[value.name]
        return array


def shared_groups(
    context: RunContext, requests: Sequence[Request], output: str
) -> Iterator[tuple[tuple[int, ...], Group]]:
    """Which requests run together, with their places in the list; the others run one by one.

    Where all are at most half a block long and the bundle holds packed engines, codes keep them apart; otherwise the
    masks of the run do, where it has such. A group for which there is no memory is halved.
    """
    program, lengths = context.program, [request.length for request in requests]
    limits = {limit.axis: limit.length for limit in program.limits}
    able = [at for at, length in enumerate(lengths) if length <= limits.get(TOKENS, length)]
    longest = longest_packable(program)
    coded = longest > 0 and _has_engines(context, longest)
    short = [at for at in able if lengths[at] <= longest] if coded else []
    if takes_documents(program) and len(short) < len(able):
        most = MOST_BLOCKS * program.block_size
        if nbytes := row_bytes(program, output):
            most = min(most, MOST_ROW_BYTES // nbytes)
        groups = _by_tokens(able, lengths, most)
        coded = False
    else:
        groups = _by_blocks(short, lengths, program.block_size)
    waiting = deque(groups)
    while waiting:
        members = waiting.popleft()
        packing = pack([lengths[at] for at in members], program.block_size, coded=coded)
        group = Group(tuple(requests[at] for at in members), output, packing)
        if len(members) > 1 and _fits(context, group):
            yield members, group
        elif len(members) > 1:
            middle = len(members) // 2
            waiting.extendleft((members[middle:], members[:middle]))


def _fits(context: RunContext, group: Group) -> bool:
    if context.memory_limit is None:
        return True
    try:
        context.spill_plan(group.schedule(context, None, by_blocks=True))
    except InputError:
        return False
    return True


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


def _has_engines(context: RunContext, longest: int) -> bool:
    stages = context.program.attentions
    return all(context.holds(stage.engine, packed_variant(stage.mask, longest) or "") for stage in stages)


def row_bytes(program: Program, output: str) -> int:
    """Bytes that the output has for every token; 0 where it has few rows for an input."""
    value = program.row_value(output)
    return 0 if value is None else value.nbytes(1)
