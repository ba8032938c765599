"""Masks of queries and keys as inputs: what they hold is said, or causal where a file has a past."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime  # type: ignore[import-untyped]
import pytest
from onnx import TensorProto, helper

from tests.compiler.onnx_graphs import attention_nodes, attention_weights, save_model
from twoheads.compiler import compile_model
from twoheads.export import verify, write_bundle
from twoheads.graphs.errors import CompileError
from twoheads.graphs.masks.expressions import parse_mask
from twoheads.graphs.program.program import AttentionStage
from twoheads.runtime import load

LENGTH = 37

FAR = {"far": np.array(-3e38, np.float32), "pairs": np.array([0, -1, 0])}

ADDED = [helper.make_node("Add", ["scores", "m"], ["masked"])]
KEPT = [helper.make_node("Where", ["m", "scores", "far"], ["masked"])]


def masked_file(
    path: Path, element: int, nodes: list[Any], *, batch: int | str = "b", past: bool = False, sharpness: float = 1
) -> Path:
    """One head whose scores, times ``sharpness``, meet the input ``mask``, ``[batch, 1, queries, keys]``."""
    whole = attention_nodes("x", "hidden")
    softmax = helper.make_node("Softmax", ["masked"], ["probabilities"], axis=-1)
    flat = helper.make_node("Squeeze", ["mask", "one"], ["m"])
    inputs: dict[str, Any] = {
        "x": (TensorProto.FLOAT, [batch, "t", 8]),
        "mask": (element, [batch, 1, "t", "all"]),
        **({"past_key": (TensorProto.FLOAT, [batch, "past", 8])} if past else {}),
    }
    kept = [helper.make_node("Concat", ["past_key", "k"], ["keys"], axis=1)] if past else []
    whole[3] = helper.make_node("Transpose", ["keys" if past else "k"], ["kt"], perm=[0, 2, 1])
    weights = {**attention_weights(), "one": np.array([1]), **({"far": FAR["far"]} if nodes is KEPT else {})}
    weights["wq"] = (sharpness * weights["wq"]).astype(np.float32)
    return save_model(
        path,
        [*whole[:3], *kept, *whole[3:5], flat, *nodes, softmax, *whole[6:]],
        weights,
        {"hidden": [batch, "t", 8]},
        inputs=inputs,
    )


@pytest.mark.parametrize(
    ("element", "nodes", "said"),
    [
        (TensorProto.FLOAT, ADDED, "causal"),
        (TensorProto.FLOAT, ADDED, "full"),
        (TensorProto.BOOL, KEPT, "causal & window(5, 0)"),
        (TensorProto.BOOL, KEPT, "window(3, 4)"),
    ],
)
def test_the_mask_that_is_said_is_the_one_that_runs(element: int, nodes: list[Any], said: str, tmp_path: Path) -> None:
    path = masked_file(tmp_path / "m.onnx", element, nodes)
    bundle = write_bundle(compile_model(path, block_size=16, masks={"mask": said}), tmp_path / "b", generation=False)
    x = np.random.default_rng(0).standard_normal((1, LENGTH, 8)).astype(np.float32)
    at = np.arange(LENGTH)
    seen = parse_mask(said).dense(at[:, None], at[None])[None, None]
    mask = seen if element == TensorProto.BOOL else np.where(seen, 0, np.finfo(np.float32).min).astype(np.float32)
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    want = np.asarray(session.run(None, {"x": x, "mask": mask})[0])[0]
    got = load(bundle).run(x[0]).array
    assert got is not None
    np.testing.assert_allclose(got, want, rtol=0, atol=2e-6 * np.abs(want).max())
    assert verify(bundle, path, length=LENGTH, masks={"mask": said}).passed
    other = "full" if said != "full" else "causal"
    assert not verify(bundle, path, length=LENGTH, masks={"mask": other}).passed


def test_a_mask_that_is_wrong_in_one_pair_does_not_pass(tmp_path: Path) -> None:
    other = f"causal & window({LENGTH - 2}, 0)"  # the last token does not see the first
    path = masked_file(tmp_path / "m.onnx", TensorProto.FLOAT, ADDED, sharpness=0.05)
    bundle = write_bundle(compile_model(path, block_size=16, masks={"mask": other}), tmp_path / "b", generation=False)
    at = np.arange(LENGTH)
    right, wrong = (parse_mask(text).dense(at[:, None], at[None]) for text in ("causal", other))
    assert (right != wrong).sum() == 1
    assert verify(bundle, path, length=LENGTH, masks={"mask": other}).passed
    assert not verify(bundle, path, length=LENGTH, masks={"mask": "causal"}).passed


def test_a_file_with_a_past_has_a_causal_mask(tmp_path: Path) -> None:
    path = masked_file(tmp_path / "m.onnx", TensorProto.FLOAT, ADDED, past=True)
    stages = compile_model(path, block_size=16).program.body
    assert [str(stage.mask) for stage in stages if isinstance(stage, AttentionStage)] == ["causal"]


@pytest.mark.parametrize(
    ("said", "message"),
    [
        ({}, r"which says from outside.*\n.*--mask mask=causal"),
        ({"x": "causal"}, r"no mask of queries and keys 'x'.*\n.*are mask"),
        ({"mask": "causal | sinks(2)"}, "is more than a window"),
        ({"mask": "triangle"}, "not a mask expression"),
    ],
)
def test_what_is_said_wrongly_or_not_at_all_is_refused(said: dict[str, str], message: str, tmp_path: Path) -> None:
    path = masked_file(tmp_path / "m.onnx", TensorProto.FLOAT, ADDED)
    with pytest.raises(CompileError, match=message):
        compile_model(path, masks=said)


def test_a_mask_that_does_not_leave_keys_out_is_refused(tmp_path: Path) -> None:
    path = masked_file(tmp_path / "m.onnx", TensorProto.FLOAT, [helper.make_node("Mul", ["scores", "m"], ["masked"])])
    with pytest.raises(CompileError, match="no entry of it leaves a token out"):
        compile_model(path, masks={"mask": "causal"})
