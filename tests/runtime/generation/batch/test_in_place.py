"""Calls of an attention that writes in place: whose arrays are bound to them."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from twoheads.graphs.variants.batch_steps import SLOTS
from twoheads.runtime.generation.batch.in_place import _Bound


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
