"""A step layer by layer, attention tile by tile, merged by log-sum-exp.

It is for more keys than any step engine reads, and for mixtures of experts, which no engine holds.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import numpy.typing as npt

from twoheads.graphs.program.program import AttentionEngine, AttentionStage, ExpertsStage, ScanStage, TokenwiseStage
from twoheads.runtime.generation.kept.kept_source import KeptSource
from twoheads.runtime.generation.kept.rows import KeptBlocks
from twoheads.runtime.generation.kept.states import KeptStates
from twoheads.runtime.generation.steps.added import NOWHERE, AddedScores
from twoheads.runtime.generation.steps.engines import StepEngines

__all__ = ["LongStep"]

Array = npt.NDArray[Any]
Tile = tuple[int | None, AttentionEngine, npt.NDArray[np.int64] | None]
"""The segment (``None``: behind all of them, -1: the open block), its engine, and the keys' positions: ``None`` where
every query sees all of them."""

OPEN = -1


class LongStep:
    """What :class:`~twoheads.runtime.generation.steps.step.BoundStep` is, for any number of keys.

    Args:
        engines: Where the engines are open.
        rows: Tokens of a call.
        kept: The context's keys and values, which must stay where they are.
        source: What it reads of an encoder, likewise.

    Attributes:
        hidden: The hidden states of the last call, ``[1, rows, width]``.
    """

    def __init__(self, engines: StepEngines, rows: int, kept: KeptBlocks, source: KeptSource) -> None:
        self._engines, self._rows, self._kept, self._source = engines, rows, kept, source
        steps = self._steps = engines.steps
        self._block = steps.program.block_size
        self._values: dict[str, Array] = {
            value.name: np.zeros(value.block_shape(rows), value.dtype) for value in steps.program.values()
        }
        self._places = {entry.value.name: at for at, entry in enumerate(steps.kept)}
        self._added = dict(steps.layers)
        self._masks: dict[tuple[int, int], Array] = {}
        self._hidden: dict[tuple[int, int], Array] = {}
        self._count = np.zeros(1, np.int64)
        self._calls = [self._call(stage) for stage in steps.body.inside]
        self._tile_calls: dict[tuple[str, str], Any] = {}
        self._partial: dict[tuple[int, ...], list[tuple[Array, Array]]] = {}
        self.hidden = self._values[steps.program.hidden]
        self._new = {at: self._values[entry.value.name] for at, entry in enumerate(steps.kept)}

    def _call(self, stage: TokenwiseStage | AttentionStage | ScanStage | ExpertsStage) -> Any:
        """A call of a token-wise stage or a scan, bound to the values; what makes the calls of experts; or ``None``."""
        if isinstance(stage, AttentionStage):
            return None
        if isinstance(stage, ExpertsStage):
            return self._engines.mixture(stage, self._rows, self._values)
        wrap = self._engines.backend.tensor
        if isinstance(stage, TokenwiseStage):
            call = self._engines.region(stage, self._rows).new_call()
        else:
            call = self._engines.scan(stage, self._rows).new_call()
            for number, name in enumerate(stage.weights, len(stage.inputs)):
                call.bind_input(number, wrap(np.ascontiguousarray(self._engines.weight(name))))
            call.bind_input(len(stage.inputs) + len(stage.weights) + 1, wrap(self._count))
        for number, name in enumerate(stage.inputs):
            call.bind_input(number, wrap(self._values[name]))
        for number, value in enumerate(stage.outputs):
            call.bind_output(number, wrap(self._values[value.name]))
        return call

    def run(self, tokens: npt.NDArray[np.int64], first: int, added: AddedScores, states: KeptStates) -> None:
        """Computes ``tokens``, 1 to ``rows`` of them, at positions from ``first``, all in one block.

        The states behind them are the spare ones then.
        """
        count = self._count[0] = len(tokens)
        pairs, wrap = zip(states.before(first), states.spare, strict=True), self._engines.backend.tensor
        at = np.minimum(np.arange(self._rows, dtype=np.int64), count - 1)
        for entry in self._steps.program.inputs:
            if entry.source != "zeros":
                self._values[entry.value.name][...] = tokens[at] if entry.source == "argument" else first + at
        filled: set[tuple[int, int]] = set()
        for stage, call in zip(self._steps.body.inside, self._calls, strict=True):
            if isinstance(stage, AttentionStage) and stage.key not in self._places:
                self._cross(stage)
            elif isinstance(stage, AttentionStage):
                self._attend(stage, first, count, added, filled)
            elif isinstance(stage, ExpertsStage):
                self._engines.calls += call.run(count)
            else:
                if isinstance(stage, ScanStage):
                    before, spare = next(pairs)
                    call.bind_input(len(stage.inputs) + len(stage.weights), wrap(before))
                    call.bind_output(1, wrap(spare))
                call.run()
                self._engines.calls += 1

    def keep(self, kept: KeptBlocks, first: int, count: int, skip: int) -> None:
        """The last call's keys and values become those of ``count`` tokens from ``first``, without ``skip`` before."""
        kept.write(first % self._block, self._new, count, skip)

    def _attend(
        self, stage: AttentionStage, first: int, count: int, added: AddedScores, filled: set[tuple[int, int]]
    ) -> None:
        """One attention over all tiles; the new rows are in the open block by then."""
        place = first % self._block
        for name in (stage.key, stage.value):
            opened = self._kept.opened[self._places[name]]
            opened[:, :, place : place + count] = self._values[name][:, :, :count]
        positions = first + np.minimum(np.arange(self._rows, dtype=np.int64), count - 1)
        tiles = list(self._tiles(stage, first, int(positions[-1]) + 1))
        state = self._first_state(stage)
        k, v = self._places[stage.key], self._places[stage.value]
        for number, (segment, engine, where) in enumerate(tiles):
            keys, values = (
                self._kept.opened[at] if segment == OPEN else self._kept.tile(at, segment, role)
                for role, at in enumerate((k, v))
            )
            mask = None
            if where is not None:
                mask = self._mask(self._added[stage.name], number - len(tiles), engine, positions, where, added, filled)
            out = self._values[stage.output.name] if number == len(tiles) - 1 else None
            state = self._tile(stage, engine, (keys, values), mask, state, out)

    def _cross(self, stage: AttentionStage) -> None:
        """One attention over all tiles of an encoder."""
        source, engine = self._source, self._steps.tile(stage, self._rows, self._source.blocks)
        k, v = source.place(stage.key), source.place(stage.value)
        state = self._first_state(stage)
        for number, tile in enumerate(source.tiles):
            mask = None if source.is_whole(number) else self._source_mask(engine, number)
            out = self._values[stage.output.name] if number == len(source.tiles) - 1 else None
            state = self._tile(stage, engine, (tile[k], tile[v]), mask, state, out)

    def _source_mask(self, engine: AttentionEngine, number: int) -> Array:
        """What is added to the scores of a tile, for all rows."""
        shape = (engine.mask_heads, self._rows, engine.key_tile)
        key = (engine.mask_heads, number)
        if key not in self._hidden:
            self._hidden[key] = np.ascontiguousarray(np.broadcast_to(self._source.masks[number], shape))
        return self._hidden[key]

    def _tiles(self, stage: AttentionStage, first: int, end: int) -> Iterator[Tile]:
        """All tiles of keys for queries ``[first, end)``, their own block last."""
        steps, size = self._steps, self._block
        block = first // size
        entry = steps.kept[self._places[stage.key]]
        ring, capacity = entry.ring, self._kept.capacity
        wide = steps.tile(stage, self._rows, entry.blocks(capacity)) if capacity else None
        within = np.arange(size, dtype=np.int64)
        if ring is None and wide is not None:
            segments, reach = self._kept.segments, np.arange(capacity * size, dtype=np.int64)
            covered = stage.mask.covered((first, end)) if stage.bias is None else ()
            for number in range(len(segments)):
                where = number * len(reach) + reach
                whole = any(low <= where[0] and where[-1] < high for low, high in covered)
                yield number, wide, None if whole else where
            start = len(segments) * len(reach)
            if block * size > start:
                yield None, wide, np.where(start + reach < block * size, start + reach, NOWHERE)
        elif ring is not None and wide is not None:
            where = np.full(wide.key_tile, NOWHERE, np.int64)
            for slot, held in ring.held(block).items():
                where[slot * size : (slot + 1) * size] = held * size + within
            yield None, wide, where
        yield OPEN, steps.tile(stage, self._rows, 1), block * size + within

    def _mask(
        self,
        entry: int,
        place: int,
        engine: AttentionEngine,
        positions: npt.NDArray[np.int64],
        where: npt.NDArray[np.int64],
        added: AddedScores,
        filled: set[tuple[int, int]],
    ) -> Array:
        """What is added to the scores of a tile, filled once a call for all layers that share it."""
        key = (entry, place)
        shape = (engine.mask_heads, self._rows, engine.key_tile)
        if key not in self._masks or self._masks[key].shape != shape:
            self._masks[key] = np.zeros(shape, np.float32)
        if key not in filled:
            added.fill_tile(entry, self._masks[key], positions, where)
            filled.add(key)
        return self._masks[key]

    def _first_state(self, stage: AttentionStage) -> tuple[Array, Array] | None:
        """The learned sinks as the first partial result, ``out`` 0 and ``lse`` their logits; ``None`` without."""
        if stage.sinks is None:
            return None
        logits = np.asarray(self._engines.weight(stage.sinks), np.float32)
        shape = stage.output.block_shape(self._rows)
        return np.zeros(shape, np.float32), np.ascontiguousarray(
            np.broadcast_to(logits[None, :, None], shape[:3]), np.float32
        )

    def _tile(
        self,
        stage: AttentionStage,
        engine: AttentionEngine,
        kept: tuple[Array, Array],
        mask: Array | None,
        state: tuple[Array, Array] | None,
        out: Array | None,
    ) -> tuple[Array, Array]:
        """One call; returns the partial result of all tiles so far."""
        variant = ("full" if mask is None else "masked") + ("" if state is None else "_merge")
        key = (engine.name, variant)
        if key not in self._tile_calls:
            self._tile_calls[key] = self._engines.tile(engine, variant).new_call()
        call, wrap = self._tile_calls[key], self._engines.backend.tensor
        given = [self._values[stage.query], *kept, *(() if mask is None else (mask,)), *(state or ())]
        for number, array in enumerate(given):
            call.bind_input(number, wrap(array))
        made = self._spare(stage, state)
        if out is not None:
            made = out, made[1]
        for number, array in enumerate(made):
            call.bind_output(number, wrap(array))
        call.run()
        self._engines.calls += 1
        return made

    def _spare(self, stage: AttentionStage, used: tuple[Array, Array] | None) -> tuple[Array, Array]:
        """Arrays for a partial result that are not those in use."""
        shape = stage.output.block_shape(self._rows)
        if shape not in self._partial:
            made = [(np.zeros(shape, np.float32), np.zeros(shape[:3], np.float32)) for _ in range(2)]
            self._partial[shape] = made
        one, other = self._partial[shape]
        return other if used is not None and used[1] is one[1] else one
