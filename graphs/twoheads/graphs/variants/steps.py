"""Engines that extend a sequence: a few rows of a causal decoder, all layers in one call, over keys that are kept.

A *step* computes ``rows`` tokens behind those whose keys and values are kept already. There are engines of 1 row, of 8,
of 64 and of a whole block, and of each one for every *capacity*: how many whole blocks of kept keys it reads. The
shapes are fixed; how much of them is real is told by masks.

Keys and values lie in two arrays a layer: those of whole blocks, and the *open block*, which the new rows belong to.
The graph puts the new rows into the open block and attends to it as a whole, so that the order of every sum depends on
the tokens' positions alone: not on how many rows a call has, nor on the capacity. (One row is multiplied by other
kernels, so its last bits may differ.) A layer under a window reads a ring of whole blocks instead of all of them.

Like the program for short inputs (:mod:`twoheads.graphs.variants.one_block`) these programs are derived and not stored.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import lru_cache

from twoheads.graphs.errors import InternalError
from twoheads.graphs.masks.expressions import Causal, Mask
from twoheads.graphs.masks.rings import Ring, ring_of, widest_ring
from twoheads.graphs.program.axes import axis_inputs, axis_length
from twoheads.graphs.program.engines.fused import FusedEngine
from twoheads.graphs.program.engines.port import Port
from twoheads.graphs.program.engines.scan import COUNT
from twoheads.graphs.program.program import (
    AttentionEngine,
    AttentionStage,
    Input,
    Program,
    RelativeBias,
    ScanEngine,
    ScanStage,
    TokenwiseEngine,
    TokenwiseStage,
    Value,
)
from twoheads.graphs.variants.decoder import decoder_part
from twoheads.graphs.variants.stage_run import StageRun, with_rows

__all__ = [
    "CAPACITIES",
    "HIDDEN",
    "INDEX",
    "MASK",
    "MIDDLE_ROWS",
    "SMALL_ROWS",
    "SOURCE",
    "SOURCE_MASK",
    "STEP",
    "Added",
    "KeptRows",
    "StepEngine",
    "Steps",
    "folded_rows",
    "step_steps",
]

CAPACITIES = (0, 2, 4, 8, 16, 36)
"""Whole blocks of kept keys that an engine reads, ascending: the last holds 8,192 tokens in blocks of 256, and 1,024
behind them."""

SOURCE_CAPACITIES = (2, 16)
"""Blocks of an encoder's tokens that an engine reads, ascending."""

SMALL_ROWS = (1, 8)
"""Rows of the steps that compute logits of each of their rows."""

MIDDLE_ROWS = 64
"""Rows of a step between those and a whole block, where that has more."""

STEP = "step_"
"""How the names of all engines of steps begin."""

INDEX = "index"
"""The input port that says which row stands at each place of the open block: its own, or a new one behind them."""

MASK = "mask"
"""Name of the ports of what is added to the scores."""

SOURCE = "source"
"""What the names of ports for keys and values of cross attention begin with."""

SOURCE_MASK = "source_mask"
"""The port of what is added to their scores: it hides what lies behind the source."""

HIDDEN = -1e30
"""What is added to the scores of keys that a query does not see."""


@dataclass(frozen=True, slots=True)
class KeptRows:
    """Keys or values of a layer.

    Attributes:
        value: What they are, ``[1, kv_heads, n, head_dim]``.
        ring: Which whole blocks are kept; ``None`` for all.
    """

    value: Value
    ring: Ring | None

    def blocks(self, capacity: int) -> int:
        """Whole blocks of the port in an engine of this capacity."""
        return capacity if self.ring is None else min(capacity, self.ring.blocks)


@dataclass(frozen=True, slots=True)
class Added:
    """What is added to the scores of the layers that share it: a mask, a bias by distance, in one order of the keys.

    Attributes:
        mask: Which keys a query sees.
        bias: What depends on the distance, or ``None``.
        ring: The order of the keys; see :class:`KeptRows`.
        heads: Of the added array: 1, or all where the bias differs.
    """

    mask: Mask
    bias: RelativeBias | None
    ring: Ring | None
    heads: int

    def keys(self, capacity: int, block: int) -> int:
        """Keys of a call in an engine of this capacity: of whole blocks, and of the open one."""
        return ((capacity if self.ring is None else min(capacity, self.ring.blocks)) + 1) * block


@dataclass(frozen=True, slots=True)
class StepEngine(FusedEngine):
    """All layers for some rows behind kept keys; see the module's docstring.

    Its input ports are the program's inputs, :data:`INDEX` unless it computes whole blocks, what is added to scores,
    and of every kept value the whole blocks (unless the capacity is 0) and the open block (as :data:`INDEX`). Behind an
    encoder there are the keys and values of cross attention, and :data:`SOURCE_MASK` ``[1, 1, keys]``. Its output ports
    are the hidden states and the new rows of every kept value. Scans have their states beside, and a
    ``count`` says how many rows are there, so that the others leave the states as they are.

    Attributes:
        rows: Tokens of a call.
        capacity: Whole blocks of kept keys that it reads.
        source: Blocks of an encoder's tokens that it reads; 0 without one.
    """

    rows: int
    capacity: int
    source: int


@dataclass(frozen=True, slots=True)
class Steps:
    """How a program's sequences are extended.

    Attributes:
        program: The tile program; of an encoder-decoder its decoder alone.
        body: Its stages that a step holds: all of its body.
        kept: The keys and values of all layers.
        added: What is added to scores, each once.
        layers: For every attention over kept keys, by the stage's name, which of ``added``.
        source: Keys and values of cross attention, ``[1, kv_heads, m, head_dim]``; none without an encoder.
        middle: Whether there are steps of :data:`MIDDLE_ROWS` rows, where blocks have more.
        folded: The most rows that a step of one row has in place, in some layer; see :func:`folded_rows`.
    """

    program: Program
    body: StageRun
    kept: tuple[KeptRows, ...]
    added: tuple[Added, ...]
    layers: tuple[tuple[str, int], ...]
    source: tuple[Value, ...] = ()
    middle: bool = True
    folded: int = 1

    @property
    def fed(self) -> tuple[str, ...]:
        """The program's inputs that a step reads, in order."""
        given = {value.name for value in self.source}
        return tuple(name for name in self.body.inputs if name not in given)

    @property
    def source_capacities(self) -> tuple[int, ...]:
        """Blocks of an encoder's tokens that engines read, ascending: 0 without one, one where its size is fixed."""
        if not self.source:
            return (0,)
        axis, block = self.source[0].axis or "", self.program.block_size
        if axis_inputs(axis):
            return SOURCE_CAPACITIES
        blocks = -(-axis_length(axis, {}) // block)
        return (blocks,) if blocks <= CAPACITIES[-1] else ()

    def source_capacity(self, tokens: int) -> int | None:
        """The least of them that holds as many of an encoder's tokens; ``None`` where none does."""
        blocks = -(-tokens // self.program.block_size)
        return next((capacity for capacity in self.source_capacities if capacity >= blocks), None)

    @property
    def layered(self) -> bool:
        """Whether every step is computed stage by stage, as no engine holds all layers."""
        return bool(self.body.mixtures)

    @property
    def in_place(self) -> tuple[AttentionStage, ...]:
        """The attentions that ONNX Runtime computes so that keys and values are written where they are kept.

        They see all keys before them, without bias or sinks, and share keys and values with no other.
        """
        if self.source or self.layered:
            return ()
        readers = Counter(name for stage in self.body.attentions for name in (stage.key, stage.value))
        rings = {entry.value.name for entry in self.kept if entry.ring is not None}
        return tuple(
            stage
            for stage in self.body.attentions
            if readers[stage.key] == readers[stage.value] == 1
            and stage.key not in rings
            and _is_plain(stage, self.program.engine_of(AttentionEngine, stage.engine))
        )

    def written_rows(self, rows: int) -> int:
        """Rows that a step of ``rows`` rows writes in place: as many as there are, also those that are nobody's.

        A single row is written once for each of the heads that are its rows; see :func:`folded_rows`.
        """
        return rows if rows > 1 else self.folded

    def has_room(self, rows: int, blocks: int) -> bool:
        """Whether some capacity has room behind so many whole blocks for the open one, and for rows behind it."""
        return self.capacity(blocks + (1 if self.written_rows(rows) == 1 else 2)) is not None

    def reaches_in_place(self, rows: int, blocks: int) -> bool:
        """Whether a step of ``rows`` rows behind so many whole blocks writes in place, where some layer allows it.

        Several rows do where runs compute whole blocks alone: there is no such step of a block, and it would compute
        them again.
        """
        allowed = rows == 1 or (self.by_runs and rows < self.program.block_size)
        return bool(self.in_place) and allowed and self.has_room(rows, blocks)

    @property
    def by_runs(self) -> bool:
        """Whether runs of the tile program compute whole blocks of a prompt: where attention alone joins tokens."""
        return bool(self.kept) and not (self.layered or self.source or self.body.scans)

    @property
    def kept_names(self) -> frozenset[str]:
        """Names of the keys and values of all layers."""
        return frozenset(entry.value.name for entry in self.kept)

    @property
    def until_kept(self) -> int:
        """How many of the body's stages make all that is kept; those behind them make hidden states alone."""
        names, stages = self.kept_names, enumerate(self.body.inside)
        makers = [at for at, stage in stages if any(value.name in names for value in stage.outputs)]
        return makers[-1] + 1

    @property
    def states(self) -> tuple[Port, ...]:
        """The states of all scans, in order, as input ports."""
        return tuple(replace(engine.state, name=f"state_{at}") for at, (_, engine) in enumerate(self.body.scans))

    @property
    def capacities(self) -> tuple[int, ...]:
        """Those of the engines that there are, ascending; of a program that keeps no keys, 0.

        Behind an encoder none is larger than what the decoder can take: there is an engine for each size of the source.
        """
        limit = self.program.max_length
        if not self.kept:
            return CAPACITIES[:1]
        if not self.source or limit is None:
            return CAPACITIES
        blocks = limit.length // self.program.block_size
        needed = next((at for at, capacity in enumerate(CAPACITIES) if capacity >= blocks), len(CAPACITIES) - 1)
        return CAPACITIES[: needed + 1]

    @property
    def tokens(self) -> Input:
        """The input that holds the tokens."""
        return next(entry for entry in self.program.inputs if entry.source == "argument")

    @property
    def rows(self) -> tuple[int, ...]:
        """Rows of the engines that there are, ascending."""
        block = self.program.block_size
        return (*SMALL_ROWS, *((MIDDLE_ROWS,) if self.middle and block > MIDDLE_ROWS else ()), block)

    @property
    def has_rings(self) -> bool:
        """Whether some layer forgets blocks."""
        return any(entry.ring is not None for entry in self.kept)

    def capacity(self, blocks: int) -> int | None:
        """The least capacity that holds as many whole blocks; ``None`` where none does."""
        if not self.kept:
            return 0
        if all(entry.ring is not None for entry in self.kept):
            blocks = min(blocks, max(entry.ring.blocks for entry in self.kept if entry.ring is not None))
        return next((capacity for capacity in CAPACITIES if capacity >= blocks), None)

    @property
    def engines(self) -> Iterator[StepEngine]:
        """All engines that there are, those of equal rows behind one another; none where steps are layered."""
        for rows in () if self.layered else self.rows:
            for source in self.source_capacities:
                for capacity in self.capacities:
                    yield self.engine(rows, capacity, source)

    def engine(self, rows: int, capacity: int, source: int = 0) -> StepEngine:
        """The engine of a call of ``rows`` tokens over up to ``capacity`` whole blocks, ``source`` of an encoder."""
        program, block = self.program, self.program.block_size
        values = {value.name: value for value in program.values()}
        inputs = [_port(f"input_{at}", values[name], rows) for at, name in enumerate(self.fed)]
        if rows < block:
            inputs.append(Port(INDEX, "int64", (block,)))
        if self.states:
            inputs.append(Port(COUNT, "int64", (1,)))
        inputs += [
            Port(f"{MASK}_{at}", "float32", (added.heads, rows, added.keys(capacity, block)))
            for at, added in enumerate(self.added)
        ]
        outputs = [_port("hidden", values[program.hidden], rows)]
        for at, entry in enumerate(self.kept):
            if capacity:
                inputs.append(_port(f"past_{at}", entry.value, entry.blocks(capacity) * block))
            if rows < block:
                inputs.append(_port(f"open_{at}", entry.value, block))
            outputs.append(_port(f"new_{at}", entry.value, rows))
        if self.source:
            inputs.append(Port(SOURCE_MASK, "float32", (1, 1, source * block)))
        inputs += [_port(f"{SOURCE}_{at}", value, source * block) for at, value in enumerate(self.source)]
        inputs += self.states
        outputs += [replace(port, name=f"next_{port.name}") for port in self.states]
        weights = tuple(self.body.weights.values())
        name = f"{STEP}{rows}_{capacity}" + (f"_{source}" if self.source else "")
        return StepEngine(
            name, tuple(inputs), tuple(outputs), weights, 0, 0, True, rows=rows, capacity=capacity, source=source
        )

    def region(self, stage: TokenwiseStage, rows: int) -> TokenwiseEngine:
        """The engine of a token-wise stage for ``rows`` tokens, of steps over more keys than any capacity."""
        engine = with_rows(self.program, rows).engine_of(TokenwiseEngine, stage.engine)
        return engine if rows == self.program.block_size else replace(engine, name=f"{STEP}{rows}_{engine.name}")

    def tile(self, stage: AttentionStage, rows: int, blocks: int) -> AttentionEngine:
        """The engine of an attention for ``rows`` queries and a tile of ``blocks`` whole blocks of keys."""
        engine = with_rows(self.program, rows).engine_of(AttentionEngine, stage.engine)
        keys = blocks * self.program.block_size
        return replace(engine, name=f"{STEP}{rows}_{engine.name}_{keys}", key_tile=keys)

    def tiles(self, rows: int) -> dict[AttentionEngine, tuple[str, ...]]:
        """All such engines with the variants that a step may call."""
        kept = {entry.value.name: entry for entry in self.kept}
        masked, found = AttentionEngine.VARIANTS[1::2], dict[AttentionEngine, set[str]]()
        for stage in self.body.attentions:
            if stage.key in kept:
                entry = kept[stage.key]  # narrower tiles: of blocks that are kept rounded, and of mixtures
                read: list[tuple[int, tuple[str, ...]]] = [(1, masked)]
                read += [(entry.blocks(capacity), masked) for capacity in CAPACITIES[1:]]
                read += [] if entry.ring else [(CAPACITIES[-1], AttentionEngine.VARIANTS)]
            else:
                read = [(blocks, AttentionEngine.VARIANTS) for blocks in self.source_tiles]
            for blocks, variants in read:
                found.setdefault(self.tile(stage, rows, blocks), set()).update(variants)
        return {
            engine: tuple(variant for variant in AttentionEngine.VARIANTS if variant in variants)
            for engine, variants in found.items()
        }

    @property
    def source_tiles(self) -> tuple[int, ...]:
        """Blocks of the tiles in which an encoder's tokens may lie: of each engine, and of steps over more."""
        return (*self.source_capacities, *(() if CAPACITIES[-1] in self.source_capacities else CAPACITIES[-1:]))

    def scan(self, stage: ScanStage, rows: int) -> ScanEngine:
        """The engine of a scan for ``rows`` tokens, likewise."""
        engine = with_rows(self.program, rows).engine_of(ScanEngine, stage.engine)
        return replace(engine, name=f"{STEP}{rows}_{engine.name}")

    def heads(self, rows: int) -> tuple[tuple[TokenwiseStage, TokenwiseEngine], ...]:
        """The stages from hidden states to logits with engines of ``rows`` tokens, in order."""
        resized = with_rows(self.program, rows)
        made: list[tuple[TokenwiseStage, TokenwiseEngine]] = []
        for stage in self.program.head:
            engine = resized.engine_of(TokenwiseEngine, stage.engine)
            name = f"{STEP}{rows}_{engine.name}"
            made.append((replace(stage, engine=name), replace(engine, name=name)))
        return tuple(made)


def folded_rows(engine: AttentionEngine) -> int:
    """As how many rows of fewer heads an attention of one row in place computes its query heads.

    Those that share keys are rows of one product, so that these are read once. Two heads are left at least: threads
    share the work by heads.
    """
    heads, group = engine.q_num_heads, engine.q_num_heads // engine.kv_num_heads
    found = (rows for rows in range(group, 1, -1) if group % rows == 0 and heads // rows > 1)
    return next(found, 1)


def _port(name: str, value: Value, rows: int) -> Port:
    return Port(name, value.dtype, value.block_shape(rows))


@lru_cache(maxsize=16)
def step_steps(program: Program) -> Steps | None:
    """How sequences of ``program`` are extended; ``None`` where ``step_obstacle`` says why they aren't."""
    part = decoder_part(program)
    if part is None:
        return None
    program, body = part.program, part.body
    given = {value.name for value in part.source}
    attentions = [stage for stage in body.attentions if stage.key not in given]
    rings: dict[str, list[Ring | None]] = {}
    for stage in attentions:
        for name in (stage.key, stage.value):
            rings.setdefault(name, []).append(ring_of(stage.mask, program.block_size))
    shared = {name: widest_ring(found) for name, found in rings.items()}
    added: dict[Added, int] = {}
    layers: list[tuple[str, int]] = []
    for stage in attentions:
        if shared[stage.key] != shared[stage.value]:
            raise InternalError(f"stage {stage.name}: its keys and values are kept differently")
        heads = program.engine_of(AttentionEngine, stage.engine).mask_heads
        entry = Added(stage.mask, stage.bias, shared[stage.key], heads)
        layers.append((stage.name, added.setdefault(entry, len(added))))
    kept = tuple(KeptRows(program.value(name), ring) for name, ring in shared.items())
    steps = Steps(program, body, kept, tuple(added), tuple(layers), part.source)
    engines = (program.engine_of(AttentionEngine, stage.engine) for stage in steps.in_place)
    return replace(steps, folded=max(map(folded_rows, engines), default=1))


def _is_plain(stage: AttentionStage, engine: AttentionEngine) -> bool:
    plain = stage.sinks is None and stage.bias is None and isinstance(stage.mask, Causal)
    heads = engine.head_dim == engine.v_head_dim and not engine.softcap and not engine.distances and engine.scale > 0
    return plain and heads and engine.dtype == "float32"
