"""The proof of generating passes what is right, and sees what is wrong."""

from __future__ import annotations

from dataclasses import replace
from functools import cache
from typing import Any

import numpy as np
import pytest

from tests.runtime.generation.decoders import BLOCK, bundle_folder, gemma, llama, tokens
from tests.tiers import with_long
from twoheads.compiler import compile_model
from twoheads.export import write_bundle
from twoheads.export.verification.generation.proof import verify_generation
from twoheads.graphs.errors import InputError
from twoheads.runtime.generation.kept.prefix_cache import PrefixCache
from twoheads.runtime.generation.kept.rows import KeptBlocks

MODELS = {"llama": llama, "gemma": gemma}


@cache
def _report(name):
    prompt = np.array(tokens(BLOCK + 3))
    return verify_generation(bundle_folder(name), MODELS[name](), new_tokens=3 * BLOCK, tokens=prompt)


@pytest.mark.parametrize("name", with_long(MODELS, ["llama"]))
def test_a_right_bundle_passes(name):
    report = _report(name)
    assert report.passed
    assert report.ratio <= 4
    assert report.same_tokens + len(report.differing) == report.new_tokens == 3 * BLOCK
    assert (report.prompt_tokens, report.block_borders) == (BLOCK + 3, 3)
    assert report.rollback_equal
    assert (report.beginning_equal, report.batch_equal) == (True, True)
    assert report.to_json()["passed"] is True


def test_wrong_weights_are_seen(tmp_path):
    compiled = compile_model(llama(), block_size=BLOCK)
    name = next(name for name in compiled.weights if "o_proj" in name)
    wrong = {**compiled.weights, name: compiled.weights[name] * 1.01}
    folder = write_bundle(replace(compiled, weights=wrong), tmp_path / "b")
    report = verify_generation(folder, llama(), new_tokens=5, tokens=np.array(tokens(9)))
    assert not report.passed
    assert report.ratio > 4


def test_a_lost_key_is_seen(monkeypatch):
    show = KeptBlocks.show

    def forgetful(self, numbers, first):
        show(self, numbers, first)
        if first == 6:
            self.past[0][:, :, 5] = 0

    monkeypatch.setattr(KeptBlocks, "show", forgetful)
    report = verify_generation(bundle_folder("llama"), llama(), new_tokens=20, tokens=np.array(tokens(3)))
    assert not report.passed


def test_lost_keys_behind_a_rollback_are_seen(monkeypatch):
    monkeypatch.setattr(KeptBlocks, "whole_block", lambda *_: None)
    report = verify_generation(bundle_folder("llama"), llama(), new_tokens=30, tokens=np.array(tokens(20)))
    assert report.ratio <= 4
    assert not report.rollback_equal
    assert not report.passed


def test_what_a_kept_beginning_or_a_neighbour_changes_is_seen(monkeypatch):
    given: dict[str, Any] = {"new_tokens": 3, "tokens": np.array(tokens(BLOCK + 3))}
    find, take_row = PrefixCache.find, KeptBlocks.take_row

    def other(self, name):
        page = find(self, name)
        return None if page is None else [array * 1.001 for array in page]

    def lost(self, first):
        take_row(self, first)
        self.past[0][:, :, first] = 0

    monkeypatch.setattr(PrefixCache, "find", other)
    report = verify_generation(bundle_folder("llama"), llama(), **given)
    assert (report.rollback_equal, report.beginning_equal, report.batch_equal, report.passed) == (
        True,
        False,
        True,
        False,
    )
    monkeypatch.setattr(PrefixCache, "find", find)
    monkeypatch.setattr(KeptBlocks, "take_row", lost)
    report = verify_generation(bundle_folder("llama"), llama(), **given)
    assert (report.beginning_equal, report.batch_equal, report.passed) == (True, False, False)


def test_too_few_steps_are_refused():
    with pytest.raises(InputError, match="is 1"):
        verify_generation(bundle_folder("llama"), llama(), new_tokens=1)
