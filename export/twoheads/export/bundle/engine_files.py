"""Engines as ONNX files: weights bound to the shared file, every shape proven static, every file checked."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import onnx

from twoheads.graphs.errors import CompileError, InternalError
from twoheads.graphs.program.program import Port
from twoheads.graphs.serialization.bundle_format import WEIGHTS, WeightEntry
from twoheads.runtime.bundle.engine_files.check_engine_file import engine_problem

__all__ = ["assert_static", "bind_weights", "save_engine"]


def save_engine(
    model: onnx.ModelProto,
    path: Path,
    inputs: tuple[Port, ...],
    outputs: tuple[Port, ...],
    bound: Mapping[str, WeightEntry],
    unsized: str = "",
) -> None:
    """Checks an engine against its ports, binds its weights and writes it.

    Args:
        model: The engine; its weights are graph inputs. Changed in place.
        path: ``engines/<name>.onnx``; where ``bound`` is not empty, the weights' file lies beside it already.
        inputs: The input ports it must have, weights not among them.
        outputs: The output ports it must have.
        bound: For every weight port where its tensor lies.
        unsized: As :func:`assert_static` takes it.

    Raises:
        CompileError: It has what is refused when a bundle is loaded, such as control flow.
        InternalError: The model is not valid ONNX, has other ports, or a dimension that is not a number.
        OSError: The disk refuses.
    """
    assert_static(model, path.name, unsized)
    bind_weights(model, bound)
    _check_ports(model, path.name, inputs, outputs)
    data = model.SerializeToString(deterministic=True)
    if problem := engine_problem(data):
        raise CompileError(f"engine {path.stem}", problem, "avoid the operator that it names: no runtime would open it")
    path.write_bytes(data)
    try:
        onnx.checker.check_model(str(path), full_check=True)
    except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError) as error:
        raise InternalError(f"engine {path.name} is not valid ONNX: {error}") from error


def bind_weights(model: onnx.ModelProto, bound: Mapping[str, WeightEntry]) -> None:
    """Turns graph inputs into initializers whose data lies in the bundle's weights file, in place.

    Raises:
        InternalError: A weight is not an input of the graph, or has another type or shape there.
    """
    inputs = {value.name: value for value in model.graph.input}
    for name, entry in bound.items():
        if name not in inputs:
            raise InternalError(f"engine {model.graph.name} has no weight input {name!r}")
        declared = inputs.pop(name).type.tensor_type
        element = _element_type(entry.dtype)
        if declared.elem_type != element or tuple(d.dim_value for d in declared.shape.dim) != entry.shape:
            raise InternalError(f"engine {model.graph.name}: weight {name!r} is not {entry.dtype} {entry.shape}")
        model.graph.initializer.append(_external(name, element, entry))
    del model.graph.input[:]
    model.graph.input.extend(inputs.values())


def _external(name: str, element: int, entry: WeightEntry) -> onnx.TensorProto:
    tensor = onnx.TensorProto(name=name, data_type=element, dims=entry.shape)
    tensor.data_location = onnx.TensorProto.EXTERNAL
    count = 1
    for dim in entry.shape:
        count *= dim
    length = count * onnx.helper.tensor_dtype_to_np_dtype(element).itemsize
    facts = {"location": Path(WEIGHTS).name, "offset": str(entry.offset), "length": str(length)}
    for key, value in facts.items():
        tensor.external_data.add(key=key, value=value)
    return tensor


def _element_type(dtype: str) -> int:
    names = {"float32": "FLOAT", "float64": "DOUBLE", "bool": "BOOL"}
    return int(onnx.TensorProto.DataType.Value(names.get(dtype, dtype.upper())))


def assert_static(model: onnx.ModelProto, name: str, unsized: str = "") -> None:
    """Raises unless every input, every output and every value that shape inference reaches has numbers for dimensions.

    Args:
        model: The engine.
        name: Of it, for the message.
        unsized: What the names of values between them begin with that may have any, if there are such.

    Raises:
        InternalError: Names the value and its shape.
    """
    try:
        inferred = onnx.shape_inference.infer_shapes(model, strict_mode=True).graph
    except onnx.shape_inference.InferenceError as error:
        raise InternalError(f"engine {name}: shapes do not fit together: {error}") from error
    ports = (*inferred.input, *inferred.output)
    between = [made for made in inferred.value_info if not (unsized and made.name.startswith(unsized))]
    # a slice of no width is as fixed as any other
    for value, least in (*((port, 1) for port in ports), *((made, 0) for made in between)):
        tensor = value.type.tensor_type
        if tensor.HasField("shape") and all(d.dim_value > 0 for d in tensor.shape.dim):
            continue  # nearly all: what names the others takes three times as long
        dims = [d.dim_value if d.HasField("dim_value") else d.dim_param or "?" for d in tensor.shape.dim]
        if not tensor.HasField("shape") or any(isinstance(dim, str) or dim < least for dim in dims):
            raise InternalError(f"engine {name}: {value.name} has the shape {dims}, which is not static")


def _check_ports(model: onnx.ModelProto, name: str, inputs: tuple[Port, ...], outputs: tuple[Port, ...]) -> None:
    for side, values, ports in (("inputs", model.graph.input, inputs), ("outputs", model.graph.output, outputs)):
        found = {v.name: (v.type.tensor_type.elem_type, _dims(v)) for v in values}
        wanted = {port.name: (_element_type(port.dtype), port.shape) for port in ports}
        if found != wanted:
            raise InternalError(f"engine {name} has {side} {found}, its program declares {wanted}")


def _dims(value: onnx.ValueInfoProto) -> tuple[int, ...]:
    return tuple(dim.dim_value for dim in value.type.tensor_type.shape.dim)
