"""Attention that a module spells out is read whichever way it is written; what is no attention is refused by name."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any, TypeAlias

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from tests.compiler.small_models import EXAMPLES, OneLayer, bloom, captured
from twoheads.compiler.frontend.torch import capture as capture_module
from twoheads.compiler.frontend.torch.capture import capture
from twoheads.compiler.frontend.torch.fx.attention_node import is_attention
from twoheads.compiler.frontend.torch.fx.fx_program import FxProgram
from twoheads.compiler.frontend.torch.fx.view import FxView
from twoheads.compiler.frontend.torch.load_source import load_source
from twoheads.compiler.ir.op_view import RecognisedAttention
from twoheads.compiler.ir.source_graph import AttentionNode
from twoheads.compiler.recognition.prove import prove_attention
from twoheads.compiler.recognition.recognise import recognise_attention
from twoheads.graphs.errors import CompileError
from twoheads.graphs.masks.expressions import parse_mask

Attend: TypeAlias = Callable[[Tensor, Tensor, Tensor], Tensor]
HIDDEN = float("-inf")


def softmax(scores: Tensor) -> Tensor:
    return torch.softmax(scores, dim=-1)


def distance(n: int) -> Tensor:
    at = torch.arange(n)
    return at[None, :] - at[:, None]


def plain(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return softmax(q @ k.transpose(-1, -2) / math.sqrt(4)) @ v


def scaled_before(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return softmax((q * 0.6) @ (k.transpose(-1, -2) * 0.5)) @ v


def causal_by_where(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    scores = q @ k.transpose(-1, -2) * 0.3
    return softmax(torch.where(distance(q.shape[2]) <= 0, scores, HIDDEN)) @ v


def causal_by_fill(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    scores = q @ k.transpose(-1, -2) * 0.3
    return softmax(scores.masked_fill(distance(q.shape[2]) > 0, -1e9)) @ v


def causal_by_product(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """As GPT-2's first versions: multiplied by 0 and lowered by 1e4 where hidden."""
    seen = (distance(q.shape[2]) <= 0).float()
    return softmax(q @ k.transpose(-1, -2) * 0.3 * seen - 1e4 * (1 - seen)) @ v


def window_by_addition(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    at = distance(q.shape[2])
    mask = torch.zeros_like(at, dtype=torch.float32).masked_fill((at > 2) | (at < -5), torch.finfo(torch.float32).min)
    return softmax(q @ k.transpose(-1, -2) * 0.3 + mask) @ v


def capped(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    scores = torch.tanh(q @ k.transpose(-1, -2) * 0.3 / 5.0) * 5.0
    return softmax(scores.masked_fill(distance(q.shape[2]) > 0, HIDDEN)) @ v


def sloped(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    slopes = torch.tensor([0.5, 0.25])[:, None, None]
    scores = q @ k.transpose(-1, -2) * 0.3 + slopes * torch.arange(q.shape[2])
    return softmax(scores.masked_fill(distance(q.shape[2]) > 0, HIDDEN)) @ v


def flattened(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    bias = 0.25 * torch.arange(q.shape[2]).expand(2, 1, q.shape[2])
    scores = torch.baddbmm(bias, q[0], k[0].transpose(1, 2), beta=0.5, alpha=0.3)
    return torch.bmm(softmax(scores), v[0])[None]


def by_einsum(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    weights = softmax(torch.einsum("bhid,bhjd->bhij", q, k) * 0.3)
    return torch.einsum("bhij,bhjd->bihd", weights, v).transpose(1, 2)


def shifted_and_guarded(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    scores = (q @ k.transpose(-1, -2) * 0.3).masked_fill(distance(q.shape[2]) > 0, HIDDEN)
    weights = softmax(scores - scores.amax(-1, keepdim=True))
    return torch.where(torch.isnan(weights), 0.0, weights) @ v


def grouped(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Both query heads read one key head, repeated."""
    k, v = (x[:, :1, None].expand(1, 1, 2, -1, 4).reshape(1, 2, -1, 4) for x in (k, v))
    return softmax(q @ k.transpose(-1, -2) * 0.3) @ v


def floored(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """As XGLM: what is hidden twice is the lowest number, not minus infinity."""
    lowest = torch.finfo(torch.float32).min
    hidden = torch.where(distance(q.shape[2]) <= 0, 0.0, lowest)
    scores = torch.max(q @ k.transpose(-1, -2) * 0.3 + hidden, torch.full((), lowest))
    return softmax(scores.clamp_min(lowest)) @ v


PATTERNS: dict[Attend, dict[str, Any]] = {
    plain: {"scale": 0.5},
    scaled_before: {"scale": 0.3},
    causal_by_where: {"mask": "causal"},
    causal_by_fill: {"mask": "causal"},
    causal_by_product: {"mask": "causal"},
    window_by_addition: {"mask": "window(5, 2)"},
    capped: {"mask": "causal", "softcap": 5.0},
    sloped: {"mask": "causal", "bias": True},
    flattened: {"bias": True},
    by_einsum: {},
    shifted_and_guarded: {"mask": "causal"},
    grouped: {},
    floored: {"mask": "causal"},
}


def the_attention(attend: Attend) -> AttentionNode:
    (node,) = captured(OneLayer(attend=attend)).graph.attentions
    return node


@pytest.mark.parametrize("attend", PATTERNS, ids=lambda attend: attend.__name__)
def test_a_pattern_is_read(attend: Attend) -> None:
    expected: dict[str, Any] = {"mask": "full", "scale": 0.3, "softcap": 0.0, "bias": False} | PATTERNS[attend]
    node = the_attention(attend)
    assert node.mask == parse_mask(expected["mask"])
    assert node.scale == pytest.approx(expected["scale"], rel=1e-6)
    assert node.softcap == expected["softcap"]
    assert (node.bias_slope is not None) == expected["bias"]
    assert node.type.shape == (1, 2, "n", 4)


def test_repeated_heads_are_grouped_again() -> None:
    read = captured(OneLayer(attend=grouped))
    (node,) = read.graph.attentions
    types = read.graph.types()
    assert [types[name].shape[1] for name in node.inputs] == [2, 1, 1]


def test_slopes_are_those_of_the_model_however_they_are_shifted() -> None:
    read = captured(OneLayer(attend=sloped))
    (node,) = read.graph.attentions
    assert node.bias_slope is not None
    np.testing.assert_allclose(np.asarray(read.program.weights[node.bias_slope]), [0.5, 0.25], rtol=1e-6)


def test_learned_sinks_are_read() -> None:
    class Sinks(OneLayer):
        def __init__(self) -> None:
            super().__init__(attend=self.sinking)
            self.sinks = nn.Parameter(torch.tensor([0.5, -1.0]))

        def sinking(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
            column = self.sinks.reshape(1, -1, 1, 1).expand(1, -1, q.shape[2], 1)
            scores = torch.cat([q @ k.transpose(-1, -2) * 0.3, column], dim=-1)
            return softmax(scores)[..., :-1] @ v

    read = captured(Sinks())
    (node,) = read.graph.attentions
    assert node.sinks is not None
    np.testing.assert_array_equal(np.asarray(read.program.weights[node.sinks]), np.array([0.5, -1.0], np.float32))


def test_a_mask_from_a_table_limits_the_length() -> None:
    class Table(OneLayer):
        def __init__(self) -> None:
            super().__init__(attend=self.looking_back)
            self.register_buffer("seen", torch.ones(64, 64).tril().bool())

        def looking_back(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
            n = q.shape[2]
            scores = (q @ k.transpose(-1, -2) * 0.3).masked_fill(~self.get_buffer("seen")[:n, :n], HIDDEN)
            return softmax(scores) @ v

    graph = captured(Table()).graph
    assert [node.mask for node in graph.attentions] == [parse_mask("causal")]
    assert graph.max_length == 64


def test_bloom_is_read() -> None:
    nodes = list(captured(bloom()).graph.attentions)
    assert [(node.layer, str(node.mask)) for node in nodes] == [
        (f"transformer.h.{at}.self_attention", "causal") for at in range(2)
    ]
    assert all(node.bias_slope for node in nodes)


# Refusals


def by_content(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """As DeBERTa: a second term of the scores depends on the keys."""
    return softmax(q @ k.transpose(-1, -2) * 0.3 + (k @ q.transpose(-1, -2)).tanh()) @ v


def masked_by_content(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return softmax(torch.where(k.sum(-1)[:, :, None] > 0, q @ k.transpose(-1, -2), HIDDEN)) @ v


def without_values(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return softmax(q @ k.transpose(-1, -2)).sum(-1, keepdim=True) * v


def of_one_token(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Pooling by learned scores: no queries."""
    return softmax(k.sum(-1))[:, :, None] @ v + q


def dropping_weights(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Probabilities of far keys are set to 0 after the softmax: rows no longer add up to 1."""
    weights = softmax(q @ k.transpose(-1, -2))
    return torch.where(distance(q.shape[2]).abs() < 3, weights, 0.0) @ v


def raised_to_a_floor(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return softmax((q @ k.transpose(-1, -2)).clamp_min(-5.0)) @ v


REFUSED: dict[Attend, str] = {
    raised_to_a_floor: r"aten.clamp_min.default lies between the product of queries and keys and the softmax",
    by_content: r"aten.add.Tensor puts together two terms of the scores that depend on activations",
    masked_by_content: r"its mask depends on what the input says",
    without_values: r"attention probabilities go to aten.sum",
    of_one_token: r"aten.sum.dim_IntList lies between the product of queries and keys and the softmax",
    dropping_weights: r"computes something else",
}


@pytest.mark.parametrize("attend", REFUSED, ids=lambda attend: attend.__name__)
def test_what_is_no_attention_is_refused(attend: Attend) -> None:
    with pytest.raises(CompileError, match=REFUSED[attend]) as refusal:
        captured(OneLayer(attend=attend))
    assert 'node "' in str(refusal.value)
    assert refusal.value.fix


# The proof


def recognised(attend: Attend, monkeypatch: pytest.MonkeyPatch) -> tuple[FxView, RecognisedAttention]:
    views: list[FxView] = []

    def remember(view: FxView) -> tuple[RecognisedAttention, ...]:
        views.append(view)
        return recognise_attention(view)

    monkeypatch.setattr(capture_module, "recognise_attention", remember)
    capture(load_source(OneLayer(attend=attend), example_inputs=EXAMPLES))
    (found,) = recognise_attention(views[0])
    return views[0], found


@pytest.mark.parametrize(
    "change",
    [
        {"scale": 0.303},
        {"softcap": 0.0},
        {"softcap": 5.05},
        {"mask": parse_mask("full")},
        {"mask": parse_mask("window(-1, 1)")},
        {"mask": parse_mask("window(27, 0)")},
        {"bias_slope": np.array([0.01, 0.0], np.float32)},
        {"sinks": np.zeros(2, np.float32)},
    ],
    ids=str,
)
def test_the_proof_notices_a_wrong_reading(change: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    view, found = recognised(capped, monkeypatch)
    prove_attention(view, found, ("n", "n"))
    with pytest.raises(CompileError, match="computes something else"):
        prove_attention(view, replace(found, **change), ("n", "n"))


def test_captured_operators_are_no_spelled_attention() -> None:
    read = captured(OneLayer())
    assert isinstance(read.program, FxProgram)
    assert any(is_attention(node) for node in read.program.nodes.values())
    assert recognise_attention(FxView("one layer", read.program)) == ()
