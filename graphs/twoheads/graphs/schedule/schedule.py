"""The schedule: a block program expanded for one length ``N``, in calls, operations, bytes and memory.

Planner, executor, verifier and plots all read the schedule; none re-derives it. Making one costs time proportional to
the rows and segments of each *distinct* mask, not to the tiles: thirty equal layers are counted once.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from math import prod

import numpy as np

from twoheads.graphs.costs.attention_costs import attention_rows
from twoheads.graphs.costs.call_formulas import symbols
from twoheads.graphs.costs.long_inputs import too_long
from twoheads.graphs.costs.stage_costs import CHAINED, StageCosts, StagePlan
from twoheads.graphs.errors import InputError
from twoheads.graphs.masks.tiles import Segment
from twoheads.graphs.program.fused import FusedStage
from twoheads.graphs.program.lengths import check_limit, is_cross, main_length, resolve_lengths, value_rows
from twoheads.graphs.program.program import AttentionStage, Program, Stage, Value
from twoheads.graphs.variants.decoder import source_values

LONGEST = 1 << 23
"""Blocks that are listed one by one."""

__all__ = [
    "ENGINE_BYTES",
    "PROCESS_BYTES",
    "SOURCE",
    "MemoryPlan",
    "Schedule",
    "StagePlan",
    "make_schedule",
    "needed_stages",
    "packing_bytes",
    "workspace_bytes",
]

SOURCE = "source"
"""The output of a run that computes an encoder alone: what a decoder's cross attention reads."""

PROCESS_BYTES = 72_000_000
"""Resident bytes of the command line's process before a bundle is opened, where no process tells its own (measured on
Linux: 64 MB with NumPy and ONNX Runtime, the rest is the command line)."""

ENGINE_BYTES = 1_000_000
"""What an open engine of a stage takes beside its weights: the graph, its plan and its allocations."""

BESIDE_BYTES = 32_000_000
"""What allocators, threads and copies of the input take beside what is counted."""

PACKED_BYTES = 48_000_000
"""The most that the largest weight counts for twice, while an engine packs it (SmolLM2-135M: 50 MB of 113)."""


@dataclass(frozen=True, slots=True)
class MemoryPlan:
    """Peak memory in bytes, by what holds it.

    Attributes:
        values: The most token values that are alive at the same time. What the head computes is not among them: it
            goes from block to block to its reader.
        weights: Every weight in use, once: mapped from the bundle, or as the backend packs it, after which the runtime
            lets go what is mapped. Of a table in which tokens are looked up as many rows count as there are tokens at
            most, and all of it once more where it also multiplies.
        workspace: Intermediate arrays of the largest engine, in every worker that calls it.
        process: Interpreter and libraries, what open engines take beside their weights, and what is held twice while
            they open.
    """

    values: int
    weights: int
    workspace: int
    process: int

    @property
    def total(self) -> int:
        """The sum."""
        return self.values + self.weights + self.workspace + self.process


@dataclass(frozen=True, slots=True)
class Schedule:
    """A program expanded for one input's lengths and one output.

    Attributes:
        program: What is expanded.
        lengths: Tokens by input axis; empty where every input has a fixed size.
        length: Tokens, ``N``: of the axis ``n``, else of the first, else the rows of the hidden states.
        blocks: Query blocks of the hidden states, ``n``.
        output: ``hidden``, ``logits``, ``last`` or ``embedding``.
        positions: Rows of the head; 0 if the head does not run.
        stages: The stages that ``output`` needs, in order.
        formula: The total of ``formula_calls`` as text.
        memory: The parts of ``peak_bytes``.
        release_after: For every needed body stage, the values that no later stage reads.
    """

    program: Program
    lengths: dict[str, int]
    length: int
    blocks: int
    output: str
    positions: int
    stages: tuple[StagePlan, ...]
    formula: str
    memory: MemoryPlan
    release_after: dict[str, tuple[str, ...]]

    @property
    def engine_calls(self) -> int:
        """Engine calls of all stages, counted; the most that there may be where :attr:`bounded`."""
        return sum(stage.calls for stage in self.stages)

    @property
    def bounded(self) -> bool:
        """Whether calls are the most that there may be, as tokens choose experts."""
        return any(stage.routed for stage in self.stages)

    @property
    def formula_calls(self) -> int:
        """Engine calls of all stages by the closed formulas."""
        return sum(stage.formula.calls for stage in self.stages)

    @property
    def rounds(self) -> int:
        """Rounds of calls that depend on each other, ``O(L)``: calls of one stage need none of that stage's results.

        Where a call computes all layers of a block, or a scan's state, it needs the call before it: there are as many
        rounds as calls.
        """
        return sum(stage.calls if stage.kind in CHAINED else stage.kind != "sequence" for stage in self.stages)

    @property
    def flops(self) -> int:
        """Floating-point operations of the matrix products of all stages."""
        return sum(stage.flops for stage in self.stages)

    @property
    def bytes_moved(self) -> int:
        """Bytes into and out of engines, all stages."""
        return sum(stage.bytes_moved for stage in self.stages)

    @property
    def peak_bytes(self) -> int:
        """Peak resident memory of a run, in bytes."""
        return self.memory.total

    @property
    def drops_rows(self) -> bool:
        """Whether only those blocks of the hidden states are kept that the head reads rows of."""
        return _drops_rows(self.program, needed_stages(self.program, self.output)[0], self.positions)

    def value_rows(self, value: Value) -> int:
        """Rows of ``value`` along its axis; 1 for a row value."""
        return value_rows(value, self.lengths)

    def rows(self, stage: AttentionStage) -> Iterator[tuple[int, tuple[Segment, ...]]]:
        """The query blocks of an attention stage, each with its non-empty key tiles; without those of drawn keys.

        Raises:
            InputError: They are more than fit into any memory.
        """
        queries = self.value_rows(stage.output)
        if queries > LONGEST * self.program.block_size:
            raise too_long(queries, f"its {-(-queries // self.program.block_size)} blocks are no list any more")
        values = {value.name: value for value in self.program.values()}
        rows = attention_rows(
            stage,
            block_size=self.program.block_size,
            key_tile=self.program.key_tile,
            queries=queries,
            keys=self.value_rows(values[stage.key]),
            cross=is_cross(stage, values),
        )
        yield from enumerate(rows)


def make_schedule(
    program: Program,
    length: int | Mapping[str, int],
    *,
    output: str | None = None,
    positions: int | None = None,
    workers: int = 2,
    process: int = PROCESS_BYTES,
) -> Schedule:
    """Expands ``program`` for an input of ``length`` tokens.

    Args:
        program: The block program.
        length: Tokens of the input, 1 or more; by axis where inputs have several lengths, ``{"n": 1000, "m": 300}``.
        output: ``hidden``, ``logits`` (of ``positions``), ``last`` (the last position's logits) or ``embedding``;
            ``None`` for the program's default; :data:`SOURCE` for what generation reads of an encoder.
        positions: Rows for which ``logits`` are wanted; ``None`` for all. The other outputs ignore it.
        workers: Engine calls that run at the same time, for the workspace.
        process: Resident bytes of the process that runs it, before engines are open.

    Raises:
        InputError: The model can't take that length or does not give that output.
    """
    output = output or program.default_output
    if output not in program.outputs and not (output == SOURCE and source_values(program)):
        known = " or ".join(program.outputs)
        raise InputError("output", f"{program.name} does not give {output!r}", f"ask for {known}")
    lengths = resolve_lengths(program, length)
    check_limit(program, lengths)
    rows = value_rows(program.value(program.hidden), lengths)
    head_rows = _head_rows(program, output, rows, positions)
    body, head = needed_stages(program, output)
    costs = StageCosts(program, lengths, head_rows)
    stages = (*(costs.plan(stage) for stage in body), *(costs.plan(stage, head=True) for stage in head))
    few = _few_rows(costs, body, head_rows)
    released, values = costs.liveness(body, _last_values(program, output), few)
    calling = 1 if any(plan.kind == "model" for plan in stages) else workers
    workspace = max(workspace_bytes(costs, body, calling), workspace_bytes(costs, head, calling, head_rows))
    weights = costs.weights((*body, *head), mapped=True).values()
    process += BESIDE_BYTES + ENGINE_BYTES * len(stages) + packing_bytes(weights)
    return Schedule(
        program=program,
        lengths=lengths,
        length=main_length(program, lengths),
        blocks=-(-rows // program.block_size),
        output=output,
        positions=head_rows,
        stages=stages,
        formula=_total(stages, symbols(block_size=program.block_size, key_tile=program.key_tile, length=rows)),
        memory=MemoryPlan(values, sum(weights), workspace, process),
        release_after=released,
    )


def workspace_bytes(costs: StageCosts, stages: Sequence[Stage], callers: int, rows: int | None = None) -> int:
    """Intermediate arrays of the largest of ``stages`` in all workers that call it; ``rows`` are those of a head."""
    if rows is not None:
        callers = min(callers, max(1, -(-rows // costs.program.block_size)))
    return max(((1 if stage.alone else callers) * costs.transient(stage) for stage in stages), default=0)


def packing_bytes(weights: Collection[int]) -> int:
    """What is held twice of weights of these sizes while they are packed one after the other."""
    return min(PACKED_BYTES, max(weights, default=0))


def _drops_rows(program: Program, body: tuple[Stage, ...], head_rows: int) -> bool:
    """Where one stage makes the hidden states block by block, in order, and nothing but the head reads them."""
    makes = any(isinstance(stage, FusedStage) and stage.whole and program.hidden in _made(stage) for stage in body)
    return head_rows > 0 and makes and not any(program.hidden in stage.inputs for stage in body)


def _made(stage: Stage) -> list[str]:
    return [value.name for value in stage.outputs]


def _few_rows(costs: StageCosts, body: tuple[Stage, ...], head_rows: int) -> dict[str, int] | None:
    """Bytes of all values, with those blocks of the hidden states alone that are kept; ``None`` where all are."""
    program = costs.program
    if not _drops_rows(program, body, head_rows):
        return None
    sizes = {value.name: costs.nbytes(value) for value in program.values()}
    hidden = program.value(program.hidden)
    block = prod(hidden.block_shape(program.block_size)) * np.dtype(hidden.dtype).itemsize
    return sizes | {hidden.name: min(sizes[hidden.name], head_rows * block)}


def _head_rows(program: Program, output: str, rows: int, positions: int | None) -> int:
    """Rows for which the head runs, of ``rows``."""
    if output == "last":
        return 1
    if output != "logits" or program.pooled_logits:
        return 0
    if positions is not None and positions < 1:
        raise InputError("positions", f"{positions} positions are asked for", "ask for 1 position or more")
    return rows if positions is None else positions


def _last_values(program: Program, output: str) -> set[str]:
    """The body's values that ``output`` is made of."""
    if output == SOURCE:
        return {value.name for value in source_values(program)}
    return {program.logits if output == "logits" and program.logits and program.pooled_logits else program.hidden}


def needed_stages(program: Program, output: str) -> tuple[tuple[Stage, ...], tuple[Stage, ...]]:
    """The body and head stages that ``output`` depends on, in program order."""
    wanted = _last_values(program, output)
    head: tuple[Stage, ...] = ()
    if output in ("logits", "last") and program.logits is not None and not program.pooled_logits:
        wanted.add(program.logits)
        head = _walk_back(program.head, wanted)
    return _walk_back(program.body, wanted), head


def _walk_back(stages: tuple[Stage, ...], wanted: set[str]) -> tuple[Stage, ...]:
    """Those of ``stages`` that define a wanted value; what they read becomes wanted too."""
    needed: list[Stage] = []
    for stage in reversed(stages):
        if any(value.name in wanted for value in stage.outputs):
            needed.append(stage)
            wanted.update(stage.inputs)
    return tuple(reversed(needed))


def _total(stages: tuple[StagePlan, ...], legend: str) -> str:
    """The sum over stages as text, equal stages counted together."""
    groups = Counter((stage.kind, stage.formula) for stage in stages)
    products = [f"{times} x {kind} [{formula.text}]" for (kind, formula), times in groups.items()]
    calls = sum(times * formula.calls for (_, formula), times in groups.items())
    return f"{' + '.join(products)} = {calls}, with {legend}"
