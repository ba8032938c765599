"""Each torch operator against the definition in NumPy, which follows it token by token in double precision."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from twoheads.compiler.frontend.torch.operators import scan_ops
from twoheads.compiler.ir.source_graph import ScanNode, TensorType
from twoheads.compiler.lowering.scans import scan_engine
from twoheads.graphs.program.engines.scan_operators import OPERATORS

Arrays = list[np.ndarray[Any, Any]]
Draw = Callable[..., np.ndarray[Any, Any]]

ROWS = 11


def _conv(draw: Draw, heads: int, width: int) -> tuple[Arrays, Arrays]:
    return [draw(1, ROWS, width)], [draw(width, 1 + heads), draw(width)]


def _delta(draw: Draw, heads: int, width: int) -> tuple[Arrays, Arrays]:
    keys = [draw(1, heads, ROWS, width) / width for _ in "qk"]
    return [*keys, draw(1, 2 * heads, ROWS, 3), -abs(draw(1, 2 * heads, ROWS)), abs(draw(1, 2 * heads, ROWS))], []


def _delta_by_channel(draw: Draw, heads: int, width: int) -> tuple[Arrays, Arrays]:
    (q, k, v, _, beta), _ = _delta(draw, heads, width)
    return [q, k, v, -abs(draw(1, 2 * heads, ROWS, width)), beta], []


def _attention(draw: Draw, heads: int, width: int) -> tuple[Arrays, Arrays]:
    return _delta(draw, heads, width)[0][:4], []


def _selective(draw: Draw, heads: int, width: int) -> tuple[Arrays, Arrays]:
    tokens = [abs(draw(1, ROWS, width)), draw(1, ROWS, width), draw(1, ROWS, heads), draw(1, ROWS, heads)]
    return tokens, [-abs(draw(width, heads))]


def _diagonal(draw: Draw, heads: int, width: int) -> tuple[Arrays, Arrays]:
    return [-abs(draw(1, ROWS, width)), draw(1, ROWS, width)], []


CASES = {
    "causal_conv": _conv,
    "gated_delta_rule": _delta,
    "gated_delta_rule by channel": _delta_by_channel,
    "decayed_attention": _attention,
    "selective_scan": _selective,
    "diagonal_scan": _diagonal,
    "max_scan": _diagonal,
}


@pytest.mark.parametrize("case", CASES)
@settings(max_examples=10, deadline=None)
@given(heads=st.integers(1, 3), width=st.integers(1, 5), seed=st.integers(0, 99))
def test_it_is_what_the_definition_says(case: str, heads: int, width: int, seed: int) -> None:
    operator = case.split()[0]
    draw: Draw = lambda *shape: np.random.default_rng(seed + len(shape)).standard_normal(shape).astype(np.float32)  # noqa: E731
    tokens, weights = CASES[case](draw, heads, width)
    found = getattr(scan_ops, operator)(*map(torch.from_numpy, [*tokens, *weights])).numpy()
    names = [f"v{at}" for at in range(len(tokens) + len(weights))]
    shapes = [tuple("n" if dim == ROWS and at else dim for at, dim in enumerate(each.shape)) for each in tokens]
    types = {name: TensorType("float32", shape) for name, shape in zip(names, shapes, strict=False)}
    types |= {names[at]: TensorType("float32", each.shape) for at, each in enumerate(weights, len(tokens))}
    node = ScanNode("y", operator, tuple(names[: len(tokens)]), tuple(names[len(tokens) :]), types["v0"], "")
    engine = scan_engine(node, types, 16)
    state = np.zeros(engine.state.shape)
    want, _ = OPERATORS[operator].apply(dict(engine.sizes), tokens, weights, state)
    assert found.shape == want.shape
    np.testing.assert_allclose(found, want, rtol=0, atol=1e-5 * max(1.0, float(abs(want).max())))
