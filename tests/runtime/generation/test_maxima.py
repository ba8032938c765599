"""Generation by models whose states are scaled by a running maximum: the library's numbers and tokens, saved or not."""

from __future__ import annotations

import numpy as np
import pytest

from tests.runtime.generation.decoders import BLOCK, MODELS, bundle, original_logits, tokens
from twoheads.runtime.generation.generated import Generated

NAMES = ("rwkv", "xlstm")


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("prompt", [1, BLOCK - 1, BLOCK + 1, 3 * BLOCK + 3])
def test_every_step_is_that_of_the_original(name, prompt):
    sequence = tokens(prompt + 2 * BLOCK)
    expected = original_logits(MODELS[name](), sequence)
    with bundle(name).open_context() as context:
        logits = [context.append(sequence[:prompt])]
        logits += [context.step(token) for token in sequence[prompt:]]
    error = np.abs(np.stack(logits) - expected[prompt - 1 :]).max()
    assert error < 2e-5 * np.abs(expected).max()


@pytest.mark.parametrize("name", NAMES)
def test_tokens_are_those_of_the_library(name):
    prompt = tokens(BLOCK + 3)
    expected = list(prompt)
    for _ in range(20):
        expected.append(int(original_logits(MODELS[name](), expected)[-1].argmax()))
    made = bundle(name).generate(prompt, max_new_tokens=20, ignore_eos=True)
    assert isinstance(made, Generated)
    assert made.tokens == expected[len(prompt) :]


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("length", [5, BLOCK, 2 * BLOCK + 7])
def test_a_saved_context_goes_on_as_if_it_had_stayed_open(name, length, tmp_path):
    sequence = tokens(length + 40)
    context = bundle(name).open_context()
    context.append(sequence[:length])
    bundle(name).save_context(context, tmp_path / "c")
    loaded = bundle(name).load_context(tmp_path / "c")
    assert np.array_equal(loaded.append(sequence[length:]), context.append(sequence[length:]))
    for each in (loaded, context):
        each.rollback(length // 2)
    assert np.array_equal(loaded.append(sequence[:BLOCK]), context.append(sequence[:BLOCK]))
