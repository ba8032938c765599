"""Masks of an entry for every query and key, ``[batch, 1, queries, keys]``: what they hold is said by an expression.

A block program has no array of ``N x N`` numbers, so such an input can't be what a run brings. What it holds in a run
is a function of the positions: ``causal`` for a decoder, ``full`` for an encoder, or a window. Where a file has a past,
it generates, and its mask is causal; elsewhere nobody but the user knows.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import onnx
from onnx import helper

from twoheads.compiler.frontend.onnx.model.read_file import Array, GraphInput
from twoheads.graphs.errors import CompileError
from twoheads.graphs.masks.expressions import And, Causal, Full, Mask, Window, parse_mask

__all__ = ["is_of_pairs", "pair_mask_nodes", "pair_masks"]


def is_of_pairs(value: GraphInput) -> bool:
    """Whether the last two dimensions of a mask are both more than one."""
    return len(value.shape) > 2 and 1 not in value.shape[-2:]


def pair_masks(
    masks: Mapping[str, GraphInput], said: Mapping[str, str], *, generates: bool, where: str
) -> dict[str, Mask]:
    """What the masks of pairs hold, by name.

    Args:
        masks: All inputs that are masks, by name.
        said: Expressions by name (see :func:`twoheads.graphs.masks.expressions.parse_mask`).
        generates: Whether the file takes a past.
        where: The file, for messages.

    Raises:
        CompileError: One is said of no such input, or is no mask of positions; or nothing is said of one.
    """
    pairs = {name: value for name, value in masks.items() if is_of_pairs(value)}
    if unknown := sorted(said.keys() - pairs.keys()):
        known = f"its masks of queries and keys are {', '.join(pairs)}" if pairs else "it has none"
        raise CompileError(where, f"has no mask of queries and keys {unknown[0]!r}", f"leave it out: {known}")
    found: dict[str, Mask] = {}
    for name, value in pairs.items():
        if name not in said and not generates:
            raise CompileError(
                f"input {name}",
                f"is a mask of {len(value.shape)} dimensions, which says from outside of the file which keys a query "
                "sees",
                f"say which: --mask {name}=causal, {name}=full or a window such as {name}='causal & window(511, 0)'; "
                "or export with a mask of one entry a token",
            )
        found[name] = parse_mask(said.get(name, "causal"))
        if any(not isinstance(term, Full | Causal | Window) for term in _terms(found[name])):
            raise CompileError(
                f"--mask {name}={said[name]}", "is more than a window", "combine full, causal and window by &"
            )
    return found


def pair_mask_nodes(
    value: GraphInput, mask: Mask, values: tuple[float, float], weights: dict[str, Array]
) -> Iterator[onnx.NodeProto]:
    """Nodes that make the input's array out of ``NAME.length`` and ``NAME.sizes``; their constants go to ``weights``.

    Args:
        value: The input.
        mask: What it says.
        values: What it has for a key that is seen, and for one that is not.
        weights: The file's.
    """
    name = value.name

    def constant(suffix: str, number: int | float | list[int]) -> str:
        dtype = np.float32 if isinstance(number, float) else np.int64
        weights[f"{name}.{suffix}"] = np.array(number, dtype)
        return f"{name}.{suffix}"

    def made(operator: str, suffix: str, *operands: str, **attributes: Any) -> onnx.NodeProto:
        return helper.make_node(operator, list(operands), [f"{name}.{suffix}"], **attributes)

    zero, one, last = constant("zero", 0), constant("one", 1), f"{name}.seen"
    yield made("Squeeze", "end", f"{name}.length", constant("first", [0]))
    yield made("Range", "range", zero, f"{name}.end", one)
    yield made("Unsqueeze", "row", f"{name}.range", constant("second", [1]))
    yield made("Unsqueeze", "column", f"{name}.range", f"{name}.first")
    yield made("Sub", "distance", f"{name}.column", f"{name}.row")
    for at, (operator, bound) in enumerate(_bounds(mask)):
        yield made(operator, f"within.{at}", f"{name}.distance", constant(f"bound.{at}", bound))
        counts, hidden = constant(f"seen.{at}", float(values[0])), constant("hidden", float(values[1]))
        yield made("Where", f"hiding.{at}", f"{name}.within.{at}", last if at else counts, hidden)
        last = f"{name}.hiding.{at}"
    if not _bounds(mask):
        last = constant("seen", float(values[0]))
    yield made("Expand", "spread", last, f"{name}.sizes")
    kind = helper.np_dtype_to_tensor_dtype(np.dtype(value.dtype))
    yield helper.make_node("Cast", [f"{name}.spread"], [name], to=kind)


def _terms(mask: Mask) -> tuple[Mask, ...]:
    return mask.terms if isinstance(mask, And) else (mask,)


def _bounds(mask: Mask) -> list[tuple[str, int]]:
    """Comparisons that the distance from a query to a key that it sees passes, all of them."""
    found: list[tuple[str, int]] = []
    for term in _terms(mask):
        left, right = (-1, 0) if isinstance(term, Causal) else (-1, -1)
        if isinstance(term, Window):
            left, right = term.left, term.right
        found += [("LessOrEqual", right)] if right >= 0 else []
        found += [("GreaterOrEqual", -left)] if left >= 0 else []
    return list(dict.fromkeys(found))
