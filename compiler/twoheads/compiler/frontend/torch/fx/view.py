"""A captured torch program as the recogniser of attention sees it: :class:`twoheads.compiler.ir.op_view.OpView`."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any, cast

import torch
from torch import Tensor, fx

from twoheads.compiler.frontend.torch.fx.fx_program import FxProgram, is_scalar
from twoheads.compiler.frontend.torch.weights.stored_tensor import read_tensor
from twoheads.compiler.ir.op_view import Array, Kind, OpNode
from twoheads.compiler.ir.source_graph import TensorType, place_of
from twoheads.compiler.ir.source_program import all_lengths, example_inputs
from twoheads.graphs.errors import CompileError

__all__ = ["FxView", "layer_of"]

_KINDS: Mapping[str, Kind] = {
    **dict.fromkeys(("matmul", "bmm", "mm", "einsum"), Kind.MATMUL),
    "baddbmm": Kind.BADDBMM,
    **dict.fromkeys(("softmax", "_softmax"), Kind.SOFTMAX),
    "add": Kind.ADD,
    "sub": Kind.SUB,
    "mul": Kind.MUL,
    "div": Kind.DIV,
    "neg": Kind.NEG,
    "tanh": Kind.TANH,
    **dict.fromkeys(("where", "masked_fill"), Kind.WHERE),
    "amax": Kind.MAX,
    **dict.fromkeys(("maximum", "clamp_min"), Kind.LARGER),
    "isnan": Kind.ISNAN,
    "cat": Kind.CONCAT,
    "slice": Kind.SLICE,
    **dict.fromkeys(("to", "_to_copy", "type_as"), Kind.CAST),
    **dict.fromkeys(
        (
            "view", "_unsafe_view", "reshape", "permute", "transpose", "t", "expand", "unsqueeze", "squeeze", "flatten",
            "contiguous", "clone", "detach", "alias", "dropout", "repeat", "repeat_interleave", "unflatten",
        ),
        Kind.MOVE,
    ),
    **dict.fromkeys(
        ("zeros_like", "ones_like", "full_like", "empty_like", "new_zeros", "new_ones", "new_full", "new_empty"),
        Kind.SHAPE,
    ),
}  # fmt: skip
"""Kinds by the names of torch's own operators."""


def layer_of(node: fx.Node) -> str:
    """Path of the module that a node belongs to."""
    stack = node.meta.get("nn_module_stack")
    path = str(list(stack.values())[-1][0]) if stack else ""
    return path.removeprefix("module").removeprefix(".")


@dataclass(frozen=True)
class FxView:
    """A program's operators by kind, and their values; names are the source graph's.

    Attributes:
        name: The model's name.
        program: The operators.
    """

    name: str
    program: FxProgram

    @property
    def nodes(self) -> Mapping[str, OpNode]:
        """Every tensor operator."""
        return self._nodes

    @cached_property
    def _nodes(self) -> Mapping[str, OpNode]:
        return {
            name: OpNode(name, _kind(node), tuple(self._operands(node)), str(node.target), layer_of(node))
            for name, node in self.program.nodes.items()
            if node.op == "call_function" and isinstance(node.meta.get("val"), Tensor)
        }

    @cached_property
    def _fx_nodes(self) -> Mapping[str, fx.Node]:
        return {self.program.source_name(node): node for node in self.program.nodes.values()}

    @cached_property
    def _content(self) -> set[str]:
        arguments = {entry.value.name for entry in self.program.inputs if entry.source == "argument"}
        found: set[str] = set()
        for name, node in self._fx_nodes.items():
            if is_scalar(node) or _kind(node) is Kind.SHAPE:
                continue
            if name in arguments or any(self.program.source_name(operand) in found for operand in node.all_input_nodes):
                found.add(name)
        return found

    def type(self, name: str) -> TensorType | None:
        """Type of a value, weight or input."""
        value = self._fx_nodes[name].meta.get("val") if name in self._fx_nodes else None
        if not isinstance(value, Tensor):
            return None
        return self.program.axes.type(value)

    def depends_on_content(self, name: str) -> bool:
        """Whether its numbers depend on an argument."""
        return name in self._content

    def constants(self, name: str) -> frozenset[int]:
        """Magnitudes of the whole numbers in its computation."""
        return self.program.constants(self._fx_nodes[name].name)

    @torch.no_grad()
    def evaluate(
        self, names: Iterable[str], lengths: Mapping[str, int], given: Mapping[str, Array] | None = None
    ) -> dict[str, Array]:
        """Values at ``lengths``; see the protocol."""
        wanted = tuple(names)
        values: dict[str, Any] = {name: torch.from_numpy(array) for name, array in (given or {}).items()}
        every = all_lengths(self.program.inputs, lengths)
        inputs = example_inputs(self.program.inputs, every, 0)

        def value_of(operand: fx.Node) -> Any:
            if is_scalar(operand):
                return self.program.axes.evaluate(operand.meta["val"], every)
            return values[self.program.source_name(operand)]

        for node in self._needed(wanted, values):
            name = self.program.source_name(node)
            if node.op == "placeholder":
                values[name] = torch.from_numpy(inputs[name]) if name in inputs else self.program.weights[name]
            else:
                args, kwargs = fx.map_arg((node.args, node.kwargs), value_of)
                try:
                    values[name] = cast("Any", node.target)(*args, **kwargs)
                except (IndexError, RuntimeError) as error:  # a look-up beyond a table's end, sizes that don't fit
                    where = place_of(layer_of(node), name)
                    problem = f"can't be computed at {lengths}: {str(error).splitlines()[0]}"
                    raise CompileError(where, problem, "rewrite the length-dependent code") from error
        return {name: read_tensor(values[name]).numpy() for name in wanted}

    def _needed(self, names: Iterable[str], given: Iterable[str]) -> list[fx.Node]:
        """Nodes that compute ``names`` from ``given`` values, in order."""
        seen, stack = set(given), [name for name in names if name not in set(given)]
        found: set[str] = set()
        while stack:
            name = stack.pop()
            if name in seen:
                continue
            seen.add(name)
            found.add(name)
            operands = self._fx_nodes[name].all_input_nodes
            stack.extend(self.program.source_name(operand) for operand in operands if not is_scalar(operand))
        return [node for name, node in self._fx_nodes.items() if name in found]

    def _operands(self, node: fx.Node) -> Iterator[str | float]:
        """Operands in the order of the kind: tensors by name, and plain numbers."""
        arguments: list[Any] = list(node.args)
        if _is(node, "masked_fill"):
            arguments = [arguments[1], arguments[2], arguments[0]]
        elif _is(node, "einsum"):
            arguments = list(arguments[1])
        elif _is(node, "cat"):
            arguments = list(arguments[0])
        elif _kind(node) in (Kind.MOVE, Kind.CAST, Kind.SLICE, Kind.SOFTMAX, Kind.MAX):
            arguments = arguments[:1]
        for argument in arguments:
            if isinstance(argument, fx.Node) and not is_scalar(argument):
                yield self.program.source_name(argument)
            elif isinstance(argument, int | float) and not isinstance(argument, bool):
                yield float(argument)


def _is(node: fx.Node, name: str) -> bool:
    return str(node.target).startswith(f"aten.{name}.")


def _kind(node: fx.Node) -> Kind:
    library, _, rest = str(node.target).partition(".")
    kind = (
        _KINDS.get(rest.split(".")[0], Kind.OTHER) if library == "aten" and node.op == "call_function" else Kind.OTHER
    )
    arguments: Any = node.args
    if str(node.target) == "aten.max.other":
        return Kind.LARGER
    if kind in (Kind.SOFTMAX, Kind.MAX, Kind.CONCAT):
        along = arguments[1] if len(arguments) > 1 else 0
        axes = list(along) if isinstance(along, list | tuple) else [along]
        keeps = kind is not Kind.MAX or (len(arguments) > 2 and bool(arguments[2]))
        return kind if keeps and axes in ([-1], [node.meta["val"].ndim - 1]) else Kind.OTHER
    if kind is Kind.CAST:
        floats = [operand.meta["val"].dtype.is_floating_point for operand in (node, arguments[0])]
        return kind if all(floats) else Kind.OTHER
    if kind in (Kind.ADD, Kind.SUB) and node.kwargs.get("alpha", 1) != 1:
        return Kind.OTHER
    if kind is Kind.DIV and node.kwargs.get("rounding_mode") is not None:
        return Kind.OTHER
    return kind
