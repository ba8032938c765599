"""Torch models that compute attention by products and a softmax of their own, against torch."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import transformers as hf
from torch import Tensor, nn

from tests.end_to_end.agreement import assert_agrees, bundle_of
from twoheads.compiler.frontend.torch.load_source import load_source

NO_TOKENS: dict[str, Any] = {"pad_token_id": None, "bos_token_id": None, "eos_token_id": None}


class HandWritten(nn.Module):
    """Two layers as tutorials write them: one projection, a mask from a buffer, grouped heads repeated."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(67, 32)
        self.project = nn.ModuleList([nn.Linear(32, 64) for _ in range(2)])
        self.out = nn.ModuleList([nn.Linear(32, 32) for _ in range(2)])
        self.register_buffer("seen", torch.ones(1, 1, 128, 128).tril())

    def forward(self, ids: Tensor) -> Tensor:
        x, n = self.table(ids), ids.shape[1]
        for project, out in zip(self.project, self.out, strict=True):
            q, k, v = project(x).split((32, 16, 16), dim=-1)
            q = q.view(1, n, 4, 8).transpose(1, 2)
            k, v = (y.view(1, n, 2, 8).transpose(1, 2).repeat_interleave(2, dim=1) for y in (k, v))
            scores = (q @ k.transpose(-2, -1)) * (1.0 / 8**0.5)
            scores = scores.masked_fill(self.get_buffer("seen")[:, :, :n, :n] == 0, float("-inf"))
            mixed = torch.softmax(scores, dim=-1) @ v
            x = x + out(mixed.transpose(1, 2).reshape(1, n, 32))
        return x


def bloom() -> nn.Module:
    return hf.BloomForCausalLM(hf.BloomConfig(vocab_size=67, hidden_size=32, n_layer=2, n_head=4, **NO_TOKENS))


def mpt() -> nn.Module:
    return hf.MptForCausalLM(
        hf.MptConfig(vocab_size=67, d_model=32, n_layers=2, n_heads=4, max_seq_len=128, **NO_TOKENS)
    )


@pytest.mark.parametrize("make", [bloom, mpt, HandWritten], ids=lambda make: make.__name__)
def test_a_model_with_its_own_attention_agrees_with_torch_at_any_length(make: Any, tmp_path: Path) -> None:
    torch.manual_seed(0)
    model: nn.Module = make().eval()
    for parameter in model.parameters():
        if parameter.ndim > 1:  # the initial weights are so small that attention would hardly matter
            nn.init.normal_(parameter, std=0.15)
    examples = None if isinstance(model, hf.PreTrainedModel) else (torch.zeros((1, 11), dtype=torch.int64),)
    bundle = bundle_of(model, tmp_path, block_size=16, example_inputs=examples)
    source = load_source(model, example_inputs=examples)
    for length in (1, 15, 16, 17, 70, 128):
        assert_agrees(bundle, source, length)
