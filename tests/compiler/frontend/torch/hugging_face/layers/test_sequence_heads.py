"""Classifiers that read the decoder's row at the last end token, and refuse a text without one."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers as hf

from twoheads.compiler import compile_model
from twoheads.export import verify, write_bundle
from twoheads.graphs.errors import InputError
from twoheads.runtime import load

END = 2
SIZES: dict[str, Any] = {
    "vocab_size": 61, "d_model": 32, "encoder_layers": 1, "decoder_layers": 1, "encoder_attention_heads": 2,
    "decoder_attention_heads": 2, "encoder_ffn_dim": 24, "decoder_ffn_dim": 24, "max_position_embeddings": 96,
    "eos_token_id": END, "decoder_start_token_id": END, "pad_token_id": 1, "num_labels": 3,
}  # fmt: skip


def test_the_last_of_several_end_tokens_decides_wherever_it_stands(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = hf.BartForSequenceClassification(hf.BartConfig(**SIZES)).eval()
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    path = write_bundle(compile_model(model, block_size=16), tmp_path / "bundle", generation=False)
    bundle = load(path)
    assert [entry.value.name for entry in bundle.program.inputs if entry.source == "argument"] == ["input_ids"]
    for length, ends in ((1, [0]), (15, [14]), (53, [3, 40])):
        ids = np.random.default_rng(length).integers(3, 61, (1, length))
        ids[0, ends] = END
        with torch.no_grad():
            want = model(torch.from_numpy(ids)).logits[0].numpy()
        got = bundle.run({"input_ids": ids}, output="logits").array
        assert got is not None
        np.testing.assert_allclose(got, want, rtol=0, atol=5e-6 * max(1.0, float(np.abs(want).max())))
    with pytest.raises(InputError, match=r"row .* of 9"):
        bundle.run({"input_ids": np.full((1, 9), 5)}, output="logits")
    assert verify(path, model, length=40).passed
