"""Beginnings that were computed before: the same bits warm as cold, in memory and from disk, and no damaged files."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from typing import Any

import numpy as np
import pytest

from tests.runtime.generation.decoders import BLOCK, bundle_folder, tokens
from tests.tiers import with_long
from twoheads.graphs.errors import InputError
from twoheads.runtime import LoadedBundle, load
from twoheads.runtime.generation.kept.rows import KeptBlocks

PROMPT = tokens(36 * BLOCK + 5)


def _logits(bundle: LoadedBundle, sequence: list[int]) -> tuple[np.ndarray, int]:
    """Logits behind the sequence and two steps, and the engine calls that the sequence took."""
    before = bundle.generation.calls
    with bundle.open_context() as context:
        rows = [context.append(sequence)]
        calls = bundle.generation.calls - before
        rows += [context.step(token) for token in (5, 6)]
        context.rollback(len(sequence) - 3)
        rows.append(context.append([9, 9]))
    return np.stack(rows), calls


@pytest.mark.parametrize(
    "name",
    with_long(("llama", "gemma", "mamba", "qwen"), ("llama", "gemma", "mamba")),
)
def test_warm_is_cold_to_the_bit(name, tmp_path):
    cold, cold_calls = _logits(load(bundle_folder(name), threads=1), PROMPT)
    bundle = load(bundle_folder(name), threads=1)
    cache = bundle.generation.keep_prefixes(1 << 30, tmp_path / "pages")
    first, _ = _logits(bundle, PROMPT)
    warm, warm_calls = _logits(bundle, PROMPT)
    assert np.array_equal(first, cold)
    assert np.array_equal(warm, cold)
    assert cache.hits >= 36
    assert warm_calls < cold_calls / 5
    other = load(bundle_folder(name), threads=1)  # as another process would
    other.generation.keep_prefixes(0, tmp_path / "pages")
    again, calls = _logits(other, PROMPT)
    assert np.array_equal(again, cold)
    assert calls == warm_calls


@pytest.mark.parametrize("more", [0, 2])
def test_parts_of_the_open_block_are_taken_over_unless_it_becomes_whole(more, tmp_path):
    """8 of the 14 tokens behind three blocks; two more tokens fill the fourth, which a run computes."""
    folder = bundle_folder("llama")
    shared, sequence = PROMPT[: 3 * BLOCK + 14], [*PROMPT[: 3 * BLOCK + 14], *tokens(more, seed=7)]
    cold = load(folder, threads=1).open_context().append(sequence)
    first = load(folder, threads=1)
    first.generation.keep_prefixes(1 << 30, tmp_path)
    first.open_context().append(shared)
    other = load(folder, threads=1)
    other.generation.keep_prefixes(1 << 30, tmp_path)
    for bundle in (first, other):  # from memory, and from disk
        before = bundle.generation.calls
        assert np.array_equal(bundle.open_context().append(sequence), cold)
        calls = bundle.generation.calls - before
        assert more or calls == 2  # a step of 8 rows, and the head


def test_parts_of_a_batch_s_prompt_are_taken_over():
    bundle = load(bundle_folder("llama"), threads=1)
    bundle.generation.keep_prefixes(1 << 30)
    sequence = PROMPT[: BLOCK + 12]
    alone: Any = bundle.generate(sequence, max_new_tokens=3, ignore_eos=True, steady=True)
    with bundle.open_batch(2) as batch:
        request = batch.submit(sequence, max_new_tokens=3, ignore_eos=True)
        for _ in batch:
            pass
    assert request.result().tokens == alone.tokens


def test_a_page_shares_no_memory_with_the_sequence_whose_block_it_was():
    """A slice of an array of one key head is contiguous as it is."""
    kept = KeptBlocks(load(bundle_folder("llama"), threads=1).generation.steps)
    kept.reserve(2)
    kept.past, kept.opened = ([array[:, :1].copy() for array in arrays] for arrays in (kept.past, kept.opened))
    pages = (*zip(kept.page(1), kept.past, strict=True), *zip(kept.rows(0, 8), kept.opened, strict=True))
    assert pages
    assert not any(np.shares_memory(page, array) for page, array in pages)


def test_only_what_is_shared_is_taken_over():
    bundle = load(bundle_folder("llama"), threads=1)
    plain, _ = _logits(bundle, [*PROMPT[: 3 * BLOCK], *tokens(40, seed=9)])
    cache = bundle.generation.keep_prefixes(1 << 30)
    _logits(bundle, PROMPT[: 6 * BLOCK])
    hits = cache.hits
    branch, _ = _logits(bundle, [*PROMPT[: 3 * BLOCK], *tokens(40, seed=9)])
    assert cache.hits >= hits + 3
    assert np.array_equal(branch, plain)
    moved, _ = _logits(bundle, PROMPT[BLOCK : 5 * BLOCK])  # the same tokens at other places are others
    cold, _ = _logits(load(bundle_folder("llama"), threads=1), PROMPT[BLOCK : 5 * BLOCK])
    assert np.array_equal(moved, cold)


def test_steps_leave_nothing_in_the_cache():
    bundle = load(bundle_folder("llama"), threads=1)
    cache = bundle.generation.keep_prefixes(1 << 30)
    with bundle.open_context() as context:
        context.append(PROMPT[:3])
        for token in PROMPT[3 : 2 * BLOCK]:
            context.step(token)
    assert cache.nbytes == 0


def test_the_budget_holds_and_damaged_files_are_refused(tmp_path):
    bundle = load(bundle_folder("llama"), threads=1)
    cache = bundle.generation.keep_prefixes(1 << 30, tmp_path)
    _logits(bundle, PROMPT[: 3 * BLOCK])
    page = cache.nbytes // 2
    assert page > 0
    small = bundle.generation.keep_prefixes(2 * page)
    _logits(bundle, PROMPT)
    assert small.nbytes <= 2 * page
    for file in tmp_path.iterdir():
        data = bytearray(file.read_bytes())
        data[-1] ^= 1
        file.write_bytes(data)
    bundle.generation.keep_prefixes(1 << 30, tmp_path)
    with pytest.raises(InputError, match="is damaged"):
        _logits(bundle, PROMPT[: 3 * BLOCK])
    with pytest.raises(InputError, match="-1 bytes"):
        bundle.generation.keep_prefixes(-1)


def test_what_kills_left_is_removed_and_other_files_stay(tmp_path):
    ended = subprocess.Popen([sys.executable, "-c", ""])
    ended.wait()
    left = tmp_path / f".{'ab' * 32}.page.{ended.pid}.partial"
    for name in (left.name, f".notes.{ended.pid}.partial", "notes"):
        (tmp_path / name).touch()
    load(bundle_folder("llama"), threads=1).generation.keep_prefixes(1 << 30, tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == [f".notes.{ended.pid}.partial", "notes"]


def test_threads_that_write_the_same_pages(tmp_path):
    bundles = [load(bundle_folder("llama"), threads=1) for _ in range(4)]
    for bundle in bundles:
        bundle.generation.keep_prefixes(1 << 30, tmp_path)
    found: list[np.ndarray] = []
    threads = [
        threading.Thread(target=lambda bundle=bundle: found.append(_logits(bundle, PROMPT)[0])) for bundle in bundles
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 4
    assert all(np.array_equal(one, found[0]) for one in found)
    assert {path.suffix for path in tmp_path.iterdir()} == {".page"}


def test_a_block_that_the_cache_was_not_given_hides_those_behind_it():
    folder = bundle_folder("llama")
    loaded = load(folder, threads=1)
    loaded.generation.keep_prefixes(1 << 20)
    first, middle, last = (tokens(BLOCK, seed) for seed in (1, 2, 3))
    loaded.open_context().append([*first, *last, 5])
    context = loaded.open_context()
    context.append(first)
    context.steps(middle)  # fills a block, and gives the cache nothing
    assert np.array_equal(context.append([*last, 5]), load(folder, threads=1).open_context().append(context.tokens))


def test_a_page_that_is_none_is_not_waited_for_or_read(tmp_path):
    """A pipe would wait for ever, and a file of any size fill the memory."""
    bundle = load(bundle_folder("llama"), threads=1)
    bundle.generation.keep_prefixes(1 << 30, tmp_path)
    _logits(bundle, PROMPT)
    pages = sorted(tmp_path.iterdir())
    for pipe in (True, False):
        for page in pages:
            page.unlink()
            if pipe:
                os.mkfifo(page)
            else:
                page.touch()
                os.truncate(page, 1 << 40)
        bundle.generation.keep_prefixes(1 << 30, tmp_path)
        with pytest.raises(InputError, match="is damaged"):
            _logits(bundle, PROMPT)
