"""Which calls a growing sequence takes, and what it keeps: foretold for any prompt and any number of new tokens."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from itertools import pairwise
from typing import TypeAlias

from twoheads.graphs.errors import InputError
from twoheads.graphs.masks.expressions import Mask
from twoheads.graphs.masks.tiles import row_segments
from twoheads.graphs.program.engines.experts import most_calls
from twoheads.graphs.program.program import AttentionStage, ExpertsEngine, ExpertsStage, Program, Stage
from twoheads.graphs.variants.decoder import step_obstacle
from twoheads.graphs.variants.steps import CAPACITIES, Steps, step_steps

__all__ = [
    "RUN_BLOCKS",
    "Continuation",
    "GenerationPlan",
    "Made",
    "Pieces",
    "RunCall",
    "StepCall",
    "generation_plan",
    "planned_steps",
]

FEW_CALLS = 3
"""Up to so many calls of a size are made where one of the next size would do: it takes about three times as long."""

FILLED = 3 / 4
"""Or so much of the next size, where it is hardly larger."""

RUN_BLOCKS = 8
"""The most blocks of a prompt that one run computes: others that are computed meanwhile wait for it."""


class Pieces:
    """The calls that compute tokens ``[start, stop)`` of a sequence, in order: (first, tokens, rows of the engine).

    A call stays in one block. Where most of a block is missing, all of it is computed, what is there already among it:
    its bits are the same.

    Args:
        start, stop: Which tokens. With ``runs``, ``start`` is the first of a block that becomes whole.
        rows: Of the engines that there are, ascending, the last of a block.
        runs: Whether runs compute what becomes a whole block, several of them at a time: as many rows as tokens.
    """

    def __init__(self, start: int, stop: int, rows: tuple[int, ...], *, runs: bool = False) -> None:
        self._start, self._stop, self._block, self._runs = start, stop, rows[-1], runs
        self._sizes = tuple(size for size in rows if size > 1 and (size < self._block or not runs))

    def __iter__(self) -> Iterator[tuple[int, int, int]]:
        at = self._start
        while self._runs and self._stop - at >= self._block and at % self._block == 0:
            count = min(RUN_BLOCKS, (self._stop - at) // self._block) * self._block
            yield at, count, count
            at += count
        while at < self._stop:
            first = at - at % self._block
            end = min(first + self._block, self._stop)
            size = self._size(end - at)
            if size == self._block:
                yield first, end - first, size
                at = end
            else:
                count = min(size, end - at)
                yield at, count, size
                at += count

    def _size(self, left: int) -> int:
        """Rows of the next call where so many tokens of a block are left."""
        found = self._sizes[0]
        for small, size in pairwise(self._sizes):
            if -(-left // small) > min(FEW_CALLS, FILLED * size / small):
                found = size
        return found


@dataclass(frozen=True, slots=True)
class StepCall:
    """A step of some rows behind kept tokens: one engine call, or several where it goes layer by layer.

    Attributes:
        rows: Of the engines.
        blocks: Whole blocks that are kept before it.
    """

    rows: int
    blocks: int


@dataclass(frozen=True, slots=True)
class RunCall:
    """A run of the tile program over whole blocks of a prompt.

    Attributes:
        first: Whole blocks that are kept before it.
        blocks: That it computes.
        hidden: Whether the hidden states of the last token are read: without them nothing is computed behind what is
            kept, with them the last block alone.
    """

    first: int
    blocks: int
    hidden: bool


Made: TypeAlias = StepCall | RunCall
"""Calls that belong together."""


@dataclass(frozen=True, slots=True)
class Continuation:
    """What a prompt and new tokens behind it compute.

    Attributes:
        steps: How sequences are extended.
        prompt_tokens: Tokens of the prompt.
        new_tokens: Tokens that come.
    """

    steps: Steps
    prompt_tokens: int
    new_tokens: int

    @property
    def prompt(self) -> tuple[Made, ...]:
        """Of the prompt."""
        return self._appended(0, self.prompt_tokens)

    def later(self) -> Iterator[tuple[Made, ...]]:
        """Of every new token but the first: its own step, and what is computed again behind it."""
        steps, block = self.steps, self.steps.program.block_size
        steady = self.prompt_tokens
        for at in range(self.prompt_tokens, self.prompt_tokens + self.new_tokens - 1):
            again: tuple[Made, ...] = ()
            if (steps.has_rings or steps.states) and (at + 1) % block == 0:
                again = self._appended(steady - steady % block if steps.states or steps.by_runs else steady, at + 1)
                steady = at + 1
            yield (StepCall(1, at // block), *again)

    def _appended(self, start: int, stop: int) -> tuple[Made, ...]:
        block, runs = self.steps.program.block_size, self.steps.by_runs
        pieces = Pieces(start, stop, self.steps.rows, runs=runs)
        return tuple(
            RunCall(first // block, count // block, first + count == stop)
            if runs and count % block == 0
            else StepCall(rows, first // block)
            for first, count, rows in pieces
        )


@dataclass(frozen=True, slots=True)
class GenerationPlan:
    """What generating takes.

    Attributes:
        prompt_tokens: Tokens of the prompt.
        new_tokens: Tokens that are generated.
        prompt_calls: Engine calls until the first of them; the most where tokens choose experts.
        step_calls: Those of all others together, without speculation.
        last_step_calls: Those of the last step alone.
        source_tokens: Rows of an encoder, whose own calls are not among these.
        kept_bytes: Keys, values and states at the end; of what is reserved and not written the system provides nothing.
    """

    prompt_tokens: int
    new_tokens: int
    prompt_calls: int
    step_calls: int
    last_step_calls: int
    source_tokens: int
    kept_bytes: int


def generation_plan(program: Program, prompt: int, new: int, source: int = 0) -> GenerationPlan:
    """The plan of a prompt of ``prompt`` tokens, 1 or more, and ``new`` tokens behind it, 1 or more.

    Args:
        program: What generates.
        prompt: Tokens that are continued; where the model has an encoder, the decoder's own.
        new: Tokens that come.
        source: Rows of the encoder.

    Raises:
        InputError: The model generates nothing, or there are no tokens.
    """
    steps = planned_steps(program)
    if prompt < 1 or new < 1:
        raise InputError("--generate", f"plans {prompt} and {new} tokens", "give 1 or more of both")
    continuation, heads = Continuation(steps, prompt, new), len(program.head)

    def calls(made: tuple[Made, ...]) -> int:
        return heads + sum(
            _run_calls(steps, call) if isinstance(call, RunCall) else _calls(steps, call.blocks, source, call.rows)
            for call in made
        )

    begin, later, last = calls(continuation.prompt), 0, 0
    for made in continuation.later():
        last = calls(made)
        later += last
    kept = _kept_bytes(steps, prompt + new - 1, source, _room(continuation))
    return GenerationPlan(prompt, new, begin, later, last, source, kept)


def planned_steps(program: Program) -> Steps:
    """How the program's sequences are extended.

    Raises:
        InputError: They are not; says why.
    """
    steps = step_steps(program)
    if steps is not None:
        return steps
    found = step_obstacle(program)
    if found is None:
        raise InputError(program.name, "generates nothing")
    raise InputError(found.where, found.problem, found.fix)


def _run_calls(steps: Steps, run: RunCall) -> int:
    """Of a run over blocks of a prompt: a call a block and token-wise stage, one a tile of attention."""
    stages, until = steps.body.inside, steps.until_kept
    last = run.first + run.blocks - 1
    calls = sum(_stage_calls(steps, stage, range(run.first, last + 1)) for stage in stages[:until])
    return calls + sum(_stage_calls(steps, stage, range(last, last + run.hidden)) for stage in stages[until:])


def _stage_calls(steps: Steps, stage: Stage, blocks: range) -> int:
    if not isinstance(stage, AttentionStage):
        return len(blocks)
    program = steps.program
    return sum(_tiles(stage.mask, at, program.block_size, program.key_tile) for at in blocks)


@lru_cache(maxsize=1 << 14)
def _tiles(mask: Mask, block: int, block_size: int, key_tile: int) -> int:
    """Tiles of keys that the queries of a block see, who see no later token."""
    length = (block + 1) * block_size
    row = row_segments(mask, block, block_size=block_size, key_tile=key_tile, length=length)
    return sum(segment.tiles for segment in row)


def _calls(steps: Steps, blocks: int, source: int, rows: int) -> int:
    """Of a step of ``rows`` rows behind so many whole blocks, without the head; the most that tokens may ask for."""
    if steps.capacity(blocks) is not None and steps.source_capacity(source) is not None and not steps.layered:
        return 1
    rings = {entry.value.name for entry in steps.kept if entry.ring is not None}
    kept = {entry.value.name for entry in steps.kept}
    wide = -(-blocks // CAPACITIES[-1]) + 1
    ring = 2 if blocks or steps.source_capacity(source) is None else 1
    cross = _source_tiles(steps, source)[0]

    def calls(stage: Stage) -> int:
        if isinstance(stage, AttentionStage):
            return (ring if stage.key in rings else wide) if stage.key in kept else cross
        if isinstance(stage, ExpertsStage):
            return most_calls(steps.program.engine_of(ExpertsEngine, stage.engine), rows, step=True)
        return 1

    return sum(map(calls, steps.body.inside))


def _source_tiles(steps: Steps, source: int) -> tuple[int, int]:
    """In how many tiles an encoder's rows lie, and how many rows each has."""
    capacity = steps.source_capacity(source)
    width = (CAPACITIES[-1] if capacity is None else capacity) * steps.program.block_size
    return -(-source // width) if width else 0, width


def _room(continuation: Continuation) -> int:
    """For how many whole blocks the last calls found room, as they wrote in place."""
    steps, prompt = continuation.steps, continuation.prompt_tokens
    block, found = steps.program.block_size, 0
    last = prompt + continuation.new_tokens - 2
    if continuation.new_tokens > 1 and steps.reaches_in_place(1, last // block):
        found = -(-(last + steps.written_rows(1)) // block)
    *_, (first, count, rows) = Pieces(0, prompt, steps.rows, runs=steps.by_runs)
    if count % block and steps.reaches_in_place(rows, first // block):
        found = max(found, -(-(first + rows) // block))
    return found


def _kept_bytes(steps: Steps, tokens: int, source: int, room: int) -> int:
    block = steps.program.block_size
    blocks = max(tokens // block, room)
    capacity = steps.capacity(blocks if steps.source_capacity(source) is not None else max(blocks, CAPACITIES[-1]))
    count, width = _source_tiles(steps, source)
    total = 4 * sum(port.nbytes for port in steps.states) + sum(value.nbytes(count * width) for value in steps.source)
    for entry in steps.kept:
        held = entry.blocks(CAPACITIES[-1] if capacity is None else capacity)
        if capacity is None and entry.ring is None:
            held = -(-blocks // CAPACITIES[-1]) * CAPACITIES[-1]
        total += entry.value.nbytes((held + 1) * block)
    return total
