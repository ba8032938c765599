"""Attention of a row of each of several sequences that writes their keys and values where they are kept.

Where heads share keys they are rows of one head, so that keys are read once, if the kernels at hand give that form the
bits of the other one, which steps of a single sequence have.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any
from weakref import WeakKeyDictionary

import numpy as np
import numpy.typing as npt

from twoheads.graphs.program.program import AttentionStage
from twoheads.graphs.variants.batch_steps import SLOTS
from twoheads.graphs.variants.in_place.batch_in_place import BatchInPlace, batch_in_place, folded
from twoheads.graphs.variants.in_place.in_place_steps import InPlaceSteps
from twoheads.runtime.generation.batch.slots import Group, Numbers, Slab
from twoheads.runtime.generation.steps.engines import StepEngines

__all__ = ["AttendInPlace"]

Array = npt.NDArray[Any]


TRIED = 64
"""Numbers of keys, behind which forms are compared: whole vectors of any processor, and every rest."""


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
        self._kept = {entry.value.name: at for at, entry in enumerate(steps.steps.kept)}
        self._block = steps.steps.program.block_size
        self._bound: WeakKeyDictionary[Slab, dict[str, _Bound]] = WeakKeyDictionary()
        self._engine: dict[tuple[str, int], BatchInPlace] = {}
        self._staged: dict[BatchInPlace, _Staged] = {}
        self._rows: dict[str, list[Array]] = {}
        smallest = next(filter(None, steps.steps.capacities))
        for stage in steps.steps.body.attentions:
            if stage.name in steps.stages:
                engine = self._of(stage, smallest)
                engines.batch_in_place(engine)
                names = (stage.query, stage.key, stage.value, stage.output.name)
                self._rows[stage.name] = [_by_rows(values[name], engine, name in names[1:3]) for name in names]

    def run(self, stage: AttentionStage, group: Group[Slab], places: npt.NDArray[np.int64]) -> None:
        """Attends for a group of rows, whose new keys and values go to ``places``, and into their open blocks."""
        bound = self._bound.setdefault(group.slab, {})
        if stage.name not in bound:
            bound[stage.name] = self._bind(stage, group.slab)
        call = bound[stage.name]
        *read, out = self._rows[stage.name]
        new = [array[group.at_rows] for array in read]
        call.take(group.slots)
        out[group.at_rows] = call.run(group.at_slots, new, places)
        self._engines.calls += 1
        for name, given in zip((stage.key, stage.value), new[1:], strict=True):
            group.slab.opened[self._kept[name]][group.slots, :, places % self._block] = given[:, 0]

    def _bind(self, stage: AttentionStage, slab: Slab) -> _Bound:
        engine = self._of(stage, slab.capacity)
        if engine not in self._staged:
            self._staged[engine] = _Staged(engine)
        past = [slab.past[self._kept[name]] for name in (stage.key, stage.value)]
        return _Bound(self._engines, engine, self._staged[engine], past)

    def _of(self, stage: AttentionStage, capacity: int) -> BatchInPlace:
        """The engine, folded if a bundle has that form and it gives the bits of the other one here."""
        key = stage.engine, capacity
        if key not in self._engine:
            found = batch_in_place(self._steps, stage, capacity)
            form = folded(found)
            if form is not None and self._engines.holds(form) and self._agree(found, form):
                found = form
            self._engine[key] = found
        return self._engine[key]

    def _agree(self, found: BatchInPlace, form: BatchInPlace) -> bool:
        """Whether both forms give the same bits; tried once for every geometry, at the first capacity that is asked."""
        known = self._engines.agreements
        if found.geometry not in known:
            known[found.geometry] = _same_bits(self._engines, found, form)
        return known[found.geometry]


class _Staged:
    """What calls of an engine read and write beside the slots: one at a time.

    Attributes:
        rows, place, out: Its ports.
        heads, made: ``rows`` and ``out`` in the same memory by slots, rows, heads and width.
        fold: Rows of a slot that are real queries.
        spare: Keys and values of a slot that no row belongs to.
    """

    def __init__(self, engine: BatchInPlace) -> None:
        *rows, place = (np.zeros(port.shape, port.dtype) for port in engine.inputs[:4])
        self.rows, self.place = rows, place
        self.out = np.zeros(engine.outputs[0].shape, engine.outputs[0].dtype)
        width = engine.geometry.head_dim
        *self.heads, self.made = (array.reshape(*array.shape[:2], -1, width) for array in (*rows, self.out))
        self.fold = engine.fold
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

    def run(self, slots: Numbers, new: Sequence[Array], places: Array) -> Array:
        """Attends for rows that :meth:`take` has the slots of: queries, keys and values ``[rows, ., heads, width]``.

        Gives what comes out, like the queries, in arrays that the next call writes.
        """
        staged = self.staged
        for array, given in zip(staged.heads, new, strict=True):
            array[slots, : given.shape[1]] = given
        staged.place[:] = 0
        staged.place[slots] = places
        self._call.run()
        made: Array = staged.made[slots, : staged.fold]
        return made


def _by_rows(array: Array, engine: BatchInPlace, new: bool) -> Array:
    """``[1, heads, rows, width]`` as ``[rows, fold, heads / fold, width]`` in the same memory; ``new`` keys: 1 row."""
    rows: Array = array[0].swapaxes(0, 1)
    fold = 1 if new else engine.fold
    return rows.reshape(len(rows), -1, fold, rows.shape[-1]).swapaxes(1, 2)


def _same_bits(engines: StepEngines, one: BatchInPlace, other: BatchInPlace) -> bool:
    """Whether two forms of an attention give the same bits behind :data:`TRIED` numbers of keys."""
    return all(np.array_equal(first, second) for first, second in _tried(engines, one, other))


def _tried(engines: StepEngines, *forms: BatchInPlace) -> Iterator[list[Array]]:
    """What each form makes of random rows, a row a slot, each behind another number of keys; ``[slots, width]``."""
    random, geometry = np.random.default_rng(0), forms[0].geometry
    shape = SLOTS, geometry.kv_num_heads, forms[0].keys, geometry.head_dim
    past = [random.standard_normal(shape, np.float32) for _ in range(2)]
    calls = [_Bound(engines, form, _Staged(form), [array.copy() for array in past]) for form in forms]
    slots = np.arange(SLOTS)
    for call in calls:
        call.take(slots)
    last = forms[0].keys - max(form.rows for form in forms) - SLOTS
    # From the last keys on: behind a row that is nobody's the forms have written different rows.
    for first in reversed(range(max(0, last - TRIED), last, SLOTS)):
        heads = (geometry.q_num_heads, geometry.kv_num_heads, geometry.kv_num_heads)
        new = [random.standard_normal((1, count, SLOTS, geometry.head_dim), np.float32) for count in heads]
        outs = [
            call.run(slots, [_by_rows(array, form, at > 0) for at, array in enumerate(new)], first + slots)
            for call, form in zip(calls, forms, strict=True)
        ]
        yield [out.swapaxes(1, 2).reshape(SLOTS, -1) for out in outs]
