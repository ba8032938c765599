"""Sources that are no models, incomplete or unsupported: one clear error each."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers as hf
from safetensors.torch import load_file, save_file
from transformers import BertConfig, BertForSequenceClassification, BertModel

from twoheads.compiler import compile_model
from twoheads.compiler.frontend.torch.load_source import load_source
from twoheads.export import write_bundle
from twoheads.graphs.errors import CompileError
from twoheads.graphs.program.program import Pooling
from twoheads.runtime import load


@pytest.fixture
def folder(tiny_llama: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(tiny_llama, tmp_path / "copy"))


def change(path: Path, **entries: object) -> None:
    config = json.loads(path.read_text())
    path.write_text(json.dumps({**config, **entries}))


def test_a_folder_is_read_with_its_tokenizer_and_identity(tiny_llama: Path, folder: Path) -> None:
    source, copy = load_source(tiny_llama), load_source(folder)
    assert source.identity.form == "folder"
    assert source.identity.sha256 == copy.identity.sha256
    assert source.tokenizer_json == (tiny_llama / "tokenizer.json").read_bytes()
    assert source.trained_length == 64


def test_another_size_is_another_identity(folder: Path) -> None:
    before = load_source(folder, weights=False).identity.sha256
    change(folder / "config.json", rms_norm_eps=0.5)
    assert load_source(folder, weights=False).identity.sha256 != before


def test_no_such_file(tmp_path: Path) -> None:
    with pytest.raises(CompileError, match="no such file or folder"):
        compile_model(tmp_path / "absent")


def test_an_empty_folder(tmp_path: Path) -> None:
    with pytest.raises(CompileError, match=r"has no config\.json"):
        compile_model(tmp_path)


def test_some_other_file(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("hello")
    with pytest.raises(CompileError, match=r"\.txt is not a model"):
        compile_model(tmp_path / "notes.txt")


def test_a_gguf_in_name_only(tmp_path: Path) -> None:
    (tmp_path / "model.gguf").write_bytes(b"not a model at all")
    with pytest.raises(CompileError, match="first bytes are not 'GGUF'"):
        compile_model(tmp_path / "model.gguf")


def test_a_truncated_gguf(tmp_path: Path) -> None:
    (tmp_path / "model.gguf").write_bytes(b"GGUF\x03\x00\x00\x00")
    with pytest.raises(CompileError, match="header that is damaged"):
        compile_model(tmp_path / "model.gguf")


def test_a_config_that_is_no_json(folder: Path) -> None:
    (folder / "config.json").write_text("{")
    with pytest.raises(CompileError, match="is not JSON"):
        compile_model(folder)


def test_no_weights(folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    with pytest.raises(CompileError, match="has no weights"):
        compile_model(folder)


def test_truncated_weights(folder: Path) -> None:
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])
    with pytest.raises(CompileError, match="can't read it"):
        compile_model(folder)


def test_one_weight_missing(folder: Path) -> None:
    from safetensors.torch import load_file, save_file

    tensors = load_file(folder / "model.safetensors")
    del tensors["model.layers.1.mlp.up_proj.weight"]
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(CompileError, match=r"has no weight model\.layers\.1\.mlp\.up_proj\.weight"):
        compile_model(folder)


def test_an_unknown_architecture(folder: Path) -> None:
    change(folder / "config.json", architectures=["NobodysForCausalLM"])
    with pytest.raises(CompileError, match="NobodysForCausalLM is not known"):
        compile_model(folder)


def test_a_head_that_pools(tmp_path: Path) -> None:
    config = BertConfig(hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2, vocab_size=9)
    BertForSequenceClassification(config).save_pretrained(tmp_path / "classifier")
    program = compile_model(tmp_path / "classifier", block_size=16).program
    assert not program.head
    assert next(value for value in program.values() if value.name == program.logits).shape == (1, 2)


@pytest.fixture
def encoder(tmp_path: Path) -> Path:
    config = BertConfig(hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2, vocab_size=9)
    BertModel(config).save_pretrained(tmp_path / "encoder")
    return tmp_path / "encoder"


def sentence_transformer(folder: Path, stages: list[str], **pooling: bool) -> None:
    entries = [
        {"type": f"sentence_transformers.models.{stage}", "path": f"{at}_{stage}" if at else ""}
        for at, stage in enumerate(stages)
    ]
    (folder / "modules.json").write_text(json.dumps(entries))
    (folder / "1_Pooling").mkdir(exist_ok=True)
    (folder / "1_Pooling" / "config.json").write_text(json.dumps(pooling))


def test_the_vector_of_a_dpr_is_its_first_token(tmp_path: Path) -> None:
    torch.manual_seed(0)
    sizes: Any = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 4, "intermediate_size": 48}
    model: Any = hf.DPRContextEncoder(hf.DPRConfig(vocab_size=40, **sizes)).eval()
    ids = torch.arange(1, 22)[None]  # 0 would be padding, which it hides
    with torch.no_grad():
        want = model(ids).pooler_output[0].numpy()
    bundle = load(write_bundle(compile_model(model, block_size=16), tmp_path / "bundle", generation=False))
    got = bundle.run({"input_ids": ids.numpy()}, output="embedding").array
    assert got is not None
    np.testing.assert_allclose(got.reshape(-1), want, rtol=0, atol=5e-6 * np.abs(want).max())
    projected = hf.DPRQuestionEncoder(hf.DPRConfig(vocab_size=40, **sizes, projection_dim=8))
    with pytest.raises(CompileError, match="not one row a token"):
        compile_model(projected, block_size=16)


def test_a_bare_encoder_pools_by_mean(encoder: Path) -> None:
    assert load_source(encoder, weights=False).pooling == Pooling("mean", normalize=False)


def test_pooling_is_read_from_the_folder(encoder: Path) -> None:
    sentence_transformer(encoder, ["Transformer", "Pooling", "Normalize"], pooling_mode_cls_token=True)
    assert load_source(encoder, weights=False).pooling == Pooling("cls", normalize=True)


def test_pooling_we_do_not_have_is_refused(encoder: Path) -> None:
    sentence_transformer(encoder, ["Transformer", "Pooling"], pooling_mode_max_tokens=True)
    with pytest.raises(CompileError, match="pooling_mode_max_tokens"):
        compile_model(encoder)
    sentence_transformer(encoder, ["Transformer", "Pooling", "Dense"], pooling_mode_mean_tokens=True)
    with pytest.raises(CompileError, match="Dense"):
        compile_model(encoder)


def test_pooling_as_sentence_transformers_6_says_it(encoder: Path) -> None:
    sentence_transformer(encoder, ["Transformer", "Pooling"])
    change(encoder / "1_Pooling" / "config.json", pooling_mode="lasttoken")
    assert load_source(encoder, weights=False).pooling == Pooling("last", normalize=False)
    change(encoder / "1_Pooling" / "config.json", pooling_mode=["cls", "mean"])
    with pytest.raises(CompileError, match=r"cls.*mean"):
        load_source(encoder, weights=False)


def test_a_model_in_a_folder_of_its_own(encoder: Path, tmp_path: Path) -> None:
    sentence_transformer(encoder, ["Transformer", "Pooling"], pooling_mode_mean_tokens=True)
    listing = json.loads((encoder / "modules.json").read_text())
    (encoder / "modules.json").write_text(json.dumps([{**listing[0], "path": "0_Transformer"}, listing[1]]))
    (encoder / "0_Transformer").mkdir()
    for name in ("config.json", "model.safetensors"):
        (encoder / name).rename(encoder / "0_Transformer" / name)
    source = load_source(encoder)
    assert (source.identity.name, source.identity.architecture) == ("encoder", "BertModel")


def test_texts_that_change_before_they_are_read_are_refused(encoder: Path) -> None:
    sentence_transformer(encoder, ["Transformer", "Pooling"], pooling_mode_mean_tokens=True)
    (encoder / "sentence_bert_config.json").write_text(json.dumps({"do_lower_case": True}))
    with pytest.raises(CompileError, match="do_lower_case"):
        load_source(encoder)


def test_an_embedder_that_is_a_decoder_pools_as_it_says_and_has_no_head(folder: Path) -> None:
    """Qwen3-Embedding: the configuration names a language model, and the last token's hidden states are the vector."""
    sentence_transformer(folder, ["Transformer", "Pooling", "Normalize"], pooling_mode_lasttoken=True)
    source = load_source(folder)
    assert source.pooling == Pooling("last", normalize=True)
    assert source.identity.architecture == "LlamaModel"


# Nothing is dropped in silence


def test_weights_of_a_further_layer_are_no_smaller_model(folder: Path) -> None:
    change(folder / "config.json", num_hidden_layers=1)
    with pytest.raises(CompileError, match=r"does not use: model\.layers\.1\."):
        load_source(folder)


@pytest.mark.parametrize(
    "name",
    ["model.layers.0.self_attn.q_proj.bias", "model.layers.1.mlp.up_proj.lora_A.weight", "lm_head.lora_B.weight"],
)
def test_weights_within_a_layer_that_nothing_reads_are_refused(folder: Path, name: str) -> None:
    add_weight(folder, name)
    with pytest.raises(CompileError, match=f"does not use: {re.escape(name)}"):
        load_source(folder)


@pytest.mark.parametrize("name", ["classifier.weight", "model.layers.0.self_attn.rotary_emb.inv_freq"])
def test_another_head_and_computed_numbers_are_not_missed(folder: Path, name: str) -> None:
    add_weight(folder, name)
    assert load_source(folder).hugging_face


def test_a_tokenizer_that_can_not_be_read_is_an_error(folder: Path) -> None:
    (folder / "tokenizer.json").unlink()
    (folder / "tokenizer.model").write_bytes(b"\x0a\x05hello")
    (folder / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "LlamaTokenizer"}))
    with pytest.raises(CompileError, match=r"tokenizer.* is a tokenizer that can't be read"):
        load_source(folder)


def add_weight(folder: Path, name: str) -> None:
    path = folder / "model.safetensors"
    save_file({**load_file(path), name: torch.zeros(2)}, path, {"format": "pt"})
