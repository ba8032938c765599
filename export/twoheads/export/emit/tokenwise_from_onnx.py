"""Token-wise regions of ONNX programs to ONNX: the file's own operators at a fixed size, weights as graph inputs.

The operator set stays that of the file: the operators are kept as they are, and a conversion would be one more
translation to trust. Values get numbers for names, so that equal regions give equal files.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import numpy as np
import onnx
from onnx import helper, numpy_helper

from twoheads.compiler.frontend.onnx.onnx_program import OnnxRegion
from twoheads.compiler.ir.source_graph import TensorType, place_of
from twoheads.export.emit.graph_builder import declared_port
from twoheads.graphs.errors import CompileError
from twoheads.graphs.program.program import TokenwiseEngine
from twoheads.runtime.bundle.weights_table import DTYPES

__all__ = ["tokenwise_from_onnx"]

IR_VERSION = 10

REMEDY = "export it without this operator, or with sizes that are numbers"


def tokenwise_from_onnx(region: OnnxRegion, engine: TokenwiseEngine) -> onnx.ModelProto:
    """The region as a fixed-shape ONNX model.

    Args:
        region: What to compute.
        engine: Its ports; the block size is that of their shapes.

    Returns:
        A model whose inputs are the engine's inputs followed by its weights, all by port name.

    Raises:
        CompileError: An operator's result has no shape that follows from the engine's, or a value is of no type that
            bundles hold.
    """
    _check_types(engine)
    lengths = region.lengths(engine)
    protos = [proto for node in region.operators() for proto in node.at(lengths)]
    protos = list(_with_gemms(protos, region))
    names = dict(zip(region.inputs, (port.name for port in engine.inputs), strict=True))
    names |= dict(zip(region.weights, (port.name for port in engine.weights), strict=True))
    names |= dict(zip(region.outputs, (port.name for port in engine.outputs), strict=True))
    graph = helper.make_graph(
        list(_renamed(protos, names)),
        engine.name,
        [declared_port(port) for port in (*engine.inputs, *engine.weights)],
        [declared_port(port) for port in engine.outputs],
    )
    opsets = [helper.make_opsetid(domain, version) for domain, version in _used_opsets(region, protos).items()]
    model = helper.make_model(graph, opset_imports=opsets, ir_version=IR_VERSION, producer_name="twoheads")
    _check_shapes(model, protos)
    return model


def _check_types(engine: TokenwiseEngine) -> None:
    for port in (*engine.inputs, *engine.outputs, *engine.weights):
        if port.dtype not in DTYPES:
            raise CompileError(
                f"engine {engine.name}", f"has values of {port.dtype}, and bundles hold none", "export it with int64"
            )


def _check_shapes(model: onnx.ModelProto, protos: Sequence[onnx.NodeProto]) -> None:
    """Refuses the first operator behind which a shape is open: its contents decide, or ONNX does not say."""
    try:
        inferred = onnx.shape_inference.infer_shapes(model, strict_mode=True).graph
    except onnx.shape_inference.InferenceError as error:
        message = " ".join(str(error).split())
        raise CompileError(model.graph.name, f"has shapes that do not fit together: {message:.300}", REMEDY) from error
    known = {value.name for value in (*inferred.input, *inferred.output, *inferred.value_info) if _is_fixed(value)}
    for node, proto in zip(model.graph.node, protos, strict=True):
        if any(name and name not in known for name in node.output):
            raise CompileError(
                place_of("", proto.output[0]),
                f"makes an array ({proto.op_type}) whose shape does not follow from the shapes of what it reads",
                REMEDY,
            )


def _is_fixed(value: onnx.ValueInfoProto) -> bool:
    shape = value.type.tensor_type
    return shape.HasField("shape") and all(dim.HasField("dim_value") for dim in shape.shape.dim)


def _used_opsets(region: OnnxRegion, protos: list[onnx.NodeProto]) -> dict[str, int]:
    used = {"", *(proto.domain for proto in protos)}
    opsets = region.program.graph.opsets
    return {domain: opsets.get(domain, 1) for domain in sorted(used)}


def _renamed(protos: list[onnx.NodeProto], names: Mapping[str, str]) -> Iterator[onnx.NodeProto]:
    """Copies without what names the file's maker; values that are no ports are numbered."""
    known = {"": "", **names}
    for number, proto in enumerate(protos):
        copy = onnx.NodeProto()
        copy.CopyFrom(proto)
        copy.name, copy.doc_string = f"{proto.op_type}_{number}", ""
        del copy.metadata_props[:], copy.input[:], copy.output[:]
        copy.input.extend(known[name] for name in proto.input)
        for name in proto.output:
            copy.output.append(known.setdefault(name, f"t:{len(known)}"))
        yield copy


def _with_gemms(protos: list[onnx.NodeProto], region: OnnxRegion) -> Iterator[onnx.NodeProto]:
    """Products with a transposed weight as ``Gemm``, which reads it as it is stored: no transposed copy in memory."""
    types = region.program.types
    transposed = {
        proto.output[0]: proto.input[0]
        for proto in protos
        if proto.op_type == "Transpose" and proto.input[0] in region.weights and len(types[proto.input[0]].shape) == 2
    }
    products = [proto.output[0] for proto in protos if proto.op_type == "MatMul" and proto.input[1] in transposed]
    others = {name for proto in protos if proto.output[0] not in products for name in proto.input} | set(region.outputs)
    for proto in protos:
        if proto.output[0] in products:
            yield from _gemm(proto, transposed[proto.input[1]], types)
        elif proto.output[0] not in transposed or proto.output[0] in others:
            yield proto


def _gemm(proto: onnx.NodeProto, weight: str, types: Mapping[str, TensorType]) -> Iterator[onnx.NodeProto]:
    x, result = proto.input[0], proto.output[0]
    classes, width = (int(dim) for dim in types[weight].shape)
    shape = [-1 if isinstance(dim, str) else dim for dim in types[result].shape]
    rows, product = f"{result}.rows", f"{result}.product"
    yield _constant(f"{rows}.shape", [-1, width])
    yield helper.make_node("Reshape", [x, f"{rows}.shape"], [rows])
    yield helper.make_node("Gemm", [rows, weight], [product], transB=1)
    yield _constant(f"{product}.shape", [*shape[:-1], classes])
    yield helper.make_node("Reshape", [product, f"{product}.shape"], [result])


def _constant(name: str, numbers: list[int]) -> onnx.NodeProto:
    return helper.make_node("Constant", [], [name], value=numpy_helper.from_array(np.array(numbers, np.int64)))
