"""Decides what every input of an ONNX file is, and binds all but the arguments to what they hold in a run.

An attention mask says that every token counts (padding never reaches a block program), token types are zeros, position
numbers count the tokens, and past keys and values are empty. What is left is the model's arguments, each with batch 1
and one token axis or none.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence, Set
from dataclasses import dataclass, field, replace

import numpy as np
import onnx
from onnx import helper

from twoheads.compiler.frontend.onnx.choose_outputs import model_outputs
from twoheads.compiler.frontend.onnx.masks.mask_values import Filled, counting_values
from twoheads.compiler.frontend.onnx.masks.pair_masks import is_of_pairs, pair_mask_nodes, pair_masks
from twoheads.compiler.frontend.onnx.model.read_file import Array, GraphInput, OnnxFile
from twoheads.compiler.frontend.onnx.one_of_batch import one_input
from twoheads.compiler.frontend.onnx.passes.fold import graph_of
from twoheads.graphs.errors import CompileError
from twoheads.graphs.masks.expressions import Full, Mask
from twoheads.graphs.program.program import TOKENS, Dim, Input, Value

__all__ = ["Bound", "bind_inputs", "fixed_tokens"]

SHORTEST = 32
"""Tokens of a file of a fixed number of them at least: experiments take as many."""

SECOND = "m"
"""The axis of an encoder's tokens where a decoder has its own."""


@dataclass(frozen=True, slots=True)
class Bound:
    """A file whose inputs are its arguments.

    Attributes:
        file: Without inputs: all but the arguments are computed.
        arguments: What a run supplies.
        fixed: The number of tokens that the file is for; ``None`` where it is for any.
        masks: Its inputs by which tokens can be left out.
    """

    file: OnnxFile
    arguments: tuple[Input, ...]
    fixed: int | None = None
    masks: Mapping[str, Filled] = field(default_factory=dict[str, Filled])


def bind_inputs(file: OnnxFile, said: Mapping[str, str] | None = None) -> Bound:
    """Binds the inputs.

    Args:
        file: As it was read.
        said: What masks of queries and keys hold, by input: ``causal``, ``full`` or windows; see
            :mod:`~twoheads.compiler.frontend.onnx.masks.pair_masks`.

    Raises:
        CompileError: An input is of no known kind, or its shape is not fixed up to one token axis.
    """
    kinds = {value.name: _kind(value) for value in file.inputs}
    file = one_input(file, kinds)
    ones = {value.name: value for value in file.inputs if kinds[value.name] == "ones"}
    pairs = pair_masks(ones, said or {}, generates="past" in kinds.values(), where=str(file.path))
    file = _without_optional_past(file, {name for name, kind in kinds.items() if kind == "past"})
    _require_beginning(file)
    two = any(value.name.startswith("decoder_") and kinds[value.name] == "argument" for value in file.inputs)
    axes = {value.name: _axis(value, two=two) for value in file.inputs}
    fixed = _fixed([value for value in file.inputs if kinds[value.name] == "argument"])
    arguments = tuple(
        _argument(v if fixed is None else _freed(v, fixed), axes[v.name])
        for v in file.inputs
        if kinds[v.name] == "argument"
    )
    if not arguments:
        raise CompileError(str(file.path), "has no input of tokens or features", "export the whole model")
    nodes: list[onnx.NodeProto] = []
    weights: dict[str, Array] = {}
    for value in file.inputs:
        if kinds[value.name] == "past":
            weights[value.name] = _empty(value)
        elif kinds[value.name] != "argument":
            nodes.extend(_bound(value, kinds[value.name], _length_of(value, axes[value.name], arguments), weights))
    bound = replace(file, nodes=(*nodes, *file.nodes), weights={**file.weights, **weights}, inputs=())
    bound, filled = _with_counting_masks(bound, ones, pairs, arguments, fixed)
    return Bound(bound, arguments, fixed, filled)


def _with_counting_masks(
    file: OnnxFile,
    masks: Mapping[str, GraphInput],
    pairs: Mapping[str, Mask],
    arguments: Sequence[Input],
    fixed: int | None,
) -> tuple[OnnxFile, dict[str, Filled]]:
    """The file with its masks filled, those of no usual form (``[1, tokens]`` of whole numbers) by experiment.

    Beside it, the masks by which tokens can be left out.
    """
    filled: dict[str, Filled] = {}
    for name, mask in masks.items():
        found: tuple[float, float] | None = (1.0, 0.0)
        if not mask.dtype.startswith("int") or len(mask.shape) != 2:
            outputs = list(model_outputs(file, ()))
            graph = graph_of(file.opsets, [_copy(node) for node in file.nodes], file.weights, outputs)
            found = counting_values(graph, name, arguments, fixed, outputs)
        if found is None and len(mask.shape) > 2:
            raise CompileError(
                f"input {name}",
                f"is a mask of {len(mask.shape)} dimensions, and no entry of it leaves a token out",
                "export with a mask of one entry a token (int64 [batch, tokens]), or without a mask",
            )
        values = found or (1.0, 0.0)
        weights = dict(file.weights)
        made = list(pair_mask_nodes(mask, pairs[name], values, weights)) if name in pairs else None
        nodes = [new for node in file.nodes for new in _filled(node, mask, values[0], made)]
        file = replace(file, nodes=tuple(nodes), weights=weights)
        if name not in pairs or isinstance(pairs[name], Full):
            queries = (fixed or 1,) if name in pairs else (1,)
            filled[name] = Filled(mask.dtype, ((1,) * len(mask.shape))[2:] + queries + (1,), values)
    return file, filled


def _copy(node: onnx.NodeProto) -> onnx.NodeProto:
    copy = onnx.NodeProto()
    copy.CopyFrom(node)
    return copy


def _filled(
    node: onnx.NodeProto, mask: GraphInput, value: float, instead: list[onnx.NodeProto] | None
) -> list[onnx.NodeProto]:
    """The node; or what fills the mask, where it does that."""
    if node.op_type != "ConstantOfShape" or list(node.output) != [mask.name]:
        return [node]
    fill = onnx.numpy_helper.from_array(np.array([value], mask.dtype))
    return instead or [helper.make_node("ConstantOfShape", list(node.input), [mask.name], value=fill)]


def _fixed(arguments: Sequence[GraphInput]) -> int | None:
    """The number of tokens of a file whose arguments are whole numbers ``[1, tokens]``, all of one size."""
    lengths = {value.shape[1] for value in arguments if len(value.shape) == 2 and value.dtype.startswith("int")}
    sizes = [dim for value in arguments for dim in value.shape[1:]]
    if len(lengths) != 1 or not all(isinstance(dim, int) and dim > 0 for dim in sizes):
        return None
    (length,) = lengths
    return length if isinstance(length, int) and length >= SHORTEST else None


def _freed(value: GraphInput, fixed: int) -> GraphInput:
    """The argument with no number for its tokens, which come after its batch."""
    tokens = [at for at, dim in enumerate(value.shape) if dim == fixed and at == 1]
    return replace(value, shape=tuple("tokens" if at in tokens else dim for at, dim in enumerate(value.shape)))


def _kind(value: GraphInput) -> str:
    name = value.name.lower()
    if "past" in name or "cache" in name or name.startswith(("mems", "state")):
        if "branch" in name or len(value.shape) < 3:
            raise CompileError(
                f"input {value.name}",
                "switches between runs with and without a past",
                "export without past (use_cache=False)",
            )
        return "past"
    if "mask" in name and "pos" not in name:
        return "ones"
    if "token_type" in name or "segment" in name:
        return "zeros"
    if "position" in name:
        return "positions"
    return "argument"


def _axis(value: GraphInput, *, two: bool) -> str:
    encoder = value.name.startswith("encoder_") or (two and not value.name.startswith("decoder_"))
    return SECOND if encoder else TOKENS


def _argument(value: GraphInput, axis: str) -> Input:
    """Batch 1, and the token axis: the first dimension that is no number, after the batch."""
    if not value.shape:
        raise CompileError(f"input {value.name}", "is a single number", "fix it when exporting")
    batched = len(value.shape) > 1
    shape: list[Dim] = []
    for at, dim in enumerate(value.shape):
        if at == 0 and batched:
            shape.append(1)
        elif isinstance(dim, int) and dim > 0:
            shape.append(dim)
        elif axis in shape and dim is not None and dim == value.shape[shape.index(axis)]:
            raise CompileError(
                f"input {value.name}",
                f"has a number for every pair of tokens, {list(value.shape)}, which blocks of tokens can't hold",
                "export a model that computes it from the positions, or from one row a token",
            )
        elif axis in shape:
            raise CompileError(
                f"input {value.name}",
                f"has two dimensions without a number, {list(value.shape)}",
                "fix all but the batch and the tokens, e.g. with onnxruntime.tools.make_dynamic_shape_fixed; a model "
                "of one input size, such as an image's, can be one engine of it, --lowering whole",
            )
        else:
            shape.append(axis)
    return Input(Value(value.name, value.dtype, tuple(shape)), "argument", None)


def _require_beginning(file: OnnxFile) -> None:
    """Refuses the half of a decoder that has the keys of its encoder from a run of the other half."""
    read = {name for node in file.nodes for name in node.input}
    for value in file.inputs:
        if _kind(value) == "past" and value.name in read and re.search(r"encoder|cross", value.name, re.I):
            raise CompileError(
                f"input {value.name}",
                "holds what the first step made of the encoder's result: this file goes on with a sequence and can't "
                "begin one",
                "compile the file of the same export that begins one, e.g. decoder_model.onnx or _merged.onnx",
            )


def _without_optional_past(file: OnnxFile, past: Set[str]) -> OnnxFile:
    """Leaves out pasts whose reader can do without: their shape need not be known (model builders name all of it)."""
    nodes: list[onnx.NodeProto] = []
    for node in file.nodes:
        copy = node
        if node.op_type == "GroupQueryAttention" and not past.isdisjoint(node.input):
            copy = onnx.NodeProto()
            copy.CopyFrom(node)
            for at, name in enumerate(node.input):
                copy.input[at] = "" if name in past else name
            # Without a past there is none to be kept as a window: what is seen is told by local_window_size.
            kept = [attribute for attribute in copy.attribute if attribute.name != "sliding_window_cache"]
            del copy.attribute[:]
            copy.attribute.extend(kept)
        nodes.append(copy)
    read = {name for node in nodes for name in node.input}
    inputs = tuple(value for value in file.inputs if value.name in read or value.name not in past)
    return replace(file, nodes=tuple(nodes), inputs=inputs)


def _empty(value: GraphInput) -> Array:
    """An empty past: batch 1, and no tokens where the file names no number."""
    shape = [1 if at == 0 else dim if isinstance(dim, int) else 0 for at, dim in enumerate(value.shape)]
    if shape.count(0) != 1:
        raise CompileError(f"input {value.name}", "is a past of unknown shape", "export without past (use_cache=False)")
    return np.zeros(shape, value.dtype)


def _length_of(value: GraphInput, axis: str, arguments: Sequence[Input]) -> Input:
    matching = [a for a in arguments if a.value.axis == axis] or [a for a in arguments if a.value.axis is not None]
    if not matching:
        raise fixed_tokens(f"input {value.name}", arguments)
    return matching[0]


def fixed_tokens(where: str, arguments: Sequence[Input]) -> CompileError:
    """The error of a file whose arguments all have numbers for sizes."""
    shapes = ", ".join(f"{entry.value.name} {list(entry.value.shape)}" for entry in arguments)
    return CompileError(
        where,
        f"has a fixed number of tokens ({shapes}: a first dimension counts inputs), so no token axis can be seen in it",
        "export it with a dynamic token axis, or compile it as one engine of its only input size, --lowering whole",
    )


def _bound(value: GraphInput, kind: str, source: Input, weights: dict[str, Array]) -> Iterator[onnx.NodeProto]:
    """Nodes that make the input's array out of the length of ``source``."""
    if not value.shape or (len(value.shape) > 2 and (kind != "ones" or value.shape[-1] == 1)):
        raise CompileError(
            f"input {value.name}",
            f"is a {kind} input of {len(value.shape)} dimensions, [batch, tokens] is expected",
            "export with a mask of one entry a token",
        )
    name = value.name
    weights[f"{name}.axis"] = np.array([source.value.token_axis], np.int64)
    yield helper.make_node("Shape", [source.value.name], [f"{name}.shape"])
    yield helper.make_node("Gather", [f"{name}.shape", f"{name}.axis"], [f"{name}.length"])
    if kind == "positions":
        weights[f"{name}.zero"], weights[f"{name}.one"] = np.array(0, np.int64), np.array(1, np.int64)
        weights[f"{name}.first"] = np.array([0], np.int64)
        yield helper.make_node("Squeeze", [f"{name}.length", f"{name}.first"], [f"{name}.end"])
        yield helper.make_node("Range", [f"{name}.zero", f"{name}.end", f"{name}.one"], [f"{name}.range"])
        last = f"{name}.range"
        if len(value.shape) == 2:
            yield helper.make_node("Unsqueeze", [last, f"{name}.first"], [f"{name}.row"])
            last = f"{name}.row"
        yield helper.make_node("Cast", [last], [name], to=helper.np_dtype_to_tensor_dtype(np.dtype(value.dtype)))
        return
    sizes = f"{name}.length"
    if len(value.shape) > 1:
        pairs = kind == "ones" and is_of_pairs(value)
        weights[f"{name}.batch"] = np.ones(len(value.shape) - 1 - pairs, np.int64)
        sizes = f"{name}.sizes"
        yield helper.make_node("Concat", [f"{name}.batch", *[f"{name}.length"] * (1 + pairs)], [sizes], axis=0)
    fill = onnx.numpy_helper.from_array(np.array([1 if kind == "ones" else 0], value.dtype))
    yield helper.make_node("ConstantOfShape", [sizes], [name], value=fill)
