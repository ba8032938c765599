"""Windowed layers in one call a block, against the whole model in NumPy."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.runtime.fused_bundles import assert_as_tiles, assert_needs_its_engine
from tests.runtime.runs.test_session import assert_close
from tests.runtime.tiny_bundle import write_tiny
from tests.runtime.tiny_model import Tiny, random_tokens, reference
from tests.tiers import cases
from twoheads.runtime import LoadedBundle, load

pytestmark = pytest.mark.usefixtures("poisoned_stores")

MODELS = {
    "causal windows": Tiny(masks=("causal & window(20, 0)",)),
    "narrow": Tiny(masks=("causal & window(0, 0)", "causal & window(3, 0)"), softcap=4.0),
    "both sides": Tiny(masks=("window(7, 9)", "window(30, 3)"), kv_heads=1),
    "with full attention between": Tiny(masks=("causal & window(17, 0)", "causal"), layers=4),
    "features": Tiny(features=True, head=False, masks=("causal & window(40, 0)",)),
}


@pytest.fixture(scope="module")
def bundles(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[Tiny, LoadedBundle]]:
    root = tmp_path_factory.mktemp("windows")
    return {
        name: (tiny, load(write_tiny(root / str(at), tiny, lowering="window"), threads=2))
        for at, (name, tiny) in enumerate(MODELS.items())
    }


def windows_of(tiny: Tiny) -> int:
    return sum("window" in tiny.masks[layer % len(tiny.masks)] for layer in range(tiny.layers))


@pytest.mark.repeated
@settings(max_examples=cases(25, 60), deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(name=st.sampled_from(sorted(MODELS)), length=st.integers(1, 100), seed=st.integers(0, 3))
def test_any_length_equals_the_whole_model(
    bundles: dict[str, tuple[Tiny, LoadedBundle]], name: str, length: int, seed: int
) -> None:
    tiny, bundle = bundles[name]
    tokens = random_tokens(tiny, length, seed)
    result = bundle.run(tokens, output="hidden")
    assert_close(result.array, reference(tiny, tokens)["hidden"])
    report = result.report
    assert report.engine_calls - report.repeated_calls == report.formula_calls
    assert sum(stage.kind == "window" for stage in report.stages) == windows_of(tiny)
    assert report.rounds == 2 * tiny.layers + 1 - windows_of(tiny)


@pytest.mark.parametrize("length", [15, 16, 17, 31, 32, 33, 47, 48, 49])
def test_borders_of_blocks(bundles: dict[str, tuple[Tiny, LoadedBundle]], length: int) -> None:
    for tiny, bundle in bundles.values():
        tokens = random_tokens(tiny, length)
        result = bundle.run(tokens, output="hidden")
        assert_close(result.array, reference(tiny, tokens)["hidden"])
        if windows_of(tiny) == tiny.layers:
            assert result.report.engine_calls == (tiny.layers + 1) * -(-length // 16)


def test_a_long_input_is_that_of_the_tile_bundle_in_fewer_calls(tmp_path: Path) -> None:
    """Every block but the first ones under a window that fills its tiles, and one whose rows are added up."""
    tiny = Tiny(masks=("causal & window(40, 0)",), layers=2, head=False)
    tokens = random_tokens(tiny, 2048)
    found, want = assert_as_tiles(tmp_path, tiny, "window", tokens, "hidden")
    assert found.engine_calls == 3 * 128
    assert want.engine_calls - want.repeated_calls > 9 * 128


def test_lists_and_limits_keep_to_the_tiles(bundles: dict[str, tuple[Tiny, LoadedBundle]]) -> None:
    tiny, bundle = bundles["causal windows"]
    inputs = [random_tokens(tiny, length) for length in (40, 9, 23)]
    results = bundle.run(inputs, output="hidden")
    for tokens, result in zip(inputs, results, strict=True):
        assert_close(result.array, reference(tiny, tokens)["hidden"])
        assert not any(stage.kind == "window" for stage in result.report.stages)
    limited = load(bundle.path, memory_limit=10**9).run(inputs[0], output="hidden")
    assert not any(stage.kind == "window" for stage in limited.report.stages)


def test_a_bundle_without_its_window_engines_is_refused(tmp_path: Path) -> None:
    assert_needs_its_engine(tmp_path, MODELS["causal windows"], "window", "window_0", "no windowed layer")
