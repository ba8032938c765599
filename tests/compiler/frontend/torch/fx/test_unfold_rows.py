"""Heads folded into the tokens' dimension are unfolded where only their own numbers are computed with."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from tests.compiler.small_models import EXAMPLES, captured
from twoheads.compiler import attention, compile_model
from twoheads.compiler.frontend.torch.load_source import load_source
from twoheads.compiler.original.prove_capture import prove_capture
from twoheads.compiler.passes.partition import partition
from twoheads.graphs.errors import CompileError


class _HeadNorm(nn.Module):
    """Divides each head's numbers by their length, on rows of ``[heads * n, width]``."""

    def __init__(self, over: int = -1) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.embedding, self.project, self.over = nn.Embedding(20, 8), nn.Linear(8, 24), over

    def forward(self, ids: Tensor) -> Tensor:
        x = self.embedding(ids)
        q, k, v = self.project(x).view(1, -1, 3, 2, 4).permute(2, 0, 3, 1, 4)
        mixed = attention(q, k, v, mask="causal").transpose(1, 2)
        rows, gate = mixed.reshape(-1, 4), x.reshape(-1, 4)
        rows = rows * torch.rsqrt(rows.pow(2).mean(self.over, keepdim=True) + 1e-6) * torch.sigmoid(gate)
        return rows.reshape(x.shape)


def test_a_norm_of_each_head_is_token_wise() -> None:
    source = load_source(_HeadNorm().eval(), example_inputs=EXAMPLES)
    found = captured(source.module)
    partition(found.graph)
    prove_capture(source, found)


def test_a_mean_over_tokens_and_heads_is_no_norm() -> None:
    with pytest.raises(CompileError):
        compile_model(_HeadNorm(over=0).eval(), example_inputs=EXAMPLES, block_size=16)
