"""Layers that are copied give the graph that tracing each of them gives, and what is not the same is not copied."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import transformers as hf
from torch import Tensor, nn

from tests.compiler.small_models import llama
from tests.tiers import with_long
from twoheads.compiler import attention, plan_model
from twoheads.compiler.frontend.torch import export_source as door
from twoheads.compiler.frontend.torch.fx.view import layer_of
from twoheads.compiler.frontend.torch.load_source import load_source
from twoheads.compiler.frontend.torch.repeats import copy_layers
from twoheads.compiler.frontend.torch.repeats.copy_layers import EqualLayers

SIZES: dict[str, Any] = {"vocab_size": 67, "hidden_size": 16, "num_attention_heads": 2}
DECODER: dict[str, Any] = SIZES | {"intermediate_size": 24, "num_hidden_layers": 6, "num_key_value_heads": 1}
WINDOWS = ["sliding_attention", "full_attention"] * 3


def _gpt2(**more: Any) -> nn.Module:
    return hf.GPT2LMHeadModel(hf.GPT2Config(vocab_size=67, n_embd=16, n_layer=5, n_head=2, **more)).eval()


def _dense_then_experts() -> nn.Module:
    config = hf.Qwen3MoeConfig(
        **DECODER, num_experts=3, num_experts_per_tok=2, moe_intermediate_size=8, mlp_only_layers=[0, 1]
    )
    return hf.Qwen3MoeForCausalLM(config).eval()


MODELS: dict[str, tuple[Callable[[], nn.Module], int]] = {
    "windows": (
        lambda: hf.Gemma3ForCausalLM(
            hf.Gemma3TextConfig(**DECODER, head_dim=8, sliding_window=8, layer_types=WINDOWS)
        ).eval(),
        2,
    ),
    "dense, then experts": (_dense_then_experts, 2),
    "a scale by the layer's number": (lambda: _gpt2(scale_attn_by_inverse_layer_idx=True), 0),
}
"""Models by what is special about their layers, and how many of these are copied."""


def _traced(module: nn.Module, monkeypatch: pytest.MonkeyPatch, **options: Any) -> tuple[list[str], int]:
    """Every node of the exported graph, and how many layers were copied."""
    made: list[EqualLayers] = []

    def remembered(model: nn.Module) -> EqualLayers:
        made.append(EqualLayers(model))
        return made[-1]

    monkeypatch.setattr(door, "EqualLayers", remembered)
    exported = door.export_source(load_source(module, **options))
    lines = []
    for node in exported.graph.nodes:
        value = node.meta.get("val")
        kind = (value.dtype, [*map(str, value.shape)]) if isinstance(value, Tensor) else str(value)
        lines.append(f"{node.name} = {node.target} {node.args} {node.kwargs} : {kind} in {layer_of(node)}")
    return lines, made[0].copies


@pytest.mark.parametrize(
    "name",
    with_long(
        MODELS,
        ["a scale by the layer's number"],
        "test_a_plan_has_the_same_text",
    ),
)
def test_the_graph_is_that_of_tracing_every_layer(name, monkeypatch):
    make, copies = MODELS[name]
    module = make()
    found, copied = _traced(module, monkeypatch)
    monkeypatch.setattr(copy_layers, "FEWEST", 1000)
    wanted, none = _traced(module, monkeypatch)
    assert found == wanted
    assert (copied, none) == (copies, 0)


def test_a_plan_has_the_same_text(monkeypatch):
    module = llama(num_hidden_layers=5)
    found = plan_model(module, block_size=16)
    monkeypatch.setattr(copy_layers, "FEWEST", 1000)
    assert str(found) == str(plan_model(module, block_size=16))


class _Layer(nn.Module):
    def __init__(self, number: int, after: Callable[[_Layer, Tensor], Tensor]) -> None:
        super().__init__()
        self.number, self.after = number, after
        self.project = nn.Linear(8, 24)

    def forward(self, x: Tensor) -> Tensor:
        query, key, value = self.project(x).view(1, -1, 3, 2, 4).permute(2, 0, 3, 1, 4)
        mixed = attention(query, key, value, mask="causal").transpose(1, 2).reshape(1, -1, 8)
        return self.after(self, x + mixed)


class _Layers(nn.Module):
    """Four layers; ``gather`` makes a value of what they left in ``notes``."""

    def __init__(self, after: Callable[[_Layer, Tensor], Tensor], gather: Any = None) -> None:
        super().__init__()
        self.embedding = nn.Embedding(20, 8)
        self.layers = nn.ModuleList(_Layer(number, after) for number in range(4))
        self.gather = gather

    def forward(self, ids: Tensor) -> Tensor:
        x = self.embedding(ids)
        for layer in self.layers:
            x = layer(x)
        return x if self.gather is None else self.gather(x)


EXAMPLES = (torch.zeros((1, 11), dtype=torch.int64),)


@pytest.mark.parametrize(
    ("after", "copies"),
    [
        (lambda _layer, x: x * 2, 2),
        (lambda layer, x: x * layer.number, 0),
        (lambda layer, x: x * (2 if getattr(layer, "number", 0) < 3 else 5), 0),
        (lambda _layer, x: x.mul_(2), 2),
    ],
    ids=["equal", "number", "number in a condition", "in place"],
)
def test_what_a_layer_reads_decides(after, copies, monkeypatch):
    module = _Layers(after)
    found, copied = _traced(module, monkeypatch, example_inputs=EXAMPLES)
    monkeypatch.setattr(copy_layers, "FEWEST", 1000)
    assert found == _traced(module, monkeypatch, example_inputs=EXAMPLES)[0]
    assert copied == copies


def test_layers_that_leave_something_behind_are_all_traced(monkeypatch):
    notes: list[Tensor] = []

    def after(_layer: _Layer, x: Tensor) -> Tensor:
        notes.append(x + 1)
        return x

    def gather(x: Tensor) -> Tensor:
        total = x + sum(notes)
        notes.clear()
        return total

    module = _Layers(after, gather)
    found, _ = _traced(module, monkeypatch, example_inputs=EXAMPLES)
    assert sum(line.startswith(("add", "add_")) for line in found) >= 4 + 4 + 4, "a note of every layer is added"
    monkeypatch.setattr(copy_layers, "FEWEST", 1000)
    assert found == _traced(module, monkeypatch, example_inputs=EXAMPLES)[0]
