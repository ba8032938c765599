"""Scans that read parts of one weight have weights of their own."""

from __future__ import annotations

import dataclasses
from typing import cast

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from twoheads.compiler.frontend.torch.capture import capture
from twoheads.compiler.frontend.torch.fx.fx_program import FxProgram
from twoheads.compiler.frontend.torch.load_source import load_source
from twoheads.compiler.frontend.torch.operators.scan_ops import selective_scan
from twoheads.compiler.ir.source_graph import ScanNode
from twoheads.compiler.original.prove_capture import prove_capture
from twoheads.graphs.errors import CompileError

WIDTH, STATES, HEADS = 3, 2, 2


class _Heads(nn.Module):
    """Zamba's way: one parameter for all heads, and a scan for each."""

    def __init__(self) -> None:
        super().__init__()
        self.rates = nn.Parameter(torch.rand(HEADS, WIDTH, STATES))

    def forward(self, x: Tensor) -> Tensor:
        decays = -torch.exp(self.rates)
        steps, rows = torch.nn.functional.softplus(x), torch.tanh(x)
        keys = x[..., :STATES] * 0.5
        made: list[Tensor] = [selective_scan(steps, rows, keys, keys, decays[head]) for head in range(HEADS)]
        return torch.cat(made, -1)


def test_heads_of_one_parameter_keep_their_own_numbers() -> None:
    module = _Heads()
    captured = capture(load_source(module, example_inputs={"x": torch.randn(1, 9, WIDTH)}))
    scans = [node for node in captured.graph.cuts if isinstance(node, ScanNode)]
    found = [captured.program.weights[node.weights[0]] for node in scans]
    assert len(found) == HEADS
    for head, weight in enumerate(found):
        np.testing.assert_allclose(np.asarray(weight), -np.exp(module.rates[head].detach().numpy()), rtol=1e-6)


def test_a_weight_that_was_computed_wrongly_is_no_capture_of_the_model() -> None:
    source = load_source(_Heads(), example_inputs={"x": torch.randn(1, 9, WIDTH)})
    captured = capture(source)
    prove_capture(source, captured)
    name = next(node for node in captured.graph.cuts if isinstance(node, ScanNode)).weights[0]
    program = cast("FxProgram", captured.program)
    wrong = program.with_weights({name: program.weights[name] * 1.01})
    with pytest.raises(CompileError, match="computes something else than its captured graph"):
        prove_capture(source, dataclasses.replace(captured, program=wrong))
