"""Encoder-decoders: their tokens are the library's, the encoder runs once, and what is not kept is refused."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from tests.runtime.generation.decoders import BLOCK, CLASSES, MODELS, bundle, bundle_folder, tokens
from twoheads.export.verification.generation.proof import verify_generation
from twoheads.graphs.errors import InputError
from twoheads.graphs.program.lengths import value_rows
from twoheads.graphs.schedule.schedule import SOURCE, make_schedule
from twoheads.graphs.variants.step_calls import generation_plan
from twoheads.graphs.variants.steps import CAPACITIES, SOURCE_CAPACITIES
from twoheads.runtime import load
from twoheads.runtime.generation.generated import Generated
from twoheads.runtime.generation.kept.kept_source import KeptSource

WIDEST = SOURCE_CAPACITIES[-1] * BLOCK
MANY = CAPACITIES[-1] * BLOCK


def _source(name: str, length: int) -> Any:
    """Tokens or a spectrogram ``[1, ...]``."""
    if name == "whisper":
        return np.random.default_rng(length).standard_normal((1, 8, 100)).astype(np.float32)
    return np.array([tokens(length, seed=length)])


def _expected(name: str, source: Any, **options: Any) -> list[int]:
    """What transformers generates, without the first tokens that it is given."""
    given = {"input_features" if name == "whisper" else "input_ids": torch.from_numpy(source)}
    with torch.no_grad():
        found = MODELS[name]().generate(**given, do_sample=False, **{"num_beams": 1, **options})[0].tolist()
    return found if name == "whisper" else found[1:]


def _made(name: str, source: Any, **options: Any) -> Generated:
    made = bundle(name).generate(source, **options)
    assert isinstance(made, Generated)
    return made


@pytest.mark.parametrize(
    ("name", "length", "new"),
    [
        ("t5", 1, 40),
        ("t5", 2 * BLOCK, 40),
        ("t5", 2 * BLOCK + 1, 70),
        ("t5", WIDEST + 3, 3 * BLOCK),
        ("t5", MANY + 5, 20),
        ("bart", 50, 100),
        ("bart", 128, 20),
        ("marian", 1, 50),
        ("marian", 100, 80),
        ("whisper", 0, 80),
    ],
)
def test_tokens_are_those_of_the_library(name, length, new):
    source = _source(name, length)
    options = {
        "max_new_tokens": new,
        "no_repeat_ngram_size": 2,
        "num_beams": 1,
    }  # a small model says the same over and over
    expected = _expected(name, source, **options)
    made = _made(name, source, **options)
    said = made.tokens[:-1] if name == "whisper" and made.finish_reason == "eos" else made.tokens  # the library cuts it
    assert said == expected
    assert len(set(expected)) > 3, "the model says one thing only"
    assert made.source_tokens == (50 if name == "whisper" else length)


def test_the_model_s_own_settings_are_followed():
    source = _source("bart", 40)
    made = _made("bart", source)
    assert made.tokens == _expected("bart", source)
    assert made.tokens[0] == 5
    options = {"max_new_tokens": 9, "forced_eos_token_id": 7, "min_new_tokens": 9}
    forced = _made("bart", source, **options)
    assert forced.tokens == _expected("bart", source, **options)
    assert forced.tokens[-1] == 7


def test_a_translator_begins_with_padding_ends_by_force_and_asks_for_beams():
    """As the models of Helsinki-NLP do; beams are refused, unless a call says that it does not want them."""
    source = _source("marian", 40)
    with pytest.raises(InputError, match=r"(?s)generation.json: asks for num_beams 4.*give num_beams=1"):
        bundle("marian").generate(source)
    made = _made("marian", source, num_beams=1)
    assert made.tokens == _expected("marian", source)
    assert made.prompt_tokens == 1
    assert made.tokens[-1] == 0
    assert 63 not in made.tokens
    with bundle("marian").open_context(source) as context:
        logits = context.append([63])
    free = _made("marian", source, num_beams=1, max_new_tokens=1, return_logits=True)
    assert free.logits is not None
    np.testing.assert_array_equal(free.logits[0], logits)


@pytest.mark.parametrize("asked", [{}, {"language": "en"}, {"language": "fr", "task": "translate"}])
def test_speech_is_told_language_and_task(asked):
    source = _source("whisper", 1)
    made = _made("whisper", source, max_new_tokens=30, **asked)
    said = made.tokens[:-1] if made.finish_reason == "eos" else made.tokens  # the library leaves the end out
    assert said == _expected("whisper", source, max_new_tokens=30, **asked)
    assert made.prompt_tokens == (4 if asked else 3)


def test_decoder_tokens_that_are_given_begin_it():
    source = _source("t5", 30)
    given = torch.tensor([[9, 4, 33]])
    with torch.no_grad():
        options: Any = {"decoder_input_ids": given, "max_new_tokens": 25, "do_sample": False}
        expected = MODELS["t5"]().generate(torch.from_numpy(source), **options)[0].tolist()
    made = _made("t5", source, decoder_input_ids=given.numpy(), max_new_tokens=25)
    assert [0, 9, 4, 33, *made.tokens] == expected


def test_padding_is_left_out():
    source = _source("t5", 20)
    padded = np.concatenate([source, np.zeros((1, 9), np.int64)], axis=1)
    mask = (np.arange(29) < 20).astype(np.int64)[None]
    made = _made("t5", {"input_ids": padded, "attention_mask": mask}, max_new_tokens=20, no_repeat_ngram_size=2)
    assert made.tokens == _made("t5", source, max_new_tokens=20, no_repeat_ngram_size=2).tokens


def test_the_encoder_runs_once(monkeypatch):
    loaded = load(bundle_folder("t5"), threads=1)
    with loaded.open_context(_source("t5", 40)) as context:
        encoder = loaded.generation.calls
        logits = context.append([0])
        for token in tokens(60):
            context.step(token)
        assert loaded.generation.calls - encoder < 2 * 62 + 5
        monkeypatch.setattr(KeptSource, "__init__", None)  # nothing of the encoder is computed or copied again
        branch = context.fork()
        branch.rollback(1)
        np.testing.assert_array_equal(branch.append(tokens(5)), _appended(context, tokens(5)))
        context.rollback(0)
        np.testing.assert_array_equal(context.append([0]), logits)


def _appended(context, more):
    context.rollback(1)
    return context.append(more)


@pytest.mark.parametrize("length", [20, WIDEST + 20])
def test_a_context_s_bits_do_not_depend_on_how_it_grew(length):
    sequence = [0, *tokens(3 * BLOCK)]
    with bundle("t5").open_context(_source("t5", length)) as whole:
        expected = whole.append(sequence)
        for cuts in ((1, 2, 9), (5, BLOCK, BLOCK + 1, 40)):
            with whole.fork() as other:
                other.rollback(0)
                logits = expected
                for start, stop in zip((0, *cuts), (*cuts, len(sequence)), strict=True):
                    logits = other.append(sequence[start:stop])
                    other.step(7)
                    other.rollback(stop)
                np.testing.assert_array_equal(logits, expected)


@pytest.mark.parametrize(("name", "source"), [("t5", 30), ("t5", WIDEST + 1), ("bart", 40), ("whisper", 50)])
@pytest.mark.parametrize(("prompt", "new"), [(1, 20), (20, 40)])
def test_calls_and_bytes_are_those_of_the_plan(name, source, prompt, new):
    loaded = bundle(name)
    plan = generation_plan(loaded.program, prompt, new, source)
    lengths = {"n": 1} | ({} if name == "whisper" else {"m": source})
    encoder = make_schedule(loaded.program, lengths, output=SOURCE)
    assert {value_rows(value, lengths) for value in loaded.generation.steps.source} == {source}
    sequence, before = tokens(prompt + new), loaded.generation.calls
    with loaded.open_context(_source(name, source)) as context:
        assert loaded.generation.calls - before == encoder.engine_calls
        before = loaded.generation.calls
        context.append(sequence[:prompt])
        assert loaded.generation.calls - before == plan.prompt_calls
        for token in sequence[prompt:-1]:
            context.step(token)
        assert loaded.generation.calls - before == plan.prompt_calls + plan.step_calls
        assert context.nbytes == plan.kept_bytes


@pytest.mark.parametrize(("name", "length"), [("t5", 40), ("t5", WIDEST + 20), ("whisper", None)])
def test_the_proof_passes_what_is_right(name, length):
    report = verify_generation(bundle_folder(name), MODELS[name](), new_tokens=2 * BLOCK, length=length)
    assert report.passed
    assert report.rollback_equal
    assert report.block_borders == 2


def test_the_proof_sees_a_source_that_is_cut_short(monkeypatch):
    init = KeptSource.__init__
    monkeypatch.setattr(
        KeptSource,
        "__init__",
        lambda self, steps, values: init(self, steps, {n: a[:, :, :-1] for n, a in values.items()}),
    )
    report = verify_generation(bundle_folder("t5"), MODELS["t5"](), new_tokens=4, length=20)
    assert report.ratio > 4
    assert not report.passed


def test_what_can_not_be_is_refused():
    t5, source = bundle("t5"), _source("t5", 9)
    asked: tuple[tuple[dict[str, Any], str], ...] = (
        ({"language": "en"}, "language"),
        ({"decoder_input_ids": [0.5]}, "decoder_input_ids: are float64"),
        ({"encoder_repetition_penalty": 2.0}, "encoder_repetition_penalty 2.0"),
        ({"decoder_start_token_id": [1, 2]}, "needs one"),
    )
    for options, problem in asked:
        with pytest.raises(InputError, match=problem):
            t5.generate(source, **options)
    prompts: tuple[tuple[Any, str], ...] = (
        ([{"role": "user", "content": "hi"}], "conversation"),
        ("a text", "no tokenizer"),
        ({"input_ids": source, "decoder_input_ids": source}, "decoder_input_ids="),
        (np.array([[CLASSES]]), "64"),
        (np.zeros((2, 5), np.int64), "several inputs"),
    )
    for prompt, problem in prompts:
        with pytest.raises(InputError, match=problem):
            t5.generate(prompt)
    with pytest.raises(InputError, match="model's encoder"):
        t5.open_context()
    with pytest.raises(InputError, match="no encoder"):
        bundle("llama").open_context([1, 2])
    with pytest.raises(InputError, match="models with an encoder"):
        bundle("llama").generate([1, 2], decoder_input_ids=[3])
    with pytest.raises(InputError, match="output of an encoder"):
        t5.generation.keep_prefixes(1 << 20)
    with t5.open_context(source) as context, pytest.raises(InputError, match="has begun"):
        t5.generate([0], context=context, decoder_input_ids=[3])
    speech: tuple[tuple[dict[str, Any], str], ...] = (
        ({"language": "it"}, "'it' is none"),
        ({"task": "sing"}, "'sing' is none"),
        ({"return_timestamps": True}, "return_timestamps"),
        ({"language": "en", "decoder_input_ids": [3]}, "without decoder_input_ids"),
    )
    for options, problem in speech:
        with pytest.raises(InputError, match=problem):
            bundle("whisper").generate(_source("whisper", 1), **options)
