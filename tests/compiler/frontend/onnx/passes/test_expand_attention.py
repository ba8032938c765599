"""Attention operators against what they are written out as, both run by ONNX Runtime."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest
from onnx import helper

from twoheads.compiler.frontend.onnx.model.graph import OnnxGraph, OnnxNode
from twoheads.compiler.frontend.onnx.passes.expand_attention import expand_attention
from twoheads.compiler.ir.source_graph import TensorType
from twoheads.graphs.errors import CompileError

Array = np.ndarray[Any, Any]
TOKENS, HEADS, DEPTH = 9, 4, 32
WIDTH = HEADS * DEPTH
MICROSOFT = "com.microsoft"


def normal(*shape: int) -> Array:
    return np.random.default_rng(sum(shape)).standard_normal(shape).astype(np.float32)


def ints(*numbers: int) -> Array:
    return np.array(numbers, np.int32)


ROWS, KV_ROWS = normal(1, TOKENS, WIDTH), normal(1, TOKENS, 2 * DEPTH)
BY_HEAD, KV_BY_HEAD = normal(1, HEADS, TOKENS, DEPTH), normal(1, 2, TOKENS, DEPTH)
OTHER = normal(1, 13, WIDTH)
BIAS = normal(1, HEADS, TOKENS, TOKENS)
SEEN = np.random.default_rng(0).random((1, 1, TOKENS, TOKENS)) > 0.3
COS, SIN = (function(np.outer(np.arange(32), 0.5 ** np.arange(16))).astype(np.float32) for function in (np.cos, np.sin))
PROMPT = [ints(TOKENS - 1), np.array(TOKENS, np.int32)]
EMPTY = np.zeros((1, 2, 0, DEPTH), np.float32)


@dataclass(frozen=True)
class Case:
    """An operator on operands (``None`` for one that is left out)."""

    operator: str
    operands: list[Array | None]
    attributes: dict[str, Any] = field(default_factory=dict[str, Any])
    domain: str = MICROSOFT
    outputs: int = 1
    opset: int = 24


def standard(*operands: Array | None, opset: int = 24, outputs: int = 1, **attributes: Any) -> Case:
    return Case("Attention", list(operands), attributes, "", outputs, opset)


def multi_head(*operands: Array | None, outputs: int = 1, **attributes: Any) -> Case:
    return Case("MultiHeadAttention", list(operands), {"num_heads": HEADS} | attributes, outputs=outputs)


def fused(*operands: Array | None, **attributes: Any) -> Case:
    return Case("Attention", list(operands), {"num_heads": HEADS} | attributes)


def grouped(*operands: Array | None, extra: tuple[Array | None, ...] = (), outputs: int = 3, **attributes: Any) -> Case:
    given: list[Array | None] = [*operands, *[None] * (3 - len(operands)), EMPTY, EMPTY, *PROMPT, *extra]
    return Case("GroupQueryAttention", given, {"num_heads": HEADS, "kv_num_heads": 2} | attributes, outputs=outputs)


BY_ROWS = {"q_num_heads": HEADS, "kv_num_heads": 2}
CASES: dict[str, Case] = {
    "standard, by head": standard(BY_HEAD, KV_BY_HEAD, KV_BY_HEAD, scale=0.4),
    "standard 23, by rows": standard(ROWS, KV_ROWS, KV_ROWS, opset=23, **BY_ROWS),
    "standard, causal, softcap": standard(ROWS, KV_ROWS, KV_ROWS, is_causal=1, softcap=1.5, **BY_ROWS),
    "standard, boolean mask": standard(BY_HEAD, BY_HEAD, BY_HEAD, SEEN),
    "standard, added mask and softcap": standard(BY_HEAD, BY_HEAD, BY_HEAD, BIAS, softcap=1.5),
    "standard, present": standard(ROWS, KV_ROWS, KV_ROWS, outputs=3, is_causal=1, **BY_ROWS),
    "multi-head": multi_head(ROWS, ROWS, ROWS[:, :, ::-1].copy()),
    "multi-head, bias of the projection": multi_head(ROWS, ROWS, ROWS, normal(3 * WIDTH), scale=0.3),
    "multi-head, other keys": multi_head(ROWS, OTHER, OTHER),
    "multi-head, keys by head": multi_head(ROWS, BY_HEAD, BY_HEAD),
    "multi-head, causal": multi_head(ROWS, ROWS, ROWS, unidirectional=1),
    "multi-head, padding": multi_head(ROWS, ROWS, ROWS, None, ints(1, 1, 1, 1, 1, 1, 1, 0, 0)[None]),
    "multi-head, added": multi_head(ROWS, ROWS, ROWS, None, None, BIAS),
    "fused": fused(ROWS, normal(WIDTH, 3 * WIDTH), normal(3 * WIDTH)),
    "fused, causal": fused(ROWS, normal(WIDTH, 3 * WIDTH), normal(3 * WIDTH), unidirectional=1, scale=0.2),
    "fused, lengths": fused(ROWS, normal(WIDTH, 3 * WIDTH), normal(3 * WIDTH), ints(7)),
    "fused, padding": fused(ROWS, normal(WIDTH, 3 * WIDTH), normal(3 * WIDTH), ints(1, 1, 1, 1, 1, 1, 1, 0, 0)[None]),
    "fused, wide values": fused(
        ROWS, normal(WIDTH, 2 * WIDTH + 64), normal(2 * WIDTH + 64), qkv_hidden_sizes=[WIDTH, WIDTH, 64]
    ),
    "grouped": grouped(ROWS, KV_ROWS, KV_ROWS[:, :, ::-1].copy()),
    "grouped, packed": grouped(normal(1, TOKENS, WIDTH + 4 * DEPTH)),
    "grouped, window and softcap": grouped(ROWS, KV_ROWS, KV_ROWS, local_window_size=3, softcap=1.5, scale=0.7),
    "grouped, rotary": grouped(ROWS, KV_ROWS, KV_ROWS, extra=(COS, SIN), do_rotary=1),
    "grouped, interleaved": grouped(ROWS, KV_ROWS, KV_ROWS, extra=(COS, SIN), do_rotary=1, rotary_interleaved=1),
    "grouped, half rotary": grouped(ROWS, KV_ROWS, KV_ROWS, extra=(COS[:, :8].copy(), SIN[:, :8].copy()), do_rotary=1),
    "grouped, added": grouped(ROWS, KV_ROWS, KV_ROWS, extra=(None, None, None, BIAS), softcap=1.5),
    "grouped, sinks": grouped(ROWS, KV_ROWS, KV_ROWS, extra=(None, None, None, None, normal(HEADS))),
    "grouped, smooth": grouped(ROWS, KV_ROWS, KV_ROWS, smooth_softmax=1),
    "rotary, rows": Case("RotaryEmbedding", [ROWS, np.arange(3, 12)[None], COS, SIN]),
    "rotary, heads": Case("RotaryEmbedding", [BY_HEAD, np.array([5]), COS, SIN], {"interleaved": 1}),
}


def graph_of(case: Case) -> tuple[OnnxGraph, dict[str, Array], list[str]]:
    names = ["" if operand is None else f"operand_{at}" for at, operand in enumerate(case.operands)]
    outputs = [f"result_{at}" for at in range(case.outputs)]
    proto = helper.make_node(case.operator, names, outputs, domain=case.domain, **case.attributes)
    feeds = {name: array for name, array in zip(names, case.operands, strict=True) if array is not None}
    return OnnxGraph({"": case.opset, MICROSOFT: 1}, (OnnxNode(proto),), {}), feeds, outputs


def types_of(feeds: dict[str, Array]) -> dict[str, TensorType]:
    return {name: TensorType(str(array.dtype), array.shape) for name, array in feeds.items()}


@pytest.mark.parametrize("name", CASES)
def test_an_operator_means_what_it_is_written_out_as(name: str) -> None:
    graph, feeds, outputs = graph_of(CASES[name])
    plain = expand_attention(graph, types_of(feeds))
    assert not any("ttention" in node.proto.op_type or node.proto.domain for node in plain.nodes)
    expected, got = graph.run(outputs, feeds, {}), plain.run(outputs, feeds, {})
    for output in outputs:
        np.testing.assert_allclose(got[output], expected[output], rtol=0, atol=1e-5 * np.abs(expected[output]).max())


@pytest.mark.parametrize(("left", "right", "causal"), [(2, 1, 0), (3, -1, 1), (-1, 2, 0), (0, 0, 0)])
def test_windows_of_operator_set_25_follow_its_definition(left: int, right: int, causal: int) -> None:
    window = {"left_window_size": left, "right_window_size": right, "is_causal": causal}
    graph, feeds, outputs = graph_of(standard(BY_HEAD, BY_HEAD, BY_HEAD, opset=25, **window))
    # ONNX Runtime may not know this operator set yet: what it becomes are older operators.
    plain = expand_attention(graph, types_of(feeds))
    got = OnnxGraph({"": 24}, plain.nodes, plain.weights).run(outputs, feeds, {})[outputs[0]]
    distance = np.arange(TOKENS)[None, :] - np.arange(TOKENS)[:, None]
    seen = (distance >= (-left if left >= 0 else -TOKENS)) & (distance <= (right if right >= 0 else TOKENS))
    scores = BY_HEAD @ BY_HEAD.swapaxes(2, 3) * DEPTH**-0.5
    weights = np.exp(np.where(seen & ((distance <= 0) | (causal == 0)), scores, -np.inf))
    expected = weights / weights.sum(-1, keepdims=True) @ BY_HEAD
    np.testing.assert_allclose(got, expected, rtol=0, atol=1e-5)


REFUSED: dict[str, tuple[Case, str]] = {
    "past": (standard(BY_HEAD, BY_HEAD, BY_HEAD, None, BY_HEAD, BY_HEAD), "has a past"),
    "cache outside": (standard(BY_HEAD, BY_HEAD, BY_HEAD, None, None, None, np.array([4])), "has the operand"),
    "scores": (standard(BY_HEAD, BY_HEAD, BY_HEAD, outputs=4), "hands out its scores"),
    "built-in angles": (fused(ROWS, normal(WIDTH, 3 * WIDTH), do_rotary=1), "built-in angles"),
    "quantised": (Case("QAttention", [ROWS]), "QAttention is an attention that is not read"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_has_no_equivalent_is_refused_by_name(name: str) -> None:
    case, message = REFUSED[name]
    graph, feeds, _ = graph_of(case)
    with pytest.raises(CompileError, match=message) as refusal:
        expand_attention(graph, types_of(feeds))
    assert 'node "result_0"' in str(refusal.value)
    assert refusal.value.fix


def test_a_graph_without_attention_operators_stays_as_it_is() -> None:
    graph = OnnxGraph({"": 20}, (OnnxNode(helper.make_node("Gelu", ["x"], ["y"])),), {})
    assert expand_attention(graph, {}) is graph
