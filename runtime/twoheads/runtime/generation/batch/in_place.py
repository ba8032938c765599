"""Attention of a row of each of several sequences that writes their keys and values where they are kept."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any
from weakref import WeakKeyDictionary

import numpy as np
import numpy.typing as npt

from twoheads.graphs.program.program import AttentionStage
from twoheads.graphs.variants.batch_steps import SLOTS
from twoheads.graphs.variants.in_place.batch_in_place import BatchInPlace, batch_in_place
from twoheads.graphs.variants.in_place.in_place_steps import InPlaceSteps
from twoheads.runtime.generation.batch.slots import Group, Slab
from twoheads.runtime.generation.steps.engines import StepEngines

__all__ = ["AttendInPlace"]

Array = npt.NDArray[Any]


class AttendInPlace:
    """Such attentions of all layers, for the slots of any slab.

    A slot that no row belongs to has a spare array meanwhile: the operator writes for every slot.

    Args:
        engines: Where the engines are open.
        steps: Which attentions write in place.
        values: Of a batch's rows by name, ``[1, heads, rows, head_dim]``: queries, keys, values, and what comes out.

    Raises:
        BundleError: The bundle has no such engines.
    """

    def __init__(self, engines: StepEngines, steps: InPlaceSteps, values: Mapping[str, Array]) -> None:
        self._engines, self._steps = engines, steps
        self._rows = {name: array[0].swapaxes(0, 1) for name, array in values.items() if array.ndim == 4}
        self._kept = {entry.value.name: at for at, entry in enumerate(steps.steps.kept)}
        self._block = steps.steps.program.block_size
        self._bound: WeakKeyDictionary[Slab, dict[str, _Bound]] = WeakKeyDictionary()
        self._engine: dict[tuple[str, int], BatchInPlace] = {}
        self._staged: dict[BatchInPlace, _Staged] = {}
        smallest = next(filter(None, steps.steps.capacities))
        for stage in steps.steps.body.attentions:
            if stage.name in steps.stages:
                engines.batch_in_place(self._of(stage, smallest))

    def run(self, stage: AttentionStage, group: Group[Slab], places: npt.NDArray[np.int64]) -> None:
        """Attends for a group of rows, whose new keys and values go to ``places``, and into their open blocks."""
        bound = self._bound.setdefault(group.slab, {})
        if stage.name not in bound:
            bound[stage.name] = self._bind(stage, group.slab)
        call = bound[stage.name]
        rows, slots, values = group.at_rows, group.at_slots, self._rows
        call.take(group.slots)
        staged = call.staged
        new = [values[name][rows] for name in (stage.query, stage.key, stage.value)]
        for array, given in zip(staged.heads, new, strict=True):
            array[slots, 0] = given
        staged.place[:] = 0
        staged.place[slots] = places
        call.run()
        self._engines.calls += 1
        for name, given in zip((stage.key, stage.value), new[1:], strict=True):
            group.slab.opened[self._kept[name]][group.slots, :, places % self._block] = given
        values[stage.output.name][rows] = staged.made[slots, 0]

    def _bind(self, stage: AttentionStage, slab: Slab) -> _Bound:
        engine = self._of(stage, slab.capacity)
        if engine not in self._staged:
            self._staged[engine] = _Staged(engine)
        past = [slab.past[self._kept[name]] for name in (stage.key, stage.value)]
        return _Bound(self._engines, engine, self._staged[engine], past)

    def _of(self, stage: AttentionStage, capacity: int) -> BatchInPlace:
        key = stage.engine, capacity
        if key not in self._engine:
            self._engine[key] = batch_in_place(self._steps, stage, capacity)
        return self._engine[key]


class _Staged:
    """What calls of an engine read and write beside the slots: one at a time.

    Attributes:
        rows, place, out: Its ports.
        heads, made: ``rows`` and ``out`` in the same memory by slots, rows, heads and width.
        spare: Keys and values of a slot that no row belongs to.
    """

    def __init__(self, engine: BatchInPlace) -> None:
        *rows, place = (np.zeros(port.shape, port.dtype) for port in engine.inputs[:4])
        self.rows, self.place = rows, place
        self.out = np.zeros(engine.outputs[0].shape, engine.outputs[0].dtype)
        width = engine.geometry.head_dim
        *self.heads, self.made = (array.reshape(*array.shape[:2], -1, width) for array in (*rows, self.out))
        self.spare = [np.zeros(port.shape, port.dtype) for port in engine.past[:2]]


class _Bound:
    """A call for one layer and one slab, whose keys and values are ``past``."""

    def __init__(self, engines: StepEngines, engine: BatchInPlace, staged: _Staged, past: list[Array]) -> None:
        self.staged = staged
        self._wrap, self._past = engines.backend.tensor, past
        self._call = engines.batch_in_place(engine).new_call()
        for number, array in enumerate((*staged.rows, staged.place)):
            self._call.bind_input(number, self._wrap(array))
        self._call.bind_output(0, self._wrap(staged.out))
        self._reads: list[bool | None] = [None] * SLOTS
        self.take(np.zeros(0, np.int64))

    def take(self, slots: Array) -> None:
        """The call reads and writes these slots; the others' arrays are spare ones."""
        for slot, (reads, taken) in enumerate(zip(self._reads, np.isin(range(SLOTS), slots).tolist(), strict=True)):
            if reads is taken:
                continue
            self._reads[slot] = None  # if binding fails, nobody takes the slot's arrays for spare ones
            for role, past in enumerate(self._past):
                array = self._wrap(past[slot : slot + 1] if taken else self.staged.spare[role])
                number = 2 * slot + role
                self._call.bind_input(4 + number, array)
                self._call.bind_output(1 + number, array)
            self._reads[slot] = taken

    def run(self) -> None:
        """Attends."""
        self._call.run()
