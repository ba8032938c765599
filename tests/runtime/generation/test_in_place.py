"""Steps that write keys where they are kept, mixed with all other ways to compute tokens."""

from __future__ import annotations

from dataclasses import replace
from functools import cache

import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.runtime.generation.decoders import BLOCK, MODELS, bundle, bundle_folder, llama, original_logits, tokens
from tests.tiers import with_long
from twoheads.graphs.program.program import AttentionEngine
from twoheads.graphs.variants.steps import CAPACITIES, folded_rows
from twoheads.runtime import LoadedBundle, load

WAYS = st.lists(
    st.tuples(st.sampled_from(["step", "steps", "append", "back", "fork"]), st.integers(1, BLOCK + 3)),
    min_size=2,
    max_size=8,
)


@pytest.mark.parametrize(
    "name",
    with_long(("llama", "gemma", "qwen"), ("llama", "gemma")),
)
@settings(max_examples=8, deadline=None)
@given(WAYS)
def test_logits_do_not_depend_on_how_tokens_came(name, ways):
    told = iter(tokens(200, 5))
    with bundle(name).open_context() as opened:
        context = opened
        for way, count in ways:
            if way == "back":
                context.rollback(max(0, len(context) - count))
            elif way == "fork":
                context = context.fork()
            elif way == "step":
                for _ in range(count):
                    context.step(next(told))
            else:
                getattr(context, way)([next(told) for _ in range(count)])
        found = context.step(7)
        expected = original_logits(MODELS[name](), context.tokens)[-1]
        np.testing.assert_allclose(found, expected, atol=2e-4, rtol=2e-4)


@pytest.mark.parametrize(("name", "used"), [("llama", True), ("gemma", True), ("t5", False), ("mamba", False)])
def test_they_are_used_where_some_layer_allows_it(name, used):
    assert bool(bundle(name).generation.steps.in_place) == used
    if not used:
        return
    with bundle(name).open_context() as context:
        context.append(tokens(3))
        context.step(4)
        assert context.engines.in_place is not None
        assert {"step_in_place_2", "step_in_place_8_2"} <= context.engines._open.keys()


@pytest.mark.parametrize(("kind", "heads"), [("", 2), ("int8_", 4), ("8_", 4)])
def test_one_row_s_heads_that_share_keys_are_rows_of_one_product(kind, heads):
    """4 query heads and 2 of keys: of other engines each is a head of its own."""
    path = bundle_folder("llama") / "engines" / f"step_in_place_{kind}2.onnx"
    nodes = onnx.load(path, load_external_data=False).graph.node
    found = [node for node in nodes if node.op_type == "GroupQueryAttention"]
    numbers = [{each.name: each.i for each in node.attribute}["num_heads"] for node in found]
    assert numbers == [heads] * 3


@pytest.mark.parametrize(("heads", "key_heads", "rows"), [(9, 3, 3), (4, 4, 1), (4, 1, 2), (3, 1, 1), (1, 1, 1)])
def test_two_heads_are_left_for_two_threads(heads, key_heads, rows):
    engine = bundle("llama").program.engine_of(AttentionEngine, "attention_0")
    assert folded_rows(replace(engine, q_num_heads=heads, kv_num_heads=key_heads)) == rows


@pytest.mark.parametrize("start", [2 * BLOCK - 4, 4 * BLOCK - 3])
def test_rows_that_are_nobody_s_have_room_behind_the_last_token(start):
    """An array is full of whole blocks before its last token is there."""
    sequence = tokens(start + 8, 2)
    with bundle("llama").open_context() as context:
        context.append(sequence[:start])
        found = [context.step(token) for token in sequence[start:]]
        np.testing.assert_allclose(found, original_logits(llama(), sequence)[start:], atol=2e-4, rtol=2e-4)
        context.rollback(start + 1)
        with bundle("llama").open_context() as fresh:
            fresh.append(sequence[: start + 1])
            again = context.step(sequence[start + 1])
            assert again.tobytes() == fresh.step(sequence[start + 1]).tobytes()


def test_a_context_steps_on_where_no_array_has_room_for_the_open_block():
    widest = CAPACITIES[-1] * BLOCK
    sequence = tokens(widest + 3, 8)
    with bundle("llama").open_context() as context:
        context.append(sequence[: widest - 2])
        found = [context.step(token) for token in sequence[widest - 2 :]]
        context.rollback(widest - 1)
        again = context.step(sequence[widest - 1])
    expected = original_logits(MODELS["llama"](), sequence)
    np.testing.assert_allclose(found, expected[widest - 2 :], atol=2e-4, rtol=2e-4)
    np.testing.assert_allclose(again, expected[widest - 1], atol=2e-4, rtol=2e-4)


@cache
def _wide() -> LoadedBundle:
    """Blocks of more tokens than the rows of any step in place."""
    return load(bundle_folder("llama", 128), threads=1)


@pytest.mark.parametrize("parts", [[1] * 5, [8, 40, 3], [64, 25, 1], [100, 28, 1], [70, 70, 7], [127, 129, 20]])
def test_8_and_64_rows_give_the_same_bits(parts):
    sequence = tokens(290, 3)
    with _wide().open_context() as whole, _wide().open_context() as split:
        at = 0
        for count in parts:
            split.append(sequence[at : at + count])
            at += count
        found, expected = split.append(sequence[at:]), whole.append(sequence)
        assert found.tobytes() == expected.tobytes()
        assert {"step_in_place_8_4", "step_in_place_64_4"} & whole.engines._open.keys()
        assert whole.steps(tokens(5, 9)).tobytes() == split.steps(tokens(5, 9)).tobytes()
    np.testing.assert_allclose(found, original_logits(llama(), sequence)[-1], atol=2e-4, rtol=2e-4)


def test_where_steps_compute_whole_blocks_no_rows_are_written_in_place():
    limited = load(bundle_folder("llama"), threads=1, memory_limit=1 << 30)
    sequence = tokens(2 * BLOCK + 9, 4)
    with limited.open_context() as whole, limited.open_context() as split:
        expected = whole.append(sequence)
        found = [split.append(sequence[at : at + 7]) for at in range(0, len(sequence), 7)][-1]
        assert found.tobytes() == expected.tobytes()
        assert "step_in_place_8_2" not in whole.engines._open
