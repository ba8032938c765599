"""A model in another floating-point type computes what it did, to that type's rounding, and keeps its ports."""

from __future__ import annotations

import numpy as np
import onnx
import onnxruntime  # type: ignore[import-untyped]
import pytest
from onnx import TensorProto

from tests.runtime.tiny_bundle import write_tiny
from tests.runtime.tiny_model import Tiny
from twoheads.export.accelerators.prepare_engine import prepare_engine
from twoheads.export.accelerators.rewrites.cast import cast_model
from twoheads.export.accelerators.target import load_target
from twoheads.export.engines.jobs import engine_jobs, engine_model, random_inputs
from twoheads.runtime.bundle.reader import read_bundle

NARROW = ("last", "attention.full", "mid.0", "norm", "lm")


@pytest.fixture
def engines(tmp_path):
    """The engines that have no inputs of whole numbers and fit half precision, with inputs."""
    bundle = read_bundle(write_tiny(tmp_path / "b", Tiny()))
    jobs = [job for job in engine_jobs(bundle) if job.name in NARROW]
    return [(engine_model(bundle, job), random_inputs(job)) for job in jobs]


def run(model, inputs):
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    return [np.asarray(value) for value in session.run(None, inputs)]


def types(model):
    graph = onnx.shape_inference.infer_shapes(model, strict_mode=True).graph
    ports = {port.name for port in (*graph.input, *graph.output)}
    inside = {value.type.tensor_type.elem_type for value in graph.value_info if value.name not in ports}
    return inside | {tensor.data_type for tensor in graph.initializer}


def test_half_precision_computes_the_same(engines):
    assert len(engines) == len(NARROW)
    for model, inputs in engines:
        before = model.SerializeToString()
        for want, got in zip(run(model, inputs), run(cast_model(model, "fp16"), inputs), strict=True):
            assert got.dtype == want.dtype == np.float32
            assert 0 < np.abs(got - want).max() < 1e-2 * np.abs(want).max()
        assert model.SerializeToString() == before


@pytest.mark.parametrize(("precision", "kind"), [("fp16", TensorProto.FLOAT16), ("bf16", TensorProto.BFLOAT16)])
def test_no_value_inside_stays_float32(engines, precision, kind):
    for model, _ in engines:
        cast = cast_model(model, precision)
        onnx.checker.check_model(cast, full_check=True)
        assert kind in types(cast)
        assert TensorProto.FLOAT not in types(cast)
        assert [port.type for port in cast.graph.input] == [port.type for port in model.graph.input]
        assert [port.type for port in cast.graph.output] == [port.type for port in model.graph.output]


def test_only_typed_targets_get_other_types(engines):
    model = engines[0][0]
    for name, typed in (("tensorrt", True), ("coreml", False)):
        prepared = prepare_engine(model, load_target(name), "fp16", "e").accelerator
        assert prepared is not None
        assert (TensorProto.FLOAT16 in types(prepared)) is typed
    whole = prepare_engine(model, load_target("tensorrt"), "fp32", "e").accelerator
    assert whole is not None
    assert TensorProto.FLOAT in types(whole)
