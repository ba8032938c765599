"""All layers in one call a block, against the whole model in NumPy."""

from __future__ import annotations

from pathlib import Path

import numpy as np
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
    "one window": Tiny(masks=("causal & window(20, 0)",)),
    "below, at and above a block": Tiny(
        masks=tuple(f"causal & window({left}, 0)" for left in (0, 3, 16, 40)), layers=4
    ),
    "sink tokens": Tiny(masks=("causal & (window(20, 0) | sinks(3))", "causal & window(5, 0)"), softcap=4.0),
    "wide tiles and features": Tiny(
        features=True, head=False, masks=("causal & window(48, 0)",), key_tile=32, kv_heads=1
    ),
}


@pytest.fixture(scope="module")
def bundles(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[Tiny, LoadedBundle]]:
    root = tmp_path_factory.mktemp("models")
    return {
        name: (tiny, load(write_tiny(root / str(at), tiny, lowering="model"), threads=2))
        for at, (name, tiny) in enumerate(MODELS.items())
    }


@pytest.mark.repeated
@settings(max_examples=cases(25, 60), deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(name=st.sampled_from(sorted(MODELS)), length=st.integers(1, 130), seed=st.integers(0, 3))
def test_any_length_equals_the_whole_model_in_a_call_a_block(
    bundles: dict[str, tuple[Tiny, LoadedBundle]], name: str, length: int, seed: int
) -> None:
    tiny, bundle = bundles[name]
    tokens = random_tokens(tiny, length, seed)
    result = bundle.run(tokens, output="hidden")
    assert_close(result.array, reference(tiny, tokens)["hidden"])
    report, blocks = result.report, -(-length // 16)
    assert report.engine_calls == report.formula_calls == report.rounds == blocks
    assert report.store_bytes == bundle.schedule(length, "hidden").memory.values


@pytest.mark.parametrize("length", [1, 15, 16, 17, 32, 33, 48, 49, 64, 65])
def test_borders_of_blocks(bundles: dict[str, tuple[Tiny, LoadedBundle]], length: int) -> None:
    for tiny, bundle in bundles.values():
        tokens = random_tokens(tiny, length)
        assert_close(bundle.run(tokens, output="hidden").array, reference(tiny, tokens)["hidden"])


def test_a_long_input_is_that_of_the_tile_bundle(tmp_path: Path) -> None:
    tiny = Tiny(masks=MODELS["sink tokens"].masks, layers=4)
    tokens = random_tokens(tiny, 2048)
    found, want = assert_as_tiles(tmp_path, tiny, "model", tokens, "last")
    assert found.engine_calls == found.rounds == 128 + 2  # and the head's two
    assert want.engine_calls > 16 * 128


def test_padding_is_left_out_and_lists_and_limits_keep_to_the_tiles(
    bundles: dict[str, tuple[Tiny, LoadedBundle]],
) -> None:
    tiny, bundle = bundles["one window"]
    inputs = [random_tokens(tiny, length) for length in (40, 9, 23)]
    for tokens, result in zip(inputs, bundle.run(inputs, output="hidden"), strict=True):
        assert_close(result.array, reference(tiny, tokens)["hidden"])
        assert not any(stage.kind == "model" for stage in result.report.stages)
    for tokens, result in zip(inputs, bundle.run(inputs, output="hidden", pack="off"), strict=True):
        assert_close(result.array, reference(tiny, tokens)["hidden"])
        assert [stage.kind for stage in result.report.stages] == ["model"]
    padded = np.concatenate([np.zeros(24, np.int64), inputs[0]])
    mask = np.arange(64) >= 24
    result = bundle.run(padded, output="hidden", attention_mask=mask)
    want = reference(tiny, inputs[0], np.arange(24, 64))["hidden"]
    assert result.array is not None
    assert_close(result.array[24:], want)
    assert result.report.engine_calls == 3
    limited = load(bundle.path, memory_limit=10**9).run(inputs[0], output="hidden")
    assert not any(stage.kind == "model" for stage in limited.report.stages)


def test_a_bundle_without_its_engine_is_refused(tmp_path: Path) -> None:
    assert_needs_its_engine(tmp_path, MODELS["one window"], "model", "model_step", "no causal window")


@pytest.mark.parametrize("name", ["one window", "sink tokens"])
def test_memory_does_not_grow_but_for_what_goes_in(bundles: dict[str, tuple[Tiny, LoadedBundle]], name: str) -> None:
    tiny, bundle = bundles[name]
    beside: list[int] = []
    for length in (100, 1_000, 10_000):
        report = bundle.run(random_tokens(tiny, length), output="last").report
        assert report.store_bytes == bundle.schedule(length, "last").memory.values
        inputs = (entry.value.nbytes(-(-length // 16) * 16) for entry in bundle.program.inputs)
        beside.append(report.store_bytes - sum(inputs))
    assert len(set(beside)) == 1


@pytest.mark.parametrize("positions", [[-1], [0], [70, 3, 70], [0, 15, 16, 40, 99]])
def test_rows_of_dropped_hidden_states_are_those_of_all(
    bundles: dict[str, tuple[Tiny, LoadedBundle]], positions: list[int]
) -> None:
    tiny, bundle = bundles["sink tokens"]
    tokens = random_tokens(tiny, 100)
    every = bundle.run(tokens, output="logits").array
    assert every is not None
    result = bundle.run(tokens, output="logits", positions=positions)
    assert result.array is not None
    assert np.array_equal(result.array, every[positions])
    assert result.report.store_bytes <= bundle.schedule(100, "logits", positions=len(positions)).memory.values


def test_hidden_states_that_were_handed_over_stay_what_they_are(
    bundles: dict[str, tuple[Tiny, LoadedBundle]],
) -> None:
    tiny, bundle = bundles["one window"]
    first = bundle.run(random_tokens(tiny, 64), output="hidden").array
    assert first is not None
    kept = first.copy()
    for seed in (1, 2):
        bundle.run(random_tokens(tiny, 64, seed), output="hidden")
    assert np.array_equal(first, kept)
