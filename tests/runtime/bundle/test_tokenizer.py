"""The bundle's tokenizer."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from tests.runtime.tiny_bundle import write_tiny
from tests.runtime.tiny_model import Tiny
from twoheads.graphs.errors import BundleError, InputError
from twoheads.runtime import LoadedBundle, load
from twoheads.runtime.bundle.tokenizer import Tokenizer


@pytest.fixture(scope="module")
def text():
    from tokenizers import Tokenizer, models, pre_tokenizers, processors

    words = ["[UNK]", "[CLS]", "the", "cat", "sat"]
    tokenizer = Tokenizer(models.WordLevel({word: at for at, word in enumerate(words)}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.add_special_tokens(["[CLS]"])
    tokenizer.post_processor = processors.TemplateProcessing(single="[CLS] $A", special_tokens=[("[CLS]", 1)])
    tokenizer.enable_truncation(3)
    tokenizer.enable_padding(length=8)
    return tokenizer.to_str()


def open_bundle(folder: Path, text: str) -> tuple[LoadedBundle, Tokenizer]:
    bundle = load(write_tiny(folder / "b", Tiny(layers=1), tokenizer=text))
    assert bundle.tokenizer is not None
    return bundle, bundle.tokenizer


def test_text_is_never_cut_or_padded(tmp_path, text):
    bundle, tokenizer = open_bundle(tmp_path, text)
    tokens = tokenizer.encode("the cat sat the cat sat")
    assert tokens == [1, 2, 3, 4, 2, 3, 4]
    assert tokenizer.encode("the") == [1, 2]
    assert tokenizer.decode(tokens) == "the cat sat the cat sat"
    assert bundle.run(tokens).report.length == 7


def test_a_bundle_without_one(tmp_path):
    assert load(write_tiny(tmp_path / "b", Tiny(layers=1))).tokenizer is None


def test_without_the_package(tmp_path, text, monkeypatch):
    _, tokenizer = open_bundle(tmp_path, text)
    monkeypatch.setitem(sys.modules, "tokenizers", None)
    with pytest.raises(InputError, match="not installed") as caught:
        tokenizer.encode("the")
    assert "pip install" in caught.value.fix


def test_a_file_that_is_not_one(tmp_path):
    _, tokenizer = open_bundle(tmp_path, json.dumps({"model": 3}))
    with pytest.raises(BundleError, match=r"tokenizer\.json: can't be read"):
        tokenizer.encode("the")


def test_a_text_that_its_table_has_no_token_for(tmp_path, text):
    table = json.loads(text)
    del table["model"]["vocab"]["[UNK]"]
    _, tokenizer = open_bundle(tmp_path, json.dumps(table))
    for encode in (tokenizer.encode, lambda words: tokenizer.encode_batch([words])):
        with pytest.raises(BundleError, match=r"tokenizer\.json: has no tokens for the text: .*UNK"):
            encode("the dog")
