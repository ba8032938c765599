"""Ends of prompts in one call: each request has the bits that its own steps give it, and calls are fewer."""

from __future__ import annotations

import shutil
from typing import Any

import numpy as np
import pytest

from tests.runtime.generation.decoders import BLOCK, bundle, bundle_folder, tokens
from tests.runtime.tiny_bundle import read_manifest, write_manifest
from twoheads.runtime import load
from twoheads.runtime.generation.batch.together import PromptsTogether, prompts_together

LENGTHS = (1, 7, BLOCK - 1, BLOCK, BLOCK + 4, 2 * BLOCK - 1, 3, 5, 3 * BLOCK, 9, 11, 2)


@pytest.fixture
def runs(monkeypatch):
    """The numbers of tokens of every call, by prompt."""
    found = []
    run = PromptsTogether.run

    def spy(self, ends):
        found.append([len(end.tokens) for end in ends])
        return run(self, ends)

    monkeypatch.setattr(PromptsTogether, "run", spy)
    return found


def _logits(loaded: Any, lengths: Any, options: Any) -> list[Any]:
    with loaded.open_batch() as batch:
        made = [batch.submit(tokens(length, length), **options) for length in lengths]
        for _ in batch:
            pass
    return [request.result().logits for request in made]


def test_ends_of_prompts_have_the_bits_that_they_have_alone(runs):
    options = {"max_new_tokens": 3, "ignore_eos": True, "return_logits": True}
    found = _logits(bundle("llama"), LENGTHS, options)
    ends = sum(length % BLOCK for length in LENGTHS)
    assert sum(map(sum, runs)) > ends - BLOCK  # the last ones may not fill half of a call
    assert max(map(sum, runs)) == BLOCK
    assert any(len(counts) > 2 for counts in runs)
    for length, logits in zip(LENGTHS, found, strict=True):
        alone: Any = bundle("llama").generate(tokens(length, length), steady=True, **options)
        assert np.array_equal(logits, alone.logits)


def test_what_others_computed_is_appended_to(runs):
    """A context whose end was computed beside others goes on as one that was appended to."""
    sequence = tokens(BLOCK + 13)
    together = prompts_together(bundle("llama").generation.model.engines)
    assert together is not None
    with bundle("llama").open_batch() as batch:
        made = [batch.submit(sequence[: BLOCK + 9], max_new_tokens=4, ignore_eos=True) for _ in range(3)]
        batch.step()
        context = next(work for work in batch._active if work.request is made[0]).context
        assert sum(map(sum, runs)) > 0
        context.rollback(BLOCK + 9)
        found = context.append(sequence[BLOCK + 9 :])
    with bundle("llama").open_context() as fresh:
        assert np.array_equal(found, fresh.append(sequence))


def test_few_rows_are_computed_by_themselves(runs):
    assert _logits(bundle("llama"), [5, 2], {"max_new_tokens": 2, "ignore_eos": True}) == [None, None]
    assert runs == []


def test_who_computes_ends_by_themselves(tmp_path):
    """Layers that are written elsewhere, weights that are not packed, and bundles from before."""
    assert prompts_together(bundle("gemma").generation.model.engines) is None
    assert prompts_together(bundle("mamba").generation.model.engines) is None
    assert prompts_together(load(bundle_folder("llama"), memory_limit=1 << 32).generation.model.engines) is None
    folder = shutil.copytree(bundle_folder("llama"), tmp_path / "b")
    manifest = read_manifest(folder)
    for path in (folder / "engines").glob("step_prompt_in_place_*"):
        path.unlink()
        del manifest["files"][f"engines/{path.name}"]
    write_manifest(folder, manifest)
    before = load(folder, threads=1)
    assert prompts_together(before.generation.model.engines) is None
    options = {"max_new_tokens": 2, "ignore_eos": True, "return_logits": True}
    for new, old in zip(_logits(bundle("llama"), [9, 9], options), _logits(before, [9, 9], options), strict=True):
        assert np.array_equal(new, old)
