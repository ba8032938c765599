"""The measured reach of the synthetic token's score, as the documentation states it."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest

from tools.synthetic_token import MARKS, main, measure
from twoheads.runtime.stages.stock.attention import TRUSTED


def test_float32_reaches_75_where_the_paper_s_column_ends_at_20() -> None:
    """As far as the runtime trusts a share; beyond, kernels of some processors flush what is left of the keys to 0."""
    assert math.exp(-75) > TRUSTED["float32"] > math.exp(-77)
    found = {errors.away: errors for errors in measure("float32", (-80, -20, 0, 75))}
    assert all(errors.lse < 2e-5 and errors.out < 2e-5 for errors in found.values())
    assert np.isnan(found[-20].paper)
    assert found[0].paper < 2e-6


def test_float16_reaches_10() -> None:
    assert all(errors.lse < 5e-3 and errors.out < 5e-3 for errors in measure("float16", (-10, 0, 10)))


def test_only_the_table_is_rewritten(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tools.synthetic_token.SCORES", {"float32": (0,)})
    path = tmp_path / "stock.md"
    path.write_text(f"before\n{MARKS[0]}\nold\n{MARKS[1]}\nafter\n", encoding="utf-8")
    main(["--document", str(path)])
    text = path.read_text(encoding="utf-8")
    assert text.startswith("before\n")
    assert text.endswith("\nafter\n")
    assert "| float32 | 0 | " in text
    assert "old" not in text
