"""What the runtime's tests share."""

from __future__ import annotations

import numpy as np
import pytest

from twoheads.runtime.memory.stores import ValueStore


@pytest.fixture
def poisoned_stores(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fills new stores with what must never be read."""
    original = ValueStore.__init__

    def init(store, value, **sizes):
        original(store, value, **sizes)
        store.array[...] = np.nan if store.array.dtype.kind == "f" else -(10**9)

    monkeypatch.setattr(ValueStore, "__init__", init)
