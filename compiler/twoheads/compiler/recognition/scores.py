"""Reads what lies between a product of queries and keys and its softmax: scale, softcap, masks, biases, sinks.

The walk goes from the softmax upwards along the one operand that depends on the input's content. Every other operand
must depend on positions alone; together they are evaluated as if the product were zero, which is the mask and the bias,
whichever operators (additions, ``where``, multiplications by 0) made them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np

from twoheads.compiler.ir.op_view import Array, Kind, OpNode, OpView
from twoheads.compiler.recognition.experiments import scalar
from twoheads.graphs.errors import CompileError

__all__ = ["Scores", "read_scores"]

Operand: TypeAlias = str | float

POSITIONS_ONLY = (
    "masks and biases must depend on positions alone; use a model without the other terms, or compile one size of it, "
    "--lowering whole"
)


@dataclass(frozen=True, slots=True)
class Step:
    """One operator on the scores: ``side`` says which of its operands they are."""

    node: OpNode
    side: int

    @property
    def others(self) -> tuple[Operand, ...]:
        """Its other operands."""
        return tuple(operand for at, operand in enumerate(self.node.operands) if at != self.side)


@dataclass(frozen=True, slots=True)
class Scores:
    """How a softmax's operand is made of a product.

    Attributes:
        product: The node that multiplies queries and keys.
        steps: Operators from the product to the softmax, in order.
        sinks: Operand of the column that is concatenated to the scores, or ``None``.
    """

    product: OpNode
    steps: tuple[Step, ...]
    sinks: str | None

    def terms(self) -> tuple[str, ...]:
        """Names of the values that depend on positions alone and enter the scores."""
        found = [name for step in self.steps for name in step.others if isinstance(name, str)]
        if self.product.kind is Kind.BADDBMM and isinstance(self.product.operands[0], str):
            found.append(self.product.operands[0])
        return tuple(dict.fromkeys(found))

    def apply(self, scores: Array, terms: Mapping[str, Array], leading: Sequence[int]) -> Array:
        """The softmax's operand if the product is ``scores``.

        Args:
            scores: Broadcastable to ``[heads, n, m]``.
            terms: What :meth:`terms` names.
            leading: Sizes of the dimensions before the last two in the model; their product is the number of heads.
        """
        with np.errstate(over="ignore"):
            for step in self.steps:
                others = [_by_head(terms[o], leading) if isinstance(o, str) else np.asarray(o) for o in step.others]
                scores = _apply(step, scores, others)
        return scores


def _by_head(term: Array, leading: Sequence[int]) -> Array:
    """A term of any layout as ``[heads or 1, n or 1, m or 1]``."""
    if term.ndim <= 2:
        return term
    before = term.shape[:-2]
    if int(np.prod(before)) == 1:
        return term.reshape(1, *term.shape[-2:])
    # A term added before the scores were reshaped has their heads in one dimension already.
    if len(before) == 1 or int(np.prod(before)) == int(np.prod(leading)):
        return term.reshape(-1, *term.shape[-2:])
    return np.broadcast_to(term, (*leading, *term.shape[-2:])).reshape(-1, *term.shape[-2:])


def _apply(step: Step, scores: Array, others: Sequence[Array]) -> Array:
    kind = step.node.kind
    if kind is Kind.ADD:
        return scores + others[0]
    if kind is Kind.SUB:
        return scores - others[0]
    if kind is Kind.MUL:
        return scores * others[0]
    if kind is Kind.DIV:
        return scores / others[0]
    if kind is Kind.TANH:
        return np.tanh(scores)
    return np.where(others[0], scores, others[1]) if step.side == 1 else np.where(others[0], others[1], scores)


def read_scores(view: OpView, softmax: OpNode) -> Scores:
    """Walks from a softmax over keys up to the product of queries and keys.

    Raises:
        CompileError: The scores are no product, or a term depends on what the input says.
    """
    steps: list[Step] = []
    sinks: str | None = None
    at = _name(softmax.operands[0])
    while True:
        node = view.nodes.get(at)
        if node is None or not view.depends_on_content(at):
            raise CompileError(
                softmax.where, "takes a softmax over tokens of scores that are no product of queries and keys", REWRITE
            )
        if node.kind in (Kind.MATMUL, Kind.BADDBMM):
            return Scores(node, tuple(reversed(steps)), sinks)
        if node.kind is Kind.CONCAT and sinks is None and not steps and len(node.operands) == 2:
            at, sinks = _name(node.operands[0]), _name(node.operands[1])
            if view.depends_on_content(sinks):
                raise CompileError(node.where, "its sinks depend on activations", "keep one learned logit a head")
        elif node.kind in (Kind.CAST, Kind.MOVE) or _shifts_by_maximum(view, node):
            at = _name(node.operands[0])
        elif (floored := _above_a_floor(view, node)) is not None:
            at = floored
        else:
            step = _step(view, node, softmax)
            steps.append(step)
            at = _name(node.operands[step.side])


REWRITE = "write attention as softmax(scale * q k^T + mask) v, or call scaled_dot_product_attention"


def _shifts_by_maximum(view: OpView, node: OpNode) -> bool:
    """``x - max(x)``: a softmax doesn't see it."""
    if node.kind is not Kind.SUB or not isinstance(node.operands[1], str):
        return False
    maximum = view.nodes.get(node.operands[1])
    return maximum is not None and maximum.kind is Kind.MAX and maximum.operands[0] == node.operands[0]


def _above_a_floor(view: OpView, node: OpNode) -> str | None:
    """Of ``max(x, floor)`` its ``x``, if the floor is so low that only hidden scores lie below: a softmax sees neither.

    Models raise what is hidden to the lowest number there is before a softmax, against rows of minus infinity (XGLM).
    """
    if node.kind is not Kind.LARGER or len(node.operands) != 2:
        return None
    for side, floor in enumerate(reversed(node.operands)):
        number = scalar(view, floor, {})
        if number is not None and number <= LOWEST:
            return _name(node.operands[side])
    return None


LOWEST = -1e30
"""No product of queries and keys is as small."""


def _step(view: OpView, node: OpNode, softmax: OpNode) -> Step:
    known = (Kind.ADD, Kind.SUB, Kind.MUL, Kind.DIV, Kind.TANH, Kind.WHERE)
    if node.kind not in known:
        raise CompileError(
            node.where,
            f"{node.operator} lies between the product of queries and keys and the softmax {softmax.name!r}",
            REWRITE,
        )
    dependent = [at for at, o in enumerate(node.operands) if isinstance(o, str) and view.depends_on_content(o)]
    if node.kind is Kind.WHERE and 0 in dependent:
        raise CompileError(node.where, "its mask depends on what the input says, so tiles can't express it", NO_PADDING)
    if len(dependent) != 1:
        raise CompileError(
            node.where,
            f"{node.operator} puts together two terms of the scores that depend on activations",
            POSITIONS_ONLY,
        )
    if node.kind in (Kind.SUB, Kind.DIV) and dependent[0] == 1:
        raise CompileError(node.where, f"{node.operator} has the scores as its second operand", REWRITE)
    return Step(node, dependent[0])


NO_PADDING = "leave padding out (run inputs at their own length), or compute the mask from positions alone"


def _name(operand: Operand) -> str:
    return operand if isinstance(operand, str) else ""
