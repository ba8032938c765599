"""The page of the bench of generating says what was measured, what failed, and what is not equal."""

from __future__ import annotations

import json
from typing import Any

import pytest

from tests.runtime.generation.decoders import BLOCK, bundle_folder, llama, tokens
from tools import generation_bench
from tools.machine import machine


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(generation_bench, "_prompt", lambda length: tokens(min(length, 3 * BLOCK)))


@pytest.mark.usefixtures("small")
def test_the_page_has_every_figure() -> None:
    source: Any = llama()
    first, later = generation_bench.CONTENDERS["twoheads"](str(bundle_folder("llama")), 1, tokens(9), 5)
    assert first > 0
    assert len(later) == 4
    found: dict[str, Any] = {
        "machine": machine(()),
        "turns": [
            {"contender": "a", "model": "m", "prompt_tokens": 2048, "failed": "No module named a"},
            {
                "contender": "b",
                "model": "m",
                "prompt_tokens": 16,
                "first_token_seconds": 0.5,
                "tokens_per_second": 12.34,
                "peak_bytes": 2_000_000,
            },
        ],
        "extra": [generation_bench._extra(str(bundle_folder("llama")), 1)],
        "proofs": generation_bench._proofs(source, str(bundle_folder("llama")), [3], 4, "int8"),
    }
    found["memory"] = [{"contender": "a run", "model": "m", "peak_bytes": 3_000_000}]
    assert generation_bench.HELD["and tokens generated"](str(bundle_folder("llama")), 1, tokens(9), 5) == (0.0, [])
    shown = generation_bench.page(found)
    assert "| a run | m | 3 |" in shown
    assert "| a | m | 2,048 | No module named a |  |  |" in shown
    assert "| b | m | 16 | 0.50 | 12.3 | 2 |" in shown
    assert "the same bits" in shown
    assert "4 of 4 compared" in shown
    assert f"| {bundle_folder('llama').name} | int8 | 3 | 4 |" in shown
    found["extra"][0]["prefix"]["same_bits"] = False
    found["proofs"][0]["passed"] = False
    shown = generation_bench.page(found)
    assert "OTHER BITS" in shown
    assert "| NO |" in shown


def test_the_committed_page_is_of_the_committed_figures() -> None:
    results = generation_bench.RESULTS
    assert results.with_suffix(".md").read_text() == generation_bench.page(json.loads(results.read_text()))


def test_of_two_rounds_each_better_figure_counts():
    def row(prompt: int, **figures: Any) -> dict[str, Any]:
        return {"contender": "ours", "model": "m", "prompt_tokens": prompt, **figures}

    def figures(first: float, rate: float | None, peak: int) -> dict[str, Any]:
        return {"first_token_seconds": first, "tokens_per_second": rate, "peak_bytes": peak}

    rows = [row(1, **figures(2.0, 5.0, 7)), row(2, failed="so"), row(3, **figures(1.0, None, 1))]
    again = [row(1, **figures(1.0, 4.0, 8)), row(2, **figures(1.0, 1.0, 1)), row(3, failed="so")]
    better = [row(1, **figures(1.0, 5.0, 7)), again[1], rows[2]]
    assert generation_bench._better(rows, again) == better
    assert generation_bench._better(again, rows) == better
    with pytest.raises(ValueError, match="same contenders"):
        generation_bench._better(rows, rows[:2])
