"""Reads one attention operator of an FX graph: its operands, and its mask and bias as expressions.

Masks made by our own operator carry their expression. Any other mask (a dense array the model computed) is evaluated at
several lengths and recognised; see :mod:`twoheads.compiler.recognition.classify_mask`.
"""

from __future__ import annotations

from collections.abc import Set
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor, fx

from twoheads.compiler.frontend.torch.fx.fx_program import FxProgram, is_scalar
from twoheads.compiler.ir.source_graph import AttentionNode, place_of
from twoheads.compiler.ir.source_program import example_inputs, input_lengths
from twoheads.compiler.recognition.classify_mask import BiasPattern, Evaluate, checked_lengths, classify
from twoheads.graphs.errors import CompileError
from twoheads.graphs.masks.expressions import Causal, Full, Mask, conjunction, parse_mask
from twoheads.graphs.program.program import COUNTING, Dim

__all__ = ["attention_from_fx", "is_attention"]

_OURS = "twoheads.attention.default"
_SDPA = "aten.scaled_dot_product_attention.default"
_BY_DISTANCE = "twoheads.distance_attention.default"
_MASKS = ("twoheads.mask.default", "twoheads.additive_mask.default")

CROSS_LENGTHS = (16, 23)
"""Lengths at which a mask between two inputs is looked at."""


def is_attention(node: fx.Node) -> bool:
    """Whether the node is an attention operator that we read."""
    return node.op == "call_function" and str(node.target) in (_OURS, _SDPA, _BY_DISTANCE)


def attention_from_fx(program: FxProgram, node: fx.Node, layer: str) -> tuple[AttentionNode, dict[str, Tensor]]:
    """The attention node, and the weights that its bias was recognised as.

    Raises:
        CompileError: The mask or bias is no function of positions that tiles can express.
    """
    if str(node.target) == _BY_DISTANCE:
        return _by_distance(program, node, layer)
    arguments = _arguments(node)
    where = place_of(layer, node.name)
    query, key, value = (cast("fx.Node", arguments[name]) for name in ("query", "key", "value"))
    _require_shapes(program, where, query, key, value)
    terms: list[Mask] = [Causal()] if arguments["is_causal"] else []
    bias = BiasPattern(None, None)
    axes = {program.axes.dim(operand.meta["val"].shape[2]) for operand in (query, key)}
    for operand in (arguments["mask"], arguments["bias"]):
        if operand is not None and (len(axes) > 1 or _has_fixed_size(program, cast("fx.Node", operand), axes)):
            _require_no_effect(program, cast("fx.Node", operand), where, between=len(axes) > 1)
        elif operand is not None:
            mask, found = _mask_and_bias(program, cast("fx.Node", operand), where)
            terms.append(mask)
            bias = bias.plus(found, where)
    weights: dict[str, Tensor] = {}
    heads = int(query.meta["val"].shape[1])
    names: dict[str, str] = {}
    for kind, array in (("table", bias.table), ("slope", bias.slope)):
        if array is not None:
            names[kind] = _bias_name(program, arguments, kind)
            weights[names[kind]] = torch.from_numpy(
                np.broadcast_to(array, (heads, *array.shape[1:])).astype(np.float32)
            )
    sinks = arguments["sinks"]
    head_dim = int(query.meta["val"].shape[3])
    return (
        AttentionNode(
            name=node.name,
            query=program.source_name(query),
            key=program.source_name(key),
            value=program.source_name(value),
            type=program.axes.type(node.meta["val"]),
            mask=conjunction(terms),
            scale=float(arguments["scale"]) if arguments["scale"] is not None else head_dim**-0.5,
            softcap=float(arguments["softcap"]),
            sinks=_sink_weight(program, cast("fx.Node", sinks), where, weights) if sinks is not None else None,
            bias_table=names.get("table"),
            bias_slope=names.get("slope"),
            layer=layer,
        ),
        weights,
    )


def _by_distance(program: FxProgram, node: fx.Node, layer: str) -> tuple[AttentionNode, dict[str, Tensor]]:
    """Attention with scores by distance; its table of distances is a constant of the graph."""
    query, key, value, table = cast("list[fx.Node]", node.args[:4])
    width, scale = cast("tuple[int, float]", node.args[4:6])
    mask, sinks = cast("list[fx.Node | None]", node.args[6:8])
    where = place_of(layer, node.name)
    _require_shapes(program, where, query, key, value)
    inputs = example_inputs(program.inputs, input_lengths(program.inputs, CROSS_LENGTHS[0]), 0)
    numbers = cast("np.ndarray[Any, Any]", program.evaluate((table.name,), inputs)[table.name])
    name = f"{program.source_name(table)}.table"
    weights = {name: torch.from_numpy(numbers[None].astype(np.float32))}
    seen, bias = (Full(), None) if mask is None else _mask_and_bias(program, mask, where)
    if bias is not None and not bias.absent:
        problem = "adds a bias to scores that have a term by distance"
        raise CompileError(where, problem, "compile a model with one of the two")
    made = AttentionNode(
        name=node.name,
        query=program.source_name(query),
        key=program.source_name(key),
        value=program.source_name(value),
        type=program.axes.type(node.meta["val"]),
        mask=seen,
        scale=scale,
        softcap=0.0,
        sinks=None if sinks is None else _sink_weight(program, sinks, where, weights),
        bias_table=name,
        bias_slope=None,
        layer=layer,
        distances=width,
    )
    return made, weights


def _arguments(node: fx.Node) -> dict[str, Any]:
    """The operands and attributes by common names, whichever operator it is."""
    schema = cast("Any", node.target)._schema.arguments
    given = {argument.name: argument.default_value for argument in schema if argument.has_default_value()}
    given |= {argument.name: value for argument, value in zip(schema, node.args, strict=False)} | dict(node.kwargs)
    if str(node.target) == _OURS:
        return {**given, "is_causal": False}
    return {
        "query": given["query"],
        "key": given["key"],
        "value": given["value"],
        "mask": given["attn_mask"],
        "bias": None,
        "sinks": None,
        "scale": given["scale"],
        "softcap": 0.0,
        "is_causal": given["is_causal"],
    }


def _require_shapes(program: FxProgram, where: str, query: fx.Node, key: fx.Node, value: fx.Node) -> None:
    for name, operand in (("query", query), ("key", key), ("value", value)):
        shape = program.axes.shape(operand.meta["val"])
        fixed = len(shape) == 4 and shape[0] == 1 and isinstance(shape[1], int) and isinstance(shape[3], int)
        if not fixed or not program.axes.is_axis(operand.meta["val"].shape[2]):
            raise CompileError(
                where,
                f"{name} has the shape [{', '.join(map(str, shape))}], expected [1, heads, n, head_dim]",
                "attention must run over the input's own tokens, with batch 1",
            )


def _bias_name(program: FxProgram, arguments: dict[str, Any], kind: str) -> str:
    """A weight name shared by every layer that adds the same bias node."""
    operand = cast("fx.Node", arguments["bias"] if arguments["bias"] is not None else arguments["mask"])
    return f"{program.source_name(operand)}.{kind}"


def _sink_weight(program: FxProgram, node: fx.Node, where: str, weights: dict[str, Tensor]) -> str:
    """The name of the weight that sinks are; numbers that the code holds are added to ``weights``."""
    if node.target in (torch.ops.aten.zeros.default, torch.ops.aten.full.default):
        name = f"{program.source_name(node)}.sinks"
        weights[name] = torch.as_tensor(program.evaluate((node.name,), {})[node.name])
        return name
    while node.name not in program.placeholders and len(node.all_input_nodes) == 1:
        node = node.all_input_nodes[0]  # a view or a cast of the parameter
    source = program.placeholders.get(node.name, "")
    if source not in program.weights:
        raise CompileError(where, "its sinks are computed, not a learned weight", "keep one learned logit a head")
    return source


def _mask_and_bias(program: FxProgram, node: fx.Node, where: str) -> tuple[Mask, BiasPattern]:
    if str(node.target) in _MASKS:
        return parse_mask(cast("str", node.args[1])), BiasPattern(None, None)
    _require_positional(program, node, where)

    def evaluate(length: int) -> np.ndarray[Any, Any]:
        inputs = example_inputs(program.inputs, input_lengths(program.inputs, length), 0)
        dense = cast("np.ndarray[Any, Any]", program.evaluate((node.name,), inputs)[node.name])
        heads = dense.shape[-3] if dense.ndim >= 3 else 1
        return np.broadcast_to(dense, (1, heads, length, length))  # a row of keys counts for every query

    constants = program.constants(node.name)
    try:
        mask, bias = classify(evaluate, constants, where)
    except (IndexError, RuntimeError) as error:
        longest = _longest_computed(evaluate, checked_lengths(constants)[-1])
        if longest == 0:
            problem = f"its mask or bias can't be computed: {error}"
            raise CompileError(where, problem, "compile the model below this layer") from error
        mask, bias = classify(evaluate, constants, where, longest=longest)
    return (Full() if mask is None else mask), bias


def _longest_computed(evaluate: Evaluate, failed: int) -> int:
    """The longest input, shorter than ``failed``, whose mask or bias the model computes.

    A table of positions may end before what the constants ask for (LayoutLMv3): the model takes no longer input.
    """
    computed = 0
    while computed + 1 < failed:
        tried = (computed + failed) // 2
        try:
            evaluate(tried)
        except (IndexError, RuntimeError):
            failed = tried
        else:
            computed = tried
    return computed


def _has_fixed_size(program: FxProgram, node: fx.Node, axes: Set[Dim]) -> bool:
    """Whether a dense mask or bias has a number of keys, as many as the one size of the model's input makes."""
    keys = program.axes.shape(node.meta["val"])[-1]
    return keys != 1 and all(str(axis).isdigit() for axis in axes) and str(node.target) not in _MASKS


def _require_no_effect(program: FxProgram, node: fx.Node, where: str, *, between: bool) -> None:
    """Refuses a mask or a bias ``between`` two inputs, or of a fixed size, that hides or adds anything (T5 adds 0)."""
    _require_positional(program, node, where)
    for tokens in CROSS_LENGTHS:
        inputs = example_inputs(program.inputs, input_lengths(program.inputs, tokens, step=3), 0)
        dense = cast("np.ndarray[Any, Any]", program.evaluate((node.name,), inputs)[node.name])
        if not (dense.all() if dense.dtype == np.bool_ else not dense.any()):
            if not between:
                problem = f"has a mask or a bias of a fixed size, {list(dense.shape)}, which tiles can't express"
                raise CompileError(where, problem, "let every token of the one input size see all others")
            raise CompileError(
                where,
                "has a mask or a bias between two different inputs, and only those among one input's tokens have one",
                "let every token of one input see all tokens of the other",
            )


def _require_positional(program: FxProgram, node: fx.Node, where: str) -> None:
    """Refuses a mask that depends on what the input says, not only on positions."""
    stack, seen = [node], set[str]()
    sources = {entry.value.name: entry.source for entry in program.inputs}
    while stack:
        current = stack.pop()
        if current.name in seen or is_scalar(current):
            continue
        seen.add(current.name)
        if sources.get(program.placeholders.get(current.name, ""), "positions") not in (*COUNTING, "length"):
            raise CompileError(
                where,
                f"its mask or bias depends on the input {current.name!r}, so tiles can't express it",
                "leave padding out (run inputs at their own length), or compute the mask from positions alone",
            )
        stack.extend(current.all_input_nodes)
