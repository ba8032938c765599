"""Programs that are known without a capture are those that the capture gives, and what is not known is captured."""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
from transformers.models.gemma3 import modeling_gemma3

from tests.tiers import with_long
from twoheads.compiler import plan_model
from twoheads.compiler.known.known_decoder import known_decoder
from twoheads.graphs.errors import CompileError
from twoheads.graphs.program.printer import print_program

PIPELINE = import_module("twoheads.compiler.compile_model")
"""The module: its name in the package is that of a function."""

READER = import_module("twoheads.compiler.known.known_decoder")

Write = Callable[[gguf.GGUFWriter], None]


def write(path: Path, architecture: str, more: Write = lambda _writer: None, **given: Any) -> Path:
    """A header of a decoder and its tables of tokens; sizes differ, so that none passes for another."""
    usual = {
        "layers": 3,
        "hidden": 48,
        "inner": 80,
        "heads": 6,
        "kv_heads": 2,
        "tokens": 37,
        "head": True,
        "tensors": (),
    }
    sizes: dict[str, Any] = usual | given
    writer = gguf.GGUFWriter(path, architecture)
    writer.add_name(sizes.get("name", "tiny"))
    writer.add_context_length(64)
    writer.add_embedding_length(sizes["hidden"])
    writer.add_block_count(sizes["layers"])
    writer.add_feed_forward_length(sizes["inner"])
    writer.add_head_count(sizes["heads"])
    if sizes["kv_heads"]:
        writer.add_head_count_kv(sizes["kv_heads"])
    writer.add_layer_norm_rms_eps(1e-5)
    if "head_dim" in sizes:
        writer.add_rope_dimension_count(sizes["head_dim"])
    if "window" in sizes:
        writer.add_sliding_window(sizes["window"])
    if "key_length" in sizes:
        writer.add_key_length(sizes["key_length"])
        writer.add_value_length(sizes["key_length"])
    if "experts" in sizes:
        number, chosen = sizes["experts"]
        writer.add_expert_count(number)
        writer.add_expert_used_count(chosen)
    if "expert_inner" in sizes:
        writer.add_expert_feed_forward_length(sizes["expert_inner"])
    if "shared_inner" in sizes:
        writer.add_expert_shared_feed_forward_length(sizes["shared_inner"])
    if "taps" in sizes:
        writer.add_shortconv_l_cache(sizes["taps"])
        writer.add_rope_freq_base(1e6)
    if "scan" in sizes:
        inner, states, rank, taps = sizes["scan"]
        writer.add_ssm_inner_size(inner)
        writer.add_ssm_state_size(states)
        writer.add_ssm_time_step_rank(rank)
        writer.add_ssm_conv_kernel(taps)
    more(writer)
    writer.add_string("quantize.imatrix.file", "a.dat")
    writer.add_tokenizer_model("llama")
    if "padding" in sizes:
        writer.add_pad_token_id(sizes["padding"])
    writer.add_token_list([f"word{number}" for number in range(sizes["tokens"])])
    for name in ("token_embd.weight", "output.weight")[: 1 + sizes["head"]]:
        writer.add_tensor(name, np.zeros((sizes["tokens"], sizes["hidden"]), np.float32))
    for name in sizes["tensors"]:
        writer.add_tensor(name, np.zeros(sizes["hidden"], np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


@pytest.fixture
def captured(monkeypatch: pytest.MonkeyPatch) -> Callable[..., Any]:
    """Plans by the capture."""
    monkeypatch.setattr(PIPELINE, "known_decoder", lambda *_: None)
    return plan_model


SMALL_GEMMA: dict[str, Any] = {"window": 40, "key_length": 24, "head": False}
LARGEST_GEMMA: dict[str, Any] = {
    "window": 40,
    "key_length": 16,
    "layers": 46,
    "head": False,
    "tensors": tuple(f"blk.{layer}.attn_norm.weight" for layer in range(46)),
}
"""A Gemma 2 of 27B: its scores are scaled by the width of hidden states for a head."""

MAMBA: dict[str, Any] = {"heads": 0, "kv_heads": 0, "inner": 0, "scan": (96, 7, 5, 4)}

KNOWN: list[tuple[str, dict[str, Any]]] = [
    ("llama", {"head_dim": 32}),
    ("llama", {"layers": 2, "head": False, "tokens": 48, "inner": 48}),
    ("llama", {"heads": 1, "kv_heads": 1}),
    ("qwen2", {"head": False}),
    ("qwen2", {"heads": 4, "kv_heads": 4, "layers": 11}),
    ("qwen3", {}),
    ("qwen3", {"head_dim": 128, "heads": 3, "kv_heads": 3, "head": False}),
    ("gemma2", {"window": 40, "key_length": 24, "layers": 5, "head": False}),
    ("gemma3", {"window": 17, "key_length": 16, "layers": 8, "head": False}),
    ("gemma2", LARGEST_GEMMA),
    ("phi3", {"padding": 0}),
    ("phi3", {"padding": 0, "window": 40}),
    ("phi3", {"padding": 0, "window": 64}),
    ("starcoder2", {"head": False, "layers": 2}),
    ("starcoder2", {"layers": 4}),
    ("gpt2", {"kv_heads": 6}),
    ("bloom", {"kv_heads": 6}),
    ("nemotron", {"head_dim": 4, "head": False}),
    ("stablelm", {"kv_heads": 6}),
    ("llama", {"name": "mistral", "head_dim": 24}),
    ("llama", {"name": "Mistral 7B", "head_dim": 24}),
    ("falcon", {"kv_heads": 1}),
    ("lfm2", {"kv_heads": [0, 0, 2, 0, 2, 2], "layers": 6, "taps": 4, "head": False}),
    ("lfm2", {"kv_heads": [2, 0, 2, 0], "layers": 4, "taps": 3}),
    ("qwen2moe", {"experts": (12, 3)}),
    ("qwen2moe", {"experts": (4, 4), "layers": 2, "expert_inner": 24, "shared_inner": 56}),
    ("qwen3moe", {"experts": (64, 2), "key_length": 16}),
    ("qwen3moe", {"experts": (6, 3), "key_length": 16, "expert_inner": 24}),
    ("minimax-m2", {"experts": (64, 2), "key_length": 16, "head_dim": 8, "inner": 900}),
    ("minimax-m2", {"experts": (6, 2), "key_length": 16, "head_dim": 10}),
    ("stablelm", {"tensors": ("blk.0.ffn_norm.weight", "blk.0.attn_q.bias")}),
    ("mamba", MAMBA | {"layers": 4}),
    ("mamba", MAMBA | {"scan": (80, 16, 3, 3), "head": False, "hidden": 40}),
]
LATER: tuple[dict[str, Any], ...] = (
    {"head_dim": 32},
    {"heads": 1, "kv_heads": 1},
    {"head_dim": 128, "heads": 3, "kv_heads": 3, "head": False},
    {"head": False},
    {"layers": 4},
    LARGEST_GEMMA,
    {"padding": 0, "window": 64},
    {"name": "mistral", "head_dim": 24},
    {"name": "Mistral 7B", "head_dim": 24},
    {"experts": (4, 4), "layers": 2, "expert_inner": 24, "shared_inner": 56},
    {"experts": (64, 2), "key_length": 16},
    {"experts": (6, 2), "key_length": 16, "head_dim": 10},
    {"kv_heads": [2, 0, 2, 0], "layers": 4, "taps": 3},
    MAMBA | {"layers": 4},
)
FIRST = [case for case in KNOWN if case[1].get("layers") != 11 and case[1] not in LATER]


@pytest.mark.parametrize(("architecture", "given"), with_long(KNOWN, FIRST), ids=str)
def test_it_is_the_program_of_a_capture(
    tmp_path: Path,
    captured: Callable[..., Any],
    monkeypatch: pytest.MonkeyPatch,
    architecture: str,
    given: dict[str, Any],
) -> None:
    # The library goes through a set of Gemma 3's two kinds of layers, whose order differs from process to process.
    monkeypatch.setattr(modeling_gemma3, "set", lambda kinds: sorted({*kinds}), raising=False)
    path = write(tmp_path / "a model.gguf", architecture, **given)
    known = known_decoder(path, 32, 64)
    assert known is not None
    found = captured(path, block_size=32, key_tile=64)
    assert print_program(known) == print_program(found)
    assert known == found


def test_a_real_model(smollm2: Path, captured: Callable[..., Any]) -> None:
    assert known_decoder(smollm2, 256, 256) == captured(smollm2)


@pytest.mark.parametrize(
    ("architecture", "more", "given"),
    [
        ("llama", lambda writer: writer.add_rope_scaling_factor(2.0), {}),
        ("llama", lambda writer: writer.add_sliding_window(16), {}),
        ("llama", lambda writer: writer.add_expert_count(4), {}),
        ("llama", lambda writer: writer.add_uint32("split.count", 2), {}),
        ("llama", lambda writer: writer.add_key_length(16), {"head_dim": 32}),
        ("falcon", lambda _writer: None, {}),
        ("lfm2", lambda _writer: None, {"kv_heads": [0, 2, 0], "head": False}),
        ("lfm2", lambda _writer: None, {"kv_heads": [2, 0, 0], "taps": 3}),
        ("lfm2", lambda _writer: None, {"kv_heads": [0, 2], "taps": 3}),
        ("lfm2", lambda _writer: None, {"kv_heads": 2, "taps": 3}),
        ("falcon", lambda _writer: None, {"heads": 1, "kv_heads": 1}),
        ("qwen3moe", lambda _writer: None, {"experts": (4, 5), "key_length": 16}),
        ("qwen3moe", lambda writer: writer.add_rope_scaling_factor(2.0), {"experts": (4, 2), "key_length": 16}),
        ("qwen2moe", lambda _writer: None, {"experts": (4, 2), "shared_inner": 0}),
        ("minimax-m2", lambda _writer: None, {"experts": (4, 2), "key_length": 16}),
        ("llama", lambda _writer: None, {"layers": 1}),
        ("llama", lambda _writer: None, {"heads": 5, "kv_heads": 5}),
        ("llama", lambda _writer: None, {"heads": 6, "kv_heads": 4}),
        ("llama", lambda _writer: None, {"kv_heads": [2, 2, 2]}),
        ("qwen3", lambda writer: writer.add_key_length(64), {}),
        ("starcoder2", lambda writer: writer.add_vocab_size(40), {}),
        ("nemotron", lambda _writer: None, {"head_dim": 6}),
        ("nemotron", lambda _writer: None, {"hidden": 36}),
        ("gpt2", lambda _writer: None, {}),
        ("bloom", lambda _writer: None, {}),
        ("stablelm", lambda _writer: None, {"tensors": ("blk.0.attn_q_norm.weight",)}),
        ("phi3", lambda _writer: None, {}),
        ("qwen2moe", lambda _writer: None, {}),
        ("mamba", lambda _writer: None, MAMBA | {"scan": (96, 7, 5, 1)}),
        ("mamba", lambda _writer: None, MAMBA | {"heads": 6}),
        ("mamba", lambda _writer: None, MAMBA | {"kv_heads": 2}),
        ("mamba", lambda _writer: None, MAMBA | {"padding": 37}),
        ("mamba", lambda writer: writer.add_ssm_group_count(2), MAMBA),
        ("mamba", lambda writer: writer.add_ssm_dt_b_c_rms(True), MAMBA),
        ("gemma2", lambda _writer: None, {"head": False}),
        ("gemma2", lambda writer: writer.add_sliding_window(40), {"head": False}),
        ("gemma2", lambda _writer: None, {"window": 40, "key_length": 24}),
        ("gemma3", lambda _writer: None, {"window": 40, "key_length": 24, "layers": 5, "head": False}),
        ("gemma2", lambda writer: writer.add_attn_logit_softcapping(30.0), {**SMALL_GEMMA, "layers": 4}),
        ("gemma3", lambda writer: writer.add_final_logit_softcapping(30.0), {**SMALL_GEMMA, "layers": 6}),
        ("gemma3", lambda writer: writer.add_rope_scaling_factor(8.0), {**SMALL_GEMMA, "layers": 6}),
        ("gemma3", lambda writer: writer.add_expert_count(4), {"window": 40, "key_length": 24, "layers": 8}),
    ],
)
def test_what_says_more_or_something_else_is_not_known(
    tmp_path: Path, architecture: str, more: Write, given: dict[str, Any]
) -> None:
    assert known_decoder(write(tmp_path / "model.gguf", architecture, more, **given), 16, 16) is None


def test_other_readers_and_other_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write(tmp_path / "model.gguf", "llama")
    assert known_decoder(path, 16, 16) is not None
    path.write_bytes(path.read_bytes()[:-4000][:200])
    assert known_decoder(path, 16, 16) is None
    assert known_decoder(path.with_name("none.gguf"), 16, 16) is None
    assert known_decoder(tmp_path, 16, 16) is None
    write(path, "llama")
    monkeypatch.setattr(READER, "version", lambda _name: "6.0")
    assert known_decoder(path, 16, 16) is None


def test_it_is_planned_without_a_capture(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write(tmp_path / "model.gguf", "llama")
    expected = plan_model(path, block_size=16)

    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("captured")

    monkeypatch.setattr(PIPELINE, "_front", refuse)
    assert plan_model(path, block_size=16) == expected
    with pytest.raises(CompileError, match="window"):
        plan_model(path, block_size=16, lowering="window")
    options: tuple[dict[str, Any], ...] = ({"lowering": "stock"}, {"attention": "window:16"}, {"experts": "dense"})
    for option in options:
        with pytest.raises(AssertionError, match="captured"):
            plan_model(path, block_size=16, **option)
