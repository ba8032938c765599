"""Attention engines run by ONNX Runtime against a float64 reference, over random geometries."""

from __future__ import annotations

from dataclasses import replace
from functools import lru_cache
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import onnxruntime  # type: ignore[import-untyped]
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto

from twoheads.export.emit.tile_attention import attention_model
from twoheads.graphs.errors import CompileError, InternalError
from twoheads.graphs.program.program import AttentionEngine
from twoheads.runtime.stages.attention.merge import attention

Arrays = dict[str, npt.NDArray[Any]]
Changes = list[tuple[str, dict[str, Any]]]

TOLERANCE = {"float32": 3e-6, "float16": 3e-3, "bfloat16": 3e-2}
"""Of ``out`` and ``lse`` for values around 1: a few units in the last place, accumulated over a tile."""

PLAIN = AttentionEngine("attention", 6, 2, 7, 5, 16, 48, 0.4, 0.0, 1, "float32")

engines = st.builds(
    lambda kv_heads, group, head_dim, v_head_dim, block, tile, scale, softcap, by_head: AttentionEngine(
        "attention",
        kv_heads * group,
        kv_heads,
        head_dim,
        v_head_dim,
        block,
        block * tile,
        scale,
        softcap,
        kv_heads * group if by_head else 1,
        "float32",
    ),
    st.integers(1, 3),
    st.integers(1, 4),
    st.sampled_from([1, 3, 8, 17]),
    st.sampled_from([1, 5, 8]),
    st.sampled_from([16, 24]),
    st.integers(1, 3),
    st.sampled_from([1.0, 0.25, 0.1767767]),
    st.sampled_from([0.0, 2.0, 30.0]),
    st.booleans(),
)


@lru_cache(maxsize=64)
def session(engine: AttentionEngine, variant: str) -> onnxruntime.InferenceSession:
    model = attention_model(engine, variant)
    onnx.checker.check_model(model, full_check=True)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    return onnxruntime.InferenceSession(model.SerializeToString(), options)


def call(engine: AttentionEngine, variant: str, arrays: Arrays) -> tuple[npt.NDArray[Any], npt.NDArray[Any]]:
    names = [port.name for port in engine.ports(variant)[0]]
    out, lse = session(engine, variant).run(None, {name: arrays[name] for name in names})
    return np.asarray(out), np.asarray(lse)


def scores(engine: AttentionEngine, arrays: Arrays, *, masked: bool) -> npt.NDArray[np.float64]:
    group = engine.q_num_heads // engine.kv_num_heads
    keys = np.repeat(arrays["k"].astype(np.float64), group, axis=1)
    result = engine.scale * arrays["q"].astype(np.float64) @ keys.swapaxes(-1, -2)
    if engine.softcap:
        result = engine.softcap * np.tanh(result / engine.softcap)
    return result + arrays["mask"].astype(np.float64) if masked else result


def reference(
    engine: AttentionEngine, arrays: Arrays, *, masked: bool
) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    s = scores(engine, arrays, masked=masked)
    values = np.repeat(arrays["v"].astype(np.float64), engine.q_num_heads // engine.kv_num_heads, axis=1)
    largest = np.maximum(s.max(-1, keepdims=True), -1e30)
    weights = np.exp(s - largest)
    total = weights.sum(-1, keepdims=True)
    with np.errstate(divide="ignore"):
        lse = (largest + np.log(total))[..., 0]
    return weights @ values / np.maximum(total, 1e-300), lse


def random_arrays(engine: AttentionEngine, seed: int, visible: float = 0.5) -> Arrays:
    random = np.random.default_rng(seed)
    ports = {port.name: port for port in engine.ports("masked_merge")[0]}
    arrays = {name: random.standard_normal(port.shape).astype(np.float32) for name, port in ports.items()}
    arrays["mask"] = np.where(random.random(ports["mask"].shape) < visible, 0, -np.inf).astype(np.float32)
    return arrays


def assert_close(got: npt.NDArray[Any], expected: npt.NDArray[Any], tolerance: float) -> None:
    assert got.shape == expected.shape
    np.testing.assert_array_equal(np.isneginf(got), np.isneginf(expected))
    finite = np.isfinite(expected)
    error = np.abs(got[finite] - expected[finite]).max(initial=0)
    assert error <= tolerance * max(1.0, np.abs(expected[finite]).max(initial=0)), f"max abs error {error}"


@settings(max_examples=40, deadline=None)
@given(engine=engines, masked=st.booleans(), seed=st.integers(0, 2**32 - 1), visible=st.sampled_from([0.02, 0.5, 1.0]))
def test_one_tile_equals_the_reference(engine: AttentionEngine, masked: bool, seed: int, visible: float) -> None:
    arrays = random_arrays(engine, seed, visible)
    out, lse = call(engine, "masked" if masked else "full", arrays)
    expected_out, expected_lse = reference(engine, arrays, masked=masked)
    assert_close(out, expected_out, TOLERANCE["float32"])
    assert_close(lse, expected_lse, TOLERANCE["float32"])


@settings(max_examples=25, deadline=None)
@given(engine=engines, seed=st.integers(0, 2**32 - 1), masked=st.lists(st.booleans(), min_size=2, max_size=4))
def test_a_chain_of_merges_equals_attention_over_all_keys(
    engine: AttentionEngine, seed: int, masked: list[bool]
) -> None:
    tiles = [random_arrays(engine, seed + at, visible=0.05) for at in range(len(masked))]
    for tile in tiles:
        tile["q"] = tiles[0]["q"]
    state = call(engine, "masked" if masked[0] else "full", tiles[0])
    for is_masked, tile in zip(masked[1:], tiles[1:], strict=True):
        variant = "masked_merge" if is_masked else "full_merge"
        state = call(engine, variant, tile | {"prev_out": state[0], "prev_lse": state[1]})
    whole = {"q": tiles[0]["q"], **{name: np.concatenate([t[name] for t in tiles], axis=2) for name in ("k", "v")}}
    masks = [t["mask"] if m else np.zeros_like(t["mask"]) for t, m in zip(tiles, masked, strict=True)]
    whole["mask"] = np.concatenate(masks, axis=2)
    expected_out, expected_lse = reference(engine, whole, masked=True)
    assert_close(state[0], expected_out, 2 * TOLERANCE["float32"])
    assert_close(state[1], expected_lse, 2 * TOLERANCE["float32"])


@pytest.mark.parametrize("scale", [1.0, 0.3])
def test_scores_by_distance_are_those_that_the_mask_names(scale: float) -> None:
    engine = AttentionEngine("attention", 3, 3, 8 + 5, 6, 16, 32, scale, 0.0, 1, "float32", distances=5)
    arrays = random_arrays(engine, 0)
    random = np.random.default_rng(1)
    index = random.integers(0, 5, arrays["mask"].shape)
    arrays["mask"] = np.where(random.random(index.shape) < 0.3, -np.inf, index).astype(np.float32)
    q, k, v = (arrays[name][0].astype(np.float64) for name in "qkv")
    heads, rows, keys = np.arange(3)[:, None, None], np.arange(16)[None, :, None], np.arange(32)[None, None, :]
    s = q[..., :8] @ k[..., :8].swapaxes(-1, -2) + q[heads, rows, 8 + index] + k[heads, keys, 8 + index]
    s = np.where(np.isneginf(arrays["mask"]), -np.inf, s * scale)
    out, lse = call(engine, "masked", arrays)
    weights = np.exp(s - s.max(-1, keepdims=True))
    assert_close(out[0], weights / weights.sum(-1, keepdims=True) @ v, TOLERANCE["float32"])
    assert_close(lse[0], s.max(-1) + np.log(weights.sum(-1)), TOLERANCE["float32"])


def added(engine: AttentionEngine, tiles: list[Arrays], masked: list[bool]) -> tuple[Arrays, npt.NDArray[Any]]:
    """The first tile's ``out`` and ``lse`` with the others added: ``acc``, ``weight``, and the anchor."""
    out, lse = call(engine, "full", tiles[0])
    query = np.concatenate([tiles[0]["q"], -lse[..., None] / np.float32(engine.scale)], -1)
    sums = {"prev_acc": out, "prev_weight": np.ones_like(lse)}
    for is_masked, tile in zip(masked, tiles[1:], strict=True):
        result = call(engine, "masked_add" if is_masked else "full_add", tile | sums | {"q": query})
        sums = dict(zip(sums, result, strict=True))
    return sums, lse


@settings(max_examples=25, deadline=None)
@given(
    engine=engines.map(lambda engine: replace(engine, softcap=0.0)),
    seed=st.integers(0, 2**32 - 1),
    masked=st.lists(st.booleans(), min_size=1, max_size=4),
)
def test_tiles_added_up_relative_to_the_first_equal_attention_over_all_keys(
    engine: AttentionEngine, seed: int, masked: list[bool]
) -> None:
    tiles = [random_arrays(engine, seed + at, visible=0.05) for at in range(len(masked) + 1)]
    for tile in tiles:
        tile["q"] = tiles[0]["q"]
    sums, lse = added(engine, tiles, masked)
    whole = {"q": tiles[0]["q"], **{name: np.concatenate([t[name] for t in tiles], axis=2) for name in ("k", "v")}}
    masks = [t["mask"] if m else np.zeros_like(t["mask"]) for t, m in zip(tiles, [False, *masked], strict=True)]
    whole["mask"] = np.concatenate(masks, axis=2)
    expected_out, expected_lse = reference(engine, whole, masked=True)
    # Relative to scores that nearly cancel against the anchor, their rounding is that of the scores themselves.
    assert_close(sums["prev_acc"] / sums["prev_weight"][..., None], expected_out, 4 * TOLERANCE["float32"])
    assert_close(lse + np.log(sums["prev_weight"]), expected_lse, 4 * TOLERANCE["float32"])


def test_hidden_scores_add_nothing_however_large_they_are() -> None:
    engine = replace(PLAIN, scale=300.0)
    tiles = [random_arrays(engine, at) for at in (7, 8)]
    tiles[1] |= {"q": tiles[0]["q"], "mask": np.full_like(tiles[1]["mask"], -np.inf)}
    sums, _ = added(engine, tiles, [True])
    np.testing.assert_array_equal(sums["prev_weight"], 1)
    np.testing.assert_array_equal(sums["prev_acc"], call(engine, "full", tiles[0])[0])


def test_scores_far_above_the_anchor_show_in_the_weight() -> None:
    engine = replace(PLAIN, scale=300.0)
    tiles = [random_arrays(engine, at) for at in (7, 8)]
    tiles[1]["q"] = tiles[0]["q"]
    sums, _ = added(engine, tiles, [False])
    assert np.isinf(sums["prev_weight"]).any()


def test_a_row_that_sees_nothing_is_empty_and_neutral() -> None:
    arrays = random_arrays(PLAIN, 1)
    arrays["mask"][:, 3] = -np.inf
    out, lse = call(PLAIN, "masked", arrays)
    assert np.all(out[:, :, 3] == 0)
    assert np.all(np.isneginf(lse[:, :, 3]))
    out, lse = call(PLAIN, "masked_merge", arrays)
    np.testing.assert_array_equal(out[:, :, 3], arrays["prev_out"][:, :, 3])
    np.testing.assert_array_equal(lse[:, :, 3], arrays["prev_lse"][:, :, 3])


@pytest.mark.parametrize("kind", ["full", "masked"])
def test_merging_with_an_empty_state_changes_nothing(kind: str) -> None:
    arrays = random_arrays(PLAIN, 2)
    arrays["mask"][:, 3] = -np.inf
    arrays["prev_out"][:] = 0
    arrays["prev_lse"][:] = -np.inf
    out, lse = call(PLAIN, kind, arrays)
    merged_out, merged_lse = call(PLAIN, f"{kind}_merge", arrays)
    np.testing.assert_array_equal(merged_out, out)
    np.testing.assert_array_equal(merged_lse, lse)


def test_learned_sinks_are_a_state_without_a_value() -> None:
    arrays = random_arrays(PLAIN, 3)
    sinks = np.linspace(-2, 3, PLAIN.q_num_heads)
    arrays["prev_out"][:] = 0
    arrays["prev_lse"][:] = sinks[None, :, None]
    out, lse = call(PLAIN, "full_merge", arrays)
    s = scores(PLAIN, arrays, masked=False)
    with_sink = np.concatenate([s, np.broadcast_to(sinks[None, :, None, None], (*s.shape[:3], 1))], axis=-1)
    total = np.exp(with_sink).sum(-1)
    values = np.repeat(arrays["v"].astype(np.float64), 3, axis=1)
    assert_close(out, np.exp(s) @ values / total[..., None], TOLERANCE["float32"])
    assert_close(lse, np.log(total), TOLERANCE["float32"])


@pytest.mark.parametrize("factor", [1e-3, 30.0, 300.0])
def test_scores_of_any_magnitude(factor: float) -> None:
    engine = replace(PLAIN, scale=factor)
    arrays = random_arrays(engine, 4)
    for masked in (False, True):
        out, lse = call(engine, "masked" if masked else "full", arrays)
        expected_out, expected_lse = reference(engine, arrays, masked=masked)
        # A score of 1000 has an error of 1e-4, and a weight the same relative to itself.
        assert_close(out, expected_out, TOLERANCE["float32"] * max(1, factor))
        assert_close(lse, expected_lse, TOLERANCE["float32"])


def test_a_long_chain_keeps_small_contributions() -> None:
    """200 equal tiles: each is merged with a weight that shrinks to 1/200, and the mean must not drift."""
    arrays = random_arrays(PLAIN, 5)
    state = first = call(PLAIN, "full", arrays)
    for _ in range(199):
        state = call(PLAIN, "full_merge", arrays | {"prev_out": state[0], "prev_lse": state[1]})
    assert_close(state[0], first[0].astype(np.float64), TOLERANCE["float32"])
    assert_close(state[1], first[1] + np.log(200), 2e-5)


def test_float16_is_what_products_are_in_and_nothing_else() -> None:
    engine = replace(PLAIN, dtype="float16")
    arrays = random_arrays(PLAIN, 6)
    half = {n: a.astype(np.float16) if n in ("q", "k", "v") else a for n, a in arrays.items()}
    for variant in AttentionEngine.VARIANTS:
        out, lse = call(engine, variant, half)
        # Inputs are rounded to half first, so the float32 engine on the same numbers is the reference.
        exact = call(PLAIN, variant, {n: a.astype(np.float32) for n, a in half.items()})
        assert out.dtype == lse.dtype == np.float32
        assert_close(out, exact[0], TOLERANCE["float16"])
        assert_close(lse, exact[1], TOLERANCE["float16"])
        model = attention_model(engine, variant)
        types = {
            v.name: v.type.tensor_type.elem_type for v in onnx.shape_inference.infer_shapes(model).graph.value_info
        }
        narrow = {node.op_type for node in model.graph.node if types.get(node.output[0]) == TensorProto.FLOAT16}
        assert narrow == {"Cast", "MatMul", "Reshape", "Transpose"}


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
@pytest.mark.parametrize("variant", AttentionEngine.VARIANTS + AttentionEngine.ADD_VARIANTS)
def test_ports_are_the_declared_ones_and_operators_are_standard(dtype: str, variant: str) -> None:
    engine = replace(PLAIN, dtype=dtype)
    if variant not in engine.variants:
        assert (dtype != "float32", variant in AttentionEngine.ADD_VARIANTS) == (True, True)
        return
    model = attention_model(engine, variant)
    onnx.checker.check_model(model, full_check=True)
    for values, ports in zip((model.graph.input, model.graph.output), engine.ports(variant), strict=True):
        shapes = [(v.name, tuple(d.dim_value for d in v.type.tensor_type.shape.dim)) for v in values]
        assert shapes == [(port.name, port.shape) for port in ports]
    assert [(entry.domain, entry.version) for entry in model.opset_import] == [("", 20)]
    assert all(node.domain == "" for node in model.graph.node)


@pytest.mark.parametrize("variant", AttentionEngine.PACKED_VARIANTS)
def test_packed_engines_are_attention_without_a_mask_input(variant: str) -> None:
    model = attention_model(PLAIN, variant)
    onnx.checker.check_model(model, full_check=True)
    inputs, (out,) = PLAIN.ports(variant)
    assert [value.name for value in model.graph.input] == [port.name for port in inputs] == ["q", "k", "v"]
    rng = np.random.default_rng(8)
    arrays = {port.name: rng.standard_normal(port.shape).astype(np.float32) for port in inputs}
    got = np.asarray(session(PLAIN, variant).run(["out"], arrays)[0])
    mask = "causal" if variant == "packed_causal" else "full"
    exact, _ = attention(*(array.astype(np.float64) for array in arrays.values()), mask=mask, scale=PLAIN.scale)
    assert got.shape == out.shape
    assert_close(got, exact, TOLERANCE["float32"])


def test_engines_whose_scores_are_bent_have_no_packed_or_added_form() -> None:
    unpacked: Changes = [("packed", {"softcap": 5.0}), ("packed", {"dtype": "float16"}), ("packed", {"scale": -1.0})]
    merged: Changes = [
        ("full_add", {"softcap": 5.0}),
        ("masked_add", {"dtype": "float16"}),
        ("full_add", {"scale": 0.0}),
    ]
    for variant, change in unpacked + merged:
        with pytest.raises(InternalError, match="no variant"):
            attention_model(replace(PLAIN, **change), variant)


def test_no_scale_means_no_multiplication() -> None:
    operators = [node.op_type for node in attention_model(replace(PLAIN, scale=1.0), "full").graph.node]
    assert "Mul" not in operators


def test_what_has_no_engine_is_refused() -> None:
    with pytest.raises(CompileError, match="int8"):
        attention_model(replace(PLAIN, dtype="int8"), "full")
    with pytest.raises(InternalError, match="no variant"):
        attention_model(PLAIN, "half")
    with pytest.raises(InternalError, match="heads"):
        attention_model(replace(PLAIN, kv_num_heads=4), "full")
    with pytest.raises(InternalError, match="mask"):
        attention_model(replace(PLAIN, mask_heads=2), "full")
