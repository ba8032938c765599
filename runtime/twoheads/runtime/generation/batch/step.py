"""A token of each of many sequences: token-wise engines for all rows, attention for the slots of a slab at a time."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from twoheads.graphs.errors import InternalError
from twoheads.graphs.program.program import AttentionStage, ExpertsStage, ScanStage, TokenwiseStage
from twoheads.graphs.variants.batch_steps import SLOTS, BatchAttention, BatchSteps
from twoheads.graphs.variants.in_place.in_place_steps import InPlaceSteps
from twoheads.runtime.generation.batch.in_place import AttendInPlace
from twoheads.runtime.generation.batch.slots import Group, Slab, SlottedBlocks, groups_of
from twoheads.runtime.generation.batch.sources import SlottedSource, SourceSlab
from twoheads.runtime.generation.context import Context
from twoheads.runtime.generation.steps.engines import StepEngines

__all__ = ["BatchStep", "NextToken"]

Array = npt.NDArray[Any]


@dataclass(frozen=True, slots=True)
class NextToken:
    """A token to be computed.

    Attributes:
        context: Behind whose tokens.
        kept: The context's keys and values, which have a slot.
        source: What it reads of an encoder, likewise, if there is one.
        token: Which.
    """

    context: Context
    kept: SlottedBlocks
    source: SlottedSource
    token: int

    @property
    def place(self) -> tuple[Slab, int]:
        """Its slab and slot."""
        if self.kept.place is None:
            raise InternalError("a sequence without a slot is in a batch")
        return self.kept.place

    def count(self) -> None:
        """Its row is written: it is one of the context's tokens."""
        self.kept.take_row(len(self.context))
        self.context.accept(self.token)


class BatchStep:
    """Computes the next tokens of sequences, in calls of ``rows`` rows. One thread uses it at a time.

    A row's bits depend on its own sequence alone: all calls have the same shape, and rows that nobody needs repeat
    another one. Nothing of a sequence changes but rows behind its tokens and spare states, so what was stopped can be
    computed again.

    Args:
        engines: Where the engines are open.
        rows: One of ``BATCH_ROWS``.
        in_place: Which attentions write where keys are kept, as steps of several rows of one sequence do.

    Raises:
        BundleError: The bundle has no such engines.
    """

    def __init__(self, engines: StepEngines, rows: int, in_place: InPlaceSteps | None) -> None:
        self.rows = rows
        self._engines = engines
        steps = self._steps = engines.steps
        self._block = steps.program.block_size
        self._batch = BatchSteps(steps)
        self._values: dict[str, Array] = {
            value.name: np.zeros(value.block_shape(rows), value.dtype) for value in steps.program.values()
        }
        self._kept = {entry.value.name: at for at, entry in enumerate(steps.kept)}
        self._source = {value.name: at for at, value in enumerate(steps.source)}
        self._added = dict(steps.layers)
        self._scans = {stage.name: at for at, (stage, _) in enumerate(steps.body.scans)}
        self._calls = [self._region(stage) for stage in steps.body.inside]
        self._attends: dict[BatchAttention, _Attend] = {}
        self._masks: dict[tuple[int, int], Array] = {}
        self._in_place = None if in_place is None else AttendInPlace(engines, in_place, self._values)
        self._written = () if in_place is None else in_place.kept
        self._stages = frozenset[str]() if in_place is None else in_place.stages
        self._masked = {at for name, at in steps.layers if name not in self._stages}
        for stage in filter(self._batch.is_own, steps.body.attentions):
            if stage.name not in self._stages:
                self._attention(self._batch.attention(stage, 0))

    def run(self, given: Sequence[NextToken], check: Callable[[], None]) -> Array:
        """The hidden states ``[tokens, width]`` of the tokens, whose contexts do not count them yet.

        Rows of a slab stand together. ``check`` is called between engine calls, and raises what stops them.
        """
        parts = (given[start : start + self.rows] for start in range(0, len(given), self.rows))
        return np.concatenate([self._call(part, check) for part in parts])

    def _call(self, part: Sequence[NextToken], check: Callable[[], None]) -> Array:
        """One call of every engine."""
        at = np.minimum(np.arange(self.rows), len(part) - 1)
        tokens = np.array([row.token for row in part], np.int64)[at]
        positions = np.array([len(row.context) for row in part], np.int64)
        for entry in self._steps.program.inputs:
            if entry.source != "zeros":
                self._values[entry.value.name][...] = tokens if entry.source == "argument" else positions[at]
        groups = groups_of([row.place for row in part])
        sources = groups_of([row.source.slot for row in part if row.source.slot is not None])
        masks = [self._filled(group, part, number) for number, group in enumerate(groups)]
        states = [(row.context.states.before(len(row.context)), row.context.states.spare) for row in part]
        for row in part:
            row.kept.show(self._written, len(row.context))
        for stage, call in zip(self._steps.body.inside, self._calls, strict=True):
            check()
            if isinstance(stage, AttentionStage) and self._in_place is not None and stage.name in self._stages:
                for group in groups:
                    self._in_place.run(stage, group, positions[group.rows])
            elif isinstance(stage, AttentionStage) and self._batch.is_own(stage):
                for group, mask in zip(groups, masks, strict=True):
                    self._attend(stage, group, mask, positions % self._block)
            elif isinstance(stage, AttentionStage):
                for source in sources:
                    self._attend_source(stage, source)
            elif isinstance(stage, ScanStage):
                number = self._scans[stage.name]
                call.run([(before[number], spare[number]) for before, spare in states])
            elif isinstance(stage, ExpertsStage):
                self._engines.calls += call.run(len(part))
            else:
                call.run()
                self._engines.calls += 1
        return np.array(self._values[self._steps.program.hidden][0, : len(part)])

    def _filled(self, group: Group[Slab], part: Sequence[NextToken], number: int) -> dict[int, Array]:
        """What is added to the scores of a slab's slots, an array for each of ``Steps.added`` that is read."""
        capacity = group.slab.capacity
        made: dict[int, Array] = {}
        for at, added in enumerate(self._steps.added):
            key, shape = (number, at), (SLOTS, added.heads, 1, added.keys(capacity, self._block))
            if at not in self._masked:
                continue
            if key not in self._masks or self._masks[key].shape != shape:
                self._masks[key] = np.zeros(shape, np.float32)
            made[at] = self._masks[key]
        for row, slot in zip(group.rows, group.slots, strict=True):
            context = part[row].context
            position = np.array([len(context)], np.int64)
            arrays = [made[at][slot] if at in made else None for at in range(len(self._steps.added))]
            context.added.fill(arrays, position, capacity)
        return made

    def _region(self, stage: TokenwiseStage | AttentionStage | ScanStage | ExpertsStage) -> Any:
        """A call of a token-wise stage, bound to the values; of scans and experts all of it; ``None`` for attention."""
        if isinstance(stage, AttentionStage):
            return None
        if isinstance(stage, ExpertsStage):
            return self._engines.mixture(stage, self.rows, self._values)
        if isinstance(stage, ScanStage):
            return _Scan(self._engines, stage, self._values)
        return self._engines.bound_region(stage, self.rows, self._values)

    def _attention(self, engine: BatchAttention) -> _Attend:
        if engine not in self._attends:
            self._attends[engine] = _Attend(self._engines, engine)
        return self._attends[engine]

    def _attend(
        self, stage: AttentionStage, group: Group[Slab], masks: dict[int, Array], places: npt.NDArray[np.int64]
    ) -> None:
        """One attention of a slab's slots: the new keys and values go to their ``places`` in open blocks first."""
        engine = self._batch.attention(stage, group.slab.capacity)
        slab, kept = group.slab, (self._kept[stage.key], self._kept[stage.value])
        for name, at in zip((stage.key, stage.value), kept, strict=True):
            slab.opened[at][group.slots, :, places[group.rows]] = self._values[name][0].swapaxes(0, 1)[group.rows]
        arrays = [slab.past[at] for at in kept] if engine.past else []
        arrays += [*(slab.opened[at] for at in kept), masks[self._added[stage.name]]]
        self._attended(stage, group, engine, arrays)

    def _attend_source(self, stage: AttentionStage, group: Group[SourceSlab]) -> None:
        """One cross attention of a slab's slots."""
        slab = group.slab
        arrays = [*(slab.values[self._source[name]] for name in (stage.key, stage.value)), slab.mask]
        self._attended(stage, group, self._batch.source_attention(stage, slab.capacity), arrays)

    def _attended(self, stage: AttentionStage, group: Group[Any], engine: BatchAttention, arrays: list[Array]) -> None:
        """One call: the group's queries go to their slots, and what comes out to their rows."""
        values = self._values
        if stage.sinks is not None:
            arrays.append(np.ascontiguousarray(self._engines.weight(stage.sinks), np.float32))
        attend = self._attention(engine)
        attend.query[group.slots, :, 0] = values[stage.query][0].swapaxes(0, 1)[group.rows]
        attend.run(arrays)
        values[stage.output.name][0].swapaxes(0, 1)[group.rows] = attend.out[group.slots, :, 0]


class _Scan:
    """The calls of a scan: one for every sequence, of the engine of few rows that a step of one sequence has."""

    def __init__(self, engines: StepEngines, stage: ScanStage, values: Mapping[str, Array]) -> None:
        self._engines = engines
        steps, wrap = engines.steps, engines.backend.tensor
        rows = steps.rows[1]
        declared = {value.name: value for value in steps.program.values()}
        names = (*stage.inputs, stage.output.name)
        own = {name: np.zeros(declared[name].block_shape(rows), declared[name].dtype) for name in names}
        # Tokens first: a row of the batch, and of the engine.
        self._rows = [
            tuple(np.moveaxis(array, declared[name].token_axis, 0) for array in (values[name], own[name]))
            for name in names
        ]
        self._call = engines.scan(stage, rows).new_call()
        arrays = [own[name] for name in stage.inputs]
        arrays += [np.ascontiguousarray(engines.weight(name)) for name in stage.weights]
        self._state = len(arrays)
        for number, array in enumerate(arrays):
            self._call.bind_input(number, wrap(array))
        self._call.bind_input(self._state + 1, wrap(np.ones(1, np.int64)))
        self._call.bind_output(0, wrap(own[stage.output.name]))

    def run(self, states: Sequence[tuple[Array, Array]]) -> None:
        """Computes the first rows of the batch, each from its sequence's state to the next one."""
        wrap, (*read, (given, made)) = self._engines.backend.tensor, self._rows
        for at, (before, after) in enumerate(states):
            for batch, own in read:
                own[0] = batch[at]
            self._call.bind_input(self._state, wrap(before))
            self._call.bind_output(1, wrap(after))
            self._call.run()
            given[at] = made[0]
        given[len(states) :] = made[0]
        self._engines.calls += len(states)


class _Attend:
    """A call of an attention engine."""

    def __init__(self, engines: StepEngines, engine: BatchAttention) -> None:
        self._engines, wrap = engines, engines.backend.tensor
        (out,) = engine.outputs
        self.query = np.zeros(engine.inputs[0].shape, engine.inputs[0].dtype)
        self.out = np.zeros(out.shape, out.dtype)
        self._call = engines.batch_attention(engine).new_call()
        self._call.bind_input(0, wrap(self.query))
        self._call.bind_output(0, wrap(self.out))

    def run(self, arrays: Sequence[Array]) -> None:
        """Attends; ``arrays`` are all inputs but the queries."""
        for number, array in enumerate(arrays, start=1):
            self._call.bind_input(number, self._engines.backend.tensor(array))
        self._call.run()
        self._engines.calls += 1
