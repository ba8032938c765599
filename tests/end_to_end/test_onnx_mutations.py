"""What a wrong reading of an ONNX file would do is caught: bundles with one thing changed do not pass ``verify``."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from onnx import TensorProto, helper

from tests.compiler.onnx_graphs import save_model
from twoheads.compiler import CompiledModel, compile_model
from twoheads.export import verify, write_bundle
from twoheads.graphs.masks.expressions import parse_mask
from twoheads.graphs.program.program import AttentionEngine, AttentionStage, SequenceStage

LENGTH = 53

DRAW = np.random.default_rng(0)
WEIGHTS: dict[str, np.ndarray[Any, Any]] = {
    **{name: DRAW.standard_normal((8, 8)).astype(np.float32) for name in ("wq", "wk", "wv", "first", "second")},
    "kernel": DRAW.standard_normal((8, 8, 3)).astype(np.float32) / 4,
    "gate": DRAW.standard_normal((8, 1)).astype(np.float32),
    "codes": DRAW.integers(-128, 128, (8, 8)).astype(np.int8),
    "step": np.array(0.01, np.float32),
}

NODES = [
    helper.make_node("Transpose", ["x"], ["channels"], perm=[0, 2, 1]),
    helper.make_node("Conv", ["channels", "kernel"], ["convolved"], pads=[2, 0]),
    helper.make_node("Transpose", ["convolved"], ["rows"], perm=[0, 2, 1]),
    *(helper.make_node("MatMul", ["rows", f"w{name}"], [name]) for name in "qkv"),
    helper.make_node("Attention", ["q", "k", "v"], ["attended"], q_num_heads=2, kv_num_heads=2, is_causal=1),
    # Two experts, by a gate.
    helper.make_node("MatMul", ["attended", "gate"], ["logit"]),
    helper.make_node("Sigmoid", ["logit"], ["chosen"]),
    helper.make_node("MatMul", ["attended", "first"], ["one"]),
    helper.make_node("MatMul", ["attended", "second"], ["two"]),
    helper.make_node("Sub", ["one", "two"], ["more"]),
    helper.make_node("Mul", ["chosen", "more"], ["part"]),
    helper.make_node("Add", ["two", "part"], ["mixed"]),
    # Quantised by the range of all tokens.
    helper.make_node("DynamicQuantizeLinear", ["mixed"], ["mixed_codes", "scale", "zero"]),
    helper.make_node("MatMulInteger", ["mixed_codes", "codes", "zero"], ["sums"]),
    helper.make_node("Cast", ["sums"], ["numbers"], to=TensorProto.FLOAT),
    helper.make_node("Mul", ["scale", "step"], ["steps"]),
    helper.make_node("Mul", ["numbers", "steps"], ["scaled"]),
    helper.make_node("Add", ["scaled", "rows"], ["hidden"]),
]


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("mutations")
    return save_model(folder / "model.onnx", NODES, WEIGHTS, {"hidden": ["batch", "rows", 8]}, opset=23)


@pytest.fixture(scope="module")
def compiled(file: Path) -> CompiledModel:
    return compile_model(file, block_size=16)


def _stages(change: Callable[[Any], Any]) -> Callable[[CompiledModel], CompiledModel]:
    """The model with the first stage that ``change`` changes changed."""

    def made(compiled: CompiledModel) -> CompiledModel:
        body = list(compiled.program.body)
        at = next(at for at, stage in enumerate(body) if change(stage) != stage)
        body[at] = change(body[at])
        return replace(compiled, program=replace(compiled.program, body=tuple(body)))

    return made


def _masked(text: str) -> Callable[[CompiledModel], CompiledModel]:
    return _stages(lambda stage: replace(stage, mask=parse_mask(text)) if isinstance(stage, AttentionStage) else stage)


def _short_of_a_row(stage: Any) -> Any:
    """The oldest tap of the convolution reads nothing but zeros."""
    if not isinstance(stage, SequenceStage) or stage.operator != "take" or dict(stage.attributes)["start"] != 0:
        return stage
    return replace(stage, attributes=tuple(sorted({**dict(stage.attributes), "start": -LENGTH}.items())))


def _without_range(stage: Any) -> Any:
    """The largest number of all tokens is the smallest."""
    is_largest = isinstance(stage, SequenceStage) and stage.operator == "max"
    return replace(stage, operator="min") if is_largest else stage


def _scaled(compiled: CompiledModel) -> CompiledModel:
    engines = tuple(
        replace(engine, scale=engine.scale * 1.001) if isinstance(engine, AttentionEngine) else engine
        for engine in compiled.program.engines
    )
    return replace(compiled, program=replace(compiled.program, engines=engines))


def _swapped(compiled: CompiledModel) -> CompiledModel:
    first, second = (next(name for name in compiled.weights if name.startswith(part)) for part in ("first", "second"))
    weights = {**compiled.weights, first: compiled.weights[second], second: compiled.weights[first]}
    return replace(compiled, weights=weights)


MUTATIONS: dict[str, Callable[[CompiledModel], CompiledModel]] = {
    "no mask": _masked("full"),
    "a mask that sees one position ahead": _masked("window(1000, 1)"),
    "a window": _masked("causal & window(30, 0)"),
    "a scale wrong by a thousandth": _scaled,
    "a convolution short of a row": _stages(_short_of_a_row),
    "a range that is not that of all tokens": _stages(_without_range),
    "experts that are swapped": _swapped,
}


def test_the_unchanged_bundle_passes(file: Path, compiled: CompiledModel, tmp_path: Path) -> None:
    assert verify(write_bundle(compiled, tmp_path / "bundle", generation=False), file, length=LENGTH).passed


@pytest.mark.parametrize("name", MUTATIONS)
def test_a_changed_bundle_does_not_pass(name: str, file: Path, compiled: CompiledModel, tmp_path: Path) -> None:
    report = verify(write_bundle(MUTATIONS[name](compiled), tmp_path / "bundle", generation=False), file, length=LENGTH)
    assert not report.passed
    assert report.finding is None
    assert report.worst.ratio > 4
