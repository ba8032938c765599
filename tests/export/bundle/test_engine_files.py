"""An engine that no runtime would open is refused when it is written."""

from __future__ import annotations

import pytest
from onnx import TensorProto, helper

from twoheads.export.bundle.engine_files import save_engine
from twoheads.graphs.errors import CompileError
from twoheads.graphs.program.engines.port import Port


def test_what_the_reader_refuses_is_not_written(tmp_path):
    node = helper.make_node("RandomNormal", [], ["y"], shape=[4])
    y = helper.make_tensor_value_info("y", TensorProto.FLOAT, [4])
    model = helper.make_model(helper.make_graph([node], "g", [], [y]), opset_imports=[helper.make_opsetid("", 20)])
    with pytest.raises(CompileError, match="draws random numbers"):
        save_engine(model, tmp_path / "e.onnx", (), (Port("y", "float32", (4,)),), {})
    assert not (tmp_path / "e.onnx").exists()
