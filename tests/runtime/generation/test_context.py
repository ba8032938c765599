"""A growing sequence against the original over the whole, and its bits against those of a fresh one."""

from __future__ import annotations

import numpy as np
import pytest

from tests.runtime.generation.decoders import (
    BEYOND,
    BLOCK,
    bundle,
    bundle_folder,
    gemma,
    llama,
    original_logits,
    qwen,
    tokens,
)
from tests.tiers import with_long
from twoheads.graphs.errors import InputError
from twoheads.graphs.variants.step_calls import Pieces, generation_plan
from twoheads.runtime import load
from twoheads.runtime.generation.context import Context

MODELS = {"llama": llama, "gemma": gemma, "qwen": qwen}
BOUNDS = {"llama": 1e-5, "gemma": 1e-5, "qwen": 1e-4}
"""Of errors, as shares of the largest logit; the library's own float32 states are off by 2e-5."""

STATES = "tests/runtime/generation/test_maxima.py"
"""Where states alone go from step to step."""


@pytest.mark.parametrize("name", with_long(MODELS, ("llama", "gemma"), STATES))
@pytest.mark.parametrize("prompt", [1, 7, BLOCK - 1, BLOCK, BLOCK + 1, 5 * BLOCK + 3])
def test_every_step_is_that_of_the_original(name, prompt):
    sequence = tokens(prompt + 6 * BLOCK)
    expected = original_logits(MODELS[name](), sequence)
    with bundle(name).open_context() as context:
        logits = [context.append(sequence[:prompt])]
        logits += [context.step(token) for token in sequence[prompt:]]
    error = np.abs(np.stack(logits) - expected[prompt - 1 :]).max()
    assert error < BOUNDS[name] * np.abs(expected).max()


@pytest.mark.parametrize("name", with_long(MODELS, ("llama", "gemma"), STATES))
def test_contexts_longer_than_the_widest_engine_are_exact(name):
    widest = BEYOND * BLOCK
    sequence = tokens(2 * widest + 100)
    expected = original_logits(MODELS[name](), sequence)
    floor = BOUNDS[name] * np.abs(expected).max()
    with bundle(name).open_context() as context:
        for stop in (widest - 2, 2 * widest - 40, 2 * widest + 3):
            assert np.abs(context.append(sequence[len(context) : stop]) - expected[stop - 1]).max() < floor
            for token in sequence[stop : stop + 40]:
                logits = context.step(token)
                assert np.abs(logits - expected[len(context) - 1]).max() < floor
        fork = context.fork()
        for length in (2 * widest + 1, widest + 5, widest - 1, 3):
            context.rollback(length)
            again = context.append(sequence[length : length + 60])
            assert np.abs(again - expected[length + 59]).max() < floor
        last = context.append(sequence[len(context) :])
        assert np.array_equal(fork.append(sequence[len(fork) :]), last)


def _bits(context: Context) -> list[bytes]:
    return [array.tobytes() for array in (*context.kept.past, *context.kept.opened)]


@pytest.mark.parametrize("name", with_long(MODELS, ("llama", "gemma"), STATES))
def test_bits_do_not_depend_on_how_tokens_were_split(name):
    sequence = tokens(9 * BLOCK + 5)
    whole = bundle(name).open_context()
    expected = whole.append(sequence)
    parts = bundle(name).open_context()
    for start, stop in ((0, 3), (3, 20), (20, 21), (21, 90), (90, len(sequence))):
        logits = parts.append(sequence[start:stop])
    assert np.array_equal(logits, expected)
    assert _bits(parts) == _bits(whole)


def test_what_steps_wrote_before_a_rollback_is_computed_again():
    """A rollback into an earlier block computes that again, and not what steps wrote in front of it."""
    sequence = tokens(3 * BLOCK + 2)
    with bundle("llama").open_context() as context, bundle("llama").open_context() as fresh:
        context.append(sequence[:5])
        for token in sequence[5:]:
            context.step(token)
        context.rollback(2 * BLOCK + 9)
        assert context.facts()["steady"] == 5
        logits = context.append([7])
        assert np.array_equal(logits, fresh.append([*sequence[: 2 * BLOCK + 9], 7]))


def test_a_window_is_whole_behind_several_rollbacks():
    sequence = tokens(120)
    context, fresh = bundle("gemma").open_context(), bundle("gemma").open_context()
    context.append(sequence[: 6 * BLOCK + 5])
    for length in (5 * BLOCK + 5, 4 * BLOCK + 1):  # each by about a block; what the window reaches then is gone
        context.rollback(length)
    expected = fresh.append(sequence[: 4 * BLOCK + 3])
    assert np.array_equal(context.append(sequence[4 * BLOCK + 1 : 4 * BLOCK + 3]), expected)


@pytest.mark.parametrize("start", [0, 3, BLOCK - 1, BLOCK, 3 * BLOCK + 9])
@pytest.mark.parametrize("count", [1, 4, 5, BLOCK, 40])
def test_pieces_cover_what_is_new_in_calls_of_one_block(start, count):
    at = start
    for first, tokens_, rows in Pieces(start, start + count, (1, 8, BLOCK)):
        assert first <= at < first + tokens_ <= start + count
        assert tokens_ <= rows
        assert first // BLOCK == (first + tokens_ - 1) // BLOCK
        at = first + tokens_
    assert at == start + count


@pytest.mark.parametrize(
    ("tokens_", "runs", "rows"),
    [
        (16, False, [8, 8]),
        (24, True, [8, 8, 8]),
        (25, True, [64]),
        (161, True, [64, 64, 64]),
        (192, False, [64, 64, 64]),
        (200, False, [256]),
        (200, True, [64, 64, 64, 8]),
        (256, True, [256]),
    ],
)
def test_what_is_appended_costs_calls_of_about_its_rows(tokens_, runs, rows):
    assert [size for _, _, size in Pieces(0, tokens_, (1, 8, 64, 256), runs=runs)] == rows


def test_what_can_not_be_is_refused():
    context = bundle("llama").open_context()
    for wrong, problem in (([], "are"), ([64], "hold 64"), ([-1], "hold -1"), ([0.5], "are float64")):
        with pytest.raises(InputError, match=problem):
            context.append(np.array(wrong))
    with pytest.raises(InputError, match="rollback"):
        context.rollback(1)
    context.close()
    with pytest.raises(InputError, match="is closed"):
        context.append([1])
    other = load(bundle_folder("llama"), threads=1)
    with pytest.raises(InputError, match="another bundle"):
        other.generate([5], context=bundle("llama").open_context())


@pytest.mark.parametrize("name", with_long(MODELS, ("llama", "gemma"), STATES))
@pytest.mark.parametrize(
    ("prompt", "new"),
    [(1, 1), (3, 2 * BLOCK - 2), (3, 40), (70, 60), (BEYOND * BLOCK + 5, 30), ((2 * BEYOND + 4) * BLOCK + 2, 3)],
)
def test_calls_and_bytes_are_those_of_the_plan(name, prompt, new):
    plan = generation_plan(bundle(name).program, prompt, new)
    sequence = tokens(prompt + new)
    with bundle(name).open_context() as context:
        before = bundle(name).generation.calls
        context.append(sequence[:prompt])
        assert bundle(name).generation.calls - before == plan.prompt_calls
        last = bundle(name).generation.calls
        for token in sequence[prompt:-1]:
            last = bundle(name).generation.calls
            context.step(token)
        after = bundle(name).generation.calls
        assert after - before == plan.prompt_calls + plan.step_calls
        assert after - last == plan.last_step_calls
        assert context.nbytes == plan.kept_bytes
