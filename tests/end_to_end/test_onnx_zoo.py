"""Every file of the zoo runs at any length as ONNX Runtime runs the file itself; what can't be compiled says why."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime  # type: ignore[import-untyped]
import pytest
from onnx import helper

from tests.tiers import with_long
from tools.zoo.exported_files import VOCABULARY, ZOO, ZooFile
from tools.zoo.hand_made_files import HAND_MADE, hand_made
from twoheads.compiler import compile_model
from twoheads.export import write_bundle
from twoheads.graphs.errors import CompileError
from twoheads.runtime import load

BLOCK = 16
LENGTHS = (1, BLOCK - 1, BLOCK, BLOCK + 1, 3 * BLOCK + 5)

BUILT = Path(__file__).parents[1] / "data" / "onnx" / "model.onnx"
"""By onnxruntime-genai's model builder; see the README beside it."""

FULL = 5e-6
"""Largest difference, relative to the largest magnitude; the order of additions differs."""

HALF = 5e-3
"""Of a half-precision file, which ONNX Runtime rounds after every operator; we compute with its weights in float32. Of
activations in whole numbers, which rounding may move to the next."""


def run_file(file: Path, ids: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """The file's first output for one sequence of tokens without a past, all of them real."""
    session = onnxruntime.InferenceSession(str(file), providers=["CPUExecutionProvider"])
    feeds: dict[str, Any] = {}
    for value in session.get_inputs():
        if "bool" in value.type:
            feeds[value.name] = np.zeros(value.shape, np.bool_)
        elif value.name.startswith("past"):
            feeds[value.name] = np.zeros(
                [1 if at == 0 else d if isinstance(d, int) else 0 for at, d in enumerate(value.shape)], np.float32
            )
        else:
            feeds[value.name] = np.ones((1, len(ids)), np.int32 if "int32" in value.type else np.int64)
    feeds["input_ids"] = ids[None].astype(feeds["input_ids"].dtype)
    result: np.ndarray[Any, Any] = np.asarray(session.run(None, feeds)[0])
    return result


def assert_agrees(file: Path, folder: Path, tolerance: float) -> None:
    bundle = load(write_bundle(compile_model(file, block_size=BLOCK), folder / "bundle", generation=False))
    for length in LENGTHS:
        ids = np.random.default_rng(length).integers(0, VOCABULARY, length)
        expected, result = run_file(file, ids), bundle.run(ids)
        assert result.report.engine_calls - result.report.repeated_calls == result.report.formula_calls
        assert result.array is not None
        difference = np.abs(result.array.reshape(expected.shape) - expected).max() / np.abs(expected).max()
        assert difference <= tolerance, f"differs by {difference:.1e} at {length} tokens"


NEWER = (("distilbert", "dynamo"), ("gpt2", "dynamo by runtime"))
"""That exporter takes seconds a file: one file of its own, and one that ONNX Runtime fuses."""

FIRST = [file for file in ZOO if "dynamo" not in file.maker or (file.kind, file.maker) in NEWER]


@pytest.mark.parametrize(
    "file",
    with_long(ZOO, FIRST, "test_a_hand_made_file_runs_at_any_length"),
    ids=str,
)
def test_a_file_of_the_zoo_runs_at_any_length(file: ZooFile, tmp_path: Path) -> None:
    assert_agrees(
        file.make(tmp_path / "model.onnx"), tmp_path, HALF if "half" in file.maker or "int8" in file.maker else FULL
    )


@pytest.mark.parametrize("name", HAND_MADE)
def test_a_hand_made_file_runs_at_any_length(name: str, tmp_path: Path) -> None:
    operator, opset, attributes = HAND_MADE[name]
    path = tmp_path / "model.onnx"
    onnx.save(hand_made(operator, opset, **attributes), str(path))
    assert_agrees(path, tmp_path, FULL)


def test_a_file_of_a_model_builder_runs_without_its_past(tmp_path: Path) -> None:
    bundle = load(write_bundle(compile_model(BUILT, block_size=BLOCK), tmp_path / "bundle", generation=False))
    session = onnxruntime.InferenceSession(str(BUILT), providers=["CPUExecutionProvider"])
    pasts = [value.name for value in session.get_inputs() if value.name.startswith("past")]
    empty = np.zeros((1, 1, 0, 16), np.float32)
    for length in (1, BLOCK, BLOCK + 1, 32):
        ids = np.random.default_rng(length).integers(0, 24, length)
        feeds = {"input_ids": ids[None], "attention_mask": np.ones((1, length), np.int64)} | dict.fromkeys(pasts, empty)
        expected, got = np.asarray(session.run(["logits"], feeds)[0]), bundle.run(ids).array
        assert got is not None
        np.testing.assert_allclose(got, expected[0], rtol=0, atol=FULL * np.abs(expected).max())


def test_a_bias_that_depends_on_content_is_refused_by_node_and_layer(tmp_path: Path) -> None:
    file = ZooFile("deberta", "legacy", 17, "eager").make(tmp_path / "model.onnx")
    with pytest.raises(
        CompileError, match=r"encoder\.layer\.0\.attention\.self.*terms of the scores that depend on act"
    ):
        compile_model(file)


def test_a_fixed_number_of_tokens_is_refused_with_its_remedy(tmp_path: Path) -> None:
    model = hand_made("Attention", 23)
    for dim, size in zip(model.graph.input[0].type.tensor_type.shape.dim, (1, 12), strict=True):
        dim.dim_value = size
    onnx.save(model, str(tmp_path / "model.onnx"))
    with pytest.raises(CompileError, match=r"fixed number of tokens .*\n.*dynamic token axis"):
        compile_model(tmp_path / "model.onnx")


@pytest.mark.parametrize(
    ("shapes", "message"),
    [
        ({"input_ids": (1, 12), "attention_mask": (1, 12)}, r"fixed number of tokens .*input_ids \[1, 12\]"),
        ({"attention_mask": (1, 1, "tokens", "tokens")}, "mask of 4 dimensions, which says from outside.*\n.*--mask"),
    ],
)
def test_inputs_that_say_too_little_are_refused_for_what_they_are(
    shapes: dict[str, Any], message: str, tmp_path: Path
) -> None:
    file = ZooFile("bert", "legacy", 17, "eager").make(tmp_path / "model.onnx")
    model = onnx.load(str(file))
    for value in model.graph.input:
        if value.name in shapes:
            made = helper.make_tensor_value_info(value.name, value.type.tensor_type.elem_type, shapes[value.name])
            value.CopyFrom(made)
    onnx.save(model, str(file))
    with pytest.raises(CompileError, match=message):
        compile_model(file)


def test_recurrence_is_refused_by_name(tmp_path: Path) -> None:
    model = hand_made("Attention", 23)
    shape = {"W": (1, 256, 64), "R": (1, 256, 64)}
    model.graph.initializer.extend(
        onnx.numpy_helper.from_array(np.zeros(size, np.float32), name) for name, size in shape.items()
    )
    model.graph.node.insert(1, helper.make_node("LSTM", ["embedded", "W", "R"], ["remembered"], hidden_size=64))
    onnx.save(model, str(tmp_path / "model.onnx"))
    with pytest.raises(CompileError, match=r"LSTM.*is a recurrence whose state goes through gates"):
        compile_model(tmp_path / "model.onnx")
