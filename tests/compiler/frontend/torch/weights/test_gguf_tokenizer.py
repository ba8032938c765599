"""Text of a GGUF file is cut as its vocabulary was learned, or not at all.

The expected pieces are those of llama.cpp's expressions; its tokens of 233 texts were compared with these by hand.
"""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import gguf
import pytest
from tokenizers import pre_tokenizers

from twoheads.compiler.frontend.torch.weights import gguf_tokenizer
from twoheads.compiler.frontend.torch.weights.gguf_tokenizer import file_tokenizer

TEXT = "It's 1234:\n\n5. x=y  z"
SPACE, LINE = "Ġ", "Ċ"
"""How a vocabulary of bytes writes a space and a line break."""


def write(path: Path, kind: str, cut: str | None = None, *, prefix: bool | None = None, arch: str = "llama") -> Path:
    """A header with a vocabulary: all bytes, or some pieces; one token is made by no merge."""
    writer = gguf.GGUFWriter(path, arch)
    writer.add_name("tiny")
    writer.add_context_length(64)
    writer.add_embedding_length(32)
    writer.add_block_count(1)
    writer.add_tokenizer_model(kind)
    if cut is not None:
        writer.add_tokenizer_pre(cut)
    if prefix is not None:
        writer.add_add_space_prefix(prefix)
    if kind == "gpt2":
        writer.add_token_list([*sorted(pre_tokenizers.ByteLevel.alphabet()), "ab", "xy"])
        writer.add_token_merges(["x y"])
    else:
        tokens = ["<unk>", "<s>", "</s>", "▁", "a", "b", "▁a"]
        writer.add_token_list(tokens)
        writer.add_token_scores([0.0, 0.0, 0.0, -3.0, -4.0, -5.0, -1.0])
        writer.add_token_types([2, 3, 3, 1, 1, 1, 1])
        writer.add_unk_token_id(0)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def tokenizer_of(path: Path) -> Any:
    return file_tokenizer(path, {"gguf_file": path.name, "local_files_only": True})


@pytest.mark.parametrize(
    ("cut", "pieces"),
    [
        ("gpt-2", "It 's _1234 : | | 5 . _x = y _ _z"),
        ("smollm", "It 's _ 1 2 3 4 : || 5 . _x = y _ _z"),
        ("starcoder", "It 's _ 1 2 3 4 : || 5 . _x = y _ _z"),
        ("falcon", "It ' s _ 123 4 : | | 5 . _x = y _ _z"),
        ("stablelm2", "It 's _ 1 2 3 4 :|| 5 . _x =y _ _z"),
        ("qwen2", "It 's _ 1 2 3 4 :|| 5 . _x =y _ _z"),
        ("llama-bpe", "It 's _ 123 4 :|| 5 . _x =y _ _z"),
        ("deepseek-coder", "It ' s _ 1 2 3 4 : | | 5 . _x = y _ _z"),
        ("bloom", "It's _1234: || 5 . _x=y _ _z"),
    ],
)
def test_text_is_cut_as_the_file_says(tmp_path: Path, cut: str, pieces: str) -> None:
    backend = tokenizer_of(write(tmp_path / "model.gguf", "gpt2", cut)).backend_tokenizer
    found = [piece for piece, _ in backend.pre_tokenizer.pre_tokenize_str(TEXT)]
    assert found == pieces.replace("_", SPACE).replace("|", LINE).split(" ")


@pytest.mark.parametrize(("cut", "tokens"), [("llama-bpe", ["ab"]), ("tekken", ["ab"]), ("qwen2", ["a", "b"])])
def test_a_piece_that_is_a_token_is_that_token_where_merges_are_passed_over(
    tmp_path: Path, cut: str, tokens: list[str]
) -> None:
    assert tokenizer_of(write(tmp_path / "model.gguf", "gpt2", cut)).tokenize("ab") == tokens


@pytest.mark.parametrize("cut", ["default", "superbpe", None])
def test_a_way_that_nobody_knows_leaves_the_tokenizer_out(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, cut: str | None
) -> None:
    with caplog.at_level(logging.WARNING):
        assert tokenizer_of(write(tmp_path / "model.gguf", "gpt2", cut)) is None
    assert f"in a way that is not known here (tokenizer.ggml.pre: {cut})" in caplog.text


def test_a_release_that_does_not_tell_leaves_it_out_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write(tmp_path / "model.gguf", "gpt2", "qwen2")
    loaded = tokenizer_of(path)
    monkeypatch.setattr(gguf_tokenizer, "_known_to_library", dict)
    assert loaded is not None
    assert tokenizer_of(path) is None
    assert tokenizer_of(write(tmp_path / "digits.gguf", "gpt2", "smollm")) is not None


def test_gpt2_need_not_say_how(tmp_path: Path) -> None:
    assert tokenizer_of(write(tmp_path / "model.gguf", "gpt2", arch="gpt2")).tokenize("xy") == ["xy"]


@pytest.mark.parametrize(("prefix", "tokens"), [(None, ["▁a", "b"]), (True, ["▁a", "b"]), (False, ["a", "b"])])
def test_a_space_is_put_in_front_unless_the_file_says_no(
    tmp_path: Path, prefix: bool | None, tokens: list[str]
) -> None:
    backend = tokenizer_of(write(tmp_path / "model.gguf", "llama", prefix=prefix)).backend_tokenizer
    encoded = backend.encode("ab", add_special_tokens=False)
    assert encoded.tokens == tokens
    assert backend.decode(encoded.ids) == "ab"
    if prefix is False:
        assert backend.decode(backend.encode(" ab", add_special_tokens=False).ids) == " ab"
