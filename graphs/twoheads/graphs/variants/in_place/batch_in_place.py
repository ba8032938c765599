"""Attention of a row of each of several sequences, by the operator that writes new keys and values in place.

It is a call of the operator for every slot of a slab, each over its own sequence's keys and no others. The operator
multiplies a single row by other kernels than several, with other last bits, so each slot has a second row: it is
nobody's, and written behind the first one.

The operator multiplies every query head with its keys for itself. So where heads share keys there is a *folded* form as
well: heads are rows of one head, each key is read once, and as many rows are written, of which the first is real. Rows
see as many keys as there are up to the first; those behind are hidden. They are sums of as many zeros more, so whether
the bits are those of the other form depends on a processor's kernels: a batch tries it before it takes this form.

There is the same for several rows of one sequence: the ends of prompts of different requests are rows of one call of
token-wise engines, and attention goes by request.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

from twoheads.graphs.program.engines.port import Port
from twoheads.graphs.program.program import AttentionEngine, AttentionStage
from twoheads.graphs.variants.batch_steps import SLOTS
from twoheads.graphs.variants.in_place.in_place_steps import NEXT, PLACE, InPlaceSteps
from twoheads.graphs.variants.stage_run import with_rows
from twoheads.graphs.variants.steps import SMALL_ROWS, STEP

__all__ = ["PAIR", "BatchInPlace", "batch_in_place", "batches_in_place", "folded", "prompt_in_place"]

PAIR = 2
"""Rows of a slot."""


@dataclass(frozen=True, slots=True)
class BatchInPlace:
    """Attention of one row of each of :data:`SLOTS` sequences, or of several rows of one.

    ``q [slots, rows, q_num_heads / fold * head_dim]``, ``k`` and ``v [slots, rows, kv_num_heads * head_dim]``, ``place
    [slots]``, int32, which says where a slot's first row is written, and of every slot ``past_key_AT [1, kv_num_heads,
    keys, head_dim]`` and ``past_value_AT`` give ``out [slots, rows, q_num_heads / fold * head_dim]``, and those arrays
    in the same memory. Row ``AT`` has every head whose number leaves ``AT`` when it is divided by ``fold``.

    Attributes:
        geometry: Of one sequence's attention.
        keys: For which there is room in a slot.
        slots: Sequences.
        rows: Of each.
        fold: How many heads are rows of one; 1 where rows are tokens.
    """

    geometry: AttentionEngine
    keys: int
    slots: int = SLOTS
    rows: int = PAIR
    fold: int = 1

    @property
    def name(self) -> str:
        """Of the engine's file."""
        kind = "batch_in_place" if self.slots > 1 else f"prompt_in_place_{self.rows}"
        if self.fold > 1:
            kind = f"batch_folded_{self.fold}"
        return f"{STEP}{kind}_{self.geometry.name}_{self.keys}"

    @property
    def heads(self) -> int:
        """Query heads of a row."""
        return self.geometry.q_num_heads // self.fold

    @property
    def past(self) -> tuple[Port, ...]:
        """The arrays of every slot, its keys and then its values."""
        shape = (1, self.geometry.kv_num_heads, self.keys, self.geometry.head_dim)
        names = (f"past_{what}_{at}" for at in range(self.slots) for what in ("key", "value"))
        return tuple(Port(name, "float32", shape) for name in names)

    @property
    def inputs(self) -> tuple[Port, ...]:
        """The input ports, in order."""
        engine = self.geometry
        heads = {"q": self.heads, "k": engine.kv_num_heads, "v": engine.kv_num_heads}
        rows = (
            Port(name, "float32", (self.slots, self.rows, count * engine.head_dim)) for name, count in heads.items()
        )
        return (*rows, Port(PLACE, "int32", (self.slots,)), *self.past)

    @property
    def outputs(self) -> tuple[Port, ...]:
        """The output ports, in order."""
        out = Port("out", "float32", (self.slots, self.rows, self.heads * self.geometry.head_dim))
        return (out, *(replace(port, name=NEXT + port.name) for port in self.past))


def batch_in_place(steps: InPlaceSteps, stage: AttentionStage, capacity: int) -> BatchInPlace:
    """The engine of an attention that writes in place, in slots of ``capacity`` whole blocks."""
    program = steps.steps.program
    geometry = with_rows(program, 1).engine_of(AttentionEngine, stage.engine)
    return BatchInPlace(replace(geometry, key_tile=1), capacity * program.block_size)


def folded(engine: BatchInPlace) -> BatchInPlace | None:
    """Its folded form; ``None`` where no heads share keys. It writes no more rows than steps of few rows do."""
    group = engine.geometry.q_num_heads // engine.geometry.kv_num_heads
    fold = max(rows for rows in range(1, SMALL_ROWS[-1] + 1) if group % rows == 0)
    return replace(engine, rows=fold, fold=fold) if fold > 1 else None


def prompt_in_place(steps: InPlaceSteps, stage: AttentionStage, capacity: int) -> BatchInPlace | None:
    """Likewise of several rows of one sequence, as many as its own steps have at most.

    ``None`` where rows of several prompts can't be computed in one call: where some attention is written elsewhere.
    """
    rows = steps.rows[-1]
    if rows == 1 or any(one.name not in steps.stages for one in steps.steps.body.attentions):
        return None
    return replace(batch_in_place(steps, stage, capacity), slots=1, rows=rows)


def batches_in_place(steps: InPlaceSteps) -> Iterator[BatchInPlace]:
    """All such engines, each once; none where steps of several rows write in other places."""
    found = dict[BatchInPlace, None]()
    for stage in steps.steps.body.attentions if steps.steps.by_runs else ():
        for capacity in steps.steps.capacities if stage.name in steps.stages else ():
            if capacity:
                engine = batch_in_place(steps, stage, capacity)
                found |= dict.fromkeys(form for form in (engine, folded(engine)) if form is not None)
                if (prompt := prompt_in_place(steps, stage, capacity)) is not None:
                    found[prompt] = None
    yield from found
