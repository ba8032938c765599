"""Rows whose tiles are added up: the same numbers as merged ones, and merged where adding is not safe."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from tests.runtime.tiny_bundle import write_tiny
from tests.runtime.tiny_model import Tiny, random_tokens, reference
from twoheads.graphs.costs import variant_counts
from twoheads.graphs.costs.variant_counts import anchor_tile
from twoheads.graphs.masks.tiles import Segment
from twoheads.runtime import LoadedBundle, load
from twoheads.runtime.stages.attention import anchored_row
from twoheads.runtime.stages.attention.anchored_row import AnchoredRow

MODELS = {
    "causal": Tiny(sharpness=1.5),
    "window": Tiny(sharpness=1.5, masks=("causal & window(70, 0)", "window(40, 40)", "full")),
    "wide tiles": Tiny(sharpness=1.5, key_tile=48, kv_heads=1),
    "sinks": Tiny(sharpness=1.5, sinks=True, masks=("causal & (window(30, 0) | sinks(50))",)),
    "biased": Tiny(sharpness=1.5, table_reach=30),
}
LENGTH = 300


@pytest.fixture(scope="module", params=list(MODELS))
def model(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Tiny, LoadedBundle]:
    tiny = MODELS[request.param]
    return tiny, load(write_tiny(tmp_path_factory.mktemp("bundle") / "tiny", tiny), threads=2)


def test_long_rows_are_added_up(model: tuple[Tiny, LoadedBundle], monkeypatch: pytest.MonkeyPatch) -> None:
    tiny, bundle = model
    tokens = random_tokens(tiny, LENGTH)
    finished = 0
    finish = AnchoredRow.finish

    def counted(row: AnchoredRow, out: anchored_row.Array) -> bool:
        nonlocal finished
        finished += 1
        return finish(row, out)

    monkeypatch.setattr(AnchoredRow, "finish", counted)
    added = bundle.run(tokens, output="hidden")
    assert finished > 0
    assert added.report.repeated_calls == 0
    assert added.report.engine_calls == added.report.formula_calls
    np.testing.assert_allclose(np.asarray(added.array), reference(tiny, tokens)["hidden"], rtol=0, atol=3e-5)


def test_rows_that_leave_the_safe_range_are_merged_instead_and_counted(
    model: tuple[Tiny, LoadedBundle], monkeypatch: pytest.MonkeyPatch
) -> None:
    tiny, bundle = model
    tokens = random_tokens(tiny, LENGTH)
    for least in ("LEAST_ADDED_TILES", "LEAST_ADDED_TILES_NEAREST"):
        monkeypatch.setattr(variant_counts, least, LENGTH)
    merged = bundle.run(tokens, output="hidden")
    monkeypatch.undo()
    monkeypatch.setattr(anchored_row, "MOST_WEIGHT", 1e-9)  # a weight is 1 at the least
    repeated = bundle.run(tokens, output="hidden")
    np.testing.assert_array_equal(repeated.array, merged.array)
    assert merged.report.repeated_calls == 0
    assert repeated.report.repeated_calls > 0
    assert repeated.report.engine_calls - repeated.report.repeated_calls == repeated.report.formula_calls


def test_scores_that_overflow_are_merged_instead(tmp_path: Path) -> None:
    """Queries and keys 30 times as large: scores differ by hundreds."""
    tiny = Tiny(layers=1, sharpness=30.0)
    result = load(write_tiny(tmp_path / "tiny", tiny)).run(random_tokens(tiny, LENGTH), output="hidden")
    assert result.report.repeated_calls > 0
    np.testing.assert_allclose(
        np.asarray(result.array), reference(tiny, random_tokens(tiny, LENGTH))["hidden"], rtol=0, atol=1e-3
    )


def test_the_anchor_is_the_first_tile_that_all_queries_see() -> None:
    assert anchor_tile((Segment(0, 5, True), Segment(5, 6, False))) == 0
    assert anchor_tile((Segment(0, 1, False), Segment(7, 11, True), Segment(11, 12, False))) == 7
    assert anchor_tile((Segment(0, 1, False), Segment(7, 11, True), Segment(11, 12, False)), nearest=True) == 10
    assert anchor_tile((Segment(0, 5, False),)) is None
    assert anchor_tile((Segment(0, 1, True), Segment(1, 2, False))) == 0
    assert anchor_tile((Segment(0, 1, True),)) is None, "too short"
