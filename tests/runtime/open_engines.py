"""How many engines with weights are open at a time."""

from __future__ import annotations

import pytest

from twoheads.runtime.execution.engine_pool import EnginePool


def watch_open_engines(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """One number: the most engines with weights that a pool had open when another one was asked for."""
    seen, opened = [0], EnginePool.tokenwise

    def tokenwise(self, stage):
        handle = opened(self, stage)
        seen[0] = max(seen[0], sum(bool(weights) for _, _, weights in self.opened))
        return handle

    monkeypatch.setattr(EnginePool, "tokenwise", tokenwise)
    return seen
