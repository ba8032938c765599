"""Counts of long inputs, computed from shorter ones, beside the same counts made row by row."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from tests.graphs.sample_programs import decoder
from twoheads.graphs.costs import attention_costs, call_formulas
from twoheads.graphs.costs.call_formulas import attention_formula, count_visible_pairs
from twoheads.graphs.costs.long_inputs import extrapolated
from twoheads.graphs.errors import InputError, InternalError
from twoheads.graphs.masks.expressions import Causal, parse_mask
from twoheads.graphs.program.program import AttentionStage
from twoheads.graphs.schedule.schedule import make_schedule

MASKS = (
    "full",
    "causal",
    "causal & window(20, 0)",
    "window(7, 9)",
    "causal & (window(17, 0) | sinks(3))",
    "window(20, 4) | sinks(40)",
    "chunk(10)",
    "causal & chunk(24)",
    "causal & chunk(48) & window(9, 0)",
    "causal & chunk(24) | sinks(5)",
)


@pytest.fixture
def clear_caches() -> Callable[[], None]:
    def clear() -> None:
        for function in (attention_formula, attention_costs._tally, count_visible_pairs):
            function.cache_clear()

    clear()
    return clear


@pytest.mark.parametrize("text", MASKS)
def test_equal_to_what_is_counted(text: str, monkeypatch: pytest.MonkeyPatch, clear_caches: Callable[[], None]) -> None:
    mask = parse_mask(text)
    rng = np.random.default_rng(len(text))
    for length in map(int, rng.integers(9000, 12000, 3)):
        for key_tile in (16, 48):
            sizes = {"block_size": 16, "key_tile": key_tile, "length": length}
            want = (attention_costs._tally(mask, **sizes), attention_formula(mask, **sizes).calls)
            pairs = count_visible_pairs(mask, length)
            with monkeypatch.context() as few:
                few.setattr(attention_costs, "COUNTED_BLOCKS", 300)
                few.setattr(call_formulas, "COUNTED_BLOCKS", 300)
                few.setattr(call_formulas, "COUNTED_QUERIES", 4800)
                clear_caches()
                assert (attention_costs._tally(mask, **sizes), attention_formula(mask, **sizes).calls) == want
                assert count_visible_pairs(mask, length) == pairs
            clear_caches()


@pytest.mark.parametrize("length", [10**9, 10**12 + 1, 10**17])
def test_a_plan_of_any_length_agrees_with_its_formula(length: int) -> None:
    schedule = make_schedule(decoder(), length)
    assert schedule.engine_calls == schedule.formula_calls > length // 1000
    assert schedule.memory.values > length


def test_rows_are_not_listed_without_end() -> None:
    schedule = make_schedule(decoder(), 10**12)
    stage = next(stage for stage in schedule.program.body if isinstance(stage, AttentionStage))
    with pytest.raises(InputError, match="no list any more"):
        next(schedule.rows(stage))


def test_a_mask_whose_period_is_too_long_is_refused() -> None:
    with pytest.raises(InputError, match="no period short enough"):
        count_visible_pairs(parse_mask("chunk(1048573) & chunk(1048571)"), 10**15)


def test_what_is_no_polynomial_is_a_bug() -> None:
    with pytest.raises(InternalError, match="no polynomial"):
        extrapolated(lambda n: (2**n,), Causal(), 100, most=20)
