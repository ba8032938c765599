"""What the rules of row movement (:mod:`.normalize_sequence`) read nodes with, and make others by."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, TypeAlias, cast

from torch import SymInt, Tensor, fx

from twoheads.compiler.frontend.torch.rows import sequence_ops as ops

__all__ = ["Rule", "SequenceBuilder", "all_arguments", "along_tokens", "is_number", "number_of", "token_dims"]


def token_dims(node: Any) -> tuple[int, ...]:
    """The dimensions of a node's result that depend on a length; none for results that are no single tensor."""
    value = node.meta.get("val") if isinstance(node, fx.Node) else None
    if not isinstance(value, Tensor):
        return ()
    return tuple(at for at, size in enumerate(value.shape) if not is_number(size))


def is_number(size: Any) -> bool:
    """Whether a dimension does not depend on a length."""
    return isinstance(size, int) or (isinstance(size, SymInt) and bool(size.node.expr.is_Integer))


@dataclass(frozen=True, slots=True)
class SequenceBuilder:
    """Makes nodes in the place of one that is replaced; they belong to its layer."""

    graph: fx.Graph
    node: fx.Node
    constants: Mapping[str, int]

    def call(self, target: Any, *args: Any, value: Any = None, **kwargs: Any) -> fx.Node:
        """A node whose result looks like ``value``, by default that of the replaced node."""
        new = self.graph.call_function(target, args, kwargs)
        new.meta = dict(self.node.meta) | ({} if value is None else {"val": value})
        return new

    def rows(self, target: Any, x: fx.Node, *args: Any, value: Any = None, **kwargs: Any) -> fx.Node:
        """A node whose result has no token axis, with its shape as an attribute."""
        value = self.node.meta["val"] if value is None else value
        return self.call(target, x, *args, value=value, shape=tuple(int(size) for size in value.shape), **kwargs)

    def constant_rows(self, x: fx.Node, axis: int, start: int, rows: int) -> fx.Node | None:
        """``rows`` rows from ``start`` on, which ``x`` is sure to have.

        An input that is too short must fail, not read zeros: rows of a value of any length are refused, and a single
        one is the first (or the last) of what lies beyond it, which the axis ``n-2`` says can't be empty.
        """
        needed = -start if start < 0 else start + rows
        if needed > 1 and needed > (self._tokens(x, axis) or 0):
            if rows > 1:
                return None
            value, cut = x.meta["val"], needed - 1
            sizes = [size - cut if at == axis else size for at, size in enumerate(value.shape)]
            first, start = (cut, 0) if start >= 0 else (0, -1)
            x = self.call(
                ops.take, x, value=value.new_empty(sizes), axis=axis, from_end=0, start=first, step=1, add=-cut, div=1
            )
        return self.rows(ops.take_rows, x, axis=axis, from_end=int(start < 0), start=start, step=1)

    def _tokens(self, x: fx.Node, axis: int) -> int | None:
        expression = x.meta["val"].shape[axis].node.expr
        if any(str(symbol) not in self.constants for symbol in expression.free_symbols):
            return None
        return int(expression.subs({symbol: self.constants[str(symbol)] for symbol in expression.free_symbols}))


Rule: TypeAlias = Callable[[SequenceBuilder, fx.Node], fx.Node | None]
"""What replaces a node; ``None`` where it moves no rows."""


def all_arguments(node: fx.Node) -> dict[str, Any]:
    """Every argument by name, defaults included."""
    schema = cast("Any", node.target)._schema.arguments
    given = {entry.name: entry.default_value for entry in schema if entry.has_default_value()}
    return given | {entry.name: value for entry, value in zip(schema, node.args, strict=False)} | dict(node.kwargs)


def along_tokens(x: Any, dim: int) -> int | None:
    """``dim`` counted from the front if it is the only token axis of ``x``."""
    dims = token_dims(x)
    if not dims:
        return None
    dim %= x.meta["val"].ndim
    return dim if dims == (dim,) else None


def number_of(argument: Any) -> int | None:
    """A size as a number; ``None`` if it depends on a length."""
    value = argument.meta.get("val") if isinstance(argument, fx.Node) else argument
    return int(value) if value is not None and is_number(value) else None
