"""Engines for blocks of other sizes are the files that the exporter writes for these sizes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from tests.export.small_decoder import small_decoder
from twoheads.compiler.compiled_model import CompiledModel
from twoheads.export.bundle import resized_engines
from twoheads.export.bundle.resized_engines import STANDING_OUT, ResizedEngines, _with_size
from twoheads.export.emit.tokenwise import emit_tokenwise
from twoheads.export.precision.quantise_weights import quantise_weights
from twoheads.graphs.variants.stage_run import with_rows


def _exported(compiled: CompiledModel, rows: int) -> dict[str, onnx.ModelProto]:
    engines = with_rows(compiled.program, rows).tokenwise_engines
    return {engine.name: emit_tokenwise(compiled.regions[engine.name], engine) for engine in engines}


@pytest.fixture
def sizes(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The rows of every export that is asked for."""
    asked: list[int] = []

    def told(region: Any, engine: Any) -> onnx.ModelProto:
        asked.append(engine.inputs[0].shape[1])
        return emit_tokenwise(region, engine)

    monkeypatch.setattr(resized_engines, "emit_tokenwise", told)
    return asked


@pytest.mark.parametrize("precision", [None, ("int4", "float32"), ("int8", "int8")])
def test_files_are_the_exporters_and_one_export_serves_all_sizes(
    precision: tuple[str, str] | None, sizes: list[int]
) -> None:
    compiled = small_decoder().model if precision is None else quantise_weights(small_decoder().model, *precision)
    own = _exported(compiled, compiled.program.block_size)
    resized = ResizedEngines(compiled, own, compiled.program)
    found = {rows: resized.of(rows) for rows in (1, 8)}
    assert sizes == [STANDING_OUT] * len(own)
    for rows, models in found.items():
        assert models == _exported(compiled, rows)


def test_what_does_not_come_out_for_the_own_size_is_exported(sizes: list[int]) -> None:
    compiled = small_decoder().model
    own = _exported(compiled, compiled.program.block_size)
    own["head"].graph.node[0].op_type = "Another"
    found = ResizedEngines(compiled, own, compiled.program).of(8)
    assert sizes == [STANDING_OUT] * len(own) + [8]
    assert found == _exported(compiled, 8)


def _constants(numbers: Mapping[str, Any]) -> onnx.ModelProto:
    node = helper.make_node("Split", ["x"], ["y"], num_outputs=3 * STANDING_OUT, axis=1)
    node.attribute.append(helper.make_attribute("sizes", [STANDING_OUT, -1, STANDING_OUT + 1]))
    node.attribute.append(helper.make_attribute("value", numpy_helper.from_array(np.array(STANDING_OUT))))
    value = helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, STANDING_OUT, 64])
    tensors = [numpy_helper.from_array(np.asarray(array), name) for name, array in numbers.items()]
    return helper.make_model(helper.make_graph([node], "g", [value], [], tensors))


def test_numbers_of_rows_are_replaced_and_no_others() -> None:
    mixed = np.arange(2 * STANDING_OUT, dtype=np.float32).reshape(STANDING_OUT, 2)
    full = np.full((STANDING_OUT, 3), -1e30, np.float32)
    shape = np.array([2 * STANDING_OUT, -1, 0, STANDING_OUT - 1, 2**62])
    model = _constants({"full": full, "mixed": mixed, "shape": shape, "of numbers": full[:1] * STANDING_OUT})
    found = _with_size(model, 8)
    attributes = {attribute.name: helper.get_attribute_value(attribute) for attribute in found.graph.node[0].attribute}
    assert attributes["num_outputs"] == 24
    assert attributes["axis"] == 1
    assert attributes["sizes"] == [8, -1, STANDING_OUT + 1]
    assert numpy_helper.to_array(attributes["value"]) == 8
    assert [dim.dim_value for dim in found.graph.input[0].type.tensor_type.shape.dim] == [1, 8, 64]
    constants = {tensor.name: numpy_helper.to_array(tensor) for tensor in found.graph.initializer}
    np.testing.assert_array_equal(constants["full"], full[:8])
    np.testing.assert_array_equal(constants["mixed"], mixed)  # whose rows are told apart: so the file is not right
    np.testing.assert_array_equal(constants["shape"], [16, -1, 0, STANDING_OUT - 1, 2**62])
    np.testing.assert_array_equal(constants["of numbers"], full[:1] * STANDING_OUT)
    assert model == _constants({"full": full, "mixed": mixed, "shape": shape, "of numbers": full[:1] * STANDING_OUT})
