"""Files are read as the onnx package reads them, and whatever is no file is refused."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper

from tests.runtime.tiny_bundle import write_tiny
from tests.runtime.tiny_model import Tiny
from twoheads.runtime.bundle.engine_files.onnx_file import read_onnx
from twoheads.runtime.bundle.engine_files.protobuf import ProtobufError, fields


@pytest.fixture(scope="module")
def engines(tmp_path_factory):
    """The bytes of all engines of a bundle."""
    bundle = write_tiny(tmp_path_factory.mktemp("b") / "b", Tiny(layers=2, softcap=2.0), with_one_block=True)
    return [path.read_bytes() for path in sorted(bundle.glob("engines/*.onnx"))]


def test_every_engine_reads_as_onnx_reads_it(engines):
    for data in engines:
        ours, theirs = read_onnx(data), onnx.load_from_string(data).graph
        assert [(n.operator, n.domain, n.inputs, n.outputs) for n in ours.nodes] == [
            (n.op_type, n.domain, tuple(n.input), tuple(n.output)) for n in theirs.node
        ]
        for found, declared in ((ours.inputs, theirs.input), (ours.outputs, theirs.output)):
            shapes = [tuple(dim.dim_value for dim in value.type.tensor_type.shape.dim) for value in declared]
            assert [(value.name, value.shape) for value in found] == list(
                zip((value.name for value in declared), shapes, strict=True)
            )
        assert list(ours.constants) == [tensor.name for tensor in theirs.initializer]
        for tensor in theirs.initializer:
            mine = ours.constants[tensor.name]
            assert mine.shape == tuple(tensor.dims)
            assert np.dtype(mine.dtype) == helper.tensor_dtype_to_np_dtype(tensor.data_type)
            if tensor.data_location == TensorProto.EXTERNAL:
                assert mine.external == {entry.key: entry.value for entry in tensor.external_data}
            else:
                np.testing.assert_array_equal(mine.numbers(), numpy_helper.to_array(tensor).reshape(-1))


@pytest.mark.parametrize("numbers", [[0], [-1, 1, 127, 128, -(1 << 63), (1 << 63) - 1], []])
def test_whole_numbers_stored_one_by_one(numbers):
    tensor = helper.make_tensor("t", TensorProto.INT64, [len(numbers)], numbers)
    node = (
        helper.make_node("Constant", [], ["c"], value_ints=numbers)
        if numbers
        else helper.make_node("Abs", ["t"], ["c"])
    )
    model = helper.make_model(helper.make_graph([node], "g", [], [], [tensor]))
    found = read_onnx(model.SerializeToString())
    stored = found.constants["t"].numbers()
    assert stored is not None
    assert stored.tolist() == numbers
    assert found.nodes[0].ints.get("value_ints", ()) == tuple(numbers)


@settings(deadline=None, max_examples=300)
@given(st.binary(max_size=64))
def test_bytes_at_random_are_refused_or_read(data):
    try:
        read_onnx(data)
    except ProtobufError:
        return


@settings(deadline=None, max_examples=300)
@given(st.data())
def test_engines_with_a_byte_changed_are_refused_or_read(engines, data):
    engine = bytearray(data.draw(st.sampled_from(engines)))
    for _ in range(data.draw(st.integers(1, 3))):
        engine[data.draw(st.integers(0, len(engine) - 1))] = data.draw(st.integers(0, 255))
    try:
        found = read_onnx(bytes(engine[: data.draw(st.integers(0, len(engine)))]))
        for tensor in found.constants.values():
            tensor.numbers()
    except ProtobufError:
        return


def test_what_could_be_read_in_two_ways_is_refused():
    model = helper.make_model(helper.make_graph([helper.make_node("Abs", ["x"], ["y"])], "g", [], []))
    data = model.SerializeToString()
    with pytest.raises(ProtobufError, match="2 graphs"):
        read_onnx(data + data)  # readers merge what comes twice
    with pytest.raises(ProtobufError, match="0 graphs"):
        read_onnx(b"")


def test_numbers_of_more_than_64_bits_and_groups_are_refused():
    for data in (b"\x08" + b"\xff" * 11, b"\x08\xff", b"\x0b\x00", b"\x0a\x05ab", b"\x0d\x00"):
        with pytest.raises(ProtobufError):
            list(fields(memoryview(data)))


def test_small_constants_of_several_files_are_read_once():
    def read(*constants):
        held = [numpy_helper.from_array(np.full(size, number, np.float32), name) for name, number, size in constants]
        return read_onnx(helper.make_model(helper.make_graph([], "g", [], [], held)).SerializeToString()).constants

    one, other = read(("a", 1, 3), ("b", 2, 3), ("wide", 1, 1000)), read(("a", 1, 3), ("b", 3, 3), ("wide", 1, 1000))
    assert [one[name] is other[name] for name in one] == [True, False, False]
    numbers = other["b"].numbers()
    assert numbers is not None
    assert numbers.tolist() == [3, 3, 3]
