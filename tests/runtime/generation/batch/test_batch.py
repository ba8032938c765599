"""Many prompts at once: each gets the bits that it would get alone, whoever comes and goes beside it."""

from __future__ import annotations

import shutil
from functools import cache
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.runtime.generation.decoders import BEYOND, BLOCK, bundle, bundle_folder, tokens
from tests.runtime.tiny_bundle import read_manifest, write_manifest
from tests.tiers import cases, with_long
from twoheads.graphs.errors import BundleError, InputError
from twoheads.graphs.variants.batch_steps import SLOTS
from twoheads.runtime import load
from twoheads.runtime.generation.batch.slots import Slab, Slabs
from twoheads.runtime.generation.generated import Generated

LONGEST = BEYOND * BLOCK

CHOICES: tuple[dict[str, Any], ...] = (
    {},
    {"do_sample": True, "temperature": 0.7},
    {"do_sample": True, "top_k": 5, "repetition_penalty": 1.2},
    {"no_repeat_ngram_size": 2},
)


def _prompt(name: str, length: int) -> Any:
    """Tokens, or what an encoder reads: of BART, which has a table of positions, as many as that takes."""
    if name == "whisper":
        return np.random.default_rng(length).standard_normal((1, 8, 100)).astype(np.float32)
    return np.array(tokens(min(length, 128) if name == "bart" else length, length))


@cache
def _alone(name: str, length: int, new: int, choice: int) -> Generated:
    made = bundle(name).generate(_prompt(name, length), steady=True, **_options(length, new, choice))
    assert isinstance(made, Generated)
    return made


def _options(length: int, new: int, choice: int) -> dict[str, Any]:
    return {"max_new_tokens": new, "ignore_eos": True, "seed": length, "return_logits": True, **CHOICES[choice]}


REQUESTS = st.lists(
    st.tuples(
        st.integers(0, 3),  # steps before it comes
        st.sampled_from([1, 7, BLOCK - 1, BLOCK, 3 * BLOCK, 5 * BLOCK + 3, LONGEST - 3]),
        st.sampled_from([1, 5, BLOCK + 2, 2 * BLOCK + 5]),
        st.integers(0, len(CHOICES) - 1),
        st.sampled_from([None, None, None, 0, 2, 9]),  # cancelled after so many tokens
    ),
    min_size=1,
    max_size=12,
)


@pytest.mark.parametrize(
    "name",
    with_long(
        ("llama", "gemma", "qwen", "mamba", "t5", "bart", "whisper"),
        ("llama", "mamba", "bart"),
    ),
)
@pytest.mark.repeated
@settings(max_examples=cases(4, 6), deadline=None)
@given(asked=REQUESTS, most=st.sampled_from([3, 32]), threads=st.sampled_from([1, 2]))
def test_every_request_gets_the_bits_that_it_gets_alone(name, asked, most, threads):
    with bundle(name, threads).open_batch(most) as batch:
        made = []
        for wait, length, new, choice, cancel in asked:
            for _ in range(wait):
                batch.step()
            made.append((batch.submit(_prompt(name, length), **_options(length, new, choice)), cancel))
        while not batch.idle:
            for request, cancel in made:
                if cancel is not None and len(request.pieces) >= cancel and not request.finished:
                    batch.cancel(request)
            batch.step()
        assert batch.nbytes == 0
    for (request, cancel), (_, length, new, choice, _) in zip(made, asked, strict=True):
        alone = _alone(name, length, new, choice)
        count = len(request.pieces)
        assert count == new or (cancel is not None and cancel <= count)
        if count:
            found = request.result()
            assert found.tokens == alone.tokens[:count]
            assert found.logits is not None
            assert alone.logits is not None
            assert np.array_equal(found.logits, alone.logits[:count])
            assert found.source_tokens == alone.source_tokens
            assert found.finish_reason == ("length" if request.state == "done" else "cancelled")


def test_what_a_sequence_leaves_in_its_slot_reaches_nobody():
    slabs = Slabs(bundle("llama").generation.steps)
    places = [slabs.take(4) for _ in range(SLOTS + 1)]
    assert len({id(slab) for slab, _ in places}) == 2
    slab, slot = places[2]
    for array in (*slab.past, *slab.opened):
        array[slot] = np.nan
    slabs.give_back(slab, slot)
    again, number = slabs.take(4)
    assert (again, number) == (slab, slot)
    assert all(np.isfinite(array).all() for array in (*slab.past, *slab.opened))
    for place in [(again, number), *places[:2], *places[3:]]:
        slabs.give_back(*place)
    assert slabs.nbytes == 0
    assert Slab(slabs.steps, 0).used == 0


def test_tokens_come_as_they_are_computed_and_newcomers_join():
    first = bundle("llama").generate(tokens(5), max_new_tokens=9, ignore_eos=True, steady=True)
    seen = []
    with bundle("llama").open_batch() as batch:
        one = batch.submit(tokens(5), max_new_tokens=9, ignore_eos=True)
        other = None
        for request, piece in batch:
            seen.append((request.number, piece.token))
            if other is None and len(seen) == 4:
                other = batch.submit(tokens(5), max_new_tokens=3, ignore_eos=True)
    assert isinstance(first, Generated)
    assert [token for number, token in seen if number == 0] == first.tokens == one.result().tokens
    assert other is not None
    assert other.result().tokens == first.tokens[:3]
    assert seen.index((1, first.tokens[0])) < len(seen) - 3  # side by side


def test_a_request_that_fails_leaves_the_others_alone():
    with bundle("llama").open_batch() as batch:
        good = batch.submit(tokens(5), max_new_tokens=6, ignore_eos=True)
        bad = batch.submit(tokens(5), logits_processor=lambda _, scores: np.full_like(scores, -np.inf))
        none = batch.submit(tokens(5), max_new_tokens=0)
        for _ in batch:
            pass
    assert len(good.result().tokens) == 6
    assert none.result().tokens == []
    assert bad.state == "failed"
    with pytest.raises(InputError, match="leave no token"):
        bad.result()


def test_what_can_not_be_is_refused_at_once():
    with pytest.raises(InputError, match="room for 0"):
        bundle("llama").open_batch(0)
    with bundle("llama").open_batch() as batch:
        for options, problem in (
            ({"speculate": True}, "speculate"),
            ({"context": bundle("llama").open_context()}, "context"),
            ({"do_sample": True, "num_return_sequences": 2}, "num_return_sequences"),
            ({"temperature": -1.0}, "temperature -1.0"),
        ):
            with pytest.raises(InputError, match=problem):
                batch.submit(tokens(3), **options)
        with pytest.raises(InputError, match="hold 64"):
            batch.submit([64])
        waiting = batch.submit(tokens(3))
        with pytest.raises(InputError, match="is waiting"):
            waiting.result()
        with bundle("llama").open_batch() as other, pytest.raises(InputError, match="another batch"):
            other.cancel(waiting)
    assert waiting.state == "cancelled"


def test_a_bundle_without_the_engines_says_so(tmp_path):
    folder = shutil.copytree(bundle_folder("llama"), tmp_path / "b")
    manifest = read_manifest(folder)
    for path in (folder / "engines").glob("step_batch_*"):
        path.unlink()
        del manifest["files"][f"engines/{path.name}"]
    write_manifest(folder, manifest)
    with pytest.raises(BundleError, match="missing from the bundle"):
        load(folder).open_batch()
