"""Gives a model of one fixed input size (a vision transformer, Whisper's encoder) a token axis to be cut along.

Its graph has numbers where others have ``n``. The token count ``N`` is read off its attentions. Whatever comes before
the first values with ``N`` rows is the *stem*: it stays as it is and runs once. Those values (patches, a table of
positions) are spread along the constant axis ``"N"``, and what follows, the *trunk*, is exported again with that axis
dynamic, so that torch itself says where a number of rows is used for anything else.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor, fx, nn
from torch.export import Dim as ExportDim
from torch.export import ExportedProgram
from torch.fx.traceback import preserve_node_meta

from twoheads.compiler.frontend.torch.rows import sequence_ops as ops
from twoheads.graphs.errors import CompileError

__all__ = ["Lifted", "constant_token_counts", "lift_constant_tokens"]

aten = torch.ops.aten

ATTENTIONS = ("twoheads.attention.default", "aten.scaled_dot_product_attention.default")

HINT = 29
"""Example size of an axis that is dynamic already."""

REMEDY = (
    "compile it for an input size whose number of tokens no other dimension of the model has, or with --lowering whole "
    "as one engine of its whole size, in which nothing is tiled"
)

_SPREAD_BY = (
    aten.add.Tensor,
    aten.sub.Tensor,
    aten.mul.Tensor,
    aten.cat.default,
    aten.expand.default,
    aten.unsqueeze.default,
    aten.slice.Tensor,
    aten.alias.default,
    aten.to.dtype,
    aten.transpose.int,
    aten.permute.default,
    aten.view.default,
    aten.reshape.default,
)
"""What reads a weight that has a row a token; any other reader has a dimension of that size by accident."""

_SIZED = tuple(
    f"aten.{name}"
    for name in (
        "view", "_unsafe_view", "reshape", "expand", "slice", "new_empty", "new_zeros", "new_ones", "new_full", "empty",
        "zeros", "ones", "full", "arange",
    )
)  # fmt: skip
"""Operators whose numbers are sizes."""


@dataclass(frozen=True, slots=True)
class Lifted:
    """A graph with constant token axes.

    Attributes:
        graph: Stem and trunk; placeholders are called as before.
        symbols: What the trunk's shape symbols count: ``"197"``, or the axis of an input.
    """

    graph: fx.Graph
    symbols: Mapping[str, str]


def constant_token_counts(graph: fx.Graph) -> frozenset[int]:
    """The numbers of queries and keys that the graph's attentions have at every input; 1 is a plain vector."""
    counts: set[int] = set()
    for node in graph.nodes:
        if str(node.target) in ATTENTIONS:
            sizes = [node.args[at].meta["val"].shape[2] for at in (0, 1)]
            counts |= {size for size in sizes if isinstance(size, int) and size > 1}
    return frozenset(counts)


def lift_constant_tokens(
    graph: fx.Graph, counts: frozenset[int], axes: Mapping[str, tuple[int, str]], where: str
) -> Lifted:
    """Exports the trunk of ``graph`` again.

    Args:
        graph: Normalised, of an exported program.
        counts: Its constant numbers of tokens.
        axes: Token dimension and axis of every user input that has one, by placeholder name.
        where: The model's name.

    Raises:
        CompileError: A number of tokens can't be told from another size, or the trunk can't be exported.
    """
    parts = _Parts.of(graph, counts, axes)
    trunk, order = _trunk_module(graph, parts, counts)
    exported = _export(trunk, order, parts, axes, where)
    lifted = _merge(graph, parts, order, exported, axes)
    if left := constant_token_counts(lifted.graph):
        why = "another size is the same, or an operator holds their number"
        raise CompileError(where, f"attends to {min(left)} tokens that no axis could be made of: {why}", REMEDY)
    return lifted


@dataclass(frozen=True, slots=True)
class _Parts:
    """Which nodes belong to the stem, and which values the trunk spreads along a constant axis (with the dimension)."""

    stem: frozenset[fx.Node]
    spread: Mapping[fx.Node, int]

    @classmethod
    def of(cls, graph: fx.Graph, counts: frozenset[int], axes: Mapping[str, Any]) -> _Parts:
        downstream: set[fx.Node] = set()
        spread: dict[fx.Node, int] = {}
        for node in graph.nodes:
            if node.op == "output" or node.name in axes:
                downstream.add(node)
                continue
            dim = _row_dim(node, counts)
            if any(operand in downstream or operand in spread for operand in node.all_input_nodes):
                downstream.add(node)
            elif dim is not None and (node.op != "placeholder" or _is_read_by_row(node)):
                spread[node] = dim
        stem: set[fx.Node] = set()
        stack = [operand for node in spread for operand in (node, *node.all_input_nodes)]
        while stack:
            node = stack.pop()
            if node not in stem:
                stem.add(node)
                stack.extend(node.all_input_nodes)
        return cls(frozenset(stem), spread)


def _row_dim(node: fx.Node, counts: Iterable[int]) -> int | None:
    value = node.meta.get("val")
    if not isinstance(value, Tensor):
        return None
    dims = [at for at, size in enumerate(cast("Any", value).shape) if isinstance(size, int) and size in counts]
    return dims[0] if len(dims) == 1 else None


def _is_read_by_row(weight: fx.Node) -> bool:
    return all(user.target in _SPREAD_BY for user in weight.users)


def _trunk_module(graph: fx.Graph, parts: _Parts, counts: frozenset[int]) -> tuple[fx.GraphModule, list[fx.Node]]:
    """The trunk with sizes read from its inputs, and the nodes of ``graph`` that it takes, in order."""
    members = [node for node in graph.nodes if node.op == "call_function" and node not in parts.stem]
    inside = set(members)
    order = list(
        dict.fromkeys(
            [*parts.spread, *(operand for node in members for operand in node.all_input_nodes if operand not in inside)]
        )
    )
    output = next(iter(reversed(list(graph.nodes))))
    order = list(dict.fromkeys([*order, *(node for node in output.all_input_nodes if node not in inside)]))
    trunk = fx.Graph()
    env = {node: trunk.placeholder(node.name) for node in order}
    sizes: dict[int, fx.Node] = {}
    for node, dim in parts.spread.items():
        count = int(node.meta["val"].shape[dim])
        if count not in sizes:
            sizes[count] = trunk.call_function(aten.sym_size.int, (env[node], dim))
    for node in members:
        args, kwargs = fx.map_arg((node.args, node.kwargs), lambda operand: env[operand])
        if str(node.target).rsplit(".", 1)[0] in _SIZED:
            args, kwargs = _with_sizes((args, kwargs), sizes)
        env[node] = trunk.create_node("call_function", node.target, args, kwargs, node.name)
        env[node].meta = {key: value for key, value in node.meta.items() if key != "val"}
    trunk.output(fx.map_arg(output.args[0], lambda operand: env[operand]))
    return fx.GraphModule(nn.Module(), trunk), order


def _with_sizes(arguments: Any, sizes: Mapping[int, fx.Node]) -> Any:
    """``arguments`` with the first number that is a count of tokens read from an input's shape.

    Only the first: rows come before features, one of whose sizes may be the same number.
    """
    left = dict(sizes)

    def replace(argument: Any) -> Any:
        if isinstance(argument, int) and not isinstance(argument, bool):
            return left.pop(argument, argument)
        if isinstance(argument, list | tuple):
            return type(argument)(replace(item) for item in cast("list[Any]", argument))
        if isinstance(argument, dict):
            return {key: replace(item) for key, item in cast("dict[str, Any]", argument).items()}
        return argument

    return replace(arguments)


class _Run(nn.Module):
    """Runs a graph node by node, so that what is exported keeps the layers its nodes belong to."""

    def __init__(self, module: fx.GraphModule) -> None:
        super().__init__()
        self.interpreter = fx.Interpreter(module)

    def forward(self, *values: Tensor) -> Any:
        with preserve_node_meta():
            return self.interpreter.run(*values)


def _export(
    trunk: fx.GraphModule, order: list[fx.Node], parts: _Parts, axes: Mapping[str, tuple[int, str]], where: str
) -> ExportedProgram:
    if odd := [node.name for node in order if not isinstance(node.meta["val"], Tensor)]:
        raise CompileError(
            where, f"its {_counts(order, parts)} tokens can't be told from its other sizes: {odd[0]!r} is cut", REMEDY
        )
    examples = tuple(_example(node.meta["val"]) for node in order)
    dims = [parts.spread.get(node, axes.get(node.name, (None, ""))[0]) for node in order]
    dynamic = tuple({} if dim is None else {dim: ExportDim.AUTO} for dim in dims)
    try:
        with torch.no_grad():
            exported = torch.export.export(_Run(trunk), examples, dynamic_shapes=(dynamic,), strict=False)
    except Exception as error:
        message = " ".join(str(error).split())[:300]
        raise CompileError(
            where,
            f"its {_counts(order, parts)} tokens can't be told from its other sizes: {type(error).__name__}: {message}",
            REMEDY,
        ) from error
    placeholders = [node for node in exported.graph_module.graph.nodes if node.op == "placeholder"]
    for node, dim, placeholder in zip(order, dims, placeholders, strict=True):
        if dim is not None and isinstance(placeholder.meta["val"].shape[dim], int):
            raise CompileError(
                where,
                f"something in it, from {node.name!r} on, works for {placeholder.meta['val'].shape[dim]} tokens only",
                REMEDY,
            )
    return exported


def _counts(order: Iterable[fx.Node], parts: _Parts) -> str:
    counts = {int(node.meta["val"].shape[parts.spread[node]]) for node in order if node in parts.spread}
    return ", ".join(map(str, sorted(counts)))


def _example(value: Tensor) -> Tensor:
    """Zeros that take no memory: only shapes matter here."""
    shape = [size if isinstance(size, int) else HINT for size in cast("Any", value).shape]
    return torch.zeros((), dtype=value.dtype).expand(shape)


def _merge(
    graph: fx.Graph,
    parts: _Parts,
    order: list[fx.Node],
    exported: ExportedProgram,
    axes: Mapping[str, tuple[int, str]],
) -> Lifted:
    merged = fx.Graph()
    env: dict[fx.Node, fx.Node] = {}
    for node in graph.nodes:
        if node.op == "placeholder" or node in parts.stem:
            env[node] = merged.node_copy(node, lambda operand: env[operand])
    trunk = exported.graph_module.graph
    placeholders = [node for node in trunk.nodes if node.op == "placeholder"]
    symbols: dict[str, str] = {}
    trunk_env: dict[fx.Node, fx.Node] = {}
    for node, placeholder in zip(order, placeholders, strict=True):
        value = placeholder.meta["val"]
        trunk_env[placeholder] = env[node]
        if node in parts.spread:
            dim, axis = parts.spread[node], str(int(node.meta["val"].shape[parts.spread[node]]))
            trunk_env[placeholder] = _spread(merged, env[node], dim, value)
        elif node.name in axes:
            dim, axis = axes[node.name]
            env[node].meta["val"] = value
        else:
            continue
        symbols |= {str(symbol): axis for symbol in value.shape[dim].node.expr.free_symbols}
    for node in trunk.nodes:
        if node.op not in ("placeholder", "output"):
            trunk_env[node] = merged.node_copy(node, lambda operand: trunk_env[operand])
    results = next(iter(reversed(list(trunk.nodes)))).args[0]
    merged.output(fx.map_arg(results, lambda operand: trunk_env[operand]))
    return Lifted(merged, symbols)


def _spread(graph: fx.Graph, node: fx.Node, dim: int, value: Tensor) -> fx.Node:
    """``node``, a whole array to the stem, as rows along a token axis."""
    layer = {key: item for key, item in node.meta.items() if key != "val"}
    if node.op == "placeholder":  # a weight: sequence operators read results
        alias = graph.call_function(aten.alias.default, (node,))
        alias.meta = dict(node.meta)
        node = alias
    spread = graph.call_function(ops.concat, (node,), {"axis": dim})
    spread.meta = layer | {"val": value}
    return spread
