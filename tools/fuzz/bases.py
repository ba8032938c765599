"""The folders that mutants are copies of: models in every form, a bundle, and what runs of it leave on the disk."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

__all__ = ["BLOCK", "PART", "TOKENS", "WORDS", "make_bases"]

TOKENS = np.array([1, 2, 3, 4, 5] * 9)
WORDS = ("[UNK]", "the", "cat", "sat", "on", "a", "mat", "and", "saw", "dog", "run", "to", "red", "house", "by", "sea")
BLOCK = 16
PART = 2
"""Documents of a part of results."""

CHAT = "{% for message in messages %}{{ message.role }} {{ message.content }} {% endfor %}"
SHAPE: dict[str, Any] = {
    "hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2,
    "max_position_embeddings": 64, "vocab_size": len(WORDS),
}  # fmt: skip


class _StoppedError(Exception):
    """Where a base needs a run that was stopped."""


def make_bases(folder: Path, names: Iterable[str]) -> None:
    """Writes those of ``names``, and what they are made of."""
    for name in (*("source", "bundle") * (not _FREE.issuperset(names)), *names):
        if not (folder / name).exists():
            _BASES[name](folder / name)


def _bundle(folder: Path) -> None:
    from twoheads.compiler import compile_model
    from twoheads.export import write_bundle

    write_bundle(compile_model(folder.with_name("source"), block_size=BLOCK), folder)


def _tokenizer(folder: Path) -> None:
    from tokenizers import Tokenizer, models, pre_tokenizers

    tokenizer: Any = Tokenizer(models.WordLevel({word: at for at, word in enumerate(WORDS)}, unk_token=WORDS[0]))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text(json.dumps({"chat_template": CHAT, "unk_token": WORDS[0]}))


def _llama(folder: Path, **saving: Any) -> None:
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    LlamaForCausalLM(LlamaConfig(**SHAPE)).save_pretrained(folder, **saving)
    _tokenizer(folder)


def _embedder(folder: Path) -> None:
    import torch
    from transformers import BertConfig, BertModel

    torch.manual_seed(0)
    BertModel(BertConfig(**SHAPE)).save_pretrained(folder)
    _tokenizer(folder)
    kinds = ("Transformer", "Pooling", "Normalize")
    paths = ("", "1_Pooling", "2_Normalize")
    stages = [
        {"idx": at, "name": str(at), "path": path, "type": f"sentence_transformers.models.{kind}"}
        for at, (kind, path) in enumerate(zip(kinds, paths, strict=True))
    ]
    (folder / "modules.json").write_text(json.dumps(stages))
    (folder / "1_Pooling").mkdir()
    pooling = {"word_embedding_dimension": 16, "pooling_mode_mean_tokens": True, "pooling_mode_cls_token": False}
    (folder / "1_Pooling" / "config.json").write_text(json.dumps(pooling))
    (folder / "sentence_bert_config.json").write_text(json.dumps({"max_seq_length": 64, "do_lower_case": False}))


def _gguf(folder: Path) -> None:
    import gguf

    folder.mkdir()
    writer: Any = gguf.GGUFWriter(folder / "model.gguf", "llama")
    writer.add_context_length(64)
    writer.add_embedding_length(16)
    writer.add_block_count(1)
    writer.add_feed_forward_length(32)
    writer.add_head_count(2)
    writer.add_head_count_kv(1)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_rope_dimension_count(8)
    writer.add_vocab_size(len(WORDS))
    writer.add_tokenizer_model("llama")
    writer.add_token_list(list(WORDS))
    writer.add_token_scores([0.0] * len(WORDS))
    writer.add_token_types([2, *[1] * (len(WORDS) - 1)])
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_unk_token_id(0)
    draw = np.random.default_rng(0)
    sizes: dict[str, tuple[int, ...]] = {
        "attn_q": (16, 16),
        "attn_k": (8, 16),
        "attn_v": (8, 16),
        "attn_output": (16, 16),
    }
    sizes |= {"ffn_gate": (32, 16), "ffn_up": (32, 16), "ffn_down": (16, 32), "attn_norm": (16,), "ffn_norm": (16,)}
    named = {f"blk.0.{name}": size for name, size in sizes.items()}
    named |= {"token_embd": (len(WORDS), 16), "output": (len(WORDS), 16), "output_norm": (16,)}
    for at, (name, size) in enumerate(named.items()):
        array = draw.standard_normal(size).astype(np.float16 if at % 3 == 2 and len(size) > 1 else np.float32)
        writer.add_tensor(f"{name}.weight", array)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def _onnx(folder: Path, *, external: bool) -> None:
    import onnx
    from onnx import TensorProto, helper, numpy_helper

    draw = np.random.default_rng(0)
    weights = {name: draw.standard_normal((8, 8)).astype(np.float32) for name in ("wq", "wk", "wv")}
    nodes = [
        *(helper.make_node("MatMul", ["x", f"w{name}"], [name]) for name in "qkv"),
        helper.make_node("Transpose", ["k"], ["kt"], perm=[0, 2, 1]),
        helper.make_node("MatMul", ["q", "kt"], ["scores"]),
        helper.make_node("Softmax", ["scores"], ["shares"], axis=-1),
        helper.make_node("MatMul", ["shares", "v"], ["mixed"]),
        helper.make_node("Add", ["x", "mixed"], ["hidden"]),
    ]
    ports = [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["b", "n", 8]) for name in ("x", "hidden")]
    arrays = [numpy_helper.from_array(array, name) for name, array in weights.items()]
    graph = helper.make_graph(nodes, "g", ports[:1], ports[1:], arrays)
    folder.mkdir()
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.save(
        model, str(folder / "model.onnx"), save_as_external_data=external, size_threshold=0, location="model.data"
    )


def _inputs(folder: Path) -> None:
    folder.mkdir()
    np.save(folder / "tokens.npy", TOKENS)
    np.savez_compressed(folder / "arrays.npz", tokens=TOKENS, more=np.ones((3, 4), np.float32))
    lines = [{"id": f"d{at}", "text": "the cat sat"} for at in range(5)] + [{"input_ids": [1, 2, 3]}]
    (folder / "lines.jsonl").write_text("\n".join(map(json.dumps, lines)))


def _job(folder: Path) -> None:
    """A run with ``--spill`` that was stopped in the middle of a stage."""
    from twoheads.export.cli.app import app
    from twoheads.runtime.execution import checkpoints

    folder.mkdir()
    np.save(folder / "tokens.npy", TOKENS)
    patched: Any = checkpoints.Checkpoints
    write, checkpoints.CHECKPOINT_SECONDS = patched._write, 0.0
    written = 0

    def counted(self: Any) -> None:
        nonlocal written
        write(self)
        written += 1
        if written == 4:
            raise _StoppedError

    patched._write = counted
    words = [
        "run",
        folder.with_name("bundle"),
        "--tokens",
        folder / "tokens.npy",
        "--spill",
        folder / "work",
        "-o",
        folder / "out.npz",
    ]
    try:
        app([*map(str, words), "--threads", "1", "--output", "logits"], standalone_mode=False)
    except _StoppedError:
        return
    raise RuntimeError("the job was not stopped")


def _results(folder: Path) -> None:
    """Results of documents that were stopped behind the second part."""
    from twoheads.runtime import load
    from twoheads.runtime.documents import document_run as run

    folder.mkdir()
    lines = [{"id": f"d{at}", "text": "the cat sat on a mat"[: 5 + at]} for at in range(7)]
    (folder / "lines.jsonl").write_text("\n".join(map(json.dumps, lines)))
    run.PART_DOCUMENTS = PART

    def stop(done: Any, total: int) -> None:
        if done.parts == 2:
            raise _StoppedError

    try:
        bundle = load(folder.with_name("bundle"), threads=1)
        run.run_documents(bundle, folder / "lines.jsonl", folder / "work", progress=stop)
    except _StoppedError:
        return
    raise RuntimeError("the documents were not stopped")


def _pages(folder: Path) -> None:
    """The beginnings that a generation has left for the next."""
    from twoheads.runtime import load

    opened = load(folder.with_name("bundle"), threads=1)
    opened.generation.keep_prefixes(1 << 20, folder)
    opened.generate(TOKENS.tolist(), max_new_tokens=2)


def _requests(folder: Path) -> None:
    """What a program hands to ``generate``: a text, tokens, messages, and settings."""
    folder.mkdir()
    greedy = {"prompt": "the cat sat", "max_new_tokens": 4, "stop": ["dog"], "return_logits": True}
    sampled = {"prompt": [1, 2, 3], "max_new_tokens": 4, "do_sample": True, "seed": 1, "temperature": 0.7, "top_k": 5}
    shaped = {"top_p": 0.9, "repetition_penalty": 1.2, "bad_words_ids": [[3]], "sequence_bias": [[[2], 1.5]]}
    messages = [{"role": "user", "content": "the cat"}, {"role": "dog", "content": "sat"}]
    chat = {"prompt": messages, "max_new_tokens": 3, "chat": {"name": "sea"}}
    several = {"prompt": "a mat", "max_new_tokens": 3, "do_sample": True, "seed": 3, "num_return_sequences": 2}
    for name, request in {
        "greedy": greedy, "sampled": sampled | shaped, "chat": chat, "several": several,
    }.items():  # fmt: skip
        (folder / f"{name}.json").write_text(json.dumps(request))


_BASES: dict[str, Callable[[Path], None]] = {
    "source": _llama,
    "shards": partial(_llama, max_shard_size="6KB"),
    "embedder": _embedder,
    "bundle": _bundle,
    "gguf": _gguf,
    "onnx": partial(_onnx, external=False),
    "external": partial(_onnx, external=True),
    "inputs": _inputs,
    "job": _job,
    "results": _results,
    "cache": _pages,
    "requests": _requests,
}
_FREE = {"shards", "embedder", "gguf", "onnx", "external", "inputs"}
"""Those that are made of no other one."""
