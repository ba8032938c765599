"""Writes of one number under a condition are selections; others are refused as before."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from tests.compiler.small_models import EXAMPLES, captured
from twoheads.compiler import attention
from twoheads.compiler.frontend.torch.export_source import export_source
from twoheads.compiler.frontend.torch.load_source import load_source
from twoheads.compiler.frontend.torch.rewrites.masked_writes import places_by_content, select_masked_writes
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


class _Mark(nn.Module):
    """Puts a vector, or a number each, in the place of token 3's embedding."""

    def __init__(self, *, each: bool = False) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.embedding, self.mark, self.each = nn.Embedding(20, 8), nn.Parameter(torch.randn(8)), each

    def forward(self, ids: Tensor) -> Tensor:
        x = self.embedding(ids) * 2
        x[ids == 3] = self.embedding(ids[ids == 3]) if self.each else self.mark
        return x


def test_a_row_written_under_a_condition_is_a_selection() -> None:
    source = load_source(_Mark().eval(), example_inputs={"ids": torch.tensor([[3, 1, 3, 5, 0]])})
    graph = export_source(source).graph_module.graph
    select_masked_writes(graph)
    assert [node.target for node in graph.nodes].count(torch.ops.aten.where.self) == 1
    assert not any(map(places_by_content, graph.nodes))


def test_a_number_for_each_place_that_a_condition_finds_stays_a_write() -> None:
    source = load_source(_Mark(each=True).eval(), example_inputs={"ids": torch.tensor([[3, 1, 3, 5, 0]])})
    graph = export_source(source).graph_module.graph
    select_masked_writes(graph)
    assert any(map(places_by_content, graph.nodes)), "a whole model is refused by this"


def test_a_write_under_a_condition_is_a_selection() -> None:
    source = load_source(_Placeholders().eval(), example_inputs=EXAMPLES)
    found = captured(source.module)
    prove_capture(source, found)
    (entry,) = (entry for entry in found.graph.inputs if entry.source == "argument")
    assert entry.limit == 20, "the table's rows, seen through the selection"
    assert any("where" in str(getattr(node, "op", "")) for node in found.graph.nodes)
