"""Random small models of every feature, compiled once and run at any length, against torch."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.end_to_end.agreement import assert_agrees, bundle_of
from tests.end_to_end.random_models import Features, RandomTransformer
from tests.tiers import cases, with_long
from twoheads.compiler.frontend.torch.load_source import LoadedSource, load_source
from twoheads.graphs.errors import InputError
from twoheads.runtime import LoadedBundle

MODELS = {
    "causal": (Features(), 16, 16),
    "bidirectional, wide tiles": (Features(masks=("full",)), 16, 48),
    "window and full, grouped": (Features(masks=("causal & window(9, 0)", "causal"), q_heads=6, kv_heads=2), 16, 32),
    "symmetric window, one key head": (Features(masks=("window(7, 7)",), kv_heads=1), 24, 24),
    "window with sink tokens": (Features(masks=("causal & (window(10, 0) | sinks(3))",)), 16, 16),
    "chunks": (Features(masks=("causal & chunk(20)", "full")), 16, 16),
    "odd head sizes, softcap": (Features(head_dim=7, v_head_dim=5, softcap=2.0), 16, 16),
    "learned sinks": (Features(sinks=True, q_heads=6, kv_heads=3, masks=("causal & window(5, 0)",)), 16, 32),
    "ALiBi": (Features(bias="alibi", positions="none"), 16, 16),
    "bucketed bias": (Features(bias="buckets", positions="none", masks=("full",)), 16, 16),
    "learned positions, torch's kernel": (Features(positions="learned", kernel="sdpa"), 16, 16),
    "sliced table, computed mask": (Features(positions="sliced", kernel="sdpa", masks=("bool window",)), 16, 16),
    "computed additive mask, grouped": (Features(kernel="sdpa", masks=("additive window", "full"), kv_heads=2), 16, 16),
}


LIKE_OTHERS = {
    "symmetric window, one key head",
    "window with sink tokens",
    "learned positions, torch's kernel",
    "computed additive mask, grouped",
}
"""What they have, others have one by one."""


@pytest.fixture(scope="module", params=with_long(MODELS, [name for name in MODELS if name not in LIKE_OTHERS]))
def compiled(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> tuple[LoadedBundle, LoadedSource]:
    features, block_size, key_tile = MODELS[request.param]
    model = RandomTransformer(features)
    examples = (torch.zeros((1, 11), dtype=torch.int64),)
    folder: Path = tmp_path_factory.mktemp("random")
    bundle = bundle_of(model, folder, example_inputs=examples, block_size=block_size, key_tile=key_tile)
    return bundle, load_source(model, example_inputs=examples)


@pytest.mark.repeated
@settings(max_examples=cases(8, 12), deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(length=st.integers(1, 150), seed=st.integers(0, 1000))
def test_any_length_agrees_with_torch(compiled: tuple[LoadedBundle, LoadedSource], length: int, seed: int) -> None:
    assert_agrees(*compiled, length, seed)


@pytest.mark.parametrize("at", [-1, 0, 1])
def test_block_borders_agree_with_torch(compiled: tuple[LoadedBundle, LoadedSource], at: int) -> None:
    bundle, source = compiled
    for blocks in (1, 2, 3):
        assert_agrees(bundle, source, blocks * bundle.program.block_size + at)


@pytest.mark.parametrize("positions", ["learned", "sliced"])
def test_the_models_table_ends_not_the_engines(positions: str, tmp_path: Path) -> None:
    model = RandomTransformer(Features(positions=positions, kernel="sdpa", layers=1))
    examples = (torch.zeros((1, 11), dtype=torch.int64),)
    bundle = bundle_of(model, tmp_path, example_inputs=examples, block_size=64)
    assert bundle.program.max_length is not None
    assert bundle.program.max_length.length == 150
    bundle.run([1] * 150)
    with pytest.raises(InputError, match="150"):
        bundle.run([1] * 151)
