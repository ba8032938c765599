"""Spells an attention in elementary ONNX operators, so that one recogniser reads all of them.

A file may hold attention as one operator (the standard's, or one of ONNX Runtime's). Each is written out by its
definition; the recogniser then finds what it finds in files that never had such an operator.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from onnx import helper

from twoheads.compiler.frontend.onnx.model.graph import OnnxNode
from twoheads.compiler.frontend.onnx.model.read_file import Array

__all__ = ["AttentionCall", "Spelling"]


@dataclass(frozen=True, slots=True)
class AttentionCall:
    """An attention as one operator means it.

    Attributes:
        query: ``[1, q_num_heads, n, head_dim]``.
        key, value: ``[1, kv_num_heads, m, ..]``.
        heads: ``q_num_heads`` and ``kv_num_heads``.
        depth: ``v_head_dim``.
        scale, softcap: As in :class:`twoheads.compiler.ir.source_graph.AttentionNode`.
        causal: Whether a query sees no later keys.
        left, right: Neighbours a query sees on each side; -1 for all.
        masks: Boolean values, True = visible, broadcastable to the scores.
        biases: Added to the scores after the softcap.
        sinks: One logit a head, or ``None``.
        merged: Whether the result is ``[1, n, q_num_heads * v_head_dim]`` rather than by head.
    """

    query: str
    key: str
    value: str
    heads: tuple[int, int]
    depth: int
    scale: float
    softcap: float = 0.0
    causal: bool = False
    left: int = -1
    right: int = -1
    masks: tuple[str, ...] = ()
    biases: tuple[str, ...] = ()
    sinks: str | None = None
    merged: bool = True


@dataclass(slots=True)
class Spelling:
    """Collects the operators and constants that replace the operator whose result is ``prefix``."""

    prefix: str
    layer: str
    nodes: list[OnnxNode] = field(default_factory=list[OnnxNode])
    weights: dict[str, Array] = field(default_factory=dict[str, Any])

    def constant(self, array: Array) -> str:
        """Name of a new constant."""
        name = f"{self.prefix}.constant_{len(self.weights)}"
        self.weights[name] = array
        return name

    def integers(self, *numbers: int) -> str:
        """Name of a new constant ``int64 [len(numbers)]``."""
        return self.constant(np.array(numbers, np.int64))

    def add(self, operator: str, *operands: str, result: str | None = None, **attributes: Any) -> str:
        """Adds an operator with one result and returns the result's name."""
        return self.split(operator, *operands, results=(result or f"{self.prefix}.{len(self.nodes)}",), **attributes)[0]

    def split(self, operator: str, *operands: str, results: Sequence[str], **attributes: Any) -> Sequence[str]:
        """Adds an operator with several results."""
        proto = helper.make_node(operator, operands, results, name=f"{self.prefix}.{len(self.nodes)}", **attributes)
        self.nodes.append(OnnxNode(proto, self.layer))
        return results

    def by_head(self, name: str, heads: int, depth: int) -> str:
        """``[1, n, heads * depth]`` as ``[1, heads, n, depth]``."""
        split = self.add("Reshape", name, self.integers(1, -1, heads, depth))
        return self.add("Transpose", split, perm=[0, 2, 1, 3])

    def attention(self, call: AttentionCall, result: str) -> None:
        """Spells ``call``."""
        key, value = (self._repeated(name, call.heads) for name in (call.key, call.value))
        scores = self.add("MatMul", call.query, self.add("Transpose", key, perm=[0, 1, 3, 2]))
        scores = self.add("Mul", scores, self._number(call.scale))
        if call.softcap:
            bounded = self.add("Tanh", self.add("Div", scores, self._number(call.softcap)))
            scores = self.add("Mul", bounded, self._number(call.softcap))
        for bias in call.biases:
            scores = self.add("Add", scores, bias)
        for mask in (*call.masks, *self._position_masks(call)):
            scores = self.add("Where", mask, scores, self._number(-np.inf))
        mixed = self.add("MatMul", self._softmax(scores, call), value, result=None if call.merged else result)
        if call.merged:
            rows = self.add("Transpose", mixed, perm=[0, 2, 1, 3])
            self.add("Reshape", rows, self.integers(1, -1, call.heads[0] * call.depth), result=result)

    def count(self, name: str, axis: int) -> str:
        """Positions ``int64 [n]`` along a value's axis."""
        length = self.add("Gather", self.add("Shape", name), self._scalar(axis))
        return self.add("Range", self._scalar(0), length, self._scalar(1))

    def _repeated(self, name: str, heads: tuple[int, int]) -> str:
        groups = heads[0] // heads[1]
        if groups == 1:
            return name
        spread = self.add("Expand", self.add("Unsqueeze", name, self.integers(2)), self.integers(1, 1, groups, 1, 1))
        depth = self.add("Slice", self.add("Shape", name), self.integers(3), self.integers(4), self.integers(0))
        shape = self.add("Concat", self.integers(1, heads[0]), self._tokens(name), depth, axis=0)
        return self.add("Reshape", spread, shape)

    def _position_masks(self, call: AttentionCall) -> list[str]:
        right = 0 if call.causal else call.right
        if call.left < 0 and right < 0:
            return []
        rows = self.add("Unsqueeze", self.count(call.query, 2), self.integers(1))
        distance = self.add("Sub", self.count(call.key, 2), rows)
        masks: list[str] = []
        if right >= 0:
            masks.append(self.add("LessOrEqual", distance, self._scalar(right)))
        if call.left >= 0:
            masks.append(self.add("GreaterOrEqual", distance, self._scalar(-call.left)))
        return masks

    def _softmax(self, scores: str, call: AttentionCall) -> str:
        if call.sinks is None:
            return self.add("Softmax", scores, axis=-1)
        column = self.add("Reshape", call.sinks, self.integers(1, call.heads[0], 1, 1))
        shape = self.add("Concat", self.integers(1, call.heads[0]), self._tokens(call.query), self.integers(1), axis=0)
        column = self.add("Expand", column, shape)
        both = self.add("Softmax", self.add("Concat", scores, column, axis=-1), axis=-1)
        return self.add("Slice", both, self.integers(0), self.integers(-1), self.integers(3))

    def _tokens(self, name: str) -> str:
        """The number of tokens ``int64 [1]`` of a value by head."""
        return self.add("Slice", self.add("Shape", name), self.integers(2), self.integers(3), self.integers(0))

    def _number(self, number: float) -> str:
        return self.constant(np.array(number, np.float32))

    def _scalar(self, number: int) -> str:
        return self.constant(np.array(number, np.int64))
