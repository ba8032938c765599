"""Engines that extend many sequences by a token each: rows of different sequences share the token-wise engines.

Token-wise engines do not care whose rows they compute. Attention goes by sequence: every one has a *slot*, a place of
its own in arrays of keys and values, and one engine attends for all slots of an array. A slot sees its own keys alone,
in the order of a single sequence's step (:mod:`twoheads.graphs.variants.steps`): whole blocks, then the open block, in
which the new row has its place already.

All calls have one shape, whoever else is there, so what a sequence gets depends on it alone.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property

from twoheads.graphs.errors import InternalError
from twoheads.graphs.program.program import AttentionEngine, AttentionStage, Port
from twoheads.graphs.variants.stage_run import with_rows
from twoheads.graphs.variants.steps import CAPACITIES, STEP, Steps

__all__ = ["BATCH_ROWS", "SLOTS", "BatchAttention", "BatchSteps"]

SLOTS = 8
"""Sequences of one attention call."""

BATCH_ROWS = (8, 32)
"""Rows of the token-wise engines, ascending: a batch uses one of them."""


@dataclass(frozen=True, slots=True)
class BatchAttention:
    """Attention of one row of each of :data:`SLOTS` sequences.

    ``q [slots, q_num_heads, 1, head_dim]``, of whole blocks ``past_key [slots, kv_num_heads, past, head_dim]`` and
    ``past_value`` (none where ``past`` is 0), of open ones ``open_key [slots, kv_num_heads, opened, head_dim]`` and
    ``open_value``, ``mask [slots, mask_heads, 1, past + opened]``, which is added to scores, and ``sinks
    [q_num_heads]`` where there are such, give ``out [slots, q_num_heads, 1, v_head_dim]``, float32.

    Attributes:
        geometry: Of one sequence's attention, for one row.
        past: Keys of whole blocks.
        opened: Keys of an open block.
        sinks: Whether there are learned sinks.
    """

    geometry: AttentionEngine
    past: int
    opened: int
    sinks: bool

    @property
    def name(self) -> str:
        """Of the engine's file."""
        return f"{STEP}batch_{self.geometry.name}_{self.past}{'_sinks' * self.sinks}"

    @property
    def inputs(self) -> tuple[Port, ...]:
        """The input ports, in order."""
        engine, heads = self.geometry, self.geometry.kv_num_heads
        ports = [Port("q", engine.dtype, (SLOTS, engine.q_num_heads, 1, engine.head_dim))]
        for name, keys in (("past", self.past), ("open", self.opened)):
            if keys:
                ports.append(Port(f"{name}_key", engine.dtype, (SLOTS, heads, keys, engine.head_dim)))
                ports.append(Port(f"{name}_value", engine.dtype, (SLOTS, heads, keys, engine.v_head_dim)))
        ports.append(Port("mask", "float32", (SLOTS, engine.mask_heads, 1, self.past + self.opened)))
        if self.sinks:
            ports.append(Port("sinks", "float32", (engine.q_num_heads,)))
        return tuple(ports)

    @property
    def outputs(self) -> tuple[Port, ...]:
        """The output port."""
        engine = self.geometry
        return (Port("out", "float32", (SLOTS, engine.q_num_heads, 1, engine.v_head_dim)),)


@dataclass(frozen=True)
class BatchSteps:
    """How many sequences of a program are extended at once.

    Attributes:
        steps: How one is.
    """

    steps: Steps

    @cached_property
    def attentions(self) -> tuple[BatchAttention, ...]:
        """All attention engines that such a step may call, each once."""
        stages = self.steps.body.attentions
        return tuple(dict.fromkeys(self.attention(stage, capacity) for stage in stages for capacity in CAPACITIES))

    def attention(self, stage: AttentionStage, capacity: int) -> BatchAttention:
        """The engine of an attention over up to ``capacity`` whole blocks."""
        program = self.steps.program
        engine = with_rows(program, 1).engine(stage.engine)
        if not isinstance(engine, AttentionEngine):
            raise InternalError(f"stage {stage.name} has no tiles")
        kept = next(entry for entry in self.steps.kept if entry.value.name == stage.key)
        block = program.block_size
        geometry = replace(engine, key_tile=1)
        return BatchAttention(geometry, kept.blocks(capacity) * block, block, stage.sinks is not None)
