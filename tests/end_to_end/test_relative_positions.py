"""Scores of content and distance at once: models run as the library runs them, near and beyond the last bucket."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers as hf

from tests.tiers import with_long
from twoheads.compiler import compile_model
from twoheads.export import verify, write_bundle
from twoheads.graphs.errors import CompileError, InputError
from twoheads.graphs.program.program import AttentionEngine
from twoheads.runtime import load

SIZES: dict[str, Any] = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 4, "intermediate_size": 64}
HF: Any = hf
"""Configurations take fields that their types do not name."""

DEBERTA: dict[str, Any] = SIZES | {
    "vocab_size": 61, "max_position_embeddings": 24, "relative_attention": True, "position_biased_input": False,
    "type_vocab_size": 0,
}  # fmt: skip
WAVES: dict[str, Any] = SIZES | {
    "conv_dim": (16, 16), "conv_stride": (5, 2), "conv_kernel": (10, 3), "num_feat_extract_layers": 2,
    "num_conv_pos_embeddings": 16, "num_conv_pos_embedding_groups": 4, "num_buckets": 16, "max_bucket_distance": 20,
}  # fmt: skip

MODELS: dict[str, Callable[[], Any]] = {
    "DeBERTa, distances as they are": lambda: hf.DebertaModel(HF.DebertaConfig(**DEBERTA, pos_att_type=["c2p"])),
    "DeBERTa v3, buckets of distances": lambda: hf.DebertaV2Model(
        HF.DebertaV2Config(
            **DEBERTA, pos_att_type=["p2c", "c2p"], position_buckets=8, norm_rel_ebd="layer_norm", share_att_key=True
        )
    ),
    "WavLM, a gate on buckets": lambda: hf.WavLMModel(hf.WavLMConfig(**WAVES)),
    "wav2vec2-BERT, embeddings of distances": lambda: hf.Wav2Vec2BertModel(
        HF.Wav2Vec2BertConfig(**SIZES, feature_projection_input_dim=10, left_max_position_embeddings=9)
    ),
    "a Conformer, sinusoids of distances": lambda: hf.Wav2Vec2ConformerModel(
        HF.Wav2Vec2ConformerConfig(**WAVES, position_embeddings_type="relative")
    ),
    "XLNet, sinusoids of distances": lambda: hf.XLNetModel(
        HF.XLNetConfig(vocab_size=61, d_model=32, n_layer=1, n_head=4, d_inner=64, mem_len=48)  # no limit of an input
    ),
}


FIRST = [name for name in MODELS if "Conformer" not in name]
"""XLNet has sinusoids of distances, and WavLM reads a waveform."""


@pytest.mark.parametrize("name", with_long(MODELS, FIRST))
def test_scores_by_distance_are_the_librarys(name: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = MODELS[name]().eval()
    for parameter in model.parameters():
        if parameter.ndim > 1:
            torch.nn.init.normal_(parameter, std=0.2)  # so that distances matter
    path = write_bundle(compile_model(model, block_size=16), tmp_path / "bundle", generation=False)
    bundle = load(path)
    argument = model.main_input_name
    samples = 10 if argument == "input_values" else 1
    for tokens in (1, 33, 70):
        random = np.random.default_rng(tokens)
        shapes = {"input_values": (1, samples * tokens + 15), "input_features": (1, tokens, 10)}
        given: Any = random.integers(0, 61, (1, tokens))
        if argument in shapes:
            given = random.standard_normal(shapes[argument]).astype(np.float32)
        with torch.no_grad():
            want = model(torch.from_numpy(given))[0][0].numpy()
        result = bundle.run({argument: given}, output="hidden")
        assert result.array is not None
        np.testing.assert_allclose(result.array, want, rtol=0, atol=5e-6 * np.abs(want).max())
        assert result.report.engine_calls == result.report.formula_calls
    assert verify(path, model, length=70 * samples).passed
    engines = [engine for engine in bundle.program.engines if isinstance(engine, AttentionEngine)]
    assert [engine.distances > 0 for engine in engines] == ["sinusoids" not in name]


INKLING: dict[str, Any] = {
    "vocab_size": 61, "unpadded_vocab_size": 61, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "head_dim": 8, "swa_num_attention_heads": 4, "swa_num_key_value_heads": 2,
    "swa_head_dim": 8, "sliding_window_size": 9, "d_rel": 4, "rel_extent": 20, "log_scaling_n_floor": 12,
    "moe_intermediate_size": 16, "n_routed_experts": 3, "num_experts_per_tok": 2, "eos_token_id": 2,
    "n_layers_per_attn_res_block": 1, "layer_types": ["hybrid_sliding", "hybrid"],
}  # fmt: skip


def test_biases_by_backward_distance_and_computed_sinks_are_the_librarys(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model: Any = hf.Inkling2ForCausalLM(HF.Inkling2TextConfig(**INKLING)).eval()
    for parameter in model.parameters():
        if parameter.ndim > 1:
            torch.nn.init.normal_(parameter, std=0.2)
    own: Any = hf.Inkling2ForCausalLM._from_config(model.config, attn_implementation="eager").eval()
    own.load_state_dict(model.state_dict())
    path = write_bundle(compile_model(model, block_size=16), tmp_path / "bundle", generation=False)
    bundle = load(path)
    for tokens in (1, 17, 53):
        given = np.random.default_rng(tokens).integers(0, 61, (1, tokens))
        with torch.no_grad():
            want = own(torch.from_numpy(given), use_cache=False).logits[0].numpy()
        result = bundle.run({"input_ids": given}, output="logits")
        assert result.array is not None
        np.testing.assert_allclose(result.array, want, rtol=0, atol=2e-5 * np.abs(want).max())
    masks = [str(stage.mask) for stage in bundle.program.attentions]
    assert masks == ["window(8, -1) & causal", "causal"]


def test_lowerings_without_such_scores_say_so() -> None:
    model = MODELS["DeBERTa, distances as they are"]().eval()
    for lowering in ("stock", "oracle"):
        with pytest.raises(CompileError, match="scores"):
            compile_model(model, block_size=16, lowering=lowering)


def test_talking_heads_are_refused() -> None:
    model = hf.DebertaModel(HF.DebertaConfig(**DEBERTA, pos_att_type=["c2p"], talking_head=True)).eval()
    with pytest.raises(CompileError, match="talking heads"):
        compile_model(model, block_size=16)


def test_a_table_of_positions_may_end_before_the_last_bucket_of_a_bias(tmp_path: Path) -> None:
    """LayoutLMv3's buckets reach further than its positions: they are looked at as far as those go."""
    torch.manual_seed(0)
    sizes = SIZES | {"vocab_size": 61, "coordinate_size": 4, "shape_size": 8, "input_size": 40, "visual_embed": False}
    model = hf.LayoutLMv3ForTokenClassification(HF.LayoutLMv3Config(**sizes, max_position_embeddings=130)).eval()
    bundle = load(write_bundle(compile_model(model, block_size=16), tmp_path / "bundle", generation=False))
    for tokens in (1, 33, 128):
        given = np.random.default_rng(tokens).integers(2, 61, (1, tokens))
        with torch.no_grad():
            want = model(torch.from_numpy(given)).logits[0].numpy()
        result = bundle.run(given, output="logits")
        assert result.array is not None
        np.testing.assert_allclose(result.array, want, rtol=0, atol=5e-6 * np.abs(want).max())
    with pytest.raises(InputError, match="exceed what the model"):
        bundle.run(np.full((1, 129), 7), output="logits")
