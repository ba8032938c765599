"""What the comparison of two states of the code calls a difference."""

from __future__ import annotations

from dataclasses import replace

import pytest

from tools.before_after import Outcome, _differences, _how_alike

PROGRAM = (
    "stage a: %region_0.add_7: float32[1, n], %b: int64[n] = @engine(%ids)\n"
    "stage c: %hidden = @other(%region_0.add_7, %b)\n"
)
RESULTS, CALLS = {"hidden at 1": "bits", "last at 1": "more"}, {"hidden at 1": 2, "last at 1": 3}
BEFORE = Outcome(PROGRAM, "weights", RESULTS, CALLS, 1.0)


def test_equal_sides_differ_in_nothing() -> None:
    assert _differences(BEFORE, replace(BEFORE, seconds=9.0)) == []


def test_names_of_values_do_not_count_but_which_value_is_read_does() -> None:
    assert _differences(BEFORE, replace(BEFORE, program=PROGRAM.replace("add_7", "add_5"))) == []
    swapped = PROGRAM.replace("(%region_0.add_7, %b)", "(%b, %region_0.add_7)")
    assert _differences(BEFORE, replace(BEFORE, program=swapped)) == ["program"]


REGIONS = (
    "engine @tokenwise_1: (input_0: float32[1, 16, 8], input_1: int64[16]) -> (output_0: float32[1, 16, 8])\n"
    "stage region_1: %region_1.add: float32[1, n, 8] = @tokenwise_1(%region_0.add, %ids)\n"
    "stage region_2: %region_2.add: float32[1, n, 8] = @tokenwise_1(%region_1.add, %ids)\n"
)


def test_the_order_in_which_an_engine_takes_operands_does_not_count_where_all_stages_have_it() -> None:
    before = replace(BEFORE, program=REGIONS)
    ports = "input_0: float32[1, 16, 8], input_1: int64[16]", "input_0: int64[16], input_1: float32[1, 16, 8]"
    engine = REGIONS.replace(*ports)
    both = engine.replace("(%region_0.add, %ids)", "(%ids, %region_0.add)").replace(
        "(%region_1.add, %ids)", "(%ids, %region_1.add)"
    )
    assert _differences(before, replace(before, program=both)) == []
    assert _how_alike(REGIONS, both) == "program but for the order of operands"
    assert _how_alike(REGIONS, REGIONS.replace("add", "mul")) == "program but for names of values"
    for one in (engine, both.replace("(%ids, %region_1.add)", "(%region_1.add, %ids)"), both.replace("int64", "int32")):
        assert _differences(before, replace(before, program=one)) == ["program"]


@pytest.mark.parametrize(
    ("changed", "told"),
    [
        ({"program": PROGRAM.replace("@other", "@third")}, "program"),
        ({"program": PROGRAM.replace("%ids", "%numbers")}, "program"),
        ({"weights": "others"}, "weights"),
        ({"results": {"hidden at 1": "bits", "last at 1": "less"}}, "bits of last at 1"),
        ({"results": {"hidden at 1": "bits"}}, "bits of last at 1"),
        ({"calls": {"hidden at 1": 1, "last at 1": 3}}, "calls of hidden at 1"),
    ],
)
def test_everything_else_counts(changed: dict[str, object], told: str) -> None:
    assert _differences(BEFORE, replace(BEFORE, **changed)) == [told]  # type: ignore[arg-type]
