"""Which calls a growing sequence takes, and what it keeps: foretold for any prompt and any number of new tokens."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from twoheads.graphs.errors import InputError
from twoheads.graphs.program.program import AttentionStage, Program
from twoheads.graphs.variants.steps import CAPACITIES, Steps, step_obstacle, step_steps

__all__ = ["GenerationPlan", "Pieces", "generation_plan"]

SMALL_SHARE = 4
"""Up to this part of a block is computed by small calls, more by one of a block: 8 rows cost a tenth of 256."""


class Pieces:
    """The calls that compute tokens ``[start, stop)`` of a sequence, in order: (first, tokens, rows of the engine).

    A call stays in one block. Where most of a block is missing, all of it is computed, what is there already among it:
    its bits are the same.
    """

    def __init__(self, start: int, stop: int, block: int, small: int) -> None:
        self._start, self._stop, self._block, self._small = start, stop, block, small

    def __iter__(self) -> Iterator[tuple[int, int, int]]:
        at = self._start
        while at < self._stop:
            first = at - at % self._block
            end = min(first + self._block, self._stop)
            if (end - at) * SMALL_SHARE > self._block:
                yield first, end - first, self._block
                at = end
            else:
                count = min(self._small, end - at)
                yield at, count, self._small
                at += count


@dataclass(frozen=True, slots=True)
class GenerationPlan:
    """What generating takes.

    Attributes:
        prompt_tokens: Tokens of the prompt.
        new_tokens: Tokens that are generated.
        prompt_calls: Engine calls until the first of them.
        step_calls: Those of all others together, without speculation.
        last_step_calls: Those of the last step alone.
        kept_bytes: Keys, values and states at the end; of what is reserved and not written the system provides nothing.
    """

    prompt_tokens: int
    new_tokens: int
    prompt_calls: int
    step_calls: int
    last_step_calls: int
    kept_bytes: int


def generation_plan(program: Program, prompt: int, new: int) -> GenerationPlan:
    """The plan of a prompt of ``prompt`` tokens, 1 or more, and ``new`` tokens behind it, 1 or more.

    Raises:
        InputError: The model generates nothing, or there are no tokens.
    """
    steps = step_steps(program)
    if steps is None:
        found = step_obstacle(program)
        raise (
            InputError(program.name, "generates nothing")
            if found is None
            else InputError(found.where, found.problem, found.fix)
        )
    if prompt < 1 or new < 1:
        raise InputError("--generate", f"plans {prompt} and {new} tokens", "give 1 or more of both")
    block, heads = program.block_size, len(program.head)
    begin = _append_calls(steps, 0, prompt) + heads
    later, last, steady = 0, 0, prompt
    for at in range(prompt, prompt + new - 1):
        last = _calls(steps, at // block) + heads
        if (steps.has_rings or steps.states) and (at + 1) % block == 0:
            last += _append_calls(steps, steady - steady % block if steps.states else steady, at + 1)
            steady = at + 1
        later += last
    return GenerationPlan(prompt, new, begin, later, last, _kept_bytes(steps, prompt + new - 1))


def _append_calls(steps: Steps, start: int, stop: int) -> int:
    block = steps.program.block_size
    return sum(_calls(steps, first // block) for first, _, _ in Pieces(start, stop, block, steps.rows[1]))


def _calls(steps: Steps, blocks: int) -> int:
    """Of a step behind so many whole blocks, without the head."""
    if steps.capacity(blocks) is not None:
        return 1
    rings = {entry.value.name for entry in steps.kept if entry.ring is not None}
    wide = (blocks - 1) // CAPACITIES[-1] + 2
    return sum(
        (2 if stage.key in rings else wide) if isinstance(stage, AttentionStage) else 1 for stage in steps.body.inside
    )


def _kept_bytes(steps: Steps, tokens: int) -> int:
    block = steps.program.block_size
    blocks = tokens // block
    capacity = steps.capacity(blocks)
    total = 4 * sum(port.nbytes for port in steps.states)
    for entry in steps.kept:
        held = entry.blocks(CAPACITIES[-1] if capacity is None else capacity)
        if capacity is None and entry.ring is None:
            held = -(-blocks // CAPACITIES[-1]) * CAPACITIES[-1]
        total += entry.value.nbytes((held + 1) * block)
    return total
