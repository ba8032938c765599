"""Reads ONNX operators that move rows, or reduce over all of them, as sequence operators."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TypeAlias

from twoheads.compiler.frontend.onnx.model.graph import OnnxNode
from twoheads.compiler.ir.size_formula import SizeFormula
from twoheads.compiler.ir.source_graph import SequenceNode, TensorType
from twoheads.graphs.program.axes import axis_inputs, parse_axis

__all__ = ["sequence_from_onnx"]

Types: TypeAlias = Mapping[str, TensorType]
Found: TypeAlias = tuple[str, dict[str, int], tuple[str, ...]] | None
"""An operator's name, attributes and inputs; ``None`` where a node is no row movement that we know."""

REDUCTIONS = {"ReduceSum": "sum", "ReduceMean": "mean", "ReduceMax": "max", "ReduceMin": "min"}


def sequence_from_onnx(node: OnnxNode, types: Types) -> SequenceNode | None:
    """The node as a sequence operator; ``None`` if it works on each row alone, or moves them in another way."""
    reader = _READERS.get(node.proto.op_type)
    found = reader(node, types) if reader and len(node.outputs) == 1 else None
    if found is None:
        return None
    operator, attributes, inputs = found
    name = node.outputs[0]
    return SequenceNode(name, operator, inputs, types[name], tuple(sorted(attributes.items())), node.layer)


def _token_dimension(name: str, types: Types) -> int | None:
    """The dimension over tokens of a value that has one."""
    type_ = types.get(name)
    return None if type_ is None or type_.axis is None else type_.shape.index(type_.axis)


def _gather(node: OnnxNode, types: Types) -> Found:
    data = node.proto.input[0]
    at = _token_dimension(data, types)
    if at is None or _axis(node, types) != at:
        return None
    if 1 not in node.constants and 1 not in node.sizes:
        index = node.proto.input[1]
        single = index in types and all(dim == 1 for dim in types[index].shape)
        return ("take_at", {"axis": at}, (data, index)) if single else None
    row = _number(node, 1, types[data].axis)
    return None if row is None else ("take", _row(at, row, 1), (data,))


def _slice(node: OnnxNode, types: Types) -> Found:
    data, result = node.proto.input[0], node.outputs[0]
    at = _token_dimension(data, types)
    if at is None or types[data].shape[at] == types[result].shape[at]:
        return None
    rest = [dim for place, dim in enumerate(types[data].shape) if place != at]
    if rest != [dim for place, dim in enumerate(types[result].shape) if place != at]:
        return None
    axes = node.constants[3].tolist() if 3 in node.constants else list(range(len(types[data].shape)))
    place = [axis % len(types[data].shape) for axis in axes].index(at)
    start = _number(node, 1, types[data].axis, place)
    step = int(node.constants[4].reshape(-1)[place]) if 4 in node.constants else 1
    return None if start is None or step < 1 else ("take", _row(at, start, step), (data,))


def _pad(node: OnnxNode, types: Types) -> Found:
    """Rows of zeros before and after the tokens, and none elsewhere."""
    data = node.proto.input[0]
    at = _token_dimension(data, types)
    plain = node.attributes.get("mode", b"constant") == b"constant" and 3 not in node.constants
    if at is None or not plain or 1 not in node.constants or len(node.inputs) > 1:
        return None
    if 2 in node.constants and node.constants[2].any():
        return None
    pads, rank = node.constants[1].reshape(-1).tolist(), len(types[data].shape)
    if any(pad for place, pad in enumerate(pads) if place % rank != at) or min(pads) < 0:
        return None
    return "take", _row(at, (-pads[at], 0), 1), (data,)


def _concat(node: OnnxNode, types: Types) -> Found:
    result = types[node.outputs[0]]
    at = _axis(node, types)
    if not isinstance(result.shape[at], str):
        return None
    return "concat", {"axis": at}, tuple(node.proto.input)


def _reduce(node: OnnxNode, types: Types) -> Found:
    data = node.proto.input[0]
    at = _token_dimension(data, types)
    attributes = node.attributes
    axes = node.constants[1].reshape(-1).tolist() if 1 in node.constants else list(attributes.get("axes", ()))
    if at is None or [axis % len(types[data].shape) for axis in axes] != [at]:
        return None
    return REDUCTIONS[node.proto.op_type], {"axis": at}, (data,)


def _cumsum(node: OnnxNode, types: Types) -> Found:
    data = node.proto.input[0]
    at = _token_dimension(data, types)
    plain = not any(node.attributes.values()) and 1 in node.constants
    if at is None or not plain or int(node.constants[1]) % len(types[data].shape) != at:
        return None
    return ("cumsum", {"axis": at}, (data,)) if types[data].dtype.startswith("int") else None


def _argmax(node: OnnxNode, types: Types) -> Found:
    data = node.proto.input[0]
    at = _token_dimension(data, types)
    if at is None or _axis(node, types) != at or node.attributes.get("select_last_index"):
        return None
    return "argmax", {"axis": at}, (data,)


_READERS: Mapping[str, Callable[[OnnxNode, Types], Found]] = {
    "Gather": _gather,
    "Slice": _slice,
    "Concat": _concat,
    "Pad": _pad,
    "CumSum": _cumsum,
    "ArgMax": _argmax,
    **dict.fromkeys(REDUCTIONS, _reduce),
}


def _row(axis: int, start: tuple[int, int], step: int) -> dict[str, int]:
    return {"axis": axis, "start": start[0], "from_end": start[1], "step": step}


def _number(node: OnnxNode, at: int, axis: str | None, place: int = 0) -> tuple[int, int] | None:
    """``(row, whether it counts from the end)`` of a constant, or of the length plus some."""
    if at in node.constants:
        if at == 1 and node.proto.op_type == "Gather" and node.constants[at].size != 1:
            return None
        row = int(node.constants[at].reshape(-1)[place])
        return row, int(row < 0)
    sizes = node.sizes.get(at)
    size = sizes if isinstance(sizes, SizeFormula) or sizes is None else sizes[place]
    if size is None:
        return None
    if not size.of:
        return size.add, int(size.add < 0)
    if size.factor != 1 or size.div != 1 or axis is None or axis_inputs(axis) != size.of:
        return None
    length = parse_axis(axis)
    return (size.add - length.add, 1) if length.div == 1 else None


def _axis(node: OnnxNode, types: Types) -> int:
    rank = len(types[node.proto.input[0]].shape)
    return int(node.attributes.get("axis", 0)) % max(rank, 1)
