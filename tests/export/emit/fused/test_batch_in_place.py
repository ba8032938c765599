"""Attention in place of rows of several sequences, and of several rows of one."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import onnxruntime as ort  # type: ignore[import-untyped]
import pytest

from twoheads.export.emit.fused.batch_in_place import batch_in_place_model
from twoheads.graphs.program.program import AttentionEngine
from twoheads.graphs.variants.in_place.batch_in_place import BatchInPlace, folded
from twoheads.graphs.variants.in_place.in_place_steps import NEXT, PLACE

KEYS, WIDTH, HEADS, KV_HEADS, SCALE = 24, 8, 4, 2, 0.3
GEOMETRY = AttentionEngine("a", HEADS, KV_HEADS, WIDTH, WIDTH, 1, 1, SCALE, 0.0, 1, "float32")


WIDER = replace(GEOMETRY, q_num_heads=8)


@pytest.mark.parametrize(
    "engine",
    [
        BatchInPlace(GEOMETRY, KEYS),
        BatchInPlace(GEOMETRY, KEYS, slots=1, rows=5),
        BatchInPlace(GEOMETRY, KEYS, rows=2, fold=2),
        BatchInPlace(WIDER, KEYS, rows=4, fold=4),
        BatchInPlace(WIDER, KEYS, rows=2, fold=2),
    ],
    ids=["pairs", "prompt", "folded", "wider", "half"],
)
def test_every_row_is_the_textbooks_and_is_written_where_it_is_kept(engine):
    random = np.random.default_rng(0)
    given = {port.name: random.standard_normal(port.shape).astype(port.dtype) for port in engine.inputs}
    given[PLACE] = np.arange(engine.slots, dtype=np.int32) * 2 + (0 if engine.slots > 1 else 7)
    before = {port.name: given[port.name].copy() for port in engine.past}
    session = ort.InferenceSession(batch_in_place_model(engine).SerializeToString())
    binding = session.io_binding()
    for name, array in given.items():
        binding.bind_ortvalue_input(name, ort.OrtValue.ortvalue_from_numpy(array))
    out = np.zeros(engine.outputs[0].shape, np.float32)
    binding.bind_ortvalue_output("out", ort.OrtValue.ortvalue_from_numpy(out))
    arrays = {port.name: ort.OrtValue.ortvalue_from_numpy(given[port.name]) for port in engine.past}
    for name, value in arrays.items():
        binding.bind_ortvalue_input(name, value)
        binding.bind_ortvalue_output(NEXT + name, value)
    session.run_with_iobinding(binding)
    found = binding.copy_outputs_to_cpu()[0]
    for slot, place in enumerate(given[PLACE]):
        rows = {name: given[name][slot].reshape(engine.rows, -1, WIDTH).swapaxes(0, 1) for name in "qkv"}
        held = {}
        for role, name in (("key", "k"), ("value", "v")):
            kept = before[f"past_{role}_{slot}"][0]
            kept[:, place : place + engine.rows] = rows[name]
            np.testing.assert_array_equal(arrays[f"past_{role}_{slot}"].numpy()[0], kept)
            held[role] = np.repeat(kept.astype(np.float64), engine.heads // KV_HEADS, axis=0)
        for row in range(engine.rows):
            seen = place + 1 if engine.fold > 1 else place + row + 1
            keys, values = (held[role][:, :seen] for role in ("key", "value"))
            scores = SCALE * np.einsum("hd,hkd->hk", rows["q"][:, row], keys)
            weights = np.exp(scores - scores.max(-1, keepdims=True))
            expected = np.einsum("hk,hkd->hd", weights / weights.sum(-1, keepdims=True), values)
            np.testing.assert_allclose(found[slot, row], expected.reshape(-1), atol=1e-5)


@pytest.mark.parametrize(("heads", "shared", "rows"), [(4, 2, 2), (9, 3, 3), (2, 2, None), (71, 1, None), (32, 2, 8)])
def test_heads_that_share_keys_are_rows_as_far_as_there_is_room(heads, shared, rows):
    engine = folded(BatchInPlace(replace(GEOMETRY, q_num_heads=heads, kv_num_heads=shared), KEYS))
    assert (None if engine is None else engine.rows) == rows
