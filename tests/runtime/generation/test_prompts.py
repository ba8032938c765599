"""Whole blocks of prompts, which runs compute: the same bits whichever run does, and nothing lost when one fails."""

from __future__ import annotations

import numpy as np
import pytest

from tests.runtime.generation.decoders import BLOCK, bundle, bundle_folder, llama, original_logits, tokens
from twoheads.runtime import LoadedBundle, load
from twoheads.runtime.backends.onnxruntime_cpu import OnnxRuntimeCall
from twoheads.runtime.generation.kept.prompt_blocks import RunsPrompts
from twoheads.runtime.runs.prompt_run import PromptRun

WIDE = 128
"""Tokens of a block from which on weights are read in place, so that one block is computed by all threads."""


@pytest.fixture(scope="module")
def wide() -> LoadedBundle:
    return load(bundle_folder("llama", WIDE), threads=2)


def _runs(opened: LoadedBundle) -> RunsPrompts | None:
    return opened.generation.model.prompts


def test_a_block_alone_has_the_bits_of_one_among_several(wide):
    runs, sequence = _runs(wide), tokens(7 * WIDE + 3)
    assert isinstance(runs, PromptRun)
    assert runs._single is not runs._several
    with wide.open_context() as whole, wide.open_context() as parts:
        expected = logits = whole.append(sequence)
        for start in range(0, len(sequence), WIDE):
            logits = parts.append(sequence[start : start + WIDE])
        assert np.array_equal(logits, expected)
        for one, other in zip(whole.kept.past, parts.kept.past, strict=True):
            assert np.array_equal(one, other)
    original = original_logits(llama(), sequence)[-1]
    assert np.abs(expected - original).max() < 1e-5 * np.abs(original).max()


@pytest.mark.parametrize("name", ["llama", "gemma"])
@pytest.mark.parametrize("before", [0, 3, BLOCK, 4 * BLOCK + 5])
def test_a_run_that_fails_leaves_a_context_that_goes_on(name, before, monkeypatch):
    opened, sequence = bundle(name), tokens(12 * BLOCK + 7)
    with opened.open_context() as context, opened.open_context() as fresh:
        if before:
            context.append(sequence[:before])
        run, left = OnnxRuntimeCall.run, 60

        def fails(self):
            nonlocal left
            left -= 1
            if not left:
                raise KeyboardInterrupt
            run(self)

        monkeypatch.setattr(OnnxRuntimeCall, "run", fails)
        with pytest.raises(KeyboardInterrupt):
            context.append(sequence[before:])
        monkeypatch.setattr(OnnxRuntimeCall, "run", run)
        assert context.tokens == list(sequence[: len(context)])
        logits = context.append(sequence[len(context) :])
        assert np.array_equal(logits, fresh.append(sequence))


def test_who_can_not_run_takes_steps():
    assert _runs(load(bundle_folder("llama"), threads=1, memory_limit=1 << 32)) is None
    assert _runs(bundle("mamba")) is None
    assert _runs(bundle("t5")) is None
    assert bundle("llama").open_context(pages="int8")._prompts is None


def test_kept_beginnings_tell_runs_from_steps():
    """A file that steps computed has other bits than one by runs, so it is another beginning."""
    by_runs = bundle("llama").generation.model.identity
    limited = load(bundle_folder("llama"), threads=1, memory_limit=1 << 32).generation.model.identity
    assert by_runs[0] == limited[0]
    assert by_runs[1] != limited[1]
