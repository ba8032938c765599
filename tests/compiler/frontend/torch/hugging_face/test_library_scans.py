from __future__ import annotations

import sys
from typing import Any

import pytest
import torch

from tests.compiler.hybrids import HYBRIDS, hybrid
from tests.tiers import with_long
from twoheads.compiler.frontend.torch.capture import capture
from twoheads.compiler.frontend.torch.hugging_face.library_scans import own_scans
from twoheads.compiler.frontend.torch.load_source import load_source
from twoheads.compiler.ir.source_graph import ScanNode
from twoheads.compiler.original.prove_capture import prove_capture
from twoheads.graphs.errors import CompileError

SCANS = {
    "lfm2": {"causal_conv"},
    "qwen3_next": {"causal_conv", "gated_delta_rule"},
    "kimi_linear": {"causal_conv", "gated_delta_rule"},
    "olmo_hybrid": {"causal_conv", "gated_delta_rule"},
    "mamba2": {"causal_conv", "decayed_attention"},
    "nemotron_h": {"causal_conv", "decayed_attention"},
    "falcon_h1": {"causal_conv", "decayed_attention"},
    "granitemoehybrid": {"causal_conv", "decayed_attention"},
    "minimax": {"decayed_attention"},
    "mamba": {"causal_conv", "selective_scan"},
    "jamba": {"causal_conv", "selective_scan"},
    "recurrent_gemma": {"causal_conv", "diagonal_scan"},
    "rwkv": {"causal_conv", "diagonal_scan", "max_scan"},
    "xlstm": {"decayed_attention", "max_scan"},
}


FIRST = ("kimi_linear", "olmo_hybrid", "mamba2", "minimax", "mamba")
"""One for each scan, and one for each way of the library to write it, but for those that test_hybrids.py compiles."""

RUNS = "tests/end_to_end/test_hybrids.py::test_runs_of_any_length_equal_the_library"


@pytest.mark.parametrize(
    "kind",
    with_long(HYBRIDS, FIRST, RUNS),
)
def test_recurrences_are_captured_as_scans_and_compute_what_the_library_does(kind: str) -> None:
    source = load_source(hybrid(kind))
    captured = capture(source)
    assert {node.operator for node in captured.graph.cuts if isinstance(node, ScanNode)} == SCANS[kind]
    prove_capture(source, captured)


@pytest.mark.parametrize("forgotten", ["decay", "skip", "bias"])
def test_a_hook_that_forgets_a_part_is_caught(forgotten: str, monkeypatch: pytest.MonkeyPatch) -> None:
    from twoheads.compiler.frontend.torch.hugging_face import library_scans

    functions: dict[str, Any] = dict(library_scans._FUNCTIONS)  # pyright: ignore[reportPrivateUsage]
    scan, conv = functions["mamba2_chunk_scan"], functions["causal_conv1d_fn"]
    changed: dict[str, Any] = {
        "decay": {"mamba2_chunk_scan": lambda x, dt, a, *rest, **words: scan(x, dt, a * 1.001, *rest, **words)},
        "skip": {"mamba2_chunk_scan": lambda *given, **words: scan(*given, **{**words, "D": None})},
        "bias": {"causal_conv1d_fn": lambda x, weight, _bias, **words: conv(x, weight, None, **words)},
    }[forgotten]
    monkeypatch.setattr(library_scans, "_FUNCTIONS", functions | changed)
    source = load_source(with_biases(hybrid("mamba2")))
    with pytest.raises(CompileError, match="something else than its captured graph"):
        prove_capture(source, capture(source))


def with_biases(model: Any) -> Any:
    """The same with numbers where the library begins with zeros."""
    for name, parameter in model.named_parameters():
        if name.endswith("conv1d.bias"):
            torch.nn.init.normal_(parameter)
    return model


def test_an_earlier_state_is_refused_and_not_dropped() -> None:
    model = hybrid("qwen3_next")
    home = sys.modules[type(model).__module__]
    rows = torch.zeros((1, 4, 2, 8))
    with own_scans(model), pytest.raises(CompileError, match="'initial_state', a keyword that is not understood"):
        home.torch_chunk_gated_delta_rule(
            rows, rows, rows, rows[..., 0], rows[..., 0], initial_state=torch.zeros((1, 2, 8, 8))
        )


def test_the_library_has_its_own_functions_again_afterwards() -> None:
    model = hybrid("mamba2")
    home = sys.modules[type(model).__module__]
    before = dict(vars(home))
    with own_scans(model):
        assert vars(home)["mamba2_chunk_scan"] is not before["mamba2_chunk_scan"]
    assert {name: value for name, value in vars(home).items() if before.get(name) is not value} == {}
