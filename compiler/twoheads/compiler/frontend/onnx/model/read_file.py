"""Reads an ONNX file: nodes and weights under safe names, with what no compiler can take refused by name.

The file is anybody's, so nothing is assumed about its maker: functions are inlined, constants become weights, external
data is mapped, and half-precision files are computed in float32 (their weights stay as they are until they are used).
"""

from __future__ import annotations

import hashlib
import json
import logging
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
from google.protobuf.message import DecodeError, Message  # type: ignore[import-untyped]
from onnx import TensorProto, numpy_helper
from onnx.external_data_helper import uses_external_data

from twoheads.compiler.frontend.onnx.model.branches import renamed, take_branches
from twoheads.compiler.frontend.onnx.model.node_count import check_node_count
from twoheads.compiler.frontend.onnx.model.older_operators import bring_up_to_date
from twoheads.compiler.frontend.onnx.model.settled_branches import settle_branches
from twoheads.compiler.frontend.onnx.model.tensors import Array, array_of, constant_of, dtype_name, external_file
from twoheads.graphs.errors import CompileError
from twoheads.graphs.serialization.bundle_format import SourceIdentity

__all__ = ["Array", "GraphInput", "OnnxFile", "dtype_name", "read_onnx"]

logger = logging.getLogger(__name__)

LAYER_NORM_OPSET = 17

DOMAINS = ("", "ai.onnx", "com.microsoft")

CONTROL = ("If", "Loop", "Scan")

GATED = ("LSTM", "GRU", "RNN")
"""Recurrences that an engine of a file's only size may hold."""

REFUSED = {
    **dict.fromkeys(CONTROL, ("is control flow", "export without branches and loops")),
    **dict.fromkeys(
        (*GATED, "DynamicQuantizeLSTM", "AttnLSTM"),
        (
            "is a recurrence whose state goes through gates from token to token: no block can start in its middle",
            "compile a transformer, or a model of a recurrence that is linear in its state (Mamba, gated delta rule); "
            "a model of one input size can be one engine of it, --lowering whole",
        ),
    ),
    **dict.fromkeys(
        ("RandomNormal", "RandomNormalLike", "RandomUniform", "RandomUniformLike", "Multinomial", "Bernoulli"),
        ("draws random numbers", "export in evaluation mode"),
    ),
    **dict.fromkeys(
        (
            *("SequenceAt", "SequenceConstruct", "SequenceEmpty", "SequenceErase", "SequenceInsert", "SequenceLength"),
            *("SequenceMap", "SplitToSequence", "ConcatFromSequence"),
            *("StringConcat", "StringNormalizer", "StringSplit", "RegexFullMatch"),
        ),
        ("works on sequences or strings", "export the part of the model that works on tensors"),
    ),
    **dict.fromkeys(
        ("Optional", "OptionalGetElement", "OptionalHasElement"),
        ("works on values that may be missing", "export a model of tensors"),
    ),
}  # fmt: skip
"""Operators that can't be compiled, with the reason and a remedy."""

HALF = (TensorProto.FLOAT16, TensorProto.BFLOAT16)


@dataclass(frozen=True, slots=True)
class GraphInput:
    """An input as the file declares it: its dimensions are numbers, names, or ``None`` for unknown ones."""

    name: str
    dtype: str
    shape: tuple[int | str | None, ...]


@dataclass(frozen=True, slots=True)
class OnnxFile:
    """A file's contents.

    Attributes:
        path: The file.
        identity: What it is.
        opsets: Version of each operator set.
        nodes: In topological order; names of values are safe in every text.
        weights: Initializers and constants by name; float16 and bfloat16 ones count as float32.
        inputs: What a run supplies.
        outputs: Names of results, and the file's own name for each.
        half: Whether the file computes in half precision, which is lifted to float32.
    """

    path: Path
    identity: SourceIdentity
    opsets: Mapping[str, int]
    nodes: tuple[onnx.NodeProto, ...]
    weights: Mapping[str, Array]
    inputs: tuple[GraphInput, ...]
    outputs: Mapping[str, str]
    half: bool


def read_onnx(path: str | Path, *, whole: bool = False) -> OnnxFile:
    """Reads a file; ``whole``: for one engine of its only size, so that recurrences may be in it.

    Raises:
        CompileError: It is no ONNX file, incomplete, too old, or uses what can't be compiled; names the node.
    """
    path = Path(path)
    model = _parse(path)
    _check(model, path)
    if model.functions:
        from onnx import inliner

        model = inliner.inline_local_functions(model)
    take_branches(model.graph)
    settle_branches(model, path)
    model = bring_up_to_date(model, path)
    opsets = _opsets(model, path)
    for node in model.graph.node:
        _name_first(node)
    half = _lift(model.graph)
    names = _safe_names(model.graph)
    weights = {names[name]: array for name, array in _weights(model.graph, path)}
    # That a file holds a recurrence says more of it than that it holds a branch.
    for node in sorted(model.graph.node, key=lambda node: node.op_type in CONTROL and _unlike(node) is None):
        _refuse(node, names, model.graph, whole=whole)
    for value in model.graph.output:
        if value.name not in names:
            raise CompileError(str(path), f"has the output {value.name!r:.100}, which nothing gives", "export it again")
    nodes = tuple(_renamed(node, names) for node in model.graph.node if node.op_type != "Constant")
    if half:
        logger.info("%s is in half precision: computed in float32, as exactly as its weights allow", path.name)
    inputs = tuple(_input(value, names) for value in model.graph.input if names[value.name] not in weights)
    return OnnxFile(
        path=path,
        identity=_identity(path, model, nodes, weights),
        opsets=opsets,
        nodes=nodes,
        weights=weights,
        inputs=inputs,
        outputs={names[value.name]: value.name for value in model.graph.output},
        half=half,
    )


def _parse(path: Path) -> onnx.ModelProto:
    try:
        model = onnx.load(str(path), load_external_data=False)
    except OSError as error:
        problem = f"can't be read: {error.strerror or error}"
        raise CompileError(str(path), problem, "name an .onnx file that is there") from error
    except (DecodeError, ValueError) as error:  # not UTF-8 where a name is
        raise CompileError(str(path), "is not an ONNX file, or a damaged one", "export or download it again") from error
    if not model.graph.node:
        raise CompileError(str(path), "is not an ONNX file: it holds no operators", "export or download it again")
    if (field := _field_without_text(model)) is not None:
        raise CompileError(str(path), f"has a {field} that is no text", "export or download it again")
    return model


def _field_without_text(message: Message) -> str | None:
    """The name of the first string field, of this message or one inside, that is not UTF-8: it reads as bytes."""
    for field, value in message.ListFields():
        if field.type not in (field.TYPE_STRING, field.TYPE_MESSAGE):
            continue
        for entry in value if hasattr(value, "append") else (value,):
            found = _field_without_text(entry) if isinstance(entry, Message) else None
            if isinstance(entry, bytes):
                found = field.name
            if found is not None:
                return str(found)
    return None


def _opsets(model: onnx.ModelProto, path: Path) -> dict[str, int]:
    opsets = {"" if entry.domain == "ai.onnx" else entry.domain: entry.version for entry in model.opset_import}
    if "" not in opsets:
        raise CompileError(str(path), "imports no standard operator set", "export the model with a current exporter")
    # ONNX Runtime's optimiser writes layer norms into files of older sets, whose other operators mean the same.
    if any(node.op_type == "LayerNormalization" for node in model.graph.node):
        opsets[""] = max(opsets.get("", 0), LAYER_NORM_OPSET)
    return opsets


def _check(model: onnx.ModelProto, path: Path) -> None:
    """The checker's complaint, except about operators that it does not know and ONNX Runtime may."""
    for tensor in model.graph.initializer:
        if uses_external_data(tensor):
            external_file(tensor, path)
    check_node_count(model, str(path))
    try:
        onnx.checker.check_model(str(path))
    except Exception as error:  # it raises errors of several libraries for files that are none
        message = " ".join(str(error).split())
        if "No Op registered" not in message and "No opset import" not in message:
            raise CompileError(str(path), f"is not valid ONNX: {message[:300]}", "export it again") from error
        logger.info("%s: %s", path.name, message[:300])


def _weights(graph: onnx.GraphProto, path: Path) -> Iterator[tuple[str, Array]]:
    for tensor in graph.initializer:
        yield tensor.name, array_of(tensor, path)
    if graph.sparse_initializer:
        raise CompileError(str(path), "stores sparse weights", "store them dense")
    for node in graph.node:
        if node.op_type == "Constant":
            array = constant_of(node, path)
            yield node.output[0], array


def _input(value: onnx.ValueInfoProto, names: Mapping[str, str]) -> GraphInput:
    kind = value.type.tensor_type
    if not value.type.HasField("tensor_type"):
        raise CompileError(f"input {value.name}", "is no tensor", "export a model of tensors")
    shape = tuple(_dimension(dim) for dim in kind.shape.dim)
    return GraphInput(names[value.name], dtype_name(kind.elem_type, f"input {value.name}"), shape)


def _dimension(dim: onnx.TensorShapeProto.Dimension) -> int | str | None:
    """Its number or name; Paddle's exporter writes -1 and "?" for what it does not know, however often."""
    if dim.HasField("dim_value"):
        return dim.dim_value if dim.dim_value >= 0 else None
    return dim.dim_param if re.search(r"\w", dim.dim_param) else None


def _safe_names(graph: onnx.GraphProto) -> dict[str, str]:
    """A unique name of letters, digits, dots and underscores for every value."""
    names: dict[str, str] = {"": ""}
    taken = {""}
    values = [*(v.name for v in graph.input), *(t.name for t in graph.initializer)]
    for name in [*values, *(output for node in graph.node for output in node.output)]:
        if name in names:
            continue
        plain = re.sub(r"[^A-Za-z0-9_.]+", "_", name).strip("_.") or "value"
        safe, count = plain, 1
        while safe in taken:
            count += 1
            safe = f"{plain}_{count}"
        taken.add(safe)
        names[name] = safe
    return names


def _name_first(node: onnx.NodeProto) -> None:
    """A name for a first result that nobody reads, beside others: nodes are called by it."""
    read = next((name for name in node.output if name), "")
    if read and not node.output[0]:
        node.output[0] = f"{read}/unread"


def _renamed(node: onnx.NodeProto, names: Mapping[str, str]) -> onnx.NodeProto:
    copy = renamed(node, names)
    copy.domain = "" if node.domain == "ai.onnx" else node.domain
    return copy


def _refuse(node: onnx.NodeProto, names: Mapping[str, str], graph: onnx.GraphProto, *, whole: bool) -> None:
    where = f'node "{node.name or "".join(node.output[:1])}" ({node.op_type})'
    if not node.output or not node.output[0]:
        raise CompileError(where, "has no result", "export the file again")
    for name in node.input:
        if name not in names:
            raise CompileError(where, f"reads {name!r:.100}, which nothing gives", "export the file again")
    if node.domain not in DOMAINS:
        raise CompileError(
            where, f"comes from the operator set {node.domain!r}, which is not supported", "export it without"
        )
    if node.op_type == "BatchNormalization" and len([name for name in node.output if name]) > 1:
        raise CompileError(where, "takes its mean and variance from the input", "export in evaluation mode")
    if node.op_type in REFUSED and not (whole and node.op_type in GATED):
        inside = None if whole else _unlike(node)
        reason, remedy = REFUSED[inside or node.op_type]
        if node.op_type == "If" and inside is None and (deciding := _deciding(node.input[0], graph)):
            inputs = " and ".join(deciding)
            reason = f"is control flow: what {inputs} holds, or its shape, decides which branch runs"
            remedy = f"export it for one such {inputs}, without branches"
        raise CompileError(where, f"holds {inside}, which {reason}" if inside else reason, remedy)


def _deciding(name: str, graph: onnx.GraphProto) -> list[str]:
    """The inputs that a value is computed from."""
    wanted = {name}
    for node in reversed(graph.node):
        if not wanted.isdisjoint(node.output):
            wanted.update(node.input)
    return [value.name for value in graph.input if value.name in wanted]


def _unlike(node: onnx.NodeProto) -> str | None:
    """The first operator in its branches that is refused for what it is itself."""
    return next((inner for inner in _inside(node) if inner in REFUSED and inner not in CONTROL), None)


def _inside(node: onnx.NodeProto) -> Iterator[str]:
    """Operators in the branches or the body of one."""
    for attribute in node.attribute:
        for inner in attribute.g.node:
            yield inner.op_type
            yield from _inside(inner)


def _lift(graph: onnx.GraphProto) -> bool:
    """Makes float32 of every half-precision type that the graph names; returns whether there was any."""
    found = any(tensor.data_type in HALF for tensor in graph.initializer)
    for value in (*graph.input, *graph.output):
        kind = value.type.tensor_type
        if kind.elem_type in HALF:
            kind.elem_type, found = TensorProto.FLOAT, True
    for node in graph.node:
        for attribute in node.attribute:
            if attribute.name in ("to", "dtype", "output_dtype", "softmax_precision") and attribute.i in HALF:
                attribute.i, found = TensorProto.FLOAT, True
            elif attribute.type == onnx.AttributeProto.TENSOR and attribute.t.data_type in HALF:
                if node.op_type != "Constant":  # a constant is a weight, lifted when it is used
                    attribute.t.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(attribute.t).astype(np.float32)))
                found = True
    return found


def _identity(
    path: Path, model: onnx.ModelProto, nodes: Iterable[onnx.NodeProto], weights: Mapping[str, Array]
) -> SourceIdentity:
    """Named after its file; recognised by its operators and the shapes of its weights."""
    operators = [node.op_type for node in nodes]
    shapes = [[str(array.dtype), list(array.shape)] for array in weights.values()]
    text = json.dumps([operators, shapes])
    architecture = f"ONNX by {model.producer_name}" if model.producer_name else "ONNX"
    return SourceIdentity(path.stem, "onnx", architecture, hashlib.sha256(text.encode()).hexdigest())
