"""Engines that extend many sequences by a token each: rows of different sequences share the token-wise engines.

Token-wise engines do not care whose rows they compute. Attention goes by sequence: every one has a *slot*, a place of
its own in arrays of keys and values, and one engine attends for all slots of an array. A slot sees its own keys alone,
in the order of a single sequence's step (:mod:`twoheads.graphs.variants.steps`): whole blocks, then the open block, in
which the new row has its place already.

Behind an encoder, keys and values of cross attention have slots of arrays of their own, likewise.

All calls have one shape, whoever else is there, so what a sequence gets depends on it alone.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property

from twoheads.graphs.errors import InternalError
from twoheads.graphs.program.program import AttentionEngine, AttentionStage, Port
from twoheads.graphs.variants.stage_run import with_rows
from twoheads.graphs.variants.steps import STEP, Steps

__all__ = ["BATCH_ROWS", "SLOTS", "BatchAttention", "BatchSteps"]

SLOTS = 8
"""Sequences of one attention call."""

BATCH_ROWS = (8, 16, 32)
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
        opened: Keys of an open block; 0 where those of an encoder are read, which are ``past`` then.
        sinks: Whether there are learned sinks.
    """

    geometry: AttentionEngine
    past: int
    opened: int
    sinks: bool

    @property
    def name(self) -> str:
        """Of the engine's file."""
        kind = "_sinks" * self.sinks + "_source" * (not self.opened)
        return f"{STEP}batch_{self.geometry.name}_{self.past}{kind}"

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
        steps, found = self.steps, dict[BatchAttention, None]()
        for stage in steps.body.attentions:
            own = self.is_own(stage)
            for capacity in steps.capacities if own else steps.source_capacities:
                found[self.attention(stage, capacity) if own else self.source_attention(stage, capacity)] = None
        return tuple(found)

    def is_own(self, stage: AttentionStage) -> bool:
        """Whether it reads keys of the sequence itself, and not of its encoder."""
        return all(stage.key != value.name for value in self.steps.source)

    def attention(self, stage: AttentionStage, capacity: int) -> BatchAttention:
        """The engine of an attention over up to ``capacity`` whole blocks."""
        kept = next(entry for entry in self.steps.kept if entry.value.name == stage.key)
        block = self.steps.program.block_size
        return BatchAttention(self._geometry(stage), kept.blocks(capacity) * block, block, stage.sinks is not None)

    def source_attention(self, stage: AttentionStage, capacity: int) -> BatchAttention:
        """The engine of a cross attention over ``capacity`` blocks of an encoder."""
        geometry = replace(self._geometry(stage), mask_heads=1)
        return BatchAttention(geometry, capacity * self.steps.program.block_size, 0, stage.sinks is not None)

    def _geometry(self, stage: AttentionStage) -> AttentionEngine:
        engine = with_rows(self.steps.program, 1).engine(stage.engine)
        if not isinstance(engine, AttentionEngine):
            raise InternalError(f"stage {stage.name} has no tiles")
        return replace(engine, key_tile=1)
