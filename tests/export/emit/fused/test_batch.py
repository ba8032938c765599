"""Attention of a row of each of several sequences, against the textbook's in float64."""

from __future__ import annotations

import numpy as np
import onnxruntime as ort  # type: ignore[import-untyped]
import pytest

from twoheads.export.emit.fused.batch import batch_attention_model
from twoheads.graphs.program.program import AttentionEngine
from twoheads.graphs.variants.batch_steps import SLOTS, BatchAttention

BLOCK, WIDTH = 8, 16


def _engine(
    heads: int, kv_heads: int, *, blocks: int = 2, softcap: float = 0.0, sinks: bool = False, mask_heads: int = 1
):
    geometry = AttentionEngine("a", heads, kv_heads, WIDTH, WIDTH + 4, 1, 1, 0.3, softcap, mask_heads, "float32")
    return BatchAttention(geometry, blocks * BLOCK, BLOCK, sinks)


def _inputs(engine: BatchAttention) -> dict[str, np.ndarray]:
    random = np.random.default_rng(0)
    made = {port.name: random.standard_normal(port.shape).astype(port.dtype) for port in engine.inputs}
    made["mask"][random.random(made["mask"].shape) < 0.4] = -1e30
    made["mask"][..., -1] = 0
    return made


def _expected(engine: BatchAttention, given: dict[str, np.ndarray]) -> np.ndarray:
    geometry = engine.geometry
    group = geometry.q_num_heads // geometry.kv_num_heads
    keys, values = (
        np.concatenate([given[f"{part}_{what}"] for part in ("past", "open") if f"{part}_{what}" in given], axis=2)
        for what in ("key", "value")
    )
    keys, values = (np.repeat(array.astype(np.float64), group, axis=1) for array in (keys, values))
    scores = geometry.scale * np.einsum("shrd,shkd->shrk", given["q"].astype(np.float64), keys)
    if geometry.softcap:
        scores = geometry.softcap * np.tanh(scores / geometry.softcap)
    weights = np.exp(scores + given["mask"])
    total = weights.sum(-1, keepdims=True)
    if engine.sinks:
        total = total + np.exp(given["sinks"].astype(np.float64))[None, :, None, None]
    return np.einsum("shrk,shkd->shrd", weights / total, values)


@pytest.mark.parametrize(
    "engine",
    [
        _engine(6, 2),
        _engine(4, 4),
        _engine(4, 1, blocks=0),
        _engine(4, 4, sinks=True, mask_heads=4),
        _engine(6, 3, softcap=5.0, sinks=True, mask_heads=6),
    ],
    ids=["groups", "one-head-a-group", "open-block-alone", "sinks-and-biases", "softcap"],
)
def test_it_is_the_textbooks_and_slots_do_not_meet(engine):
    session = ort.InferenceSession(batch_attention_model(engine).SerializeToString())
    given = _inputs(engine)
    out = np.asarray(session.run(None, given)[0])
    assert np.abs(out - _expected(engine, given)).max() < 1e-5
    other = {name: array.copy() for name, array in given.items()}
    for name, array in other.items():
        if name != "sinks":
            array[1:] = np.nan if name != "mask" else -7.0
    again = np.asarray(session.run(None, other)[0])
    assert np.array_equal(again[0], out[0])
    assert out.shape[0] == SLOTS
