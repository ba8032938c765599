"""Continuations against those of transformers, and the ways to end and to follow them."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from tests.runtime.generation.decoders import BLOCK, bundle, bundle_folder, gemma, llama, original_logits, tokens
from twoheads.compiler import compile_model
from twoheads.export import quantise_weights, write_bundle
from twoheads.graphs.errors import InputError
from twoheads.runtime import load
from twoheads.runtime.backends.onnxruntime_c import c_interface
from twoheads.runtime.generation.call_reader import CallReader
from twoheads.runtime.generation.choosing.draft import DraftGuesses
from twoheads.runtime.generation.generated import Generated, Piece

MODELS = {"llama": llama, "gemma": gemma}


def _one(made) -> Generated:
    assert isinstance(made, Generated)
    return made


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"repetition_penalty": 1.3, "no_repeat_ngram_size": 2},
        {"min_new_tokens": 30, "eos_token_id": [2, 9, 40], "bad_words_ids": [[5], [7, 8]]},
        {"suppress_tokens": [4, 30], "begin_suppress_tokens": [21], "sequence_bias": {(6,): 2.0, (11, 12): -9.0}},
    ],
    ids=["plain", "repetition", "ends", "biases"],
)
def test_tokens_are_those_of_the_library(name, options):
    prompt = tokens(BLOCK + 3)
    with torch.no_grad():
        expected = MODELS[name]().generate(torch.tensor([prompt]), max_new_tokens=50, do_sample=False, **options)
    made = _one(bundle(name).generate(prompt, max_new_tokens=50, **options))
    assert made.tokens == expected[0, len(prompt) :].tolist()
    assert made.prompt_tokens == len(prompt)
    assert made.finish_reason == ("length" if len(made.tokens) == 50 else "eos")


def test_probabilities_are_those_of_the_model():
    prompt = tokens(20)
    made = _one(bundle("llama").generate(prompt, max_new_tokens=9, ignore_eos=True, return_logits=True))
    expected = original_logits(llama(), [*prompt, *made.tokens])[19:28]
    assert made.logits is not None
    assert np.abs(made.logits - expected).max() < 1e-5 * np.abs(expected).max()
    logs = torch.log_softmax(torch.from_numpy(expected), -1).numpy()[range(9), made.tokens]
    assert np.allclose(made.logprobs, logs, atol=1e-4)
    assert made.engine_calls > 9


def test_samples_repeat_with_their_seed_and_differ_among_each_other():
    prompt = tokens(5)
    options = {"max_new_tokens": 8, "do_sample": True, "num_return_sequences": 3}
    first = bundle("llama").generate(prompt, seed=3, **options)
    again = bundle("llama").generate(prompt, seed=3, **options)
    other = bundle("llama").generate(prompt, seed=4, **options)
    assert isinstance(first, list)
    assert isinstance(again, list)
    assert isinstance(other, list)
    assert [made.tokens for made in first] == [made.tokens for made in again]
    assert [made.tokens for made in first] != [made.tokens for made in other]
    assert first[0].tokens != first[1].tokens


def test_a_context_is_continued():
    sequence = tokens(30)
    with bundle("llama").open_context() as context:
        made = _one(bundle("llama").generate(sequence, context=context, max_new_tokens=5, ignore_eos=True))
        assert context.tokens == [*sequence, *made.tokens]
        more = _one(bundle("llama").generate([9, 8], context=context, max_new_tokens=5, ignore_eos=True))
    whole = bundle("llama").generate([*sequence, *made.tokens, 9, 8], max_new_tokens=5, ignore_eos=True)
    assert more.tokens == _one(whole).tokens


def test_tokens_come_one_by_one_and_the_iterator_may_be_left():
    prompt = tokens(6)
    seen: list[Piece] = []
    made = _one(bundle("llama").generate(prompt, max_new_tokens=7, ignore_eos=True, streamer=seen.append))
    assert [piece.token for piece in seen] == made.tokens
    stream = bundle("llama").stream(prompt, max_new_tokens=7, ignore_eos=True)
    assert [next(stream).token for _ in range(3)] == made.tokens[:3]
    stream.close()


def test_a_processor_of_the_caller_decides():
    def only_seven(seen, scores):
        assert list(seen[:4]) == tokens(4)
        made = np.full_like(scores, -np.inf)
        made[7] = 0
        return made

    made = _one(bundle("llama").generate(tokens(4), max_new_tokens=3, logits_processor=only_seven))
    assert made.tokens == [7, 7, 7]
    with pytest.raises(InputError, match="leave no token"):
        bundle("llama").generate(tokens(4), logits_processor=lambda _, scores: np.full_like(scores, -np.inf))


@pytest.mark.parametrize(
    ("options", "problem"),
    [
        ({"temperature": -1.0}, "temperature -1.0"),
        ({"stop": ""}, "stop_strings"),
        ({"stop": "x"}, "no tokenizer"),
        ({"num_beams": 4}, "num_beams 4"),
        ({"tempreature": 1.0}, "unknown field 'tempreature'"),
        ({"top_p": 0.0}, "top_p 0.0"),
        ({"max_new_tokens": 2.5}, "max_new_tokens 2.5"),
        ({"num_return_sequences": 2}, "num_return_sequences 2"),
        ({"seed": -1, "do_sample": True}, "seed: is -1"),
        ({"seed": "x"}, "seed: is 'x'"),
        ({"ignore_eos": "no"}, "ignore_eos: is 'no'"),
        ({"regex": 5}, "regex: is 5"),
        ({"chat": [1]}, r"chat: is \[1\]"),
        ({"chat": {"template": 5}}, "chat: template: is 5"),
    ],
)
def test_impossible_settings_are_refused_by_name(options, problem):
    with pytest.raises(InputError, match=problem):
        bundle("llama").generate([5], **options)


@pytest.mark.parametrize(
    "prompt", [None, 1.5, 7, {"role": "user"}, [[1], [2, 3]], [1.5], [None], [10**30], np.array(3)]
)
def test_a_prompt_that_is_none_is_refused(prompt):
    with pytest.raises(InputError, match="prompt"):
        bundle("llama").generate(prompt)


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("options", [{}, {"do_sample": True, "seed": 5, "temperature": 0.3}], ids=["greedy", "sampled"])
def test_guesses_change_no_token(name, options):
    phrase = tokens(9)
    prompt = phrase * 4
    given = {"max_new_tokens": 60, "ignore_eos": True, **options}

    def copying(seen, scores):  # makes copies likely, and not certain
        made = scores.copy()
        made[seen[-9]] += 9
        return made

    plain = _one(bundle(name).generate(prompt, logits_processor=copying, **given))
    with bundle(name).open_context() as context:
        made = _one(bundle(name).generate(prompt, logits_processor=copying, speculate=True, context=context, **given))
        assert context.tokens == [*prompt, *made.tokens]
    assert made.tokens == plain.tokens
    assert made.logprobs == pytest.approx(plain.logprobs, abs=1e-4)
    assert 0 < made.right_guesses <= made.guessed_tokens
    assert made.engine_calls < plain.engine_calls


@pytest.mark.parametrize("draft", ["llama", "gemma"])
@pytest.mark.parametrize("options", [{}, {"do_sample": True, "seed": 5, "temperature": 0.8}], ids=["greedy", "sampled"])
def test_a_draft_changes_no_bit(draft, options, monkeypatch):
    monkeypatch.setattr(CallReader, "_share", lambda *_: 0.1)  # as of a much smaller one
    given = {"max_new_tokens": 70, "ignore_eos": True, "steady": True, "return_logits": True, **options}
    plain = _one(bundle("llama").generate(tokens(20), **given))
    with bundle("llama").open_context() as context:
        made = _one(bundle("llama").generate(tokens(20), speculate=bundle(draft), context=context, **given))
        assert context.tokens == [*tokens(20), *made.tokens]
    assert made.tokens == plain.tokens
    assert made.logits is not None
    assert plain.logits is not None
    assert np.array_equal(made.logits, plain.logits)
    assert made.right_guesses <= made.guessed_tokens
    if draft == "llama" and not options:  # it guesses what it would choose
        assert made.right_guesses == made.guessed_tokens > 40
    if draft == "gemma":  # another random model: guesses that do not come true are given up
        assert 0 < made.guessed_tokens < 16


def test_a_draft_follows_the_sequence_through_wrong_guesses():
    context = bundle("gemma").open_context()
    draft = DraftGuesses(context, tokens(30), 7, needed=0.0, share=0.0)
    fresh = bundle("gemma").open_context()
    logits, expected = fresh.append(tokens(30)), list[int]()
    for _ in range(4):
        expected.append(int(logits.argmax()))
        logits = fresh.step(expected[-1])
    assert draft.guess(7) == expected
    for token in (7, 8):
        draft.add(token)
    draft.learn(4, 0)
    again = bundle("gemma").open_context()
    assert draft.guess(1) == [int(again.append([*tokens(30), 7, 8]).argmax())]
    assert context.tokens == [*tokens(30), 7, 8]


def test_what_drafts_nothing_is_refused():
    with pytest.raises(InputError, match="speculate"):
        bundle("llama").generate([5], speculate="gemma")


@pytest.mark.parametrize("quantised", [False, True])
def test_engines_that_are_open_are_not_opened_again(quantised, tmp_path, monkeypatch):
    """As long as the sequence is, and whichever capacity it reaches; packed weights stay shared meanwhile."""
    folder = bundle_folder("llama")
    if quantised:
        folder = write_bundle(quantise_weights(compile_model(llama(), block_size=BLOCK), "int4"), tmp_path / "b")
    loaded = load(folder, threads=1)
    loaded.generation.open_engines(7 * BLOCK + 12)
    backend, opened = loaded.generation.model.engines.backend, []
    load_engine = backend.load_engine

    def recorded(file):
        opened.append(file.path.name)
        return load_engine(file)

    monkeypatch.setattr(backend, "load_engine", recorded)
    for length in (7 * BLOCK, 7 * BLOCK + 3):
        loaded.generate(tokens(length), max_new_tokens=8, do_sample=False, ignore_eos=True)
    assert opened == [] or c_interface() is None
