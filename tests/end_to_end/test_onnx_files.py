"""ONNX files of several exporters, compiled and run at lengths around the block size, against ONNX Runtime."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime  # type: ignore[import-untyped]
import pytest

from tests.end_to_end.onnx_models import VOCABULARY, export_model, small_model
from twoheads.compiler import compile_model
from twoheads.export import write_bundle
from twoheads.runtime import load

BLOCK = 16
LENGTHS = (1, BLOCK - 1, BLOCK, BLOCK + 1, 3 * BLOCK + 5)

FILES = (
    ("bert", 14, False, True),
    ("bert", 17, False, False),
    ("gpt2", 14, False, True),
    ("llama", 17, False, True),
    ("bert", 18, True, True),
    ("gpt2", 18, True, False),
    ("llama", 18, True, True),
)
"""Model, operator set, whether by the newer exporter, whether with an attention mask."""


@pytest.mark.parametrize(("kind", "opset", "dynamo", "mask"), FILES)
def test_an_exported_file_runs_at_any_length_as_onnx_runtime_runs_it(tmp_path, kind, opset, dynamo, mask):
    output = "last_hidden_state" if kind == "bert" else "logits"
    file = export_model(
        small_model(kind), tmp_path / "model.onnx", output=output, opset=opset, dynamo=dynamo, mask=mask
    )
    bundle = write_bundle(compile_model(file, block_size=BLOCK), tmp_path / "bundle")
    ours = load(bundle)
    for length in LENGTHS:
        ids = np.random.default_rng(length).integers(0, VOCABULARY, length)
        expected = run_file(file, ids)
        result = ours.run(ids)
        assert result.report.engine_calls == result.report.formula_calls
        got = result.array
        assert got is not None
        np.testing.assert_allclose(got.reshape(expected.shape), expected, rtol=0, atol=2e-6 * np.abs(expected).max())


def run_file(file: Path, ids: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """The file's first output for one sequence of tokens, all of them real."""
    session = onnxruntime.InferenceSession(str(file), providers=["CPUExecutionProvider"])
    feeds = {value.name: np.ones((1, len(ids)), np.int64) for value in session.get_inputs()}
    return session.run(None, {**feeds, "input_ids": ids[None]})[0]
