"""Steps that write keys where they are kept, mixed with all other ways to compute tokens."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.runtime.generation.decoders import BLOCK, MODELS, bundle, original_logits, tokens
from twoheads.graphs.variants.steps import CAPACITIES

WAYS = st.lists(
    st.tuples(st.sampled_from(["step", "steps", "append", "back", "fork"]), st.integers(1, BLOCK + 3)),
    min_size=2,
    max_size=8,
)


@pytest.mark.parametrize("name", ["llama", "gemma", "qwen"])
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
        assert any(opened.startswith("step_in_place_") for opened in context.engines._open)


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
