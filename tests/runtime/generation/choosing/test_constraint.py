"""Texts that keep to a form, whatever the logits say."""

from __future__ import annotations

import json
import re

import numpy as np
import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers

from twoheads.graphs.errors import InputError
from twoheads.runtime.generation.choosing.constraint import read_constraint

pytest.importorskip("llguidance")

END = 256


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    """A token for every byte, and one that ends a text."""
    vocabulary = {char: at for at, char in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
    made = Tokenizer(models.BPE(vocab={**vocabulary, "<end>": END}, merges=[]))
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    made.add_special_tokens(["<end>"])
    path = tmp_path_factory.mktemp("tokenizer") / "tokenizer.json"
    made.save(str(path))
    return made, path


def _constraint(path, *, json_schema=None, regex=None, grammar=None, ends=(END,)):
    return read_constraint(json_schema=json_schema, regex=regex, grammar=grammar, tokenizer=path, ends=ends)


def _text(tokenizer, seed, **form):
    made, path = tokenizer
    constraint = _constraint(path, **form)
    assert constraint is not None
    process, tokens = constraint.processor(3), [5, 6, 7]
    random = np.random.default_rng(seed)
    while len(tokens) < 400:
        scores = process(tokens, random.standard_normal(300).astype(np.float32))
        assert scores.dtype == np.float32
        tokens.append(int(scores.argmax()))
        if tokens[-1] == END:
            return made.decode(tokens[3:-1])
    raise AssertionError("no end")


@pytest.mark.parametrize("seed", range(4))
def test_the_text_has_the_form(tokenizer, seed):
    assert re.fullmatch(r"[a-c]{2,5} [0-9]+x", _text(tokenizer, seed, regex=r"[a-c]{2,5} [0-9]+x"))
    assert _text(tokenizer, seed, grammar='start: "yes" | "no"') in ("yes", "no")
    properties = {"kind": {"enum": ["a", "b"]}, "size": {"type": "integer", "minimum": 0, "maximum": 99}}
    schema = {"type": "object", "properties": properties, "required": ["kind", "size"], "additionalProperties": False}
    made = json.loads(_text(tokenizer, seed, json_schema={**schema, "x-guidance": {"whitespace_flexible": False}}))
    assert made["kind"] in ("a", "b")
    assert 0 <= made["size"] <= 99


@pytest.mark.parametrize(
    ("form", "problem"),
    [
        ({"regex": "("}, "is no grammar"),
        ({"grammar": "start: nothing"}, "is no grammar"),
        ({"json_schema": {"type": "integer", "minimum": 3, "maximum": 2}}, "Unsatisfiable"),
        ({"regex": "a", "grammar": 'start: "a"'}, "is given twice"),
        ({"regex": "a", "ends": ()}, "no token ends"),
    ],
)
def test_what_is_no_form_is_refused(tokenizer, form, problem):
    with pytest.raises(InputError, match=problem):
        _constraint(tokenizer[1], **form)
    assert _constraint(tokenizer[1]) is None


@pytest.mark.parametrize("form", [{"grammar": r"start: /[^\s\S]/"}, {"regex": r"[^\s\S]"}])
def test_a_form_that_allows_no_token_says_so(tokenizer, form):
    constraint = _constraint(tokenizer[1], **form)
    assert constraint is not None
    process = constraint.processor(0)
    with pytest.raises(InputError, match="can't be followed behind 0 tokens: it allows no token"):
        process([], np.zeros(END + 1, np.float32))
