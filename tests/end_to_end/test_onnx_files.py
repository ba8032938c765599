"""ONNX files of several exporters, compiled and run at lengths around the block size, against ONNX Runtime."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace
from functools import cache
from pathlib import Path
from tempfile import mkdtemp
from typing import Any

import numpy as np
import onnxruntime  # type: ignore[import-untyped]
import pytest

from tests.shared_folder import shared_folder
from tests.tiers import with_long
from tools.zoo.exporting import VOCABULARY, export_model, export_with_past, small_model
from twoheads.compiler import compile_model
from twoheads.export import verify, write_bundle
from twoheads.graphs.errors import InputError
from twoheads.runtime import load

BLOCK = 16
LENGTHS = (1, BLOCK - 1, BLOCK, BLOCK + 1, 3 * BLOCK + 5)

FILES = (("bert", 17, False, False), ("gpt2", 18, True, False), ("llama", 18, True, True))
"""Model, operator set, whether by the newer exporter, whether with an attention mask: what the zoo does not have."""


@pytest.mark.parametrize(
    ("kind", "opset", "dynamo", "mask"),
    with_long(
        FILES,
        FILES[:1],
        "tests/end_to_end/test_onnx_zoo.py::test_a_file_of_the_zoo_runs_at_any_length",
    ),
)
def test_an_exported_file_runs_at_any_length_as_onnx_runtime_runs_it(tmp_path, kind, opset, dynamo, mask):
    output = "last_hidden_state" if kind == "bert" else "logits"
    file = export_model(
        small_model(kind), tmp_path / "model.onnx", output=output, opset=opset, dynamo=dynamo, mask=mask
    )
    bundle = write_bundle(compile_model(file, block_size=BLOCK), tmp_path / "bundle", generation=False)
    ours = load(bundle)
    for length in LENGTHS:
        ids = np.random.default_rng(length).integers(0, VOCABULARY, length)
        expected = run_file(file, ids)
        result = ours.run(ids)
        assert result.report.engine_calls - result.report.repeated_calls == result.report.formula_calls
        got = result.array
        assert got is not None
        np.testing.assert_allclose(got.reshape(expected.shape), expected, rtol=0, atol=2e-6 * np.abs(expected).max())


def test_a_file_with_a_past_runs_with_an_empty_one(tmp_path):
    file = export_with_past(tmp_path / "model.onnx")
    ours = load(write_bundle(compile_model(file, block_size=BLOCK), tmp_path / "bundle", generation=False))
    session = onnxruntime.InferenceSession(str(file), providers=["CPUExecutionProvider"])
    ids = np.random.default_rng(0).integers(0, VOCABULARY, 3 * BLOCK + 5)
    past = np.zeros((1, 4, 0, 8), np.float32)
    feeds: dict[str, Any] = {"input_ids": ids[None], "attention_mask": np.ones((1, len(ids)), np.int64)}
    feeds |= {"past_key_values.0.key": past, "past_key_values.0.value": past}
    expected = np.asarray(session.run(["logits"], feeds)[0])
    got = ours.run(ids).array
    assert got is not None
    np.testing.assert_allclose(got, expected[0], rtol=0, atol=2e-6 * np.abs(expected).max())


@cache
def exported(kind: str) -> Path:
    """A model's file, not to be changed."""
    path = Path(mkdtemp(dir=shared_folder())) / f"{kind}.onnx"
    return export_model(small_model(kind), path, output="logits", opset=17, dynamo=False)


def run_file(file: Path, ids: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """The file's first output for one sequence of tokens, all of them real."""
    session = onnxruntime.InferenceSession(str(file), providers=["CPUExecutionProvider"])
    feeds = {value.name: np.ones((1, len(ids)), np.int64) for value in session.get_inputs()}
    return np.asarray(session.run(None, {**feeds, "input_ids": ids[None]})[0])


def test_verify_runs_the_file_as_it_is_and_passes(tmp_path):
    file = exported("gpt2")
    bundle = write_bundle(compile_model(file, block_size=BLOCK), tmp_path / "bundle", generation=False)
    for length in (1, BLOCK, 3 * BLOCK + 5):
        report = verify(bundle, file, length=length)
        assert report.passed
        assert report.check("logits").passed
        assert report.worst.noise_floor < 1e-5 * report.worst.max_magnitude


def test_verify_refuses_another_file(tmp_path):
    bundle = write_bundle(compile_model(exported("gpt2"), block_size=BLOCK), tmp_path / "bundle", generation=False)
    with pytest.raises(InputError, match="other weight shapes"):
        verify(bundle, exported("llama"), length=20)


def test_verify_notices_a_wrong_weight(tmp_path):
    file = exported("gpt2")
    compiled = compile_model(file, block_size=BLOCK)
    name = next(name for name in compiled.weights if "c_proj" in name and name.endswith("weight"))
    wrong = {**compiled.weights, name: np.asarray(compiled.weights[name]) * np.float32(1.001)}
    bundle = write_bundle(replace(compiled, weights=wrong), tmp_path / "bundle", generation=False)
    assert not verify(bundle, file, length=20).passed


ALONE = """
import sys

class NoTorch:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in ("torch", "transformers"):
            raise ImportError(f"{name} is blocked")

sys.meta_path.insert(0, NoTorch())
from twoheads.export.cli import main
for command in (["plan", FILE, "--length", "100"], ["compile", FILE, "-o", BUNDLE, "--block-size", "16"],
                ["verify", BUNDLE, "--against", FILE, "--length", "40"]):
    sys.argv = ["twoheads", *command]
    try:
        main()
    except SystemExit as end:
        assert not end.code, (command, end.code)
"""


def test_plan_compile_and_verify_need_no_torch(tmp_path):
    file = exported("llama")
    program = ALONE.replace("FILE", repr(str(file))).replace("BUNDLE", repr(str(tmp_path / "bundle")))
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("folder", [".", "onnx"])
def test_a_tokenizer_beside_the_file_comes_along(tmp_path: Path, folder: str) -> None:
    (tmp_path / folder).mkdir(exist_ok=True)
    file = export_model(
        small_model("bert"), tmp_path / folder / "model.onnx", output="last_hidden_state", opset=14, dynamo=False
    )
    (tmp_path / "tokenizer.json").write_bytes(b'{"version": "1.0"}')
    assert compile_model(file, block_size=BLOCK).tokenizer_json == b'{"version": "1.0"}'
