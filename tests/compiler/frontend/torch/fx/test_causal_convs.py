"""A depthwise convolution over earlier tokens is a scan; any other moves rows as before."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from tests.compiler.small_models import EXAMPLES, captured
from twoheads.compiler import attention
from twoheads.compiler.frontend.torch.load_source import load_source
from twoheads.compiler.ir.source_graph import ScanNode
from twoheads.compiler.original.prove_capture import prove_capture

TAPS = 4


class _Convolved(nn.Module):
    """Attention over tokens that were convolved with ``conv`` and cut by ``cut``."""

    def __init__(self, conv: nn.Conv1d, cut: Callable[[Tensor, int], Tensor]) -> None:
        super().__init__()
        self.embedding, self.project, self.conv, self.cut = nn.Embedding(20, 8), nn.Linear(8, 24), conv, cut

    def forward(self, ids: Tensor) -> Tensor:
        x = self.cut(self.conv(self.embedding(ids).transpose(1, 2)), ids.shape[1]).transpose(1, 2)
        q, k, v = self.project(x).view(1, -1, 3, 2, 4).permute(2, 0, 3, 1, 4)
        return x + attention(q, k, v, mask="causal").transpose(1, 2).reshape(x.shape)


def _first(x: Tensor, rows: int) -> Tensor:
    return x[..., :rows]


CASES: dict[str, tuple[Callable[[], nn.Conv1d], Callable[[Tensor, int], Tensor], int]] = {
    "with a bias": (lambda: nn.Conv1d(8, 8, TAPS, padding=TAPS - 1, groups=8), _first, 1),
    "without one": (lambda: nn.Conv1d(8, 8, TAPS, padding=TAPS - 1, groups=8, bias=False), _first, 1),
    "of all channels": (lambda: nn.Conv1d(8, 8, TAPS, padding=TAPS - 1), _first, 0),
    "over later tokens": (lambda: nn.Conv1d(8, 8, TAPS, padding=TAPS - 1, groups=8), lambda x, n: x[..., -n:], 0),
    "over both sides": (lambda: nn.Conv1d(8, 8, 3, padding=1, groups=8), lambda x, n: x, 0),
}


@pytest.mark.parametrize("case", CASES)
def test_causal_depthwise_convolutions_are_scans(case: str) -> None:
    make, cut, scans = CASES[case]
    torch.manual_seed(0)
    source = load_source(_Convolved(make(), cut).eval(), example_inputs=EXAMPLES)
    found = captured(source.module)
    assert sum(isinstance(node, ScanNode) for node in found.graph.nodes) == scans
    prove_capture(source, found)
