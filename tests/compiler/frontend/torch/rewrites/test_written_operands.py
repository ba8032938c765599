"""What writes into a value of its own is another operator; what anything else could see is left to torch."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from twoheads.compiler.frontend.torch.rewrites.written_operands import replace_writes, writes


class _Written(nn.Module):
    def __init__(self, compute: Callable[[Tensor, Tensor], Tensor]) -> None:
        super().__init__()
        self.compute = compute

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        return self.compute(x, y)


def _of_its_own(x: Tensor, y: Tensor) -> Tensor:
    z = x @ y
    z += x
    return z * 2


def _read_before(x: Tensor, y: Tensor) -> Tensor:
    shares = torch.topk(x @ y, 2, dim=-1)[0]
    shares /= shares.sum(-1, keepdim=True)
    return shares + 1


def _of_an_input(x: Tensor, y: Tensor) -> Tensor:
    x *= y
    return x


def _of_a_view(x: Tensor, y: Tensor) -> Tensor:
    z = x @ y
    z[:2] += 1
    return z


def _seen_through_a_view(x: Tensor, y: Tensor) -> Tensor:
    z = x + y
    row = z[0]
    z *= y
    return z + row


def _rounded_to_its_type(x: Tensor, y: Tensor) -> Tensor:
    z = x.half() + y.half()
    z += y
    return z


def _of_a_value_that_may_be_its_operand(x: Tensor, y: Tensor) -> Tensor:
    z = torch.dropout(x, 0.5, False)
    z += y
    return z + x


FOUND = [_of_its_own, _read_before]
LEFT = [
    _of_an_input,
    _of_a_view,
    _seen_through_a_view,
    _rounded_to_its_type,
    _of_a_value_that_may_be_its_operand,
]


def _exported(compute: Callable[[Tensor, Tensor], Tensor]) -> torch.export.ExportedProgram:
    return torch.export.export(_Written(compute), (torch.randn(4, 4), torch.randn(4, 4)), strict=False)


@pytest.mark.parametrize("compute", FOUND)
def test_a_write_that_nothing_else_sees_is_another_operator(compute: Callable[[Tensor, Tensor], Tensor]) -> None:
    exported = _exported(compute)
    graph = exported.graph_module.graph
    before = [node.name for node in graph.nodes]
    assert writes(graph)
    assert replace_writes(graph)
    assert not writes(graph)
    assert [node.name for node in graph.nodes] == before
    exported.graph_module.recompile()
    given = torch.randn(4, 4), torch.randn(4, 4)
    assert torch.equal(exported.module()(*given), compute(*(tensor.clone() for tensor in given)))


@pytest.mark.parametrize("compute", LEFT)
def test_a_write_that_may_be_seen_stays(compute: Callable[[Tensor, Tensor], Tensor]) -> None:
    graph = _exported(compute).graph_module.graph
    before = [(node.name, node.target) for node in graph.nodes]
    assert writes(graph)
    assert not replace_writes(graph)
    assert [(node.name, node.target) for node in graph.nodes] == before


def test_a_graph_that_writes_nothing_stays() -> None:
    assert replace_writes(_exported(lambda x, y: x + y).graph_module.graph)
