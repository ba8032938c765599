"""The mathematics of scans: blocks in succession are the whole, zeros change nothing, sums agree with other forms."""

from __future__ import annotations

import numpy as np
import pytest

from twoheads.graphs.program.engines.scan import ScanEngine, engine_problem
from twoheads.graphs.program.engines.scan_operators import OPERATORS, ROWS, scan_problem

SIZES = {
    "causal_conv": {"bias": 1, "channels": 3, "kernel": 4},
    "gated_delta_rule": {"by_channel": 0, "groups": 2, "heads": 4, "key_dim": 3, "value_dim": 5},
    "decayed_attention": {"groups": 2, "heads": 4, "key_dim": 3, "value_dim": 5},
    "diagonal_scan": {"width": 3},
    "selective_scan": {"states": 2, "width": 3},
    "max_scan": {"width": 3},
}
CASES = [*SIZES.items(), ("gated_delta_rule", SIZES["gated_delta_rule"] | {"by_channel": 1})]


def _inputs(operator: str, sizes: dict[str, int], rows: int):
    """Random token values, weights and a state; decays below 0."""
    random = np.random.default_rng(rows)
    form = OPERATORS[operator]

    def made(name: str, shape: tuple[int | str, ...]):
        array = random.standard_normal([rows if dim == ROWS else int(dim) for dim in shape])
        return {"decay": -np.abs(array), "a": -np.abs(array), "dt": np.abs(array), "beta": 1 / (1 + array**2)}.get(
            name, array
        )

    tokens = [made(name, shape) for name, shape in form.tokens(sizes).items()]
    weights = [made(name, shape) for name, shape in form.weights(sizes).items()]
    return tokens, weights, made("state", form.state(sizes))


def _rows(operator: str, sizes: dict[str, int], tokens, start: int, stop: int):
    axes = [shape.index(ROWS) for shape in OPERATORS[operator].tokens(sizes).values()]
    return [array.take(range(start, stop), axis) for array, axis in zip(tokens, axes, strict=True)]


@pytest.mark.parametrize(("operator", "sizes"), CASES)
def test_blocks_in_succession_are_the_whole(operator: str, sizes: dict[str, int]) -> None:
    form = OPERATORS[operator]
    tokens, weights, state = _inputs(operator, sizes, 11)
    whole, after = form.apply(sizes, tokens, weights, state)
    parts = []
    for start, stop in ((0, 1), (1, 2), (2, 9), (9, 11)):
        part, state = form.apply(sizes, _rows(operator, sizes, tokens, start, stop), weights, state)
        parts.append(part)
    axis = form.output(sizes).index(ROWS)
    np.testing.assert_allclose(np.concatenate(parts, axis), whole, rtol=1e-12)
    np.testing.assert_allclose(state, after, rtol=1e-12)
    assert after.shape == form.state(sizes)
    assert whole.shape == tuple(11 if dim == ROWS else dim for dim in form.output(sizes))


@pytest.mark.parametrize(("operator", "sizes"), CASES)
def test_padding_leaves_the_state(operator: str, sizes: dict[str, int]) -> None:
    tokens, weights, state = _inputs(operator, sizes, 5)
    form = OPERATORS[operator]
    nothing = [
        np.full_like(array, form.absent.get(port, 0)) for port, array in zip(form.tokens(sizes), tokens, strict=True)
    ]
    _, after = form.apply(sizes, nothing, weights, state)
    kept = operator != "causal_conv"
    assert np.array_equal(after, state) == kept


def test_decayed_attention_is_a_masked_product() -> None:
    sizes = {"groups": 1, "heads": 1, "key_dim": 3, "value_dim": 2}
    (q, k, v, decay), _, state = _inputs("decayed_attention", sizes, 7)
    y, _ = OPERATORS["decayed_attention"].apply(sizes, (q, k, v, decay), (), 0 * state)
    sums = np.cumsum(decay[0, 0])
    weights = np.tril(np.exp(sums[:, None] - sums[None])) * (q[0, 0] @ k[0, 0].T)
    np.testing.assert_allclose(y[0, 0], weights @ v[0, 0], rtol=1e-12)


def test_the_delta_rule_overwrites() -> None:
    """Without decay and with beta 1 a key reads what was last written to it."""
    sizes = {"by_channel": 0, "groups": 1, "heads": 1, "key_dim": 2, "value_dim": 1}
    keys = np.array([[1.0, 0], [0, 1], [1, 0]])[None, None]
    values = np.array([[5.0], [7], [9]])[None, None]
    zeros, ones = np.zeros((1, 1, 3)), np.ones((1, 1, 3))
    y, state = OPERATORS["gated_delta_rule"].apply(sizes, (keys, keys, values, zeros, ones), (), np.zeros((1, 1, 2, 1)))
    assert y.ravel().tolist() == [5, 7, 9]
    assert state.ravel().tolist() == [9, 7]


def test_selective_scans_are_diagonal_scans() -> None:
    sizes = {"states": 1, "width": 3}
    (dt, x, b, c), (a,), state = _inputs("selective_scan", sizes, 6)
    y, _ = OPERATORS["selective_scan"].apply(sizes, (dt, x, b, c), (a,), state)
    plain, _ = OPERATORS["diagonal_scan"].apply({"width": 3}, (dt * a[:, 0], dt * x * b), (), state[..., 0])
    np.testing.assert_allclose(y, plain * c, rtol=1e-12)


def test_a_maximum_is_that_of_all_decayed_numbers() -> None:
    (decay, x), _, state = _inputs("max_scan", {"width": 3}, 9)
    y, after = OPERATORS["max_scan"].apply({"width": 3}, (decay, x), (), state)
    for t in range(9):
        of_each = [x[0, s] + decay[0, s + 1 : t + 1].sum(0) for s in range(t + 1)]
        np.testing.assert_allclose(y[0, t, 3:], np.max([*of_each, state[0] + decay[0, : t + 1].sum(0)], 0), rtol=1e-12)
    assert np.array_equal(y[0, 1:, :3], y[0, :-1, 3:])
    assert np.array_equal(y[0, 0, :3], state[0])
    assert np.array_equal(after, y[:, -1, 3:])


@pytest.mark.parametrize(
    ("operator", "change", "problem"),
    [
        ("rotation", {}, "no"),
        ("causal_conv", {"kernel": 1}, "mixes no tokens"),
        ("causal_conv", {"bias": 2}, "bias=2"),
        ("diagonal_scan", {"width": 0}, "width=0"),
        ("diagonal_scan", {"height": 1}, "sizes"),
        ("decayed_attention", {"groups": 3}, "multiple"),
    ],
)
def test_problems(operator: str, change: dict[str, int], problem: str) -> None:
    sizes = SIZES.get(operator, {})
    assert scan_problem(operator, sizes) is None or operator == "rotation"
    found = scan_problem(operator, sizes | change)
    assert found is not None
    assert problem in found


def test_chunks_fit_the_block() -> None:
    engine = ScanEngine("scan", "diagonal_scan", (("width", 3),), 16, 8)
    assert engine_problem(engine, 16) is None
    assert "32" in str(engine_problem(engine, 32))
    assert "twice" in str(engine_problem(ScanEngine("scan", "diagonal_scan", (("width", 3),) * 2, 16, 8), 16))
    assert "5" in str(engine_problem(ScanEngine("scan", "diagonal_scan", (("width", 3),), 16, 5), 16))
