"""Encoders that attend within a window: the library's chunks of padded inputs, written as a mask."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import transformers as hf

from twoheads.compiler.frontend.torch.capture import capture
from twoheads.compiler.frontend.torch.hugging_face.architectures import replaced
from twoheads.compiler.frontend.torch.load_source import load_source
from twoheads.compiler.original.prove_capture import prove_capture
from twoheads.graphs.errors import CompileError


def _led() -> Any:
    return hf.LEDForConditionalGeneration(
        hf.LEDConfig(
            vocab_size=61, d_model=32, encoder_layers=1, decoder_layers=1, encoder_attention_heads=2,
            decoder_attention_heads=2, encoder_ffn_dim=24, decoder_ffn_dim=24, attention_window=8,
            max_encoder_position_embeddings=96, max_decoder_position_embeddings=96,
        )
    )  # fmt: skip


def _longt5(kind: str = "local") -> Any:
    return hf.LongT5ForConditionalGeneration(
        hf.LongT5Config(
            vocab_size=61, d_model=32, d_kv=8, d_ff=24, num_layers=2, num_decoder_layers=1, num_heads=2,
            local_radius=5, relative_attention_num_buckets=8, relative_attention_max_distance=6,
            encoder_attention_type=kind,
        )
    )  # fmt: skip


MODELS = {"LED": (_led, "window(4, 4)"), "LongT5": (_longt5, "window(5, 5)")}


@pytest.mark.parametrize("name", MODELS)
def test_windows_are_what_the_librarys_chunks_compute(name: str) -> None:
    make, mask = MODELS[name]
    torch.manual_seed(0)
    model = make().eval()
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    given = {
        "input_ids": torch.randint(3, 61, (1, 29)),
        "decoder_input_ids": torch.randint(3, 61, (1, 7)),
        "use_cache": False,
    }
    want = model(**given).logits
    with replaced(model):
        got = model(**given).logits
    torch.testing.assert_close(got, want, atol=1e-4, rtol=1e-4)
    source = load_source(model)
    captured = capture(source)
    assert mask in {str(node.mask) for node in captured.graph.attentions}
    prove_capture(source, captured)


def test_sums_of_blocks_beside_a_window_are_refused_for_what_they_are() -> None:
    with pytest.raises(CompileError, match="one softmax over a window of tokens and over sums of blocks"):
        load_source(_longt5("transient-global"))
