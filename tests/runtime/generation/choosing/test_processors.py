"""Every processor against that of transformers, on random logits."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from transformers import GenerationConfig, LlamaConfig, LlamaForCausalLM

from twoheads.graphs.errors import InputError
from twoheads.runtime.generation.choosing.chooser import Chooser
from twoheads.runtime.generation.choosing.processors import processors
from twoheads.runtime.generation.choosing.settings import Settings

CLASSES = 211
CASES = (
    {"do_sample": True},
    {"do_sample": True, "temperature": 0.7, "top_k": 0, "top_p": 0.8},
    {"do_sample": True, "temperature": 0.7, "top_k": 0},
    {"do_sample": True, "top_k": 0, "top_p": 0.8},
    {"do_sample": True, "top_k": 5},
    {"do_sample": True, "top_k": 0, "min_p": 0.1},
    {"do_sample": True, "top_k": 0, "typical_p": 0.4},
    {"do_sample": True, "top_k": 0, "top_h": 0.5},
    {"do_sample": True, "top_k": 0, "epsilon_cutoff": 0.01},
    {"do_sample": True, "top_k": 0, "eta_cutoff": 0.02},
    {"do_sample": True, "temperature": 1.8, "top_k": 40, "top_p": 0.9, "min_p": 0.05, "typical_p": 0.95},
    {"repetition_penalty": 1.7},
    {"no_repeat_ngram_size": 2},
    {"bad_words_ids": [[3], [5, 6], [210]]},
    {"sequence_bias": {(4,): 3.0, (5, 9): -2.0}},
    {"min_new_tokens": 40},
    {"exponential_decay_length_penalty": (3, 1.4)},
    {"suppress_tokens": [1, 2], "begin_suppress_tokens": [7], "renormalize_logits": True},
    {"remove_invalid_values": True},
)


@pytest.fixture(scope="module")
def model():
    config = LlamaConfig(
        vocab_size=CLASSES, hidden_size=8, intermediate_size=8, num_hidden_layers=1, num_attention_heads=1
    )
    return LlamaForCausalLM(config)


@pytest.mark.parametrize("case", CASES, ids=lambda case: ",".join(case))
def test_scores_are_those_of_the_library(model, case):
    random = np.random.default_rng(5)
    prompt, ends = 6, [9, 13]
    config = GenerationConfig(**case, eos_token_id=ends)
    model._prepare_special_tokens(config, device="cpu")
    theirs = model._get_logits_processor(config, prompt)
    ours = processors(Settings().changed({"top_k": 0, **case, "eos_token_id": ends}, "test"), prompt)
    for length in (prompt, prompt + 1, prompt + 30):
        sequence = random.integers(0, 12, length).tolist()
        logits = (4 * random.standard_normal(CLASSES)).astype(np.float32)
        if "remove_invalid_values" in case:
            logits[:3] = np.nan, np.inf, -np.inf
        expected = theirs(torch.tensor([sequence]), torch.from_numpy(logits.copy())[None])[0].numpy()
        made = logits
        for process in ours:
            made = process(sequence, made)
        assert np.array_equal(np.isinf(made), np.isinf(expected))
        assert np.allclose(made, expected, rtol=1e-5, atol=1e-5)
        assert made.dtype == np.float32


SAMPLED = (
    {"temperature": 0.6, "top_k": 0},
    {"top_k": 20},
    {"top_k": 0, "top_p": 0.7},
    {"top_k": 0, "min_p": 0.02},
    {"top_k": 0, "repetition_penalty": 1.6},
    {"top_k": 0, "no_repeat_ngram_size": 2},
    {
        "temperature": 1.3,
        "top_k": 60,
        "top_p": 0.95,
        "min_p": 0.01,
        "repetition_penalty": 1.2,
        "no_repeat_ngram_size": 3,
    },
)
DRAWS, LEAST = 4000, 8
"""Tokens that are drawn, and how many of a class must be expected for it to be counted alone."""


@pytest.mark.parametrize("case", SAMPLED, ids=lambda case: ",".join(case))
def test_tokens_are_drawn_as_often_as_the_library_says(model, case):
    """A chi-squared statistic of seeded draws, within six standard deviations of what chance makes of it."""
    random = np.random.default_rng(3)
    sequence = [*random.integers(0, 12, 30).tolist(), 5, 7, 5]
    logits = (2 * random.standard_normal(CLASSES)).astype(np.float32)
    config = GenerationConfig(do_sample=True, **case)
    model._prepare_special_tokens(config, device="cpu")
    theirs = model._get_logits_processor(config, len(sequence))(
        torch.tensor([sequence]), torch.from_numpy(logits)[None]
    )
    expected = DRAWS * torch.softmax(theirs[0].double(), -1).numpy()
    ours = processors(Settings().changed({"do_sample": True, **case}, "test"), len(sequence))
    chooser = Chooser(ours, np.random.SeedSequence(11))
    found = np.bincount([chooser.choose(sequence, logits) for _ in range(DRAWS)], minlength=CLASSES)
    assert not found[expected == 0].any()
    often = expected >= LEAST
    pairs = [(found[often], expected[often]), (found[~often].sum(), expected[~often].sum())]
    statistic = sum(np.sum((seen - wanted) ** 2 / np.maximum(wanted, 1)) for seen, wanted in pairs)
    assert abs(statistic - often.sum()) < 6 * np.sqrt(2 * often.sum())


@pytest.mark.parametrize("ends", [[-1], [9, -1, CLASSES]])
def test_a_token_without_a_logit_is_no_other_token(ends):
    """Some files say -1 for no token, which is not the last of the vocabulary."""
    (process,) = processors(Settings().changed({"min_new_tokens": 4, "eos_token_id": ends, "top_k": 0}, "test"), 2)
    made = process([1, 2], np.zeros(CLASSES, np.float32))
    assert np.flatnonzero(np.isinf(made)).tolist() == [end for end in ends if end == 9]


@pytest.mark.parametrize("given", [{"bad_words_ids": [[-1]]}, {"sequence_bias": [[[2, -3], 1.0]]}])
def test_words_of_negative_tokens(given):
    with pytest.raises(InputError, match="token numbers"):
        Settings().changed(given, "test")
