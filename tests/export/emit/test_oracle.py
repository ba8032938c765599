"""The oracle's file: a plain transformer of fixed length that knows nothing of the model it serves."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from itertools import product

import numpy as np
import onnx
import onnxruntime  # type: ignore[import-untyped]
import pytest

from twoheads.export.emit.oracle import oracle_model
from twoheads.graphs.costs.maskless_costs import oracle_formula
from twoheads.graphs.errors import InternalError
from twoheads.graphs.masks.expressions import parse_mask
from twoheads.graphs.masks.pieces import maskless_rows
from twoheads.graphs.program.program import OracleEngine
from twoheads.runtime.stages.stock.oracle import oracle_parameters

ENGINE = OracleEngine("attention_0", 2, 3, 16, 6, 5, 0, "causal", "float32", 4, 2, 0.25)


def test_the_file_is_the_same_for_models_of_equal_head_size() -> None:
    other = replace(ENGINE, name="attention_7", q_num_heads=9, kv_num_heads=3, scale=0.5)
    assert oracle_model(ENGINE, "causal").SerializeToString() == oracle_model(other, "causal").SerializeToString()


@pytest.mark.parametrize("variant", OracleEngine.VARIANTS)
def test_it_is_a_plain_transformer(variant: str) -> None:
    model = oracle_model(ENGINE, variant)
    onnx.checker.check_model(model, full_check=True)
    counts = Counter(node.op_type for node in model.graph.node)
    assert (counts["Softmax"], counts["Relu"]) == (2, 2)
    assert set(counts) == {"MatMul", "Transpose", "Softmax", "Reshape", "Add", "Relu"}
    assert [value.name for value in model.graph.output] == ["y"]
    parameters = [
        f"{name}.{layer}" for layer in (0, 1) for name in ["w_q", "w_k", "w_v", "w_o", "w_1", "b_1", "w_2", "b_2"]
    ]
    assert [value.name for value in model.graph.input] == ["x", *parameters]


@pytest.mark.parametrize("variant", OracleEngine.VARIANTS)
def test_every_head_of_every_layer_does_work_of_its_own(variant: str) -> None:
    rng = np.random.default_rng(0)
    engine = replace(ENGINE, mask=variant)
    x = rng.standard_normal((1, 17, engine.embedding)).astype(np.float32)
    slices = x.reshape(17, engine.slots, engine.slice_dim)
    slices[..., -engine.value_dim :] = 0
    ports = engine.ports(variant)[0]
    feeds = {port.name: array for port, array in zip(ports, [x, *oracle_parameters(engine)], strict=True)}
    y = np.asarray(onnxruntime.InferenceSession(oracle_model(engine, variant).SerializeToString()).run(None, feeds)[0])
    results = y.reshape(17, engine.slots, engine.slice_dim)
    assert np.array_equal(results[..., : -engine.value_dim], slices[..., : -engine.value_dim])
    for slot in range(engine.slots):
        q, k, v = np.split(slices[:, slot, : -engine.value_dim].astype(np.float64), [7, 14], axis=-1)
        q[:, :6] *= engine.scale
        scores = np.where(np.tri(17, dtype=bool) | (variant == "full"), q @ k.T, -np.inf)
        shares = np.exp(scores - scores.max(-1, keepdims=True))
        expected = shares / shares.sum(-1, keepdims=True) @ v
        assert np.abs(results[:, slot, -engine.value_dim :] - expected).max() < 2e-5


def test_there_is_no_other_oracle() -> None:
    with pytest.raises(InternalError, match="no oracle 'masked'"):
        oracle_model(ENGINE, "masked")


def test_calls_are_the_instances_over_heads_and_layers() -> None:
    """Theorems 3.4, 3.5 and 5.1 over a grid of N, M, H, H' and L'; layers of the model only multiply."""
    masks = ("full", "causal", "causal & window(11, 0)", "causal & (window(3, 0) | sinks(2))")
    for text, length, block, heads in product(masks, (1, 15, 16, 47, 64, 100), (8, 16), (1, 4, 9)):
        mask = parse_mask(text)
        rows = maskless_rows(mask, block, length)
        halves = 1 if text == "full" else 2
        instances = heads * sum(len(row.triangles) + halves * len(row.chunks(block)) for row in rows)
        for layers, slots in product((1, 2, 3), (1, 4)):
            engine = replace(
                ENGINE,
                mask="full" if text == "full" else "causal",
                layers=layers,
                heads=slots,
                block_size=block,
                q_num_heads=heads,
            )
            found = oracle_formula(mask, engine, length)
            assert found.calls == -(-instances // (layers * slots))
            assert f"= {found.calls}, from" in found.text


def test_known_counts() -> None:
    engine = replace(ENGINE, layers=2, heads=4, block_size=64, q_num_heads=8)
    assert oracle_formula(parse_mask("full"), replace(engine, mask="full"), 1000).calls == 16 * 16
    assert oracle_formula(parse_mask("causal"), engine, 1000).calls == 16 + 2 * (16 * 15 // 2)
