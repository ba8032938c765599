"""A file that no emitter of ours writes, or that says another number than the program, never reaches a backend."""

from __future__ import annotations

import dataclasses
import json
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from tests.runtime.tiny_bundle import make_program, read_manifest, rehash, write_manifest, write_tiny
from tests.runtime.tiny_model import Tiny
from twoheads.graphs.errors import BundleError
from twoheads.graphs.program.program import AttentionEngine
from twoheads.graphs.serialization.json_codec import to_json
from twoheads.runtime import load
from twoheads.runtime.bundle.reader import read_bundle

TINY = Tiny(layers=2, softcap=2.0)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    return write_tiny(tmp_path_factory.mktemp("whole") / "b", TINY, with_one_block=True, other_key_tiles=(32,))


@pytest.fixture
def bundle(whole, tmp_path):
    return Path(shutil.copytree(whole, tmp_path / "b"))


def alter(bundle: Path, name: str, change: Callable[[Any], Any]) -> None:
    path = bundle / "engines" / name
    model = onnx.load(path, load_external_data=False)
    change(model)
    path.write_bytes(model.SerializeToString())
    rehash(bundle, f"engines/{name}")


def refused(bundle: Path, *words: str) -> None:
    for check in ("full", "size"):
        with pytest.raises(BundleError) as caught:
            load(bundle, check=check)
        for word in words:
            assert word in str(caught.value)
        assert caught.value.fix


def add(operator: str, *inputs: str, domain: str = "", **attributes: Any) -> Callable[[Any], None]:
    node = helper.make_node(operator, list(inputs), ["made"], domain=domain, **attributes)
    return lambda model: model.graph.node.insert(0, node)


def asking(operator: str, *operands: list[int] | None, at: int = 0) -> Callable[[Any], None]:
    """An operator whose operands, from ``at`` on, are constants."""

    def change(model):
        names = [f"asked_{number}" for number in range(len(operands))]
        for name, numbers in zip(names, operands, strict=True):
            array = np.array(numbers, np.int64)
            model.graph.initializer.append(numpy_helper.from_array(array, name))
        add(operator, *["q"] * at, *names)(model)

    return change


def _huge_constant(model):
    tensor = TensorProto(name="huge", data_type=TensorProto.FLOAT, dims=[1 << 20, 1 << 20])
    tensor.raw_data = b"\0" * 64
    model.graph.initializer.append(tensor)


def _function(model):
    node = helper.make_node("Abs", ["x"], ["y"])
    function = helper.make_function("mine", "f", ["x"], ["y"], [node], [helper.make_opsetid("", 20)])
    model.functions.append(function)


def _sparse(model):
    values = helper.make_tensor("values", TensorProto.FLOAT, [1], [1.0])
    indices = helper.make_tensor("indices", TensorProto.INT64, [1], [0])
    model.graph.sparse_initializer.append(helper.make_sparse_tensor(values, indices, [1 << 40]))


def _constant_of_shape_by_node(model):
    model.graph.node.insert(0, helper.make_node("ConstantOfShape", ["shape"], ["made"]))
    model.graph.node.insert(0, helper.make_node("Constant", [], ["shape"], value_ints=[1 << 15, 1 << 15]))


BODY = helper.make_graph([], "body", [], [])
BAD_FILES = {
    "loop": (add("Loop", "q", "k", body=BODY), "Loop of 'made' is control flow"),
    "branch": (add("If", "q", then_branch=BODY, else_branch=BODY), "If of 'made' is control flow"),
    "scan": (add("Scan", "q", body=BODY, num_scan_inputs=1), "Scan of 'made' is control flow"),
    "map": (add("SequenceMap", "q", body=BODY), "SequenceMap of 'made' is control flow"),
    "hidden loop": (add("Loop", "q", "k", domain="ai.onnx"), "Loop of 'made' is control flow"),
    "graph in another operator": (add("Abs", "q", body=BODY), "Abs of 'made' is control flow"),
    "random numbers": (add("RandomNormal", shape=[4]), "draws random numbers"),
    "foreign set": (add("Abs", "q", domain="evil"), "of the set 'evil'"),
    "runtime's own operator": (add("CDist", "q", "k", domain="com.microsoft"), "of the set 'com.microsoft'"),
    "function": (_function, "declares functions"),
    "sparse": (_sparse, "sparse"),
    "huge constant": (_huge_constant, "has 64 bytes for 1099511627776 numbers"),
    "huge shape": (asking("ConstantOfShape", [1 << 15, 1 << 15]), "makes 1073741824 numbers"),
    "huge shape by a node": (_constant_of_shape_by_node, "makes 1073741824 numbers"),
    "huge expansion": (asking("Expand", [1 << 40], at=1), "makes 1099511627776 numbers"),
    "huge tiling": (asking("Tile", [1 << 20, 1 << 20], at=1), "makes 1099511627776 numbers"),
    "huge range": (asking("Range", [0], [10**12], [1]), "makes 1000000000000 numbers"),
    "huge padding": (asking("Pad", [1 << 40, 0], at=1), "makes 1099511627776 numbers"),
    "huge map": (asking("Resize", [1 << 40], at=2), "makes 1099511627776 numbers"),
    "computed size": (add("ConstantOfShape", "q"), "whose size it computes"),
}


@pytest.mark.parametrize("name", sorted(BAD_FILES))
def test_what_no_emitter_writes(bundle, name):
    change, words = BAD_FILES[name]
    alter(bundle, "attention.full.onnx", change)
    began = time.monotonic()
    refused(bundle, "attention.full.onnx", words)
    assert time.monotonic() - began < 20


def _external(**changes: str) -> Callable[[Any], None]:
    def change(model):
        tensor = next(t for t in model.graph.initializer if t.data_location == TensorProto.EXTERNAL)
        held = {entry.key: entry.value for entry in tensor.external_data} | changes
        del tensor.external_data[:]
        for key, value in held.items():
            tensor.external_data.add(key=key, value=value)

    return change


def _inside(model):
    """A constant that a node holds, in another file."""
    tensor = TensorProto(name="t", data_type=TensorProto.FLOAT, dims=[1], data_location=TensorProto.EXTERNAL)
    tensor.external_data.add(key="location", value="/etc/passwd")
    model.graph.node.insert(0, helper.make_node("Constant", [], ["c"], value=tensor))


def _unbound(model):
    tensor = TensorProto(name="other", data_type=TensorProto.FLOAT, dims=[1], data_location=TensorProto.EXTERNAL)
    tensor.external_data.add(key="location", value="weights.bin")
    model.graph.initializer.append(tensor)


def _no_weight(model):
    at = [tensor.data_location for tensor in model.graph.initializer].index(TensorProto.EXTERNAL)
    del model.graph.initializer[at]


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (_external(location="/etc/passwd"), "not the weights' file"),
        (_external(location="../../secret"), "not the weights' file"),
        (_external(location="program.json"), "not the weights' file"),
        (_external(offset="-64"), "has the weight"),
        (_external(offset="abc"), "has the weight"),
        (_external(offset="1"), "has the weight"),
        (_external(length="99999999999"), "has the weight"),
        (_external(checksum="x"), "has the weight"),
        (_inside, "has a constant in another file"),
        (_unbound, "refers to a weight 'other' that the program does not bind"),
        (_no_weight, "which the program binds"),
    ],
)
def test_data_elsewhere(bundle, change, words):
    alter(bundle, "first.onnx", change)
    refused(bundle, "first.onnx", words)


def test_a_file_that_no_stage_opens_is_checked_as_well(bundle):
    shutil.copy(bundle / "engines/attention.full.onnx", bundle / "engines/spare.onnx")
    manifest = read_manifest(bundle)
    manifest["files"]["engines/spare.onnx"] = manifest["files"]["engines/attention.full.onnx"]
    write_manifest(bundle, manifest)
    load(bundle)
    alter(bundle, "spare.onnx", add("Loop", "q", "k", body=BODY))
    refused(bundle, "spare.onnx", "control flow")


@pytest.mark.parametrize(
    "changes", [{"scale": 0.5}, {"softcap": 3.0}, {"softcap": 0.0}, {"scale": 1e-3, "softcap": 4.0}]
)
def test_program_and_engines_agree_on_the_scores(bundle, changes):
    """Short inputs are one call of one engine, long ones are tiles: a bundle that says both gives two answers."""
    program = make_program(TINY)
    engines = [
        dataclasses.replace(engine, **changes) if isinstance(engine, AttentionEngine) else engine
        for engine in program.engines
    ]
    text = json.dumps(to_json(dataclasses.replace(program, engines=tuple(engines))))
    (bundle / "program.json").write_text(text)
    rehash(bundle, "program.json")
    refused(bundle, "multiplies with", "scale and softcap are")


@pytest.mark.parametrize(
    "name", ["attention.full.onnx", "attention.masked_merge.onnx", "one_block.onnx", "tiles_32/attention.full.onnx"]
)
def test_engines_agree_with_each_other_on_the_scores(bundle, name):
    def scaled(model):
        multiplied = {value for node in model.graph.node if node.op_type == "Mul" for value in node.input}
        changed = 0
        for tensor in model.graph.initializer:
            if tensor.name in multiplied and not tensor.dims and tensor.name.startswith("number_"):
                tensor.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(tensor) * np.float32(1.5), tensor.name))
                changed += 1
        assert changed

    alter(bundle, name, scaled)
    refused(bundle, name, "multiplies with")


@pytest.mark.parametrize(
    ("weight", "options"),
    [
        ("0.sinks", {"sinks": True}),
        ("0.table", {"table_reach": 3}),
        ("0.slope", {"slope": True}),
    ],
)
def test_an_engine_that_holds_sinks_and_biases_has_those_of_the_weights(tmp_path, weight, options):
    """Short inputs see what is in the engine, long ones what is among the weights."""
    bundle = write_tiny(tmp_path / "b", Tiny(layers=2, **options), with_one_block=True)
    load(bundle)
    place = read_manifest(bundle)["weights"][weight]["offset"]
    weights = bundle / "engines" / "weights.bin"
    data = bytearray(weights.read_bytes())
    data[place : place + 4] = np.float32(0.5).tobytes()
    weights.write_bytes(data)
    rehash(bundle, "engines/weights.bin")
    refused(bundle, "one_block.onnx", "other values, masks, sinks or biases")


def test_an_engine_of_several_stages_says_what_it_was_made_of(bundle):
    alter(bundle, "one_block.onnx", lambda model: model.ClearField("metadata_props"))
    refused(bundle, "one_block.onnx", "joins its stages as another program does")


def test_whoever_opens_no_engine_need_not_check_them(bundle):
    alter(bundle, "attention.full.onnx", add("Loop", "q", "k", body=BODY))
    assert read_bundle(bundle, engines=False).program == make_program(TINY)
