"""Sizes behind several strides are one axis, whatever the product of the strides."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from twoheads.compiler.frontend.torch.fx.axes import AxisNames
from twoheads.graphs.program.axes import axis_length

WAV2VEC2 = ((10, 5), (3, 2), (3, 2), (3, 2), (3, 2), (2, 2), (2, 2))
"""Kernels and strides, which make a token of 320 samples."""


class _Strided(torch.nn.Module):
    def __init__(self, kernels: tuple[tuple[int, int], ...]) -> None:
        super().__init__()
        self.convs = torch.nn.Sequential(*(torch.nn.Conv1d(1, 1, kernel, stride) for kernel, stride in kernels))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.as_tensor(self.convs(x))


@pytest.mark.parametrize("kernels", [WAV2VEC2, WAV2VEC2[:2], ((400, 320), (4, 2))])
def test_nested_strides_are_one_axis(kernels: tuple[tuple[int, int], ...]) -> None:
    module, dynamic = _Strided(kernels).eval(), {"x": {2: torch.export.Dim.AUTO}}
    graph = torch.export.export(module, (torch.zeros(1, 1, 16001),), dynamic_shapes=dynamic, strict=False).graph
    result: Any = next(iter(reversed(list(graph.nodes)))).args[0][0].meta["val"].shape[2]
    (symbol,) = result.node.expr.free_symbols
    axis = AxisNames({str(symbol): "n"}).dim(result)
    assert isinstance(axis, str)
    for samples in (*range(1400, 1490), 16000, 48001):
        assert axis_length(axis, {"n": samples}) == module(torch.zeros(1, 1, samples)).shape[2]
