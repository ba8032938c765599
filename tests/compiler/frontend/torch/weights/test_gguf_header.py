"""A GGUF file's configuration from its header alone: the same as the library reads, without the token lists."""

from __future__ import annotations

import struct
import sys
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
from transformers import AutoConfig

from twoheads.compiler import plan_model
from twoheads.compiler.frontend.torch.weights import gguf_header
from twoheads.compiler.frontend.torch.weights.gguf_header import check_gguf, gguf_config
from twoheads.graphs.errors import CompileError

WORDS = 37


def write(
    path: Path,
    *,
    vocabulary: int | None,
    head: bool,
    experts: int | None = None,
    architecture: str = "llama",
    inner: tuple[int, int] | None = None,
) -> Path:
    """The header of a tiny model with a tokenizer of :data:`WORDS`, and a few of its tensors."""
    writer = gguf.GGUFWriter(path, architecture)
    writer.add_name("tiny")
    writer.add_array("general.tags", ["one", "two", "three"])
    writer.add_context_length(64)
    writer.add_embedding_length(32)
    writer.add_block_count(2)
    writer.add_feed_forward_length(48)
    writer.add_head_count(4)
    writer.add_head_count_kv(2)
    writer.add_layer_norm_rms_eps(1e-5)
    if experts is not None:
        writer.add_expert_count(experts)
    if inner is not None:
        writer.add_expert_feed_forward_length(inner[0])
        writer.add_expert_shared_feed_forward_length(inner[1])
    if vocabulary is not None:
        writer.add_vocab_size(vocabulary)
    writer.add_tokenizer_model("llama")
    writer.add_token_list([f"word{number}" for number in range(WORDS)])
    writer.add_token_scores([0.5] * WORDS)
    writer.add_token_types([1] * WORDS)
    writer.add_bos_token_id(3)
    writer.add_tensor("token_embd.weight", np.zeros((WORDS, 32), np.float32))
    if architecture == "gemma4":
        writer.add_tensor("rope_freqs.weight", np.ones(4, np.float32))
    if head:
        writer.add_tensor("output.weight", np.zeros((WORDS, 32), np.float16))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def facts(config: Any) -> dict[str, Any]:
    return {key: value for key, value in config.to_dict().items() if key != "_name_or_path"}


def test_a_mixture_that_the_library_takes_for_dense_is_refused(tmp_path: Path) -> None:
    check_gguf(write(tmp_path / "model.gguf", vocabulary=None, head=True, experts=0))
    path = write(tmp_path / "model.gguf", vocabulary=None, head=True, experts=8)
    with pytest.raises(CompileError, match="mixes 8 experts"):
        plan_model(path, block_size=16)


def test_what_the_library_misreads_is_refused_before_torch_is_loaded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "twoheads.compiler.frontend.torch.capture", None)
    path = tmp_path / "model.gguf"
    for architecture, words in (
        ("falcon", "2 heads of keys"),
        ("gemma4", "neither rotary positions nor heads by layer"),
        ("gpt-oss", "neither experts nor"),
        ("t5", "an encoder-decoder"),
    ):
        write(path, vocabulary=None, head=True, architecture=architecture)
        with pytest.raises(CompileError, match=f"(?s){words}.*Hugging Face folder"):
            plan_model(path, block_size=16)


def test_widths_of_experts_are_those_of_the_file(tmp_path: Path) -> None:
    """The library has the widths of one model for all."""
    path = write(
        tmp_path / "model.gguf", vocabulary=None, head=True, experts=4, architecture="qwen2moe", inner=(24, 56)
    )
    found = gguf_config(path)
    assert (found.moe_intermediate_size, found.shared_expert_intermediate_size) == (24, 56)
    assert found.vocab_size == WORDS


@pytest.mark.parametrize("vocabulary", [None, 41])
@pytest.mark.parametrize("head", [True, False])
def test_it_is_the_configuration_of_the_whole_file(tmp_path: Path, vocabulary: int | None, head: bool) -> None:
    path = write(tmp_path / "model.gguf", vocabulary=vocabulary, head=head)
    found = gguf_config(path)
    whole: Any = AutoConfig.from_pretrained(tmp_path, gguf_file=path.name, local_files_only=True)
    assert facts(found) == facts(whole)
    assert found.vocab_size == (vocabulary or WORDS)
    assert found.tie_word_embeddings != head
    assert found.bos_token_id == 3


def test_the_lists_are_not_read_by_the_library(tmp_path: Path) -> None:
    path = write(tmp_path / "model.gguf", vocabulary=None, head=True)
    with gguf_header.lean_gguf(path) as found:
        lean = found.path
        fields = gguf.GGUFReader(lean).fields
        assert found.tokens == WORDS
        lists = [field for name, field in fields.items() if name in ("tokenizer.ggml.tokens", "tokenizer.ggml.scores")]
        assert [len(field.data) for field in lists] == [gguf_header.CUT] * 2
        assert len(fields["general.tags"].data) == 3
        assert lean.stat().st_size == path.stat().st_size
        folder = lean.parent
    assert not folder.exists()


@pytest.mark.parametrize("at", [4, 9, 24, 200])
def test_a_damaged_header_is_refused(tmp_path: Path, at: int) -> None:
    path = write(tmp_path / "model.gguf", vocabulary=None, head=True)
    content = bytearray(path.read_bytes())
    content[at : at + 8] = struct.pack("<Q", 1 << 60)
    path.write_bytes(content)
    with pytest.raises(CompileError):
        plan_model(path, block_size=16)


@pytest.mark.parametrize("kind", [4, 6, 8])
@pytest.mark.parametrize("count", [2**31, 2**40, 2**63])
def test_a_list_that_is_longer_than_the_file(tmp_path: Path, kind: int, count: int) -> None:
    """The library would read a number that is not there for each of its entries."""
    path = write(tmp_path / "model.gguf", vocabulary=WORDS, head=True)
    data = path.read_bytes()
    entries = struct.unpack_from("<Q", data, 16)[0]
    entry = struct.pack("<Q", 3) + b"x.y" + struct.pack("<IIQ", 9, kind, count)
    path.write_bytes(data[:16] + struct.pack("<Q", entries + 1) + entry + data[24:])
    with pytest.raises(CompileError, match="header that is damaged"):
        check_gguf(path)


def test_tensors_of_endless_dimensions(tmp_path: Path) -> None:
    path = write(tmp_path / "model.gguf", vocabulary=WORDS, head=False)
    data = path.read_bytes()
    name = b"token_embd.weight"
    at = data.index(name) + len(name)
    for dimensions in (9, 2**31):
        path.write_bytes(data[:at] + struct.pack("<I", dimensions) + data[at + 4 :])
        with pytest.raises(CompileError, match=f"a tensor of {dimensions} dimensions"):
            check_gguf(path)


def test_more_layers_than_tensors(tmp_path: Path) -> None:
    """The library would build each of them."""
    path = write(tmp_path / "model.gguf", vocabulary=WORDS, head=False)
    data = path.read_bytes()
    name = b".block_count"
    at = data.index(name) + len(name) + 4
    path.write_bytes(data[:at] + struct.pack("<I", 10**6) + data[at + 4 :])
    with pytest.raises(CompileError, match="1000000 layers, made of"):
        check_gguf(path)
