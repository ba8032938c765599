"""What a captured graph has in common with the exported program it was made of: inputs, weights, results, operators."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Set
from typing import Any, cast

import torch
from torch import Tensor, fx
from torch._ops import OpOverload
from torch.export import ExportedProgram
from torch.export.graph_signature import InputKind, OutputKind

from twoheads.compiler.frontend.torch.export_source import ROOT
from twoheads.compiler.frontend.torch.fx.axes import AxisNames
from twoheads.compiler.frontend.torch.fx.fx_program import FxProgram, is_scalar
from twoheads.compiler.frontend.torch.fx.lengths_from_sizes import uses_length
from twoheads.compiler.frontend.torch.fx.normalize import generated_source
from twoheads.compiler.frontend.torch.fx.view import layer_of
from twoheads.compiler.frontend.torch.load_source import LoadedSource
from twoheads.compiler.ir.source_graph import SourceGraph, TokenwiseNode, place_of
from twoheads.graphs.errors import CompileError
from twoheads.graphs.program.program import Input, Value

__all__ = [
    "argument_names",
    "read_outputs",
    "read_program",
    "require_no_chance",
    "require_weights",
    "tokenwise_node",
]

_INDEX_VIEWS = (
    torch.ops.aten.view.default,
    torch.ops.aten.reshape.default,
    torch.ops.aten.unsqueeze.default,
    torch.ops.aten.to.dtype,
    torch.ops.aten._to_copy.default,
    torch.ops.aten.contiguous.default,
    torch.ops.aten.clone.default,
    torch.ops.aten.transpose.int,
    torch.ops.aten.permute.default,
    torch.ops.aten.slice.Tensor,
    torch.ops.aten.cat.default,
    torch.ops.aten.where.ScalarSelf,
    torch.ops.aten.where.self,  # a wrapper's ordinary token in the place of its image's
)

_VIEWS = frozenset(
    "alias unsqueeze squeeze expand view reshape transpose permute contiguous to dropout".split()  # noqa: SIM905
)
"""Operators that move no information."""


def argument_names(exported: ExportedProgram, source: LoadedSource) -> dict[str, str]:
    """The model's own name of every argument by placeholder name."""
    return {str(node): name for node, name in zip(exported.graph_signature.user_inputs, source.inputs, strict=True)}


def read_program(exported: ExportedProgram, graph: fx.Graph, source: LoadedSource, axes: AxisNames) -> FxProgram:
    """The program of ``graph``, which was made of what ``source`` was exported as.

    Args:
        exported: Has the weights.
        graph: As it is now: nodes may have been added and rewritten.
        source: The model.
        axes: What its shape symbols count.
    """
    arguments, weights = argument_names(exported, source), _weight_names(exported)
    names = {node.name: arguments.get(node.name) or weights.get(node.name) or node.name for node in graph.nodes}
    return FxProgram(
        nodes={node.name: node for node in graph.nodes if node.op != "output"},
        placeholders={node.name: names[node.name] for node in graph.nodes if node.op == "placeholder"},
        inputs=tuple(_inputs(graph, source, arguments, axes)),
        weights={weights[node.name]: _tensor(exported, node) for node in graph.nodes if node.name in weights},
        axes=axes,
    )


def _weight_names(exported: ExportedProgram) -> dict[str, str]:
    """Source-graph name of every weight by placeholder name."""
    kinds = (InputKind.PARAMETER, InputKind.BUFFER, InputKind.CONSTANT_TENSOR)
    specs = [spec for spec in exported.graph_signature.input_specs if spec.kind in kinds]
    return {cast("Any", spec.arg).name: cast("str", spec.target).removeprefix(f"{ROOT}.") for spec in specs}


def _tensor(exported: ExportedProgram, placeholder: fx.Node) -> Tensor:
    spec = next(s for s in exported.graph_signature.input_specs if cast("Any", s.arg).name == placeholder.name)
    target = cast("str", spec.target)
    tensor = exported.state_dict[target] if target in exported.state_dict else exported.constants[target]
    weight, value = cast("Tensor", tensor).detach(), placeholder.meta["val"]
    if weight.is_complex() and not value.is_complex():  # a pair since it was captured
        weight = torch.view_as_real(weight)
    return weight.to(value.dtype)


def _inputs(graph: fx.Graph, source: LoadedSource, arguments: Mapping[str, str], axes: AxisNames) -> Iterator[Input]:
    for node in graph.nodes:
        if node.op != "placeholder":
            continue
        type_ = axes.type(node.meta["val"])
        generated = generated_source(node)
        if generated is not None:
            kind, axis = generated
            yield Input(Value(node.name, type_.dtype, type_.shape), kind, None, axis if kind == "length" else None)
        elif node.name in arguments:
            name = arguments[node.name]
            yield Input(Value(name, type_.dtype, type_.shape), source.inputs[name].source, _vocabulary(node))


def _vocabulary(node: fx.Node) -> int | None:
    """Rows of the smallest embedding table that is indexed by the input itself or by a view of it.

    ``None`` where some entries are moved by an offset first: then each column has a limit of its own.
    """
    tables: list[int] = []
    for user in node.users:
        if user.target is torch.ops.aten.embedding.default and user.args[1] is node:
            tables.append(cast("fx.Node", user.args[0]).meta["val"].shape[0])
        elif user.target in _INDEX_VIEWS and not _offset(user, node):
            tables.extend(rows for rows in (_vocabulary(user),) if rows is not None)
    return min(tables, default=None)


def _offset(chosen: fx.Node, node: fx.Node) -> bool:
    """Whether ``chosen`` takes, where it does not take ``node``, something that is computed from it."""
    others = [entry for entry in chosen.args[1:] if isinstance(entry, fx.Node) and entry is not node]
    return chosen.target is torch.ops.aten.where.self and any(node in entry.all_input_nodes for entry in others)


def read_outputs(exported: ExportedProgram, graph: fx.Graph) -> dict[str, str]:
    """The node of ``hidden`` and, where the model has a head, of ``logits``.

    Raises:
        CompileError: The model also writes to its own weights or buffers.
    """
    keys = cast("Any", exported.call_spec.out_spec).context  # keys of the wrapper's dictionary, in order
    results = cast("tuple[fx.Node, ...]", next(iter(reversed(list(graph.nodes)))).args[0])
    for spec in exported.graph_signature.output_specs:
        if spec.kind is not OutputKind.USER_OUTPUT:
            raise CompileError(
                f"{spec.target}".removeprefix(f"{ROOT}."),
                "is written to by the forward pass, so what a run gives would depend on the runs before it",
                "keep what a pass computes out of the model's weights and buffers",
            )
    return {key: node.name for key, node in zip(cast("list[str]", keys), results, strict=True)}


def tokenwise_node(program: FxProgram, node: fx.Node) -> TokenwiseNode:
    """One operator, its text with ``%0, %1, ...`` where its operands go."""
    inputs: dict[str, int] = {}

    def render(operand: fx.Node) -> Any:
        if is_scalar(operand):
            value = operand.meta["val"]
            return _Text(str(program.axes.dim(value)) if isinstance(value, torch.SymInt) else str(value))
        return _Text(f"%{inputs.setdefault(program.source_name(operand), len(inputs))}")

    args, kwargs = fx.map_arg((node.args, node.kwargs), render)
    words = [repr(argument) for argument in args] + [f"{key}={value!r}" for key, value in sorted(kwargs.items())]
    target = str(node.target) if isinstance(node.target, OpOverload) else cast("Any", node.target).__name__
    value = node.meta.get("val")
    type_ = program.axes.type(value) if isinstance(value, Tensor) else None
    text = f"{target}({', '.join(words)})"
    is_view = target.startswith("aten.") and target.split(".")[1] in _VIEWS
    return TokenwiseNode(node.name, text, tuple(inputs), type_, layer_of(node), uses_length(node), is_view)


_RANDOM = tuple(f"aten.{name}" for name in ("rand", "bernoulli", "multinomial", "normal", "uniform", "exponential"))
"""Beginnings of operators that draw random numbers."""


class _Text(str):
    """A string that prints without quotes inside a rendered argument list."""

    __slots__ = ()

    def __repr__(self) -> str:
        return str(self)


def require_no_chance(graph: SourceGraph) -> None:
    """Refuses numbers drawn at random (the masked patches of an autoencoder): nothing could be compared with them."""
    for node in graph.nodes:
        if isinstance(node, TokenwiseNode) and node.op.startswith(_RANDOM):
            raise CompileError(
                place_of(node.layer, node.name),
                f"draws random numbers, {node.op.split('(')[0]}: two runs of the model differ",
                "compile a model whose result depends on its input only",
            )


def require_weights(source: LoadedSource, used: Set[str]) -> None:
    """Refuses a model that uses a weight which its files lack."""
    if lost := sorted(source.missing_weights & used):
        raise CompileError(
            source.identity.name, f"has no weight {lost[0]} ({len(lost)} missing)", "download the complete model"
        )
