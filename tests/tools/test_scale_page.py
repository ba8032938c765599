"""The page on long inputs says what was measured."""

from __future__ import annotations

from typing import Any

from tools.scale.page import render


def row(seconds: float, calls: int) -> dict[str, Any]:
    return {
        "machine": "2 cores of X",
        "day": "2026-01-01",
        "block_size": 512,
        "limit": "1GB",
        "seconds": seconds,
        "cpu_seconds": 2 * seconds,
        "peak_bytes": 300e6,
        "spilled_bytes": 2e9,
        "output_bytes": 1e9,
        "engine_calls": calls + 32,
        "formula_calls": calls + 32,
        "repeated_calls": 0,
        "attention_calls": calls,
    }


def test_lengths_with_their_ratios_and_the_formula() -> None:
    page = render({"full": {"8192": row(10, 136), "16384": row(39, 528)}})
    assert "| 8,192 | 10.0 |  | 20.0 |  | 300 | 1GB | 2,000 | 1,000 | 168 | 168 | 0 | 136 | 136 |" in page
    assert "| 16,384 | 39.0 | 3.90 of 2 | 78.0 | 3.90 |" in page
    assert page.count("2 cores of X") == 1
    assert "window" not in page


def test_other_bits_are_not_hidden() -> None:
    kills = {"name": "a run", "length": 12_000, "moments": 6, "operations": 6, "finished": 5, "identical": 4}
    moment = {"name": "in a checkpoint", "code": 1, "said": ["error: no"], "state": "stopped", "output_there": False}
    page = render({"kills": {"a run": kills}, "disk": {"in a checkpoint": moment | {"identical": False}}})
    assert "| a run | 12,000 | 6 | 6 | 5 | 4 |" in page
    assert "**In a checkpoint**: exit code 1, the job is stopped, no output is there. Resumed: OTHER BITS." in page
    assert "    error: no" in page
