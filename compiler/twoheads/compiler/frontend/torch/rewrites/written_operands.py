"""Operators that write into a value of their own (``scores += bias``) become those that give a new one.

``ExportedProgram.run_decompositions`` does that for whatever there is, and traces the whole graph twice again: four
times what the capture itself takes. Most models that write at all write into a value that was just computed and that
nothing reads afterwards but through the operator's result; there it is another operator in the same place.
"""

from __future__ import annotations

import operator
from typing import Any

import torch
from torch import Tensor, fx
from torch._ops import OpOverload

__all__ = ["replace_writes", "writes"]

aten = torch.ops.aten

WITHOUT_WRITE: dict[Any, OpOverload] = {
    aten.add_.Tensor: aten.add.Tensor,
    aten.sub_.Tensor: aten.sub.Tensor,
    aten.mul_.Tensor: aten.mul.Tensor,
    aten.div_.Tensor: aten.div.Tensor,
    aten.detach_.default: aten.detach.default,
}
"""By operators that write their result into their first operand; the last writes no number."""

FRESH = frozenset(
    {
        aten.add.Tensor,
        aten.bmm.default,
        aten.div.Tensor,
        aten.embedding.default,
        aten.gather.default,
        aten.lift_fresh_copy.default,
        aten.linear.default,
        aten.matmul.default,
        aten.mul.Tensor,
        aten.sigmoid.default,
        aten.softmax.int,
        aten.sub.Tensor,
        aten.sum.dim_IntList,
        aten.topk.default,
    }
)
"""Operators whose results are never a view of an operand, and never an operand itself."""


def writes(graph: fx.Graph) -> list[fx.Node]:
    """The nodes whose operators write into an operand."""
    return [node for node in graph.nodes if isinstance(node.target, OpOverload) and _schema(node).is_mutable]


def replace_writes(graph: fx.Graph) -> bool:
    """Replaces all operators that write, in place; ``False``, and nothing is done, where one of them may be seen to.

    Nodes keep their names, so that what refers to these stays true.
    """
    found = writes(graph)
    if not all(_unseen(node) for node in found):
        return False
    for node in found:
        node.target = WITHOUT_WRITE[node.target]
    return True


def _schema(node: fx.Node) -> Any:
    target: Any = node.target
    return target._schema  # pyright: ignore[reportPrivateUsage]


def _unseen(node: fx.Node) -> bool:
    """Whether only its own result shows what ``node`` writes, and a new value would be of the same type."""
    written = node.args[0]
    if node.target not in WITHOUT_WRITE or not isinstance(written, fx.Node) or not _fresh(written):
        return False
    readers = [user for user in written.users if user is not node]
    if not all(user < node and user.target in FRESH for user in readers):
        return False
    values = [entry.meta.get("val") for entry in node.all_input_nodes]
    types = {value.dtype for value in values if isinstance(value, Tensor)}
    return len(types) == 1


def _fresh(node: fx.Node) -> bool:
    """Whether its value is memory of its own: of an operator that gives such, or one of several results of that."""
    if node.target is operator.getitem and isinstance(node.args[0], fx.Node):
        node = node.args[0]
    return node.op == "call_function" and node.target in FRESH
