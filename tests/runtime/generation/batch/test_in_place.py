"""Calls of an attention that writes in place: whose arrays are bound to them."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import onnx
import pytest

from tests.runtime.generation.decoders import bundle
from twoheads.export.emit.fused.batch_in_place import batch_in_place_model
from twoheads.graphs.program.program import AttentionEngine
from twoheads.graphs.variants.batch_steps import SLOTS
from twoheads.graphs.variants.in_place.batch_in_place import BatchInPlace, folded
from twoheads.runtime.backends.onnxruntime_cpu import OnnxRuntimeBackend
from twoheads.runtime.backends.protocol import EngineFile
from twoheads.runtime.generation.batch import in_place
from twoheads.runtime.generation.batch.in_place import _Bound
from twoheads.runtime.generation.batch.step_lanes import StepLanes


class _Call:
    """Keeps what is bound; the binding of number ``fails`` is an error, once."""

    def __init__(self) -> None:
        self.bound: dict[int, Any] = {}
        self.fails: int | None = None

    def bind_input(self, number: int, array: Any) -> None:
        if number == self.fails:
            self.fails = None
            raise MemoryError
        self.bound[number] = array

    def bind_output(self, number: int, array: Any) -> None:
        pass


@pytest.mark.parametrize("fails", [8, 9])
def test_a_slot_whose_binding_failed_is_nobodys_until_it_is_bound_again(fails):
    """Else an attention would write into the keys of a request that has no row in it."""
    call, empty = _Call(), np.zeros(0)
    engines: Any = SimpleNamespace(
        backend=SimpleNamespace(tensor=lambda array: array),
        batch_in_place=lambda _: SimpleNamespace(new_call=lambda: call),
    )
    spare, past = np.zeros((2, 1)), [np.ones((SLOTS, 1)), np.ones((SLOTS, 1))]
    staged: Any = SimpleNamespace(rows=[empty] * 3, place=empty, out=empty, spare=list(spare))
    bound = _Bound(engines, None, staged, past)  # type: ignore[arg-type]
    call.fails = fails
    with pytest.raises(MemoryError):
        bound.take(np.array([2]))
    bound.take(np.array([5]))
    real = {number for number, array in call.bound.items() if number >= 4 and array.ndim == 2}
    assert real == {4 + 2 * 5, 5 + 2 * 5}


def _forms(loaded: Any) -> set[int]:
    """How many heads are rows of one, of the attentions that a batch takes."""
    steps = StepLanes(loaded.generation.model.engines, 8).steps
    return {engine.fold for step in steps if step._in_place for engine in step._in_place._engine.values()}


def test_heads_are_folded_where_the_bits_are_those_of_the_other_form(monkeypatch):
    """Llama's heads share keys by two; whether they are folded is a matter of bits, and not of bundles alone."""
    asked, answers = [], [False, True]

    def told(_, *forms):
        asked.append([form.fold for form in forms])
        return answers.pop()

    monkeypatch.setattr(in_place, "_same_bits", told)
    engines = bundle("llama").generation.model.engines
    for folds in ({2}, {1}):
        monkeypatch.setattr(engines, "agreements", {})
        assert _forms(bundle("llama")) == folds
        assert _forms(bundle("llama")) == folds
    assert asked == [[1, 2]] * 2
    monkeypatch.setattr(engines, "agreements", dict.fromkeys(engines.agreements, True))
    assert _forms(bundle("llama")) == {2}
    monkeypatch.setattr(engines, "holds", lambda _: False)
    assert _forms(bundle("llama")) == {1}


def test_forms_are_compared_behind_many_numbers_of_keys(monkeypatch, tmp_path):
    backend = OnnxRuntimeBackend()

    def opened(engine):
        path = tmp_path / f"{engine.name}.onnx"
        onnx.save(batch_in_place_model(engine), path)
        return backend.load_engine(EngineFile(path, engine.inputs, engine.outputs, {}, 1))

    engines: Any = SimpleNamespace(backend=backend, batch_in_place=opened)
    usual = BatchInPlace(AttentionEngine("a", 9, 3, 8, 8, 1, 1, 0.3, 0.0, 1, "float32"), 96)
    form = folded(usual)
    assert form is not None
    made = list(in_place._tried(engines, usual, form))
    for one, other in made:
        np.testing.assert_allclose(one, other, rtol=1e-5, atol=1e-6)
    assert len(np.unique(np.concatenate([one for one, _ in made]), axis=0)) == in_place.TRIED
    assert in_place._same_bits(engines, usual, usual)
    made[-1][1][-1, -1] += 1
    monkeypatch.setattr(in_place, "_tried", lambda *_: iter(made))
    assert not in_place._same_bits(engines, usual, form)
