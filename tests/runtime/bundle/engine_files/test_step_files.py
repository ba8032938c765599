"""Engine files of steps are checked when generating opens them: they say what the program says, and loop nowhere."""

from __future__ import annotations

import shutil

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from tests.runtime.generation.decoders import bundle_folder, tokens
from tests.runtime.tiny_bundle import rehash
from twoheads.graphs.errors import BundleError
from twoheads.runtime import load
from twoheads.runtime.bundle.engine_files.check_engine_file import engine_problem
from twoheads.runtime.bundle.engine_files.declared import declared_steps
from twoheads.runtime.bundle.reader import read_bundle


def _loop(model):
    node = helper.make_node("Loop", ["index", ""], ["made"], body=helper.make_graph([], "body", [], []))
    model.graph.node.insert(0, node)


def _scale(model):
    multiplied = {value for node in model.graph.node if node.op_type == "Mul" for value in node.input}
    for tensor in model.graph.initializer:
        if tensor.name in multiplied and tensor.name.startswith("number_"):
            tensor.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(tensor) * np.float32(1.5), tensor.name))


def _offset(model):
    tensor = next(t for t in model.graph.initializer if t.data_location == TensorProto.EXTERNAL)
    next(entry for entry in tensor.external_data if entry.key == "offset").value = "64"


@pytest.mark.parametrize(
    ("change", "words"), [(_loop, "is control flow"), (_scale, "multiplies with"), (_offset, "has the weight")]
)
def test_a_step_engine_that_is_none_of_ours(tmp_path, change, words):
    folder = shutil.copytree(bundle_folder("llama"), tmp_path / "b")
    for path in (folder / "engines").glob("step_*_*.onnx"):
        if path.stem.count("_") == 2 and path.stem.replace("_", "").removeprefix("step").isdigit():
            model = onnx.load(path, load_external_data=False)
            change(model)
            path.write_bytes(model.SerializeToString())
            rehash(folder, f"engines/{path.name}")
    loaded = load(folder, memory_limit=1 << 30)  # runs open none of them, and rows are not written in place
    with pytest.raises(BundleError, match=words):
        loaded.generate(tokens(5), max_new_tokens=3)


def _attention_scale(model):
    for node in model.graph.node:
        for attribute in node.attribute:
            if node.op_type == "GroupQueryAttention" and attribute.name == "scale":
                attribute.f *= 1.5


@pytest.mark.parametrize(("change", "words"), [(_attention_scale, "multiplies with"), (_offset, "has the weight")])
def test_an_engine_that_writes_in_place_is_checked_as_well(tmp_path, change, words):
    folder = shutil.copytree(bundle_folder("llama"), tmp_path / "b")
    for path in (folder / "engines").glob("step_in_place_*.onnx"):
        model = onnx.load(path, load_external_data=False)
        change(model)
        path.write_bytes(model.SerializeToString())
        rehash(folder, f"engines/{path.name}")
    with load(folder).open_context() as context:
        with pytest.raises(BundleError, match=words):
            context.append(tokens(5))
        with pytest.raises(BundleError, match=words):
            context.step(3)


@pytest.mark.parametrize("name", ["llama", "gemma"])
def test_every_step_engine_is_declared_and_agrees(name):
    bundle = read_bundle(bundle_folder(name))
    declared = declared_steps(bundle.program, bundle.manifest, bundle.open_weights().view)
    held = [file for file in bundle.manifest.files if file.startswith("engines/step_")]
    assert held
    assert set(held) <= declared.keys()
    for file in held:
        assert engine_problem(bundle.file(file).read_bytes(), declared[file]) is None, file
