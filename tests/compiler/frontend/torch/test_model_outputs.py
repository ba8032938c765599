"""Where last hidden states and logits are found, and that no part of a model makes a cache."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import transformers as hf

from tests.compiler.small_models import SIZES, captured, llama
from twoheads.compiler.frontend.torch.load_source import load_source
from twoheads.compiler.frontend.torch.model_outputs import hugging_face_outputs
from twoheads.compiler.original.prove_capture import prove_capture

VISION: dict[str, Any] = {
    "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 1, "num_attention_heads": 2,
    "image_size": 16, "patch_size": 8,
}  # fmt: skip


def _llava() -> Any:
    return hf.LlavaForConditionalGeneration(
        hf.LlavaConfig(
            text_config={"model_type": "llama", **SIZES, "num_key_value_heads": 2},
            vision_config={"model_type": "clip_vision_model", **VISION},
            image_token_index=39,
        )
    ).eval()


def _modernbert() -> Any:
    tokens: dict[str, Any] = dict.fromkeys(("pad_token_id", "bos_token_id", "eos_token_id", "cls_token_id"), 1)
    return hf.ModernBertForMaskedLM(hf.ModernBertConfig(**SIZES, **tokens, sep_token_id=2, local_attention=8)).eval()


def test_a_decoder_with_a_head_of_its_own() -> None:
    """What it returns are logits; the hidden states are those of the model below."""
    parts = hf.BertConfig(**SIZES), hf.BertConfig(**SIZES, is_decoder=True, add_cross_attention=True)
    model = hf.EncoderDecoderModel(config=hf.EncoderDecoderConfig.from_encoder_decoder_configs(*parts)).eval()
    ids = torch.arange(5)[None]
    outputs = hugging_face_outputs(model, {"input_ids": ids, "decoder_input_ids": ids[:, :3]})
    assert {name: tuple(tensor.shape) for name, tensor in outputs.items()} == {
        "hidden": (1, 3, 16),
        "logits": (1, 3, 40),
    }


def test_answers_that_are_classes_are_logits() -> None:
    """LXMERT calls them by a name of their own; its hidden states are those of the language side."""
    sizes = {key: SIZES[key] for key in ("vocab_size", "hidden_size", "intermediate_size", "num_attention_heads")}
    layers = {"l_layers": 1, "x_layers": 1, "r_layers": 1, "visual_feat_dim": 8, "num_qa_labels": 7}
    model = hf.LxmertForQuestionAnswering(hf.LxmertConfig(**sizes, **layers)).eval()
    seen = {"visual_feats": torch.zeros(1, 4, 8), "visual_pos": torch.zeros(1, 4, 4)}
    outputs = hugging_face_outputs(model, {"input_ids": torch.arange(5)[None], **seen})
    shapes = {name: tuple(tensor.shape) for name, tensor in outputs.items()}
    assert shapes == {"hidden": (1, 5, SIZES["hidden_size"]), "logits": (1, 7)}


@pytest.mark.parametrize("make", [_llava, _modernbert])
def test_a_model_around_a_model_and_a_projection_called_decoder(make: Any) -> None:
    """LLaVA's language model makes a cache by its own settings; ModernBERT's decoder is its head's last product."""
    torch.manual_seed(0)
    source = load_source(make())
    found = captured(source.module)
    prove_capture(source, found)
    assert found.graph.types()[found.graph.hidden].shape == (1, "n", 16)
    assert found.graph.types()[str(found.graph.logits)].shape == (1, "n", 40)


def test_settings_are_as_before_afterwards() -> None:
    model = llama()
    assert model.config.use_cache
    hugging_face_outputs(model, {"input_ids": torch.arange(5)[None]})
    assert model.config.use_cache


def test_logits_of_a_model_without_one_below_are_its_result() -> None:
    width = {"embedding_size": 4, "hidden_sizes": [4, 4], "depths": [1, 1], "stem_channels": [3, 4, 4]}
    stages = {
        f"stage_{name}": [number, number]
        for name, number in (
            ("in_channels", 4), ("mid_channels", 4), ("out_channels", 4), ("num_blocks", 1), ("numb_of_layers", 1),
            ("kernel_size", 3),
        )
    }  # fmt: skip
    flags = {f"stage_{name}": [False, False] for name in ("downsample", "light_block")}
    model = hf.HGNetV2ForImageClassification(hf.HGNetV2Config(**width, **stages, **flags, num_labels=3)).eval()
    found = hugging_face_outputs(model, {"pixel_values": torch.zeros((1, 3, 32, 32))})
    assert {name: tuple(tensor.shape) for name, tensor in found.items()} == {"hidden": (1, 3)}
