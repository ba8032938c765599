"""The page of hybrids tells what was measured, and the models are shapes that the library takes."""

from __future__ import annotations

from typing import Any

import pytest
from transformers import CONFIG_MAPPING

from tools.hybrids.models import MODELS
from tools.hybrids.page import render

MACHINE = {
    "date": "2026-01-01",
    "cores": 2,
    "processor": "a processor",
    "memory_bytes": 1 << 34,
    "system": "Linux",
    "python": "3.11",
    "packages": {},
}


def _figures(*rows: dict[str, Any]) -> dict[str, Any]:
    return {"rows": list(rows), "machine": MACHINE}


def test_the_page_has_every_figure() -> None:
    agreed = {"tokens": 5000, "ours": 2e-6, "library": 4e-6, "calls": 21, "formula": 21}
    drifted = {"from": 0, "to": 10_000, "ours": 3e-6, "library": 2e-6}
    ours = {"contender": "ours", "length": 32768, "seconds": 16.4, "peak_bytes": 10**9}
    torch = {"contender": "torch", "length": 32768, "seconds": 82.0, "peak_bytes": 7 * 10**9}
    page = render(
        {
            "mamba2": {"agree": _figures(agreed), "time": _figures(ours, torch)},
            "granite": {
                "drift": _figures(drifted),
                "time": _figures(ours, {"contender": "torch", "length": 32768, "reason": "its process died"}),
            },
        }
    )
    assert "| 5,000 | 2.0e-06 | 4.0e-06 | 0.50 | 21 of 21 |" in page
    assert "| 0 to 10,000 | 3.0e-06 | 2.0e-06 | 1.50 |" in page
    assert "| 32,768 | 16.4 | 0.50 | 1,000 | 82.0 | 2.50 | 7,000 | 5.0 |" in page
    assert "its process died" in page


@pytest.mark.parametrize("name", MODELS)
def test_the_library_takes_the_shapes(name: str) -> None:
    shape = MODELS[name]
    config = CONFIG_MAPPING[shape.kind](**shape.entries())
    entries = config.to_dict()
    assert {key: entries[key] for key in ("hidden_size", "vocab_size")} == {
        key: shape.entries()[key] for key in ("hidden_size", "vocab_size")
    }
