"""A captured torch program: the FX nodes behind a :class:`SourceGraph`, and how to evaluate parts of it.

The source graph is what passes read; this is what they cut up and run. Names agree: an FX node and the source node made
from it are called alike, weights by their path in the model.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, cast

import numpy.typing as npt
import torch
from torch import Tensor, fx
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils.flop_counter import FlopCounterMode

from twoheads.compiler.frontend.torch.fx.axes import AxisNames
from twoheads.compiler.frontend.torch.weights.stored_tensor import StoredTensor, keeping_last_weight, read_tensor
from twoheads.compiler.ir.size_formula import lengths_for
from twoheads.compiler.ir.source_program import LookUp
from twoheads.graphs.errors import InternalError
from twoheads.graphs.program.program import Input, TokenwiseEngine

__all__ = ["FxProgram", "FxRegion", "is_scalar"]


def is_scalar(node: fx.Node) -> bool:
    """Whether the node computes a size (a number known from shapes), not a tensor."""
    return isinstance(node.meta.get("val"), int | float | bool | torch.SymInt | torch.SymFloat | torch.SymBool)


@dataclass(frozen=True, slots=True)
class FxProgram:
    """The FX graph of a whole model after normalisation; a :class:`twoheads.compiler.ir.source_program.SourceProgram`.

    Attributes:
        nodes: Every node that computes something, by name, in topological order.
        placeholders: Source-graph name of every placeholder node, by FX name.
        inputs: The run's inputs.
        weights: Parameters, buffers and constants by source-graph name; referenced, never copied.
        axes: What the shape symbols mean.
        made: Weights that were computed from others, by the nodes that computed them: evaluating reads the weight, so
            that what is compared with the model is what a bundle gets.
    """

    nodes: Mapping[str, fx.Node]
    placeholders: Mapping[str, str]
    inputs: tuple[Input, ...]
    weights: Mapping[str, Tensor]
    axes: AxisNames
    made: Mapping[str, str] = field(default_factory=dict[str, str])

    def source_name(self, node: fx.Node) -> str:
        """The source graph's name of a node."""
        return self.placeholders.get(node.name, node.name)

    def _node_name(self, name: str) -> str:
        """The node of a value, which inputs and weights have under another name."""
        if name in self.nodes:
            return name
        return next(node for node, source in self.placeholders.items() if source == name)

    def with_weights(self, weights: Mapping[str, Tensor], made: Mapping[str, str] | None = None) -> FxProgram:
        """The same program with further weights, some ``made`` by nodes."""
        return replace(self, weights={**self.weights, **weights}, made={**self.made, **(made or {})})

    def ancestors(self, names: Iterable[str]) -> set[str]:
        """Names of the nodes that the named ones need, themselves included."""
        needed: set[str] = set()
        stack = [self.nodes[name] for name in names if name in self.nodes]
        while stack:
            node = stack.pop()
            if node.name not in needed:
                needed.add(node.name)
                stack.extend(node.all_input_nodes)
        return needed

    def constants(self, name: str) -> frozenset[int]:
        """Magnitudes of the whole numbers in the computation of a node."""
        arguments = [argument for each in self.ancestors((name,)) for argument in self.nodes[each].args]
        whole = [abs(entry) for entry in arguments if isinstance(entry, int) and not isinstance(entry, bool)]
        return frozenset(number for number in whole if number < 1 << 31)

    @torch.no_grad()
    def evaluate(self, names: Iterable[str], inputs: Mapping[str, npt.NDArray[Any]]) -> dict[str, Any]:
        """See :meth:`twoheads.compiler.ir.source_program.SourceProgram.evaluate`."""
        (found,) = self.evaluate_each(names, [inputs])
        return found

    @torch.no_grad()
    def evaluate_each(
        self, names: Iterable[str], given: Sequence[Mapping[str, npt.NDArray[Any]]]
    ) -> list[dict[str, Any]]:
        """See :meth:`twoheads.compiler.ir.source_program.SourceProgram.evaluate_each`."""
        wanted = set(names)
        needed = self.ancestors(self._node_name(name) for name in wanted)
        order = [node for name, node in self.nodes.items() if name in needed]
        last = {operand.name: node.name for node in order for operand in node.all_input_nodes}
        runs: list[tuple[Mapping[str, Any], dict[str, Any], dict[str, Any]]] = [(inputs, {}, {}) for inputs in given]
        with keeping_last_weight():
            for node in order:
                for inputs, results, found in runs:  # one after the other: the weight is the last one that was read
                    results[node.name] = self._value(node, inputs, results)
                    if (name := self.source_name(node)) in wanted:
                        found[name] = _to_numpy(results[node.name])
                    for operand in node.all_input_nodes:
                        if last[operand.name] == node.name:
                            results.pop(operand.name, None)
        return [found for _, _, found in runs]

    def _value(self, node: fx.Node, inputs: Mapping[str, npt.NDArray[Any]], results: Mapping[str, Any]) -> Any:
        if node.op == "placeholder":
            source = self.placeholders[node.name]
            return torch.from_numpy(inputs[source]) if source in inputs else self.weights[source]
        if node.name in self.made:
            return self.weights[self.made[node.name]]
        args, kwargs = fx.map_arg((node.args, node.kwargs), lambda n: results[n.name])
        return cast("Any", node.target)(*args, **kwargs)

    @torch.no_grad()
    def evaluate_nodes(
        self, names: Sequence[str], values: Mapping[str, Any], lengths: Mapping[str, int]
    ) -> dict[str, Any]:
        """See :meth:`twoheads.compiler.ir.source_program.SourceProgram.evaluate_nodes`."""
        found = dict(values)
        for name in names:
            found[name] = self._evaluate_node(name, found, lengths)
        return {name: found[name] for name in names}

    def _evaluate_node(self, name: str, values: Mapping[str, Any], lengths: Mapping[str, int]) -> Any:
        node = self.nodes[name]

        def look_up(operand: fx.Node) -> Any:
            if is_scalar(operand):
                return self.axes.evaluate(operand.meta["val"], lengths)
            source = self.source_name(operand)
            return self.weights[source] if source in self.weights else _to_torch(values[source])

        args, kwargs = fx.map_arg((node.args, node.kwargs), look_up)
        # Values that went through NumPy may lie otherwise in memory than those that were traced.
        target = torch.ops.aten.reshape.default if node.target is torch.ops.aten.view.default else node.target
        return _to_numpy(cast("Any", target)(*args, **kwargs))

    def look_up(self, name: str) -> LookUp | None:
        """See :meth:`twoheads.compiler.ir.source_program.SourceProgram.look_up`."""
        node, aten = self.nodes[name], torch.ops.aten
        arguments: Any = node.args
        if node.target is aten.embedding.default:
            table, axis, index = arguments[0], 0, arguments[1]
        elif node.target is aten.index.Tensor:  # table[:, index] has the indices [None, index]
            given = [at for at, index in enumerate(arguments[1]) if index is not None]
            if len(given) != 1:
                return None
            table, axis, index = arguments[0], given[0], arguments[1][given[0]]
        elif node.target in (aten.index_select.default, aten.gather.default):
            table, axis, index = arguments[0], int(arguments[1]), arguments[2]
        else:
            return None
        return LookUp(self.source_name(table), self.source_name(index), axis % len(table.meta["val"].shape))

    def region(self, *parts: Any) -> FxRegion:
        """See :meth:`twoheads.compiler.ir.source_program.SourceProgram.region`."""
        return FxRegion(self, *parts)


_TURNED = (torch.ops.aten.transpose.int, torch.ops.aten.permute.default)


def _target(node: fx.Node) -> Any:
    """What a region calls for ``node``: a view of turned rows was one of a kernel's result that lay turned."""
    turned = node.target is torch.ops.aten.view.default and cast("fx.Node", node.args[0]).target in _TURNED
    return torch.ops.aten.reshape.default if turned else node.target


def _to_numpy(value: Any) -> Any:
    if isinstance(value, Tensor):
        return read_tensor(value.detach()).numpy()
    return [_to_numpy(item) for item in value] if isinstance(value, list | tuple) else value


def _like(weight: Tensor) -> Tensor:
    """The weight; of one that is stored in a file the shape and dtype, for whoever looks at no numbers."""
    return torch.empty(weight.shape, dtype=weight.dtype) if isinstance(weight, StoredTensor) else weight


def _to_torch(value: Any) -> Any:
    if isinstance(value, list):
        return [_to_torch(item) for item in value]  # pyright: ignore[reportUnknownVariableType]
    return torch.from_numpy(value) if hasattr(value, "__array_interface__") and value.ndim else torch.as_tensor(value)


@dataclass(frozen=True, slots=True)
class FxRegion:
    """A :class:`twoheads.compiler.ir.source_program.TokenwiseRegion` of FX nodes."""

    program: FxProgram
    nodes: tuple[str, ...]
    inputs: tuple[str, ...]
    weights: tuple[str, ...]
    outputs: tuple[str, ...]
    axis: str | None

    def module(self, tokens: int) -> fx.GraphModule:
        """The region as a module ``(*inputs, *weights) -> outputs`` for exactly ``tokens`` positions."""
        graph = fx.Graph()
        env: dict[str, Any] = {}
        sources = {source: name for name, source in self.program.placeholders.items()}
        lengths = lengths_for(self.axis, tokens)
        for at, name in enumerate(self.inputs):
            env[sources.get(name, name)] = graph.placeholder(f"input_{at}")
        for at, name in enumerate(self.weights):
            env[sources[name]] = graph.placeholder(f"weight_{at}")

        def look_up(operand: fx.Node) -> Any:
            if operand.name in env:
                return env[operand.name]
            if is_scalar(operand):
                size = operand.meta["val"]
                is_token_axis = isinstance(size, torch.SymInt) and self.program.axes.dim(size) == self.axis
                return tokens if is_token_axis else self.program.axes.evaluate(size, lengths)
            raise InternalError(f"a region needs {operand.name}, which is neither in it nor an input")

        for name in self.nodes:
            node = self.program.nodes[name]
            args, kwargs = fx.map_arg((node.args, node.kwargs), look_up)
            env[name] = graph.create_node("call_function", _target(node), args, kwargs, name)
        graph.output(tuple(env[name] for name in self.outputs))
        return fx.GraphModule(torch.nn.Module(), graph)

    def port_arguments(self, engine: TokenwiseEngine) -> list[Tensor]:
        """Zero blocks for the engine's inputs, then weights, some without numbers: arguments to trace it with."""
        blocks = [torch.zeros(port.shape, dtype=getattr(torch, port.dtype)) for port in engine.inputs]
        return [*blocks, *(_like(self.program.weights[name]) for name in self.weights)]

    def block_size(self, engine: TokenwiseEngine) -> int:
        """Tokens of a block of ``engine``, read off its ports; 1 where it has none."""
        for names, ports in ((self.inputs, engine.inputs), (self.outputs, engine.outputs)):
            for name, port in zip(names, ports, strict=True):
                for dim, size in zip(self._shape(name), port.shape, strict=True):
                    if isinstance(dim, str):
                        return size
        return 1

    def _shape(self, name: str) -> tuple[int | str, ...]:
        for entry in self.program.inputs:
            if entry.value.name == name:
                return entry.value.shape
        return self.program.axes.shape(self.program.nodes[name].meta["val"])

    def flops(self, engine: TokenwiseEngine) -> int:
        """See :meth:`twoheads.compiler.ir.source_program.TokenwiseRegion.flops`; counted on shapes alone."""
        counter = FlopCounterMode(display=False)
        with FakeTensorMode(allow_non_fake_inputs=False) as mode:
            arguments = [mode.from_tensor(argument) for argument in self.port_arguments(engine)]
            with counter:
                self.module(self.block_size(engine))(*arguments)
        return counter.get_total_flops()
