"""Writes of one number under a condition are selections; others are refused as before."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from tests.compiler.small_models import EXAMPLES, captured
from twoheads.compiler import attention
from twoheads.compiler.frontend.torch.load_source import load_source
from twoheads.compiler.original.prove_capture import prove_capture


class _Placeholders(nn.Module):
    """Puts token 0 in the place of tokens from 7 on, which its table does not have."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.embedding, self.project = nn.Embedding(20, 8), nn.Linear(8, 24)

    def forward(self, ids: Tensor) -> Tensor:
        ids = ids.clone()
        ids[ids >= 7] = 0
        x = self.embedding(ids)
        q, k, v = self.project(x).view(1, -1, 3, 2, 4).permute(2, 0, 3, 1, 4)
        return x + attention(q, k, v, mask="causal").transpose(1, 2).reshape(x.shape)


def test_a_write_under_a_condition_is_a_selection() -> None:
    source = load_source(_Placeholders().eval(), example_inputs=EXAMPLES)
    found = captured(source.module)
    prove_capture(source, found)
    (entry,) = (entry for entry in found.graph.inputs if entry.source == "argument")
    assert entry.limit == 20, "the table's rows, seen through the selection"
    assert any("where" in str(getattr(node, "op", "")) for node in found.graph.nodes)
