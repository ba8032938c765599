"""Attention of several sequences that writes in place: each slot is what it would be in steps of several rows alone."""

from __future__ import annotations

import numpy as np
import onnxruntime as ort  # type: ignore[import-untyped]

from twoheads.export.emit.fused.batch_in_place import batch_in_place_model
from twoheads.graphs.program.program import AttentionEngine
from twoheads.graphs.variants.batch_steps import SLOTS
from twoheads.graphs.variants.in_place.batch_in_place import PAIR, BatchInPlace
from twoheads.graphs.variants.in_place.in_place_steps import NEXT, PLACE

KEYS, WIDTH, HEADS, KV_HEADS, SCALE = 24, 8, 4, 2, 0.3
ENGINE = BatchInPlace(AttentionEngine("a", HEADS, KV_HEADS, WIDTH, WIDTH, 1, 1, SCALE, 0.0, 1, "float32"), KEYS)


def test_every_slot_is_the_textbooks_and_its_rows_are_written_where_they_are_kept():
    random = np.random.default_rng(0)
    given = {port.name: random.standard_normal(port.shape).astype(port.dtype) for port in ENGINE.inputs}
    given[PLACE] = np.arange(SLOTS, dtype=np.int32) * 3
    before = {port.name: given[port.name].copy() for port in ENGINE.past}
    session = ort.InferenceSession(batch_in_place_model(ENGINE).SerializeToString())
    binding = session.io_binding()
    for name, array in given.items():
        binding.bind_ortvalue_input(name, ort.OrtValue.ortvalue_from_numpy(array))
    out = np.zeros(ENGINE.outputs[0].shape, np.float32)
    binding.bind_ortvalue_output("out", ort.OrtValue.ortvalue_from_numpy(out))
    arrays = {port.name: ort.OrtValue.ortvalue_from_numpy(given[port.name]) for port in ENGINE.past}
    for name, value in arrays.items():
        binding.bind_ortvalue_input(name, value)
        binding.bind_ortvalue_output(NEXT + name, value)
    session.run_with_iobinding(binding)
    found = binding.copy_outputs_to_cpu()[0]
    for slot, place in enumerate(given[PLACE]):
        rows = {name: given[name][slot].reshape(PAIR, -1, WIDTH).swapaxes(0, 1) for name in "qkv"}
        for role, name in (("key", "k"), ("value", "v")):
            held, kept = arrays[f"past_{role}_{slot}"].numpy()[0], before[f"past_{role}_{slot}"][0]
            kept[:, place : place + PAIR] = rows[name]
            np.testing.assert_array_equal(held, kept)
            rows[role] = np.repeat(kept[:, : place + 1].astype(np.float64), HEADS // KV_HEADS, axis=0)
        scores = SCALE * np.einsum("hd,hkd->hk", rows["q"][:, 0], rows["key"])
        weights = np.exp(scores - scores.max(-1, keepdims=True))
        expected = np.einsum("hk,hkd->hd", weights / weights.sum(-1, keepdims=True), rows["value"])
        np.testing.assert_allclose(found[slot, 0], expected.reshape(-1), atol=1e-5)
